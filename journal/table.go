package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
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

// tableFile is a table that is read a block at a time (table.go of badger v4): a
// damaged one is an error, where badger's memory maps and assertions would be a
// SIGBUS or a panic.
type tableFile struct {
	name   string
	f      *os.File
	held   bool // by somebody else
	blocks []tableBlock
}

// tableBlock is a part of a table with a checksum of its own.
type tableBlock struct {
	first      []byte // key, with its version
	begin, end int64  // in the file
}

// tableEntry is an entry of a table.
type tableEntry struct {
	key     []byte
	version uint64
	deleted bool
	value   []byte
}

// openTable opens a table and finds its blocks, which are read when they are asked
// for: from held, which somebody keeps open whatever becomes of the name, unless that
// is nil. blocks are those that it had before; nil has its index read.
func openTable(name string, held *os.File, blocks []tableBlock) (_ *tableFile, err error) {
	t := &tableFile{name: name, f: held, held: held != nil, blocks: blocks}
	if !t.held {
		if t.f, err = os.Open(name); err != nil {
			return nil, fmt.Errorf("table %s: %w", filepath.Base(name), err)
		}
	}
	if t.blocks == nil {
		if t.blocks, err = readBlocks(t.f); err != nil {
			return nil, errors.Join(fmt.Errorf("table %s: %w", filepath.Base(name), err), t.close())
		}
	}
	return t, nil
}

// readBlocks verifies the index of a table, which is at its end, and finds the
// blocks by it.
func readBlocks(f *os.File) ([]tableBlock, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	index, err := readIndex(f, info.Size())
	if err != nil {
		return nil, err
	}
	list := fb.GetRootAsTableIndex(index, 0)
	blocks := make([]tableBlock, list.OffsetsLength())
	for i := range blocks {
		var at fb.BlockOffset
		list.Offsets(&at, i)
		begin, end := int64(at.Offset()), int64(at.Offset())+int64(at.Len())
		if end > info.Size() || at.KeyLength() < 8 {
			return nil, fmt.Errorf("%w: it has an index of another table", ErrDamaged)
		}
		blocks[i] = tableBlock{at.KeyBytes(), begin, end}
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%w: it has nothing in it", ErrDamaged)
	}
	return blocks, nil
}

func (t *tableFile) close() error {
	if t.held {
		return nil
	}
	return t.f.Close()
}

// readIndex reads the index, which is followed by its length, its checksum and
// that one's length.
func readIndex(in io.ReaderAt, size int64) ([]byte, error) {
	const most = 64 // a checksum has some ten bytes
	tail, err := readPart(in, max(0, size-most), size)
	if err != nil {
		return nil, err
	}
	if sum, rest, ok := cutSized(tail); ok && len(rest) >= 4 {
		whole := int64(binary.BigEndian.Uint32(rest[len(rest)-4:])) + 4 + int64(len(sum)) + 4
		if tail, err = readPart(in, max(0, size-whole), size); err != nil {
			return nil, err
		}
		if index, ok := cutChecksum(tail, true); ok {
			return index, nil
		}
	}
	return nil, fmt.Errorf("%w: it is not whole or its index was altered", ErrDamaged)
}

// readPart reads what must be there.
func readPart(in io.ReaderAt, begin, end int64) ([]byte, error) {
	part := make([]byte, end-begin)
	n, err := in.ReadAt(part, begin)
	switch {
	case n == len(part):
		return part, nil
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w: it was cut off at byte %d", ErrDamaged, begin+int64(n))
	}
	return nil, err
}

// verifyTable reads all of a table.
func verifyTable(name string) error {
	t, err := openTable(name, nil, nil)
	if err != nil {
		return err
	}
	return errors.Join(t.verify(), t.close())
}

// verify reads all of the table.
func (t *tableFile) verify() error {
	const together = 64 << 10 // bytes: a read for each block would take longer than its checksum
	for from := 0; from < len(t.blocks); {
		begin, to := t.blocks[from].begin, from+1
		for to < len(t.blocks) && t.blocks[to].begin == t.blocks[to-1].end && t.blocks[to].end-begin <= together {
			to++
		}
		part, err := readPart(t.f, begin, t.blocks[to-1].end)
		if err != nil {
			return fmt.Errorf("table %s: %w", filepath.Base(t.name), err)
		}
		for ; from < to; from++ {
			if _, ok := cutChecksum(part[t.blocks[from].begin-begin:t.blocks[from].end-begin], false); !ok {
				return t.altered(from)
			}
		}
	}
	return nil
}

// data reads a block and returns it without its checksum.
func (t *tableFile) data(block int) ([]byte, error) {
	raw, err := readPart(t.f, t.blocks[block].begin, t.blocks[block].end)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", filepath.Base(t.name), err)
	}
	data, ok := cutChecksum(raw, false)
	if !ok {
		return nil, t.altered(block)
	}
	return data, nil
}

func (t *tableFile) altered(block int) error {
	return fmt.Errorf("%w: the checksum of block %d of table %s does not match", ErrDamaged, block, filepath.Base(t.name))
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

// entries reads a block: entries, where each begins, and their number. An entry is
// how many bytes of the first key its own begins with, how many follow, these, and
// the value. Badger writes its numbers in the order of the machine.
func (t *tableFile) entries(block int) ([]tableEntry, error) {
	data, err := t.data(block)
	if err != nil {
		return nil, err
	}
	list, ok := decodeBlock(data, t.blocks[block].first)
	if !ok {
		return nil, t.altered(block)
	}
	return list, nil
}

func decodeBlock(data, first []byte) (list []tableEntry, ok bool) {
	if len(data) < 4 {
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
		if overlap > len(first) || more+3 > len(raw) || overlap+more < 8 {
			return nil, false
		}
		key := slices.Concat(first[:overlap], raw[:more])
		var v y.ValueStruct
		v.Decode(raw[more:])
		list = append(list, tableEntry{y.ParseKey(key), y.ParseTs(key), v.Meta&walDelete != 0, v.Value})
	}
	return list, true
}

// seek is the first block that may have a key which is not less than key; for a
// nil key the first.
func seek(blocks []tableBlock, key []byte) int {
	i := sort.Search(len(blocks), func(i int) bool { return bytes.Compare(y.ParseKey(blocks[i].first), key) >= 0 })
	return max(0, i-1)
}

// from yields the entries from a key on; all for a nil key. It ends after the
// first error.
func (t *tableFile) from(key []byte) iter.Seq2[tableEntry, error] {
	return func(yield func(tableEntry, error) bool) {
		for i := seek(t.blocks, key); i < len(t.blocks); i++ {
			list, err := t.entries(i)
			if err != nil {
				yield(tableEntry{}, err)
				return
			}
			for _, e := range list {
				if bytes.Compare(e.key, key) >= 0 && !yield(e, nil) {
					return
				}
			}
		}
	}
}
