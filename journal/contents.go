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
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/klauspost/compress/s2"
)

// source is where a generation is read from: the open database, or its files.
type source interface {
	// get returns the value of a key; nil when there is none.
	get(key []byte) ([]byte, error)
	// scan yields what is stored under a prefix, in the order of the keys. What
	// it yields is not written to.
	scan(prefix []byte) iter.Seq2[[]byte, []byte]
}

// contents are what the files of a generation hold. Badger changes a database
// when it opens it, may die of SIGBUS on the way, and takes one whose end is
// missing as it is; so its files are read here without it, by read(2): from a
// live journal, from what a dead process left, from damaged ones.
type contents struct {
	values map[string]versioned
	sorted []string // the keys, once they were asked for

	tabled  versioned   // the newest tip in the tables
	logged  [][2][]byte // the first and the last tip of each log that has one
	scratch []byte      // for compression
}

type versioned struct {
	version uint64
	value   []byte // nil when the key was deleted
	// size is that of a value which is compressed here, in bytes; 0 for one that is
	// as it was stored.
	size int
}

// compressFrom is the size in bytes from which a value is compressed in memory. It is
// the records of many files that are so large, and their paths have much in common.
const compressFrom = 4 << 10

// put keeps no part of what the entry is in: a table would stay in memory for a
// value of a few bytes.
func (c *contents) put(e tableEntry) {
	if was, ok := c.values[string(e.key)]; ok && was.version > e.version {
		return
	}
	v := versioned{version: e.version}
	switch {
	case e.deleted:
	case len(e.value) < compressFrom:
		v.value = append([]byte{}, e.value...) // not nil
	default:
		c.scratch = s2.Encode(c.scratch[:cap(c.scratch)], e.value)
		v.value, v.size = bytes.Clone(c.scratch), len(e.value)
	}
	c.values[string(e.key)] = v
	c.sorted = nil
}

// stored returns the value as it was stored.
func (v versioned) stored() ([]byte, error) {
	if v.size == 0 {
		return v.value, nil
	}
	return s2.Decode(nil, v.value)
}

func (c *contents) get(key []byte) ([]byte, error) { return c.values[string(key)].stored() }

func (c *contents) scan(prefix []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		if c.sorted == nil {
			c.sorted = slices.Sorted(maps.Keys(c.values))
		}
		from, _ := slices.BinarySearch(c.sorted, string(prefix))
		for _, key := range c.sorted[from:] {
			if !strings.HasPrefix(key, string(prefix)) {
				return
			}
			v, err := c.values[key].stored()
			if err != nil {
				panic(fmt.Sprintf("memory holds %q otherwise than it was compressed: %v", key, err))
			}
			if v != nil && !yield([]byte(key), v) {
				return
			}
		}
	}
}

// size is what the keys and values take on disk, in bytes.
func (c *contents) size() (n int64) {
	for key, v := range c.values {
		n += int64(len(key) + max(v.size, len(v.value)))
	}
	return n
}

// readContents reads the generation in path. It may be the one that a live
// process writes: the logs come first, so that what moves from a log to a table
// meanwhile is found twice, not never. A file that vanishes under it is an
// fs.ErrNotExist; the beginning of the list of tables has to be list, unless
// that is empty. logged is what the logs hold, in bytes.
func readContents(path string, list fingerprint) (c *contents, logged int64, err error) {
	c = &contents{values: map[string]versioned{}}
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
		if err := c.readTable(t.name); err != nil {
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

func (c *contents) readTable(name string) error {
	t, err := openTable(name)
	if err != nil {
		return err
	}
	for e := range t.from(nil) {
		c.put(e)
		if bytes.Equal(e.key, tipKey) && e.version >= c.tabled.version {
			c.tabled = versioned{version: e.version, value: bytes.Clone(e.value)}
		}
	}
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
