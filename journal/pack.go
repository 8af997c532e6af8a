package journal

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"slices"
	"sync"
	"time"
)

// pack is the whole of a finished task as it is kept in the history: its head and
// its records as they were stored, byte for byte, compressed. It comes in chunks,
// which all have chunkSize bytes but the last one, as often as it is asked: that of
// a task of a million files is not in memory as a whole. It ends after the first
// error.
type pack iter.Seq2[[]byte, error]

// packOf is the pack with these bytes.
func packOf(b []byte) pack {
	return func(yield func([]byte, error) bool) {
		for chunk := range slices.Chunk(b, chunkSize) {
			if !yield(chunk, nil) {
				return
			}
		}
	}
}

// packInfo is what retention has to know of a pack. It stands uncompressed at
// the front of the pack.
type packInfo struct {
	number  uint64    // storedHead.Number
	at      time.Time // storedHead.At
	records uint64
	bytes   int64 // of the whole pack
}

// packHeader is the length of what is in front of the compressed lines: number,
// time in nanoseconds and number of records, 8 bytes each, and a CRC-32C of all
// that is in the pack except itself.
const packHeader = 8 + 8 + 8 + 4

// Every line but the first, the head, begins with one of these. A record's hash
// of the one before it does not compress and can be computed: it is left out,
// unless it is not what it should be.
const (
	lineChained = 'c'
	lineWhole   = 'w'
)

// deflaters are kept: one takes half a megabyte.
var deflaters = sync.Pool{New: func() any {
	w, _ := flate.NewWriter(nil, flate.DefaultCompression) // fails for levels that do not exist
	return w
}}

// encodePack makes the pack of a task. One of more than most bytes is not held: it
// is made again whenever it is asked for, from records, which yields the same each
// time.
func encodePack(h storedHead, records iter.Seq2[storedRecord, error], most int64) (pack, packInfo, error) {
	info := packInfo{number: h.Number, at: h.At, bytes: packHeader}
	held := make([]byte, packHeader)
	var err error
	info.records, err = compress(h, records, func(b []byte) error {
		if info.bytes += int64(len(b)); info.bytes <= most {
			held = append(held, b...)
		}
		return nil
	})
	if err != nil {
		return nil, info, err
	}
	header := make([]byte, packHeader)
	binary.BigEndian.PutUint64(header[0:], h.Number)
	binary.BigEndian.PutUint64(header[8:], uint64(h.At.UnixNano()))
	binary.BigEndian.PutUint64(header[16:], info.records)
	sum := crc32.Checksum(header[:24], castagnoli)
	add := func(b []byte) error {
		sum = crc32.Update(sum, castagnoli, b)
		return nil
	}
	if info.bytes <= most {
		err = add(held[packHeader:])
	} else {
		_, err = compress(h, records, add)
	}
	if err != nil {
		return nil, info, err
	}
	binary.BigEndian.PutUint32(header[24:], sum)
	if info.bytes <= most {
		copy(held, header)
		return packOf(held), info, nil
	}
	return func(yield func([]byte, error) bool) {
		chunk := append(make([]byte, 0, 2*chunkSize), header...)
		_, err := compress(h, records, func(b []byte) error {
			for chunk = append(chunk, b...); len(chunk) >= chunkSize; chunk = append(chunk[:0], chunk[chunkSize:]...) {
				if !yield(chunk[:chunkSize], nil) {
					return errNoMore
				}
			}
			return nil
		})
		if !errors.Is(err, errNoMore) && (err != nil || len(chunk) > 0) {
			yield(chunk, err)
		}
	}, info, nil
}

// errNoMore: nobody wants what follows.
var errNoMore = errors.New("no more is wanted")

// compress makes what follows the header of a pack and counts the records.
func compress(h storedHead, records iter.Seq2[storedRecord, error], write writerFunc) (count uint64, err error) {
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(write)
	lines := bufio.NewWriter(w) // its errors stay until Flush
	head, err := json.Marshal(h)
	if err != nil {
		return count, err
	}
	_, _ = lines.Write(append(head, '\n'))
	hash := ""
	for s, err := range records {
		if err != nil {
			return count, err
		}
		kind, line := byte(lineWhole), s.raw
		if rest, ok := bytes.CutSuffix(s.raw, prevSuffix(hash)); ok {
			kind, line = lineChained, rest
		}
		_ = lines.WriteByte(kind)
		_, _ = lines.Write(line)
		if err := lines.WriteByte('\n'); err != nil {
			return count, err
		}
		hash = hashOf(s.raw)
		count++
	}
	if err := lines.Flush(); err != nil {
		return count, err
	}
	return count, w.Close()
}

// writerFunc is an io.Writer.
type writerFunc func(b []byte) error

func (f writerFunc) Write(b []byte) (int, error) {
	if err := f(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// prevSuffix is how the JSON of a record ends, Prev being its last field.
func prevSuffix(prev string) []byte { return []byte(`,"prev":"` + prev + `"}`) }

// decodePackInfo decodes what the first chunk says of a pack of one chunk.
func decodePackInfo(chunk []byte) (packInfo, error) {
	if len(chunk) < packHeader {
		return packInfo{}, fmt.Errorf("%w: a pack of %d bytes", ErrDamaged, len(chunk))
	}
	return packInfo{
		number:  binary.BigEndian.Uint64(chunk[0:]),
		at:      time.Unix(0, int64(binary.BigEndian.Uint64(chunk[8:]))),
		records: binary.BigEndian.Uint64(chunk[16:]),
		bytes:   int64(len(chunk)),
	}, nil
}

// head decodes the head alone.
func (p pack) head() (h storedHead, err error) {
	in, err := p.open()
	if err != nil {
		return h, err
	}
	defer in.stop()
	if err := json.NewDecoder(flate.NewReader(in)).Decode(&h); err != nil {
		return h, in.damaged(fmt.Errorf("its head: %w", err))
	}
	return h, nil
}

// records yields the records. It ends after the first error.
func (p pack) records() iter.Seq2[storedRecord, error] {
	return func(yield func(storedRecord, error) bool) {
		in, err := p.open()
		if err != nil {
			yield(storedRecord{}, err)
			return
		}
		defer in.stop()
		lines := bufio.NewReader(flate.NewReader(in))
		if _, err := lines.ReadBytes('\n'); err != nil { // the head
			yield(storedRecord{}, in.damaged(err))
			return
		}
		hash := ""
		for seq := uint64(1); ; seq++ {
			line, err := lines.ReadBytes('\n')
			if errors.Is(err, io.EOF) && len(line) == 0 {
				return
			}
			if err != nil {
				yield(storedRecord{}, in.damaged(err))
				return
			}
			raw := line[1 : len(line)-1]
			if line[0] == lineChained {
				raw = append(raw, prevSuffix(hash)...)
			}
			hash = hashOf(raw)
			if !yield(storedRecord{seq, raw}, nil) {
				return
			}
		}
	}
}

// verify compares the pack with its checksum.
func (p pack) verify() error {
	var sum, want uint32
	first := true
	for chunk, err := range p {
		if err != nil {
			return err
		}
		if first {
			if len(chunk) < packHeader {
				break
			}
			first = false
			sum, want = crc32.Checksum(chunk[:24], castagnoli), binary.BigEndian.Uint32(chunk[24:])
			chunk = chunk[packHeader:]
		}
		sum = crc32.Update(sum, castagnoli, chunk)
	}
	if first || sum != want {
		return fmt.Errorf("%w: the checksum of a pack does not match", ErrDamaged)
	}
	return nil
}

// open verifies the pack and returns what is compressed in it. The caller stops it.
func (p pack) open() (*packReader, error) {
	if err := p.verify(); err != nil {
		return nil, err
	}
	in := &packReader{}
	in.next, in.stop = iter.Pull2(iter.Seq2[[]byte, error](p))
	_, err := io.CopyN(io.Discard, in, packHeader)
	if err != nil {
		in.stop()
	}
	return in, err
}

// packReader reads a pack chunk by chunk.
type packReader struct {
	next  func() ([]byte, error, bool)
	stop  func()
	chunk []byte // what was not read of it
	err   error
}

func (r *packReader) Read(b []byte) (int, error) {
	for len(r.chunk) == 0 && r.err == nil {
		chunk, err, more := r.next()
		if r.chunk = chunk; err != nil {
			r.err = err
		} else if !more {
			r.err = io.EOF
		}
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(b, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// damaged is the error of a pack that says something else than it should, unless it
// could not be read.
func (r *packReader) damaged(err error) error {
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		return r.err
	}
	return fmt.Errorf("%w: a pack: %w", ErrDamaged, err)
}
