package journal

import (
	"bytes"
	"container/heap"
	"errors"
	"iter"
	"maps"
	"os"
	"slices"

	"github.com/dgraph-io/badger/v4/y"
)

// sstable is a table of a generation while it is not open.
type sstable struct {
	name   string
	held   *os.File     // nil: it is opened when it is read
	blocks []tableBlock // some hundredth of the table's bytes
	last   []byte       // its last key; nil when that is not known
	// recent is the block that was read last: who looks for one task looks for the
	// next one, which is in the same block.
	recent struct {
		block   int
		entries []tableEntry
	}
}

// recentSize is how many bytes a block may have that is kept. One with more has
// few records, and all of them were asked for.
const recentSize = 16 << 10

// from yields every version of what is stored from a key on, in the order of the
// keys, of one key the newest first. It ends after the first error.
//
// A table is open from its first key to its last one, with one block of it in memory.
// The tables of a generation that was written as a whole follow each other, and in
// those that processes have added a task's records do: so few blocks are in memory
// at a time, however many tables there are.
func (c *contents) from(key []byte) iter.Seq2[tableEntry, error] {
	return func(yield func(tableEntry, error) bool) {
		m := c.cursors(key)
		var err error
		for err == nil && len(m) > 0 {
			at := m[0]
			if len(at.entries) == 0 {
				if err = at.read(); c.lenient && errors.Is(err, ErrDamaged) {
					err = nil
				}
			} else {
				e := at.entries[0]
				at.entries = at.entries[1:]
				if bytes.Compare(e.key, key) >= 0 && !yield(e, nil) {
					break
				}
			}
			if at.atEnd() {
				at.close()
				heap.Pop(&m)
			} else {
				heap.Fix(&m, 0)
			}
		}
		for _, at := range m {
			at.close()
		}
		if err != nil {
			yield(tableEntry{}, err)
		}
	}
}

// cursors are at the places from which the logs and each table are to be read.
func (c *contents) cursors(key []byte) (m merger) {
	if logged := c.loggedFrom(key); len(logged) > 0 {
		m = append(m, &cursor{entries: logged})
	}
	for _, s := range c.tables {
		if s.last == nil || bytes.Compare(s.last, key) >= 0 {
			m = append(m, &cursor{table: s, block: seek(s.blocks, key)})
		}
	}
	heap.Init(&m)
	return m
}

// loggedFrom returns what the logs hold from a key on.
func (c *contents) loggedFrom(key []byte) []tableEntry {
	if c.sorted == nil {
		c.sorted = slices.SortedFunc(maps.Values(c.logs), func(a, b tableEntry) int { return bytes.Compare(a.key, b.key) })
	}
	from, _ := slices.BinarySearchFunc(c.sorted, key, func(e tableEntry, key []byte) int { return bytes.Compare(e.key, key) })
	return c.sorted[from:]
}

// cursor is a place in a table, or in what the logs hold.
type cursor struct {
	table   *sstable     // nil for the logs
	file    *tableFile   // nil before it is opened
	block   int          // the next one to read
	entries []tableEntry // the next ones, as far as they were read
}

// next is the next entry, which has no value yet when its block was not read.
func (at *cursor) next() tableEntry {
	if len(at.entries) > 0 {
		return at.entries[0]
	}
	first := at.table.blocks[at.block].first
	return tableEntry{key: y.ParseKey(first), version: y.ParseTs(first)}
}

func (at *cursor) atEnd() bool {
	return len(at.entries) == 0 && (at.table == nil || at.block == len(at.table.blocks))
}

// read reads the next block, or passes one that is damaged.
func (at *cursor) read() (err error) {
	t, block := at.table, at.block
	at.block++
	if t.recent.entries != nil && t.recent.block == block {
		at.entries = t.recent.entries
		return nil
	}
	if at.file == nil {
		if at.file, err = openTable(t.name, t.held, t.blocks); err != nil {
			return err
		}
	}
	at.entries, err = at.file.entries(block)
	if b := t.blocks[block]; err == nil && b.end-b.begin <= recentSize {
		t.recent.block, t.recent.entries = block, at.entries
	}
	return err
}

func (at *cursor) close() {
	if at.file != nil {
		_ = at.file.close() // it was only read
	}
}

// merger has the cursor with the next entry of all first (see container/heap).
type merger []*cursor

func (m merger) Len() int      { return len(m) }
func (m merger) Swap(i, j int) { m[i], m[j] = m[j], m[i] }
func (m *merger) Push(x any)   { *m = append(*m, x.(*cursor)) }

func (m merger) Less(i, j int) bool {
	a, b := m[i].next(), m[j].next()
	if order := bytes.Compare(a.key, b.key); order != 0 {
		return order < 0
	}
	return a.version > b.version
}

func (m *merger) Pop() any {
	last := (*m)[len(*m)-1]
	(*m)[len(*m)-1] = nil // it has a block in memory
	*m = (*m)[:len(*m)-1]
	return last
}
