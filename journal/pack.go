package journal

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"sync"
	"time"
)

// pack is the whole of a finished task as it is kept in the history: its head
// and its records, compressed.
type pack struct {
	head    storedHead
	records [][]byte // as they were stored, byte for byte
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

func (p pack) encode() ([]byte, error) {
	var out bytes.Buffer
	out.Write(make([]byte, packHeader))
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&out)
	head, err := json.Marshal(p.head)
	if err != nil {
		return nil, err
	}
	lines := bytes.NewBuffer(append(head, '\n'))
	hash := ""
	for _, raw := range p.records {
		if rest, ok := bytes.CutSuffix(raw, prevSuffix(hash)); ok {
			lines.WriteByte(lineChained)
			lines.Write(rest)
		} else {
			lines.WriteByte(lineWhole)
			lines.Write(raw)
		}
		lines.WriteByte('\n')
		hash = hashOf(raw)
	}
	if _, err := w.Write(lines.Bytes()); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	b := out.Bytes()
	binary.BigEndian.PutUint64(b[0:], p.head.Number)
	binary.BigEndian.PutUint64(b[8:], uint64(p.head.At.UnixNano()))
	binary.BigEndian.PutUint64(b[16:], uint64(len(p.records)))
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

func decodePack(b []byte) (pack, error) {
	lines, err := packLines(b)
	if err != nil {
		return pack{}, err
	}
	text, err := io.ReadAll(lines)
	if err != nil {
		return pack{}, fmt.Errorf("%w: a pack: %w", ErrDamaged, err)
	}
	head, rest, _ := bytes.Cut(text, []byte("\n"))
	var p pack
	if err := json.Unmarshal(head, &p.head); err != nil {
		return pack{}, fmt.Errorf("%w: a pack's head: %w", ErrDamaged, err)
	}
	hash := ""
	for line := range strings.Lines(string(rest)) {
		raw := []byte(strings.TrimSuffix(line[1:], "\n"))
		if line[0] == lineChained {
			raw = append(raw, prevSuffix(hash)...)
		}
		p.records = append(p.records, raw)
		hash = hashOf(raw)
	}
	return p, nil
}

func packLines(b []byte) (io.Reader, error) {
	if len(b) < packHeader || binary.BigEndian.Uint32(b[24:]) != packSum(b) {
		return nil, fmt.Errorf("%w: the checksum of a pack does not match", ErrDamaged)
	}
	return flate.NewReader(bytes.NewReader(b[packHeader:])), nil
}
