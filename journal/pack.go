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
	"sync"
	"time"
)

// A pack is the whole of a finished task as it is kept in the history: its head
// and its records as they were stored, byte for byte, compressed.

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

// encodePack makes the pack of a task, whose records are not in memory together.
func encodePack(h storedHead, records iter.Seq2[storedRecord, error]) ([]byte, error) {
	var out bytes.Buffer
	out.Write(make([]byte, packHeader))
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&out)
	lines := bufio.NewWriter(w) // its errors stay until Flush
	head, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	_, _ = lines.Write(append(head, '\n'))
	hash := ""
	count := uint64(0)
	for s, err := range records {
		if err != nil {
			return nil, err
		}
		kind, line := byte(lineWhole), s.raw
		if rest, ok := bytes.CutSuffix(s.raw, prevSuffix(hash)); ok {
			kind, line = lineChained, rest
		}
		_ = lines.WriteByte(kind)
		_, _ = lines.Write(line)
		_ = lines.WriteByte('\n')
		hash = hashOf(s.raw)
		count++
	}
	if err := errors.Join(lines.Flush(), w.Close()); err != nil {
		return nil, err
	}
	b := out.Bytes()
	binary.BigEndian.PutUint64(b[0:], h.Number)
	binary.BigEndian.PutUint64(b[8:], uint64(h.At.UnixNano()))
	binary.BigEndian.PutUint64(b[16:], count)
	binary.BigEndian.PutUint32(b[24:], packSum(b))
	return b, nil
}

// prevSuffix is how the JSON of a record ends, Prev being its last field.
func prevSuffix(prev string) []byte { return []byte(`,"prev":"` + prev + `"}`) }

func packSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:24], castagnoli), castagnoli, b[packHeader:])
}

func decodePackInfo(b []byte) (packInfo, error) {
	if len(b) < packHeader {
		return packInfo{}, fmt.Errorf("%w: a pack of %d bytes", ErrDamaged, len(b))
	}
	return packInfo{
		number:  binary.BigEndian.Uint64(b[0:]),
		at:      time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))),
		records: binary.BigEndian.Uint64(b[16:]),
		bytes:   int64(len(b)),
	}, nil
}

// decodePackHead decodes the head alone.
func decodePackHead(b []byte) (h storedHead, err error) {
	lines, err := packLines(b)
	if err != nil {
		return h, err
	}
	if err := json.NewDecoder(lines).Decode(&h); err != nil {
		return h, fmt.Errorf("%w: a pack's head: %w", ErrDamaged, err)
	}
	return h, nil
}

// packRecords yields the records of a pack. It ends after the first error.
func packRecords(b []byte) iter.Seq2[storedRecord, error] {
	return func(yield func(storedRecord, error) bool) {
		fail := func(err error) { yield(storedRecord{}, fmt.Errorf("%w: a pack: %w", ErrDamaged, err)) }
		in, err := packLines(b)
		if err != nil {
			yield(storedRecord{}, err)
			return
		}
		lines := bufio.NewReader(in)
		if _, err := lines.ReadBytes('\n'); err != nil { // the head
			fail(err)
			return
		}
		hash := ""
		for seq := uint64(1); ; seq++ {
			line, err := lines.ReadBytes('\n')
			if errors.Is(err, io.EOF) && len(line) == 0 {
				return
			}
			if err != nil {
				fail(err)
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

func packLines(b []byte) (io.Reader, error) {
	if len(b) < packHeader || binary.BigEndian.Uint32(b[24:]) != packSum(b) {
		return nil, fmt.Errorf("%w: the checksum of a pack does not match", ErrDamaged)
	}
	return flate.NewReader(bytes.NewReader(b[packHeader:])), nil
}
