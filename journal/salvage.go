package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/y"
)

// salvage examines a journal that cannot be read as a whole: it reads what it
// can, says what it cannot, and replays the tasks to tell which records are
// missing.
func (r *Report) salvage(dir string, said testimony, legal TransitionCheck) (err error) {
	c, found, err := readCurrent(dir)
	if !found || err != nil {
		newest, err := newestGeneration(dir)
		if err != nil || newest == 0 {
			return err
		}
		c = current{Generation: newest}
	}
	s := &salvager{report: r, found: newContents()}
	s.found.lenient = true
	defer func() { err = errors.Join(err, s.found.close()) }()
	if err := s.generation(filepath.Join(dir, generationName(c.Generation))); err != nil {
		return err
	}
	past, err := openHistory(dir, c)
	if err != nil {
		past = nil
		if err := s.tables(filepath.Join(dir, generationName(c.History.Generation))); err != nil {
			return err
		}
	}
	for _, err := range s.found.scan(nil) { // when there is anything at all
		if err != nil {
			return err
		}
		r.replay(&reader{s.found, past}, said, legal)
		break
	}
	return nil
}

// salvager finds what can be read.
type salvager struct {
	report *Report
	found  *contents
}

func (s *salvager) generation(path string) error {
	logs, err := filepath.Glob(filepath.Join(path, "*.mem"))
	if err != nil {
		return err
	}
	for _, name := range logs {
		if err := s.log(name); err != nil {
			return err
		}
	}
	return s.tables(path)
}

// log takes every entry that is whole, also behind one that is not.
func (s *salvager) log(name string) error {
	w, err := openWAL(name)
	if err != nil {
		return err
	}
	defer w.close()
	for {
		at := w.at
		e, err := w.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errNotWhole) && e.key == nil:
			s.report.problem("", 0, "altered: %s is not readable from byte %d on", filepath.Base(name), at)
			return nil
		case errors.Is(err, errNotWhole):
			task, seq := whose(y.ParseKey(e.key))
			s.report.problem(task, seq, "altered: the checksum of an entry in %s, byte %d, does not match", filepath.Base(name), at)
		case err != nil:
			return err
		case e.meta&walFinTxn == 0:
			s.found.put(e.entry())
		}
	}
}

// tables takes every table, whatever badger's list says, and tells which blocks of
// it are not whole.
func (s *salvager) tables(path string) error {
	names, err := filepath.Glob(filepath.Join(path, "*.sst"))
	if err != nil {
		return err
	}
	for _, name := range names {
		err := s.table(name)
		if errors.Is(err, ErrDamaged) {
			s.report.problem("", 0, "%v: nothing of it can be read", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (s *salvager) table(name string) (err error) {
	t, err := openTable(name, nil, nil)
	if err != nil {
		return err
	}
	s.found.tables = append(s.found.tables, &sstable{name: name, held: t.f, blocks: t.blocks})
	for i, b := range t.blocks {
		_, err := t.entries(i)
		if errors.Is(err, ErrDamaged) {
			task, seq := whose(y.ParseKey(b.first))
			end := "the table's end"
			if i+1 < len(t.blocks) {
				end = describe(y.ParseKey(t.blocks[i+1].first))
			}
			s.report.problem(task, seq, "altered: the checksum of block %d of table %s does not match; it holds what is stored from here to %s", i, filepath.Base(name), end)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// whose names the task and the record that a key belongs to, as far as it does.
func whose(key []byte) (task string, seq uint64) {
	if task, seq, ok := parseRecordKey(key); ok {
		return task, seq
	}
	if task, _, ok := parseChunkKey(key); ok {
		return task, 0
	}
	if task, ok := taskOf(key); ok {
		return task, 0
	}
	return "", 0
}

func describe(key []byte) string {
	task, seq := whose(key)
	if seq > 0 {
		return fmt.Sprintf("record %d of task %s", seq, task)
	}
	if task == "" {
		return fmt.Sprintf("the key %q", key)
	}
	return "task " + task
}

// idle looks at the files of the generation in which badger keeps nothing for
// the journal. Damage to them loses nothing and is told all the same: a disk
// that does this does more.
func (r *Report) idle(dir string) {
	c, found, err := readCurrent(dir)
	if !found || err != nil {
		return
	}
	path := filepath.Join(dir, generationName(c.Generation))
	logs, _ := filepath.Glob(filepath.Join(path, "*.vlog")) // the pattern is right
	for name, whole := range map[string]func([]byte) bool{
		badger.KeyRegistryFileName: func(b []byte) bool { return bytes.HasSuffix(b, []byte("Hello Badger")) && len(b) == 28 },
		"DISCARD":                  func(b []byte) bool { return len(b) == 1<<20 && zeros(b) },
	} {
		r.idleFile(filepath.Join(path, name), whole)
	}
	for _, name := range logs {
		// The key's number, then its beginning: there is no key.
		r.idleFile(name, func(b []byte) bool { return len(b) >= walHeader && zeros(b[:8]) && zeros(b[walHeader:]) })
	}
}

func (r *Report) idleFile(name string, whole func([]byte) bool) {
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(b) == 0 {
		return // as a killed process leaves it
	}
	if err != nil {
		r.problem("", 0, "%s: %v", filepath.Base(name), err)
	} else if !whole(b) {
		r.problem("", 0, "altered: %s; no record is in it, and the next run writes it anew", filepath.Base(name))
	}
}

func zeros(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
