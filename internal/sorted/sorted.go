// Package sorted has a list in the order of its keys that may be larger than memory.
package sorted

import (
	"bufio"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// Entry is one of a list.
type Entry struct {
	Key   string
	Value []byte
}

// List is a sorted list. What does not fit into memory is in a file that has no
// name any more, so that nothing is left of it when the process dies. On a full disk
// it stays in memory: the outputs of a task that has filled the disk are published
// all the same. A list is filled first, by one goroutine, and then read.
type List struct {
	file    string // where it may be made
	compare func(a, b string) int

	entries []Entry // not yet in the file
	bytes   int     // that entries take
	most    int     // bytes with which they go to the file
	disk    *os.File
	runs    []run // in disk
	size    int64 // of disk
}

// run is a part of the file that is sorted in itself.
type run struct{ offset, size int64 }

const (
	// inMemory is how many bytes of entries are sorted at a time.
	inMemory = 4 << 20
	// readAhead is shared by the runs that are read side by side, as long as each has
	// leastAhead: a run of inMemory bytes costs a thousandth of that in memory.
	readAhead  = 2 << 20
	leastAhead = 4 << 10
)

// New returns an empty list. A long one makes file and removes its name at once;
// what has that name is overwritten. Entries whose keys are equal stay in the order
// in which they were added.
func New(file string, compare func(a, b string) int) *List {
	return &List{file: file, compare: compare, most: inMemory}
}

// Add adds an entry, which is not to be changed any more.
func (l *List) Add(e Entry) error {
	l.entries = append(l.entries, e)
	l.bytes += len(e.Key) + len(e.Value) + int(unsafe.Sizeof(e))
	if l.bytes < l.most {
		return nil
	}
	return l.spill()
}

// sort sorts what is in memory.
func (l *List) sort() {
	slices.SortStableFunc(l.entries, func(a, b Entry) int { return l.compare(a.Key, b.Key) })
}

// spill moves what is in memory to the file, unless the disk is full.
func (l *List) spill() error {
	err := l.write()
	switch {
	case err == nil:
		l.most = inMemory
		return nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		l.most = l.bytes + inMemory
		return nil
	}
	return machine.Faultf(machine.NodeFault, "cannot keep the list %s on the disk: %w", l.file, err)
}

// write writes what is in memory as one more run.
func (l *List) write() error {
	l.sort()
	if l.disk == nil {
		if err := l.create(); err != nil {
			return err
		}
	}
	r := run{offset: l.size}
	at := l.size
	block := make([]byte, 0, 64<<10)
	for i, e := range l.entries {
		block = appendBytes(appendBytes(block, e.Key), e.Value)
		if len(block) < 60<<10 && i+1 < len(l.entries) {
			continue
		}
		n, err := l.disk.WriteAt(block, at)
		if err != nil {
			return err // what is written of the run is overwritten by the next one
		}
		at += int64(n)
		block = block[:0]
	}
	l.size, r.size = at, at-r.offset
	l.runs = append(l.runs, r)
	clear(l.entries)
	l.entries, l.bytes = l.entries[:0], 0
	return nil
}

func (l *List) create() error {
	f, err := os.OpenFile(l.file, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := os.Remove(l.file); err != nil {
		return errors.Join(err, f.Close())
	}
	l.disk = f
	return nil
}

// All yields the entries in the order of their keys, as often as it is asked; nothing
// is added any more. It ends after the first error.
func (l *List) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if len(l.runs) > 0 && len(l.entries) > 0 {
			if err := l.spill(); err != nil {
				yield(Entry{}, err)
				return
			}
		}
		if len(l.runs) == 0 {
			l.sort()
			for _, e := range l.entries {
				if !yield(e, nil) {
					return
				}
			}
			return
		}
		if err := l.merge(yield); err != nil {
			yield(Entry{}, machine.Faultf(machine.NodeFault, "cannot read the list %s from the disk: %w", l.file, err))
		}
	}
}

// merge yields what is in the file and, as the last run, in memory.
func (l *List) merge(yield func(Entry, error) bool) error {
	ahead := max(leastAhead, readAhead/len(l.runs))
	m := &merger{compare: l.compare}
	for i, r := range l.runs {
		c := &cursor{run: i, r: bufio.NewReaderSize(io.NewSectionReader(l.disk, r.offset, r.size), ahead)}
		if err := c.next(); err != nil {
			return err
		}
		m.cursors = append(m.cursors, c)
	}
	if len(l.entries) > 0 {
		m.cursors = append(m.cursors, &cursor{run: len(l.runs), entry: l.entries[0], memory: l.entries[1:]})
	}
	heap.Init(m)
	for len(m.cursors) > 0 {
		c := m.cursors[0]
		if !yield(c.entry, nil) {
			return nil
		}
		err := c.next()
		switch {
		case err == nil:
			heap.Fix(m, 0)
		case errors.Is(err, io.EOF):
			heap.Pop(m)
		default:
			return err
		}
	}
	return nil
}

// Close gives back the space of the file.
func (l *List) Close() error {
	l.entries = nil
	if l.disk == nil {
		return nil
	}
	return l.disk.Close()
}

// cursor reads a run.
type cursor struct {
	run   int
	r     *bufio.Reader // nil for the run that is in memory
	entry Entry         // the next one
	// memory has what follows it, of the run that is in memory.
	memory []Entry
}

// next reads an entry; it returns io.EOF at the end of the run only.
func (c *cursor) next() error {
	if c.r == nil {
		if len(c.memory) == 0 {
			return io.EOF
		}
		c.entry, c.memory = c.memory[0], c.memory[1:]
		return nil
	}
	key, err := readBytes(c.r)
	if err != nil {
		return err
	}
	value, err := readBytes(c.r)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("an entry has no end: %w", io.ErrUnexpectedEOF)
	}
	c.entry = Entry{string(key), value}
	return err
}

func appendBytes[T ~string | ~[]byte](to []byte, b T) []byte {
	return append(binary.AppendUvarint(to, uint64(len(b))), b...)
}

func readBytes(r *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("an entry has no end: %w", io.ErrUnexpectedEOF)
	}
	return b, nil
}

// merger has the run with the least entry first (see container/heap).
type merger struct {
	compare func(a, b string) int
	cursors []*cursor
}

func (m *merger) Len() int      { return len(m.cursors) }
func (m *merger) Swap(i, j int) { m.cursors[i], m.cursors[j] = m.cursors[j], m.cursors[i] }

// Less prefers the earlier run of two, whose entries were added first.
func (m *merger) Less(i, j int) bool {
	a, b := m.cursors[i], m.cursors[j]
	if order := m.compare(a.entry.Key, b.entry.Key); order != 0 {
		return order < 0
	}
	return a.run < b.run
}

func (m *merger) Push(x any) { m.cursors = append(m.cursors, x.(*cursor)) }

func (m *merger) Pop() any {
	last := m.cursors[len(m.cursors)-1]
	m.cursors[len(m.cursors)-1] = nil
	m.cursors = m.cursors[:len(m.cursors)-1]
	return last
}
