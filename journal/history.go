package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/dgraph-io/badger/v4"
)

// history is the database of finished tasks: written once by a compaction, read
// in place, and opened only when something asks for a task that is not in the
// generation. So it costs nothing to the runs that do not look back.
type history struct {
	path string
	mark fingerprint // of its list of tables

	mu sync.Mutex
	db *badger.DB
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

// open returns the database, nil when there is no history.
func (h *history) open() (*badger.DB, error) {
	if h == nil {
		return nil, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.db != nil {
		return h.db, nil
	}
	if err := checkManifest(h.path, h.mark); err != nil {
		return nil, err
	}
	// Not every block: that would take as long as the history is. Each pack has
	// a checksum of its own.
	if err := checkTables(h.path, indexOnly); err != nil {
		return nil, err
	}
	db, err := openDatabase(databaseOptions(h.path).WithReadOnly(true))
	if err != nil {
		return nil, err
	}
	h.db = db
	return db, nil
}

func (h *history) close() error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.db == nil {
		return nil
	}
	db := h.db
	h.db = nil
	return closeDatabase(db)
}

// pack returns the stored pack of a task; nil when there is none.
func (h *history) pack(task string) ([]byte, error) {
	db, err := h.open()
	if err != nil || db == nil {
		return nil, err
	}
	var raw []byte
	err = db.View(func(tx *badger.Txn) error {
		for n := 0; ; n++ {
			item, err := tx.Get(chunkKey(task, n))
			if errors.Is(err, badger.ErrKeyNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := item.Value(func(chunk []byte) error {
				raw = append(raw, chunk...)
				return nil
			}); err != nil {
				return err
			}
		}
	})
	return raw, err
}

// stored is a task's pack as it is stored.
type stored struct {
	task string
	pack []byte
}

// all yields every pack, ordered by task. It ends after the first error.
func (h *history) all() iter.Seq2[stored, error] {
	return func(yield func(stored, error) bool) {
		db, err := h.open()
		if err != nil {
			yield(stored{}, err)
			return
		}
		if db == nil {
			return
		}
		tx := db.NewTransaction(false)
		defer tx.Discard()
		var s stored
		for item := range items(tx, []byte(packPrefix)) {
			task, n, ok := parseChunkKey(item.Key())
			if !ok {
				yield(stored{}, fmt.Errorf("%w: the history has a key %q", ErrDamaged, item.Key()))
				return
			}
			if n == 0 && s.pack != nil && !yield(s, nil) {
				return
			}
			if n == 0 {
				s = stored{task: task}
			}
			if err := item.Value(func(chunk []byte) error {
				s.pack = append(s.pack, chunk...)
				return nil
			}); err != nil {
				yield(stored{}, err)
				return
			}
		}
		if s.pack != nil {
			yield(s, nil)
		}
	}
}

// putPack writes a pack in chunks.
func putPack(w *badger.WriteBatch, s stored) error {
	for n := 0; len(s.pack) > 0; n++ {
		chunk := s.pack[:min(chunkSize, len(s.pack))]
		s.pack = s.pack[len(chunk):]
		if err := w.Set(chunkKey(s.task, n), chunk); err != nil {
			return err
		}
	}
	return nil
}
