package journal

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// source is where a generation is read from: the open database, or its files.
type source interface {
	// get returns the value of a key; nil when there is none.
	get(key []byte) ([]byte, error)
	// scan yields what is stored under a prefix, in the order of the keys, and ends
	// after the first error. What it yields is not written to.
	scan(prefix []byte) iter.Seq2[tableEntry, error]
}

// contents are what the files of a generation hold. Badger changes a database
// when it opens it, may die of SIGBUS on the way, and takes one whose end is
// missing as it is; so its files are read here without it, by read(2): from a
// live journal, from what a dead process left, from damaged ones.
//
// Tables are read where they are, a block at a time: they may hold the records of a
// million files. What the logs hold is copied: it is never more than a few logs are
// long, and badger cuts a log off when it has made a table of it.
type contents struct {
	logs   map[string]tableEntry // the newest entry of each key
	sorted []tableEntry          // of logs, in the order of the keys, once they were asked for
	tables []*sstable
	// lenient leaves out blocks that are damaged, of which the report tells.
	lenient bool

	bytes  int64       // see size
	tabled tableEntry  // the newest tip in the tables
	logged [][2][]byte // the first and the last tip of each log that has one
}

func newContents() *contents { return &contents{logs: map[string]tableEntry{}} }

// put takes an entry of a log. It keeps no part of what the entry is in.
func (c *contents) put(e tableEntry) {
	if was, ok := c.logs[string(e.key)]; ok && was.version > e.version {
		return
	}
	e.key, e.value = bytes.Clone(e.key), bytes.Clone(e.value)
	c.logs[string(e.key)] = e
	c.sorted = nil
}

func (c *contents) get(key []byte) ([]byte, error) {
	for e, err := range c.scan(key) {
		if err != nil || !bytes.Equal(e.key, key) {
			return nil, err
		}
		return e.value, nil
	}
	return nil, nil
}

func (c *contents) scan(prefix []byte) iter.Seq2[tableEntry, error] {
	return func(yield func(tableEntry, error) bool) {
		var last []byte
		for e, err := range c.from(prefix) {
			if err != nil {
				yield(tableEntry{}, err)
				return
			}
			if !bytes.HasPrefix(e.key, prefix) {
				return
			}
			if last != nil && bytes.Equal(e.key, last) {
				continue // an older version
			}
			if last = e.key; !e.deleted && !yield(e, nil) {
				return
			}
		}
	}
}

// size is what the keys and values take on disk, in bytes.
func (c *contents) size() (int64, error) {
	if c.bytes > 0 {
		return c.bytes, nil
	}
	n := int64(0)
	for e, err := range c.scan(nil) {
		if err != nil {
			return 0, err
		}
		n += int64(len(e.key) + len(e.value))
	}
	c.bytes = n
	return n, nil
}

// close lets go of the tables that are held.
func (c *contents) close() error {
	var err error
	for _, t := range c.tables {
		if t.held != nil {
			err = errors.Join(err, t.held.Close())
		}
	}
	return err
}

// readContents reads the generation in path. It may be the one that a live
// process writes: the logs come first, so that what moves from a log to a table
// meanwhile is found twice, not never. A file that vanishes under it is an
// fs.ErrNotExist; the beginning of the list of tables has to be list, unless
// that is empty. With hold the tables are held open, whatever becomes of their
// names, and the caller closes c; without, nobody removes them. logged is what the
// logs hold, in bytes.
func readContents(path string, list fingerprint, hold bool) (_ *contents, logged int64, err error) {
	c := newContents()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	logs, err := filesOf(path, "*.mem")
	if err != nil {
		return nil, 0, err
	}
	for _, name := range logs {
		size, err := c.replayLog(name)
		if err != nil {
			return nil, 0, err
		}
		logged += size - walHeader
	}
	if list != (fingerprint{}) {
		if err := checkManifest(path, list); err != nil {
			return nil, 0, err
		}
	}
	tables, err := readManifest(path)
	if err != nil {
		return nil, 0, err
	}
	for _, t := range tables {
		if err := c.addTable(t.name, hold); err != nil {
			return nil, 0, err
		}
	}
	if err := c.gapless(); err != nil {
		return nil, 0, err
	}
	return c, logged, nil
}

// gapless wants every record to follow one that is in the tables or an older
// log: the tip, which the witness knows, shows only that the newest is there.
func (c *contents) gapless() error {
	var known tip
	if c.tabled.value != nil {
		var err error
		if known, err = decode[tip](tipKey, c.tabled.value); err != nil {
			return err
		}
	}
	for _, raw := range c.logged {
		first, err := decode[tip](tipKey, raw[0])
		if err != nil {
			return err
		}
		last, err := decode[tip](tipKey, raw[1])
		if err != nil {
			return err
		}
		if first.Count > known.Count+1 {
			return fmt.Errorf("%w: its records %d to %d of %d are lost", ErrDamaged, known.Count+1, first.Count-1, last.Count)
		}
		known.Count = max(known.Count, last.Count)
	}
	return nil
}

// addTable verifies a table and adds it to those that are read.
func (c *contents) addTable(name string, hold bool) (err error) {
	t, err := openTable(name, nil, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil || !hold {
			err = errors.Join(err, t.close())
		}
	}()
	if err := t.verify(); err != nil {
		return err
	}
	end, err := t.entries(len(t.blocks) - 1)
	if err != nil {
		return err
	}
	for e, err := range t.from(tipKey) {
		if err != nil {
			return err
		}
		if bytes.Equal(e.key, tipKey) && e.version >= c.tabled.version {
			c.tabled = tableEntry{version: e.version, value: bytes.Clone(e.value)}
		}
	}
	s := &sstable{name: name, blocks: t.blocks, last: end[len(end)-1].key}
	if hold {
		s.held = t.f
	}
	c.tables = append(c.tables, s)
	return nil
}

// filesOf lists the files in a directory, oldest first: badger numbers them.
func filesOf(path, pattern string) ([]string, error) {
	names, err := filepath.Glob(filepath.Join(path, pattern))
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// listed is a table on badger's list.
type listed struct {
	name  string
	level int
}

// readManifest returns the tables of badger's list, oldest first.
func readManifest(path string) ([]listed, error) {
	f, err := os.Open(filepath.Join(path, badger.ManifestFilename))
	if err != nil {
		return nil, fmt.Errorf("its list of tables: %w", err)
	}
	defer f.Close()
	list, _, err := badger.ReplayManifestFile(f, 0, databaseOptions(path))
	var system *os.PathError
	if errors.As(err, &system) {
		return nil, fmt.Errorf("its list of tables: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: its list of tables: %w", ErrDamaged, err)
	}
	var tables []listed
	for _, id := range slices.Sorted(maps.Keys(list.Tables)) {
		tables = append(tables, listed{tableName(path, id), int(list.Tables[id].Level)})
	}
	return tables, nil
}
