package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// The witness is a small file outside the database that says what the newest
// record is, so that a journal that lost its tail does not pass for a shorter
// one. It has two slots that are written in turn: one of them is always whole.
const (
	slotSize    = 1024
	slotSpacing = 4096 // one slot a page
	slotCount   = 2

	// witnessLag bounds how long a written slot may wait for fdatasync. A kill
	// loses nothing of it, the pages are the kernel's; a power cut may.
	witnessLag = time.Second
)

// testimony is the content of a slot.
type testimony struct {
	// Serial counts the writes: the slot with the higher one is the newer.
	Serial uint64 `json:"serial"`
	// Tip is the newest acknowledged record.
	Tip tip `json:"tip"`
	// Task and Seq name that record; empty when the name does not fit.
	Task string `json:"task"`
	Seq  uint64 `json:"seq"`
	// Root is the root id once more.
	Root string `json:"root"`
	// Clean says that the database was closed after it.
	Clean bool `json:"clean"`
	// Generation is the one that Manifest describes.
	Generation uint64 `json:"generation"`
	// Manifest is a prefix of badger's list of tables, which only ever grows
	// within a generation.
	Manifest fingerprint `json:"manifest"`
}

// fingerprint identifies the first Size bytes of a file.
type fingerprint struct {
	Size int64  `json:"size"`
	Hash string `json:"hash"`
}

type witness struct {
	f *os.File

	mu     sync.Mutex
	said   testimony
	timer  *time.Timer // runs while a slot waits for its fdatasync
	failed error       // of the last fdatasync in the background
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// createWitness makes the file with all its blocks: later writes need no space.
func createWitness(dir string) error {
	raw, err := testimony{Clean: true}.encode()
	if err != nil {
		return err
	}
	content := make([]byte, slotCount*slotSpacing)
	copy(content, raw)
	return writeFile(filepath.Join(dir, witnessFile), content)
}

// openWitness opens the file and reads the newer slot that is whole.
// It fails with ErrDamaged when there is none.
func openWitness(dir string) (*witness, error) {
	f, err := os.OpenFile(filepath.Join(dir, witnessFile), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: its witness file %s is gone", ErrDamaged, witnessFile)
	}
	if err != nil {
		return nil, err
	}
	said, err := readTestimony(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &witness{f: f, said: said}, nil
}

// testimonyIn reads what the witness of a journal says, which may be written
// meanwhile.
func testimonyIn(dir string) (testimony, error) {
	f, err := os.Open(filepath.Join(dir, witnessFile))
	if errors.Is(err, os.ErrNotExist) {
		return testimony{}, fmt.Errorf("%w: its witness file %s is gone", ErrDamaged, witnessFile)
	}
	if err != nil {
		return testimony{}, err
	}
	defer f.Close()
	return readTestimony(f)
}

func readTestimony(f *os.File) (testimony, error) {
	var newest testimony
	whole := false
	for i := range int64(slotCount) {
		raw := make([]byte, slotSize)
		if _, err := f.ReadAt(raw, i*slotSpacing); err != nil {
			continue // a file that was cut: the other slot may do
		}
		if t, ok := decodeTestimony(raw); ok && (!whole || t.Serial > newest.Serial) {
			newest, whole = t, true
		}
	}
	if !whole {
		return testimony{}, fmt.Errorf("%w: no slot of its witness file %s is whole", ErrDamaged, witnessFile)
	}
	return newest, nil
}

var errTooLong = errors.New("a testimony is longer than its slot")

// encode fills a slot: a checksum in hexadecimal, a blank, JSON, blanks.
func (t testimony) encode() ([]byte, error) {
	raw, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	slot := bytes.Repeat([]byte{' '}, slotSize)
	slot[slotSize-1] = '\n'
	if copy(slot[9:slotSize-1], raw) < len(raw) {
		return nil, fmt.Errorf("%w: %d bytes", errTooLong, len(raw))
	}
	copy(slot, fmt.Sprintf("%08x", crc32.Checksum(slot[8:], castagnoli)))
	return slot, nil
}

func decodeTestimony(slot []byte) (t testimony, ok bool) {
	sum, err := strconv.ParseUint(string(slot[:8]), 16, 32)
	if err != nil || sum != uint64(crc32.Checksum(slot[8:], castagnoli)) {
		return testimony{}, false
	}
	err = json.Unmarshal(slot[8:], &t)
	return t, err == nil
}

// acknowledge takes down that the record is durable. The slot itself is durable
// within witnessLag.
func (w *witness) acknowledge(newest tip, task string, seq uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return w.failed
	}
	next := w.said
	next.Tip, next.Task, next.Seq = newest, task, seq
	if err := w.write(next); err != nil {
		return err
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(witnessLag, func() {
			// The mutex is not held: an append does not wait for this.
			err := fdatasync(int(w.f.Fd()))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.failed = errors.Join(w.failed, err)
			w.timer = nil
		})
	}
	return nil
}

// record writes a whole testimony durably.
func (w *witness) record(t testimony) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.write(t); err != nil {
		return err
	}
	return fdatasync(int(w.f.Fd()))
}

func (w *witness) write(t testimony) error {
	t.Serial = w.said.Serial + 1
	slot, err := t.encode()
	if errors.Is(err, errTooLong) {
		t.Task, t.Seq = "", 0
		slot, err = t.encode()
	}
	if err != nil {
		return err
	}
	if _, err := w.f.WriteAt(slot, int64(t.Serial%slotCount)*slotSpacing); err != nil {
		return err
	}
	w.said = t
	return nil
}

func (w *witness) close() error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil && w.timer.Stop() {
		w.timer = nil
	}
	return errors.Join(w.failed, fdatasync(int(w.f.Fd())), w.f.Close())
}

// contradicts compares what the database holds with the testimony. More than
// was testified is no loss.
func (t testimony) contradicts(found tip) error {
	switch {
	case found.Count < t.Tip.Count:
		return fmt.Errorf("%w: its last %d of %d records are lost", ErrDamaged, t.Tip.Count-found.Count, t.Tip.Count)
	case found.Count == t.Tip.Count && found.Hash != t.Tip.Hash:
		return fmt.Errorf("%w: its newest record, number %d, is not the one that was acknowledged", ErrDamaged, found.Count)
	}
	return nil
}
