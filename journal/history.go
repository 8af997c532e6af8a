package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"sort"
	"sync"
)

// history are the packs of finished tasks in badger's tables: written once by a
// compaction, read where they are, a block at a time, and only when something
// asks for a task that is not in the generation. So it costs nothing to the runs
// that do not look back.
type history struct {
	path string
	list tableList
	// files are the tables, held open by a view: a compaction may remove them.
	files []*os.File

	mu   sync.Mutex
	last struct { // the index of the table that was opened last
		table  int
		blocks []tableBlock
	}
}

// tableList is the content of the file TABLES of a history: it finds a task's
// table without opening any.
type tableList struct {
	Packs  int            `json:"packs"`
	Tables []writtenTable `json:"tables"`
}

// chunkSize bounds the values of a pack, in bytes.
const chunkSize = 128 << 10

const packPrefix = "pack/"

// chunksPrefix is that of all chunks of a task's pack.
func chunksPrefix(task string) []byte { return []byte(packPrefix + task + "\x00") }

func chunkKey(task string, n int) []byte {
	return binary.BigEndian.AppendUint32(chunksPrefix(task), uint32(n))
}

// parseChunkKey is the inverse of chunkKey.
func parseChunkKey(key []byte) (task string, n int, ok bool) {
	at := len(key) - 5
	if at < len(packPrefix) || string(key[:len(packPrefix)]) != packPrefix || key[at] != 0 {
		return "", 0, false
	}
	return string(key[len(packPrefix):at]), int(binary.BigEndian.Uint32(key[at+1:])), true
}

// openHistory reads the list of the history that c names and looks whether its
// tables are there; nil when there is no history.
func openHistory(dir string, c current) (*history, error) {
	if c.History == nil {
		return nil, nil
	}
	h := &history{path: filepath.Join(dir, generationName(c.History.Generation))}
	raw, err := os.ReadFile(filepath.Join(h.path, listFile))
	if err != nil {
		return nil, fmt.Errorf("the list of its history: %w", err)
	}
	if fingerprintOf(raw) != c.History.List {
		return nil, fmt.Errorf("%w: the list of its history, %s, was altered", ErrDamaged, listFile)
	}
	if err := json.Unmarshal(raw, &h.list); err != nil {
		return nil, fmt.Errorf("%w: the list of its history: %w", ErrDamaged, err)
	}
	for i, t := range h.list.Tables {
		info, err := os.Stat(h.name(i))
		if err != nil {
			return nil, fmt.Errorf("its history: %w", err)
		}
		if info.Size() != t.Size {
			return nil, fmt.Errorf("%w: table %s of its history has %d bytes instead of %d", ErrDamaged, filepath.Base(h.name(i)), info.Size(), t.Size)
		}
	}
	return h, nil
}

func (h *history) name(table int) string { return tableName(h.path, uint64(table)+1) }

// size is what the tables take, in bytes.
func (h *history) size() (n int64) {
	if h == nil {
		return 0
	}
	for _, t := range h.list.Tables {
		n += t.Size
	}
	return n
}

// pin holds the tables, whatever becomes of their names.
func (h *history) pin() error {
	if h == nil {
		return nil
	}
	for i := range h.list.Tables {
		f, err := os.Open(h.name(i))
		if err != nil {
			return errors.Join(err, h.close())
		}
		h.files = append(h.files, f)
	}
	return nil
}

func (h *history) close() error {
	if h == nil {
		return nil
	}
	var err error
	for _, f := range h.files {
		err = errors.Join(err, f.Close())
	}
	h.files = nil
	return err
}

// from yields the entries from a key on. It ends after the first error.
func (h *history) from(key []byte) iter.Seq2[tableEntry, error] {
	return func(yield func(tableEntry, error) bool) {
		if h == nil {
			return
		}
		// The table before the first that begins behind key.
		first := sort.Search(len(h.list.Tables), func(i int) bool { return bytes.Compare(h.list.Tables[i].First, key) > 0 })
		for i := max(0, first-1); i < len(h.list.Tables); i++ {
			if !h.table(i, key, yield) {
				return
			}
		}
	}
}

// open opens a table. The index is kept: who looks for one task looks for others.
func (h *history) open(i int) (*tableFile, error) {
	var held *os.File
	if h.files != nil {
		held = h.files[i]
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var known []tableBlock
	if h.last.table == i {
		known = h.last.blocks
	}
	t, err := openTable(h.name(i), held, known)
	if err == nil {
		h.last.table, h.last.blocks = i, t.blocks
	}
	return t, err
}

// table yields the entries of a table from a key on and says whether more are wanted.
func (h *history) table(i int, key []byte, yield func(tableEntry, error) bool) bool {
	t, err := h.open(i)
	if err != nil {
		yield(tableEntry{}, fmt.Errorf("its history: %w", err))
		return false
	}
	defer t.close()
	for e, err := range t.from(key) {
		if err != nil {
			err = fmt.Errorf("its history: %w", err)
		}
		if !yield(e, err) || err != nil {
			return false
		}
	}
	return true
}

// pack returns the pack of a task; nil when there is none.
func (h *history) pack(task string) (p pack, err error) {
	for chunk, err := range h.chunks(task) {
		if err != nil {
			return nil, err
		}
		if p != nil { // it has several, which are read one at a time
			return h.chunks(task), nil
		}
		p = packOf(chunk)
	}
	return p, nil
}

// chunks reads the pack of a task.
func (h *history) chunks(task string) pack {
	return func(yield func([]byte, error) bool) {
		for e, err := range h.from(chunkKey(task, 0)) {
			if err == nil && !bytes.HasPrefix(e.key, chunksPrefix(task)) {
				return
			}
			if !yield(e.value, err) || err != nil {
				return
			}
		}
	}
}

// stored is a task's pack in the history.
type stored struct {
	task string
	pack pack
	info packInfo
}

// all yields every pack, ordered by task. It ends after the first error.
func (h *history) all() iter.Seq2[stored, error] {
	return func(yield func(stored, error) bool) {
		if h == nil {
			return
		}
		var s stored
		packs := 0
		for e, err := range h.from(nil) {
			if err != nil {
				yield(stored{}, err)
				return
			}
			task, n, ok := parseChunkKey(e.key)
			if !ok {
				yield(stored{}, fmt.Errorf("%w: its history has a key %q", ErrDamaged, e.key))
				return
			}
			if n > 0 {
				s.pack = h.chunks(task)
				s.info.bytes += int64(len(e.value))
				continue
			}
			if packs > 0 && !yield(s, nil) {
				return
			}
			packs++
			s = stored{task: task, pack: packOf(e.value)}
			if s.info, err = decodePackInfo(e.value); err != nil {
				yield(stored{}, err)
				return
			}
		}
		if packs > 0 && !yield(s, nil) {
			return
		}
		if packs != h.list.Packs {
			yield(stored{}, fmt.Errorf("%w: its history has %d tasks instead of %d", ErrDamaged, packs, h.list.Packs))
		}
	}
}

// writeHistory makes a new history of packs that are ordered by task, durably,
// and returns what CURRENT says of it.
func writeHistory(dir string, number uint64, packs iter.Seq2[stored, error]) (*historyRef, error) {
	count := 0
	entries := func(yield func(tableEntry, error) bool) {
		for s, err := range packs {
			if err != nil {
				yield(tableEntry{}, err)
				return
			}
			count++
			n := 0
			for chunk, err := range s.pack {
				if !yield(tableEntry{key: chunkKey(s.task, n), value: chunk}, err) || err != nil {
					return
				}
				n++
			}
		}
	}
	ref := &historyRef{Generation: number}
	err := writeDatabase(dir, number, entries, func(path string, tables []writtenTable) error {
		raw, err := json.Marshal(tableList{count, append([]writtenTable{}, tables...)})
		if err != nil {
			return err
		}
		ref.List = fingerprintOf(raw)
		return writeNew(filepath.Join(path, listFile), raw)
	})
	return ref, err
}
