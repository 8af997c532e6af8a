package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"google.golang.org/protobuf/proto"
)

func tableName(dir string, id uint64) string { return table.NewFilename(id, dir) }

// tableFile is a table that was read into memory (table.go of badger v4): a
// damaged one is an error, where badger's memory maps and assertions would be a
// SIGBUS or a panic.
type tableFile struct {
	name   string
	blocks []tableBlock
}

// tableBlock is a part of a table with a checksum of its own.
type tableBlock struct {
	first []byte // key, with its version
	data  []byte
}

// tableEntry is an entry of a table.
type tableEntry struct {
	key     []byte
	version uint64
	deleted bool
	value   []byte
}

// openTable reads a table and verifies all of it.
func openTable(name string) (*tableFile, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", filepath.Base(name), err)
	}
	return verifyTable(name, data)
}

func verifyTable(name string, data []byte) (*tableFile, error) {
	t, err := parseTable(name, data)
	if err != nil {
		return nil, err
	}
	for i, b := range t.blocks {
		if _, ok := b.verified(); !ok {
			return nil, fmt.Errorf("%w: the checksum of block %d of table %s does not match", ErrDamaged, i, filepath.Base(name))
		}
	}
	return t, nil
}

// parseTable verifies the index of a table, which is at its end, and finds the
// blocks by it.
func parseTable(name string, data []byte) (*tableFile, error) {
	index, ok := cutChecksum(data, true)
	if !ok {
		return nil, fmt.Errorf("%w: table %s is not whole or its index was altered", ErrDamaged, filepath.Base(name))
	}
	list := fb.GetRootAsTableIndex(index, 0)
	t := &tableFile{name: name}
	for i := range list.OffsetsLength() {
		var at fb.BlockOffset
		list.Offsets(&at, i)
		begin, end := int(at.Offset()), int(at.Offset()+at.Len())
		if begin > end || end > len(data) || at.KeyLength() < 8 {
			return nil, fmt.Errorf("%w: table %s has an index of another table", ErrDamaged, filepath.Base(name))
		}
		t.blocks = append(t.blocks, tableBlock{at.KeyBytes(), data[begin:end]})
	}
	return t, nil
}

// cutChecksum verifies the checksum at the end of a block or a table and
// returns what it is of: of a block all that is before, of a table the index.
func cutChecksum(b []byte, table bool) (_ []byte, ok bool) {
	raw, b, ok := cutSized(b)
	if !ok {
		return nil, false
	}
	var sum pb.Checksum
	if proto.Unmarshal(raw, &sum) != nil || sum.Algo != pb.Checksum_CRC32C {
		return nil, false
	}
	if table {
		if b, _, ok = cutSized(b); !ok {
			return nil, false
		}
	}
	const least = 8 // the checksum of nothing is that of zeros
	return b, len(b) >= least && uint64(crc32.Checksum(b, castagnoli)) == sum.Sum
}

// cutSized cuts off what stands at the end of b in front of its length.
func cutSized(b []byte) (last, rest []byte, ok bool) {
	at := len(b) - 4
	if at < 0 {
		return nil, nil, false
	}
	size := int64(binary.BigEndian.Uint32(b[at:]))
	if size > int64(at) {
		return nil, nil, false
	}
	return b[at-int(size) : at], b[:at-int(size)], true
}

// verified returns the block without its checksum; false when that does not match.
func (b tableBlock) verified() (data []byte, ok bool) { return cutChecksum(b.data, false) }

// entries decodes a block whose checksum was verified: entries, where each
// begins, and their number. An entry is how many bytes of the first key its own
// begins with, how many follow, these, and the value. Badger writes its numbers
// in the order of the machine.
func (b tableBlock) entries() (list []tableEntry, ok bool) {
	data, ok := b.verified()
	if !ok || len(data) < 4 {
		return nil, false
	}
	count := int(binary.BigEndian.Uint32(data[len(data)-4:]))
	data = data[:len(data)-4]
	if count*4 > len(data) {
		return nil, false
	}
	starts := data[len(data)-count*4:]
	data = data[:len(data)-count*4]
	for i := range count {
		begin, end := int(binary.NativeEndian.Uint32(starts[i*4:])), len(data)
		if i+1 < count {
			end = int(binary.NativeEndian.Uint32(starts[i*4+4:]))
		}
		if begin+4 > end || end > len(data) {
			return nil, false
		}
		raw := data[begin+4 : end]
		overlap, more := int(binary.NativeEndian.Uint16(data[begin:])), int(binary.NativeEndian.Uint16(data[begin+2:]))
		if overlap > len(b.first) || more+3 > len(raw) || overlap+more < 8 {
			return nil, false
		}
		key := slices.Concat(b.first[:overlap], raw[:more])
		var v y.ValueStruct
		v.Decode(raw[more:])
		list = append(list, tableEntry{y.ParseKey(key), y.ParseTs(key), v.Meta&walDelete != 0, v.Value})
	}
	return list, true
}

// from yields the entries of a verified table from a key on; all for a nil key.
func (t *tableFile) from(key []byte) iter.Seq[tableEntry] {
	return func(yield func(tableEntry) bool) {
		first := sort.Search(len(t.blocks), func(i int) bool { return bytes.Compare(y.ParseKey(t.blocks[i].first), key) >= 0 })
		for _, b := range t.blocks[max(0, first-1):] {
			list, _ := b.entries() // it was verified
			for _, e := range list {
				if bytes.Compare(e.key, key) >= 0 && !yield(e) {
					return
				}
			}
		}
	}
}
