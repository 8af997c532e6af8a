package upload

import (
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/deckhand/deckhand/internal/sorted"
)

// header begins an entry of the list of outputs that is a file; its paths and name
// follow. What is published has an entry of the same key without a value.
type header struct {
	Size           int64
	Output         uint32
	Path, Physical uint32 // their lengths; a Physical of 0 is the same as the path
}

// key makes equal entries follow each other: a file is published when the journal has
// just this of it. The target stands for the URL.
func (p Published) key() string {
	return fmt.Sprintf("%s\x00%s\x00%d", p.Path, p.Target, p.SizeBytes)
}

func encode(f File, p Published) (sorted.Entry, error) {
	h := header{Size: f.Size, Output: uint32(f.output), Path: uint32(len(f.Path))}
	physical := ""
	if f.physical != f.Path {
		physical = f.physical
	}
	h.Physical = uint32(len(physical))
	value, err := binary.Append(nil, binary.LittleEndian, h)
	value = append(append(append(value, f.Path...), physical...), f.name...)
	return sorted.Entry{Key: p.key(), Value: value}, err
}

func decode(e sorted.Entry) (File, error) {
	var h header
	n, err := binary.Decode(e.Value, binary.LittleEndian, &h)
	rest := string(e.Value[n:])
	if err == nil && uint64(h.Path)+uint64(h.Physical) > uint64(len(rest)) {
		err = fmt.Errorf("paths of %d and %d bytes in %d", h.Path, h.Physical, len(rest))
	}
	if err != nil {
		return File{}, fmt.Errorf("the list of outputs is not as it was written, at %q: %w", e.Key, err)
	}
	f := File{Path: rest[:h.Path], Size: h.Size, output: int(h.Output), name: rest[h.Path+h.Physical:]}
	if f.physical = f.Path; h.Physical > 0 {
		f.physical = rest[h.Path : h.Path+h.Physical]
	}
	return f, nil
}

// files yields the files of a list, each with whether it is published, as they come
// in the order of their paths. What several outputs have in common comes once.
func files(list *sorted.List) iter.Seq2[listed, error] {
	return func(yield func(listed, error) bool) {
		var published, before string // the keys of what was read last; no key is empty
		for e, err := range list.All() {
			if err == nil && len(e.Value) == 0 {
				published = e.Key
				continue
			}
			if err == nil && e.Key == before {
				continue
			}
			before = e.Key
			var l listed
			if err == nil {
				l.File, err = decode(e)
			}
			l.published = published == e.Key
			if !yield(l, err) || err != nil {
				return
			}
		}
	}
}

type listed struct {
	File
	published bool
}
