package download

import (
	"encoding/binary"
	"fmt"

	"github.com/deckhand/deckhand/internal/sorted"
)

// entry is what the list of inputs has of one path: something that was listed, or that the
// journal says is staged.
type entry struct {
	path string
	kind entryKind
	// turn counts what is listed, from 1.
	turn uint64
	item
}

type entryKind uint8

const (
	fileEntry entryKind = iota
	dirEntry
	stagedEntry // of which only the size counts
)

// item is a file to be staged.
type item struct {
	size int64 // -1 when the source does not tell
	// input is the number of the input that it is of, from 1.
	input int
	// url is where it is, when that does not follow from the input's URL and the path:
	// an input's URL may be signed, and the list may go to the disk.
	url, version string
}

// header begins the value of an entry; its URL and version follow.
type header struct {
	Turn       uint64
	Size       int64
	Input, URL uint32 // URL is the length of it
	Kind       entryKind
}

func (x entry) encode() (sorted.Entry, error) {
	h := header{x.turn, x.size, uint32(x.input), uint32(len(x.url)), x.kind}
	value, err := binary.Append(make([]byte, 0, binary.Size(h)+len(x.url)+len(x.version)), binary.LittleEndian, h)
	return sorted.Entry{Key: x.path, Value: append(append(value, x.url...), x.version...)}, err
}

func decode(e sorted.Entry) (entry, error) {
	var h header
	n, err := binary.Decode(e.Value, binary.LittleEndian, &h)
	rest := e.Value[n:]
	if err == nil && int(h.URL) > len(rest) {
		err = fmt.Errorf("a URL of %d bytes in %d", h.URL, len(rest))
	}
	if err != nil {
		return entry{}, fmt.Errorf("the list of inputs is not as it was written, at %s: %w", e.Key, err)
	}
	return entry{e.Key, h.Kind, h.Turn, item{h.Size, int(h.Input), string(rest[:h.URL]), string(rest[h.URL:])}}, nil
}
