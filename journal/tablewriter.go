package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"math"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/y"
	flatbuffers "github.com/google/flatbuffers/go"
	"google.golang.org/protobuf/proto"
)

const (
	// tableSize is about how large the tables are that a tableWriter makes, in
	// bytes. It bounds the memory that reading and writing take.
	tableSize = 512 << 10
	blockSize = 4 << 10 // as badger's own tables have
)

// tableWriter writes sorted entries into the tables of a new database (builder.go
// of badger v4), by write(2): badger would write to memory maps, in goroutines of
// its own, where a full disk is a SIGBUS. Its builder alone takes five megabytes.
type tableWriter struct {
	dir    string
	tables []writtenTable
	// Of the table under way:
	data   []byte
	blocks []fbBlock
	keys   uint32
	// Of the block under way:
	first  []byte // key, nil before the first entry
	begin  int    // in data
	starts []uint32
}

// fbBlock is a block in the index of a table.
type fbBlock struct {
	first      []byte
	begin, end int
}

// writtenTable is a table in the list of a history.
type writtenTable struct {
	First []byte `json:"first"` // key
	Size  int64  `json:"size"`  // of the file, in bytes
}

// add appends an entry, whose key is greater than those before.
func (w *tableWriter) add(key, value []byte) error {
	key = y.KeyWithTs(key, 1)
	if len(key) > math.MaxUint16 {
		return fmt.Errorf("a key of %d bytes is too long for a table", len(key))
	}
	if len(w.starts) > 0 && len(w.data)-w.begin+len(key)+len(value) > blockSize {
		if err := w.endBlock(); err != nil {
			return err
		}
	}
	if len(w.data) > 0 && len(w.starts) == 0 && len(w.data)+len(key)+len(value) > tableSize {
		if err := w.end(); err != nil {
			return err
		}
	}
	overlap := 0
	if len(w.starts) == 0 {
		w.first, w.begin = key, len(w.data)
	} else {
		for overlap < min(len(key), len(w.first)) && key[overlap] == w.first[overlap] {
			overlap++
		}
	}
	w.keys++
	w.starts = append(w.starts, uint32(len(w.data)-w.begin))
	w.data = binary.NativeEndian.AppendUint16(w.data, uint16(overlap))
	w.data = binary.NativeEndian.AppendUint16(w.data, uint16(len(key)-overlap))
	w.data = append(w.data, key[overlap:]...)
	w.data = append(w.data, 0, 0, 0) // no flags, never expires
	w.data = append(w.data, value...)
	return nil
}

func (w *tableWriter) endBlock() error {
	if len(w.starts) == 0 {
		return nil
	}
	for _, at := range w.starts {
		w.data = binary.NativeEndian.AppendUint32(w.data, at)
	}
	w.data = binary.BigEndian.AppendUint32(w.data, uint32(len(w.starts)))
	sum, err := checksum(w.data[w.begin:])
	if err != nil {
		return err
	}
	w.data = appendSized(w.data, sum)
	w.blocks = append(w.blocks, fbBlock{w.first, w.begin, len(w.data)})
	w.starts = w.starts[:0]
	return nil
}

// end writes the table under way.
func (w *tableWriter) end() error {
	if err := w.endBlock(); err != nil || len(w.blocks) == 0 {
		return err
	}
	first := y.ParseKey(w.blocks[0].first)
	index := w.index()
	sum, err := checksum(index)
	if err != nil {
		return err
	}
	data := appendSized(appendSized(w.data, index), sum)
	w.tables = append(w.tables, writtenTable{first, int64(len(data))})
	w.data, w.blocks, w.keys = data[:0], w.blocks[:0], 0
	return writeNew(tableName(w.dir, uint64(len(w.tables))), data)
}

// index lists the blocks, in badger's flatbuffer.
func (w *tableWriter) index() []byte {
	b := flatbuffers.NewBuilder(64 * len(w.blocks))
	var at []flatbuffers.UOffsetT
	for _, block := range w.blocks {
		key := b.CreateByteVector(block.first)
		fb.BlockOffsetStart(b)
		fb.BlockOffsetAddKey(b, key)
		fb.BlockOffsetAddOffset(b, uint32(block.begin))
		fb.BlockOffsetAddLen(b, uint32(block.end-block.begin))
		at = append(at, fb.BlockOffsetEnd(b))
	}
	fb.TableIndexStartOffsetsVector(b, len(at))
	for i := len(at) - 1; i >= 0; i-- { // flatbuffers are written from behind
		b.PrependUOffsetT(at[i])
	}
	offsets := b.EndVector(len(at))
	fb.TableIndexStart(b)
	fb.TableIndexAddOffsets(b, offsets)
	fb.TableIndexAddMaxVersion(b, 1)
	fb.TableIndexAddUncompressedSize(b, uint32(len(w.data)))
	fb.TableIndexAddKeyCount(b, w.keys)
	fb.TableIndexAddOnDiskSize(b, uint32(len(w.data)))
	b.Finish(fb.TableIndexEnd(b))
	return b.FinishedBytes()
}

// checksum is that of a block or an index, as badger stores it.
func checksum(b []byte) ([]byte, error) {
	return proto.Marshal(&pb.Checksum{Algo: pb.Checksum_CRC32C, Sum: uint64(crc32.Checksum(b, castagnoli))})
}

// appendSized is the inverse of cutSized.
func appendSized(b, last []byte) []byte {
	return binary.BigEndian.AppendUint32(append(b, last...), uint32(len(last)))
}

// writeNew makes a file with its content, durably but for its name.
func writeNew(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// writeManifest makes badger's list of tables (manifest.go of badger v4): a
// magic number and a version, then length, CRC-32C and text of a change set.
// The tables do not overlap: all go to level 1, below what badger adds.
func writeManifest(dir string, tables int) error {
	var set pb.ManifestChangeSet
	for id := range uint64(tables) {
		set.Changes = append(set.Changes, &pb.ManifestChange{
			Id: id + 1, Op: pb.ManifestChange_CREATE, Level: 1, EncryptionAlgo: pb.EncryptionAlgo_aes,
		})
	}
	text, err := proto.Marshal(&set)
	if err != nil {
		return err
	}
	raw := []byte{'B', 'd', 'g', 'r', 0, 0, 0, 8}
	raw = binary.BigEndian.AppendUint32(raw, uint32(len(text)))
	raw = binary.BigEndian.AppendUint32(raw, crc32.Checksum(text, castagnoli))
	return writeNew(filepath.Join(dir, badger.ManifestFilename), append(raw, text...))
}

// writeDatabase makes a new database of sorted entries, durably. It is nothing
// until CURRENT names it.
func writeDatabase(dir string, number uint64, entries iter.Seq2[tableEntry, error], list func(path string, tables []writtenTable) error) error {
	path := filepath.Join(dir, generationName(number))
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	w := &tableWriter{dir: path}
	for e, err := range entries {
		if err == nil {
			err = w.add(e.key, e.value)
		}
		if err != nil {
			return errors.Join(err, os.RemoveAll(path))
		}
	}
	err := w.end()
	if err == nil {
		err = list(path, w.tables)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(path))
	}
	return errors.Join(syncDir(path), syncDir(dir))
}
