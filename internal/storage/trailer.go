package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"

	"github.com/deckhand/deckhand/internal/node"
)

// trailer is the record at the end of a part file of what has come, so that
// another process can go on. Behind the object's size there are a line of JSON,
// one byte for each part (a partState), and a fixed end: the magic and the size.
//
// It holds what the kernel was given, not what was synced: after another boot
// it is worth nothing.
type trailer struct {
	URL      string `json:"url"` // its hash
	Object   Object `json:"object"`
	PartSize int64  `json:"part_size"`
	Boot     string `json:"boot"`

	head  []byte // as written
	parts int
}

var trailerMagic = []byte("deckhand")

// trailerEnd is the length of the fixed end.
const trailerEnd = 16

var errNoTrailer = errors.New("no record of parts")

func urlHash(url string) string {
	sum := sha256.Sum256([]byte(url))
	return hex.EncodeToString(sum[:])
}

func newTrailer(url string, o Object, p *plan) *trailer {
	t := &trailer{URL: urlHash(url), Object: o, PartSize: p.parts[0].end, parts: len(p.parts)}
	t.Boot, _ = node.BootID()   // without one nothing is continued
	t.head, _ = json.Marshal(t) // strings, numbers and a time
	t.head = append(t.head, '\n')
	return t
}

func (t *trailer) length() int64 { return int64(len(t.head) + t.parts + trailerEnd) }

// write puts the record of a file without any part behind its last byte.
func (t *trailer) write(f *os.File) error {
	b := bytes.Clone(t.head)
	b = append(b, make([]byte, t.parts)...)
	b = append(b, trailerMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Object.Size))
	_, err := f.WriteAt(b, t.Object.Size)
	return err
}

// done records a part whose bytes have been written.
func (t *trailer) done(f *os.File, p *part) error {
	_, err := f.WriteAt([]byte{byte(filled)}, t.Object.Size+int64(len(t.head)+p.index))
	return err
}

// readTrailer reads the record of a part file of this boot.
func readTrailer(f *os.File) (*trailer, *plan, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	end := make([]byte, trailerEnd)
	if _, err := f.ReadAt(end, info.Size()-trailerEnd); err != nil {
		return nil, nil, err
	}
	size := int64(binary.BigEndian.Uint64(end[len(trailerMagic):]))
	length := info.Size() - size
	if !bytes.HasPrefix(end, trailerMagic) || size <= 0 || length <= trailerEnd || length > 1<<20 {
		return nil, nil, errNoTrailer
	}
	b := make([]byte, length-trailerEnd)
	if _, err := f.ReadAt(b, size); err != nil {
		return nil, nil, err
	}
	head, states, ok := bytes.Cut(b, []byte("\n"))
	t := &trailer{}
	if !ok || json.Unmarshal(head, t) != nil {
		return nil, nil, errNoTrailer
	}
	t.head, t.parts = b[:len(head)+1], len(states)
	boot, err := node.BootID()
	if err != nil || boot != t.Boot || t.Object.Size != size || t.PartSize <= 0 {
		return nil, nil, errNoTrailer
	}
	p := newPlan(size, t.PartSize)
	if len(p.parts) != len(states) {
		return nil, nil, errNoTrailer
	}
	for i, state := range states {
		if partState(state) == filled {
			q := p.parts[i]
			p.advance(q, q.end-q.at)
			p.finish(q, 0)
		}
	}
	return t, p, nil
}
