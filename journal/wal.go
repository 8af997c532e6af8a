package journal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/dgraph-io/badger/v4/y"
)

// Badger's write-ahead log (memtable.go of badger v4): 20 bytes of header, then
// entries. An entry is a byte of flags, a byte for the user, the lengths of key
// and value and an expiry as varints, the key with its version, the value and a
// big-endian CRC-32C of all that. Behind the last entry are zeros.
const (
	walHeader = 20

	walDelete = 1 << 0 // of a key; the journal deletes none
	walTxn    = 1 << 6 // part of a transaction
	walFinTxn = 1 << 7 // the end of a transaction; the value is its version

	walMaxKey   = 1 << 16
	walMaxValue = memTableSize
)

// walEntry is one entry of a log.
type walEntry struct {
	meta       byte
	key, value []byte // the key has its version at its end
	size       int64  // in the log
}

func (e walEntry) entry() tableEntry {
	return tableEntry{y.ParseKey(e.key), y.ParseTs(e.key), e.meta&walDelete != 0, e.value}
}

// wal reads a log from its beginning. It takes what a live process is writing
// for the end of the log.
type wal struct {
	f  *os.File
	in *bufio.Reader
	at int64 // offset of the next entry
}

func openWAL(name string) (*wal, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	w := &wal{f: f, in: bufio.NewReaderSize(f, 64<<10)}
	// An empty file is one that a killed process had just made.
	if _, err := w.in.Discard(walHeader); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, f.Close())
	}
	w.at = walHeader
	return w, nil
}

func (w *wal) close() error { return w.f.Close() }

// errNotWhole: an entry was not written to its end, or was altered since.
var errNotWhole = errors.New("not whole")

// next returns the next entry: io.EOF where the log ends, errNotWhole with what
// can be told of it for one whose checksum does not match.
func (w *wal) next() (e walEntry, err error) {
	sum := crc32.New(castagnoli)
	in := &summedReader{in: w.in, sum: sum}
	var head [2]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return e, endOf(err)
	}
	e.meta = head[0]
	var lengths [3]uint64 // of key, of value, expiry
	for i := range lengths {
		if lengths[i], err = binary.ReadUvarint(in); err != nil {
			return e, endOf(err)
		}
	}
	if lengths[0] == 0 && lengths[1] == 0 && head == [2]byte{} {
		return e, io.EOF // zeros
	}
	if lengths[0] < 8 || lengths[0] > walMaxKey || lengths[1] > walMaxValue {
		return e, errNotWhole
	}
	text := make([]byte, lengths[0]+lengths[1])
	if _, err := io.ReadFull(in, text); err != nil {
		return e, endOf(err)
	}
	e.key, e.value = text[:lengths[0]:lengths[0]], text[lengths[0]:]
	var crc [crc32.Size]byte
	if _, err := io.ReadFull(w.in, crc[:]); err != nil {
		return e, endOf(err)
	}
	e.size = in.n + crc32.Size
	w.at += e.size
	if binary.BigEndian.Uint32(crc[:]) != sum.Sum32() {
		return e, errNotWhole
	}
	return e, nil
}

// endOf tells a log that was cut or altered from one that cannot be read.
func endOf(err error) error {
	var system *os.PathError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return io.EOF
	case errors.As(err, &system):
		return err
	}
	return errNotWhole // a number too long for its kind
}

// summedReader adds up the checksum of what is read.
type summedReader struct {
	in  *bufio.Reader
	sum io.Writer
	n   int64
}

func (r *summedReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	r.n += int64(n)
	_, _ = r.sum.Write(p[:n]) // a hash takes everything
	return n, err
}

func (r *summedReader) ReadByte() (byte, error) {
	b, err := r.in.ReadByte()
	if err == nil {
		r.n++
		_, _ = r.sum.Write([]byte{b})
	}
	return b, err
}

// replayLog puts the whole transactions of a log into c and says how many
// bytes they take. As badger does, it ends at the first thing that is not whole.
// Each transaction has the tip: the first and the last go into c.logged.
func (c *contents) replayLog(name string) (size int64, err error) {
	w, err := openWAL(name)
	if err != nil {
		return 0, err
	}
	defer w.close()
	size = w.at
	var tips [2][]byte
	defer func() {
		if tips[0] != nil {
			c.logged = append(c.logged, tips)
		}
	}()
	var open []walEntry // of the transaction that has not ended yet
	for {
		e, err := w.next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, errNotWhole):
			return size, nil
		case err != nil:
			return size, fmt.Errorf("log %s: %w", filepath.Base(name), err)
		case e.meta&walTxn != 0:
			if len(open) > 0 && y.ParseTs(open[0].key) != y.ParseTs(e.key) {
				return size, nil
			}
			open = append(open, e)
			continue
		case e.meta&walFinTxn != 0:
			version, err := strconv.ParseUint(string(e.value), 10, 64)
			if err != nil || len(open) == 0 || y.ParseTs(open[0].key) != version {
				return size, nil
			}
		case len(open) > 0:
			return size, nil
		default:
			open = append(open, e)
		}
		for _, e := range open {
			c.put(e.entry())
			if bytes.Equal(y.ParseKey(e.key), tipKey) {
				tips[1] = e.value
				if tips[0] == nil {
					tips[0] = e.value
				}
			}
		}
		open = open[:0]
		size = w.at
	}
}
