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
// compaction, read where they are, a table at a time, and only when something
// asks for a task that is not in the generation. So it costs nothing to the runs
// that do not look back.
type history struct {
	path string
	list tableList
	// files are the tables, held open by a view: a compaction may remove them.
	files []*os.File

	mu   sync.Mutex
	last *tableFile // the table read last
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

// table reads a table.
func (h *history) table(i int) (*tableFile, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last != nil && h.last.name == h.name(i) {
		return h.last, nil
	}
	h.last = nil
	t, err := h.read(i)
	if err != nil {
		return nil, fmt.Errorf("its history: %w", err)
	}
	h.last = t
	return t, nil
}

func (h *history) read(i int) (*tableFile, error) {
	if h.files == nil {
		return openTable(h.name(i))
	}
	data := make([]byte, h.list.Tables[i].Size)
	if _, err := h.files[i].ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("table %s: %w", filepath.Base(h.name(i)), err)
	}
	return verifyTable(h.name(i), data)
}

// from yields the entries from a key on.
func (h *history) from(key []byte) iter.Seq2[tableEntry, error] {
	return func(yield func(tableEntry, error) bool) {
		if h == nil {
			return
		}
		// The table before the first that begins behind key.
		first := sort.Search(len(h.list.Tables), func(i int) bool { return bytes.Compare(h.list.Tables[i].First, key) > 0 })
		for i := max(0, first-1); i < len(h.list.Tables); i++ {
			t, err := h.table(i)
			if err != nil {
				yield(tableEntry{}, err)
				return
			}
			for e := range t.from(key) {
				if !yield(e, nil) {
					return
				}
			}
			key = nil
		}
	}
}

// pack returns the stored pack of a task; nil when there is none.
func (h *history) pack(task string) (pack []byte, err error) {
	for e, err := range h.from(chunkKey(task, 0)) {
		if err != nil {
			return nil, err
		}
		if !bytes.HasPrefix(e.key, chunksPrefix(task)) {
			break
		}
		pack = append(pack, e.value...)
	}
	return pack, nil
}

// stored is a task's pack as it is stored.
type stored struct {
	task string
	pack []byte
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
			if n == 0 {
				if packs > 0 && !yield(s, nil) {
					return
				}
				packs++
				s = stored{task: task}
			}
			s.pack = append(s.pack, e.value...)
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
			for n := 0; len(s.pack) > 0; n++ {
				chunk := s.pack[:min(chunkSize, len(s.pack))]
				s.pack = s.pack[len(chunk):]
				if !yield(tableEntry{key: chunkKey(s.task, n), value: chunk}, nil) {
					return
				}
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
