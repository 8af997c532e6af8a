// Package ring keeps the end of a stream in a file that never grows. All of its
// blocks are there from the beginning, so that a full disk takes nothing of it.
package ring

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
)

// A ring is a count of all bytes that were written, in 8 bytes, and after it the
// last of them: byte n of the stream is at n modulo capacity. The count follows
// the bytes, so what it tells of is there whenever the writer dies.
const (
	header   = 8
	capacity = 64 << 10
	// piece is the most that is written before the count is: so much of the
	// oldest may be overwritten already.
	piece = 8 << 10
)

// Kept is how many bytes of a stream can be read, at least, once it is that long.
const Kept = capacity - piece

// Make makes an empty ring that any user may write to. One that is there stays.
func Make(name string) (err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(0o666); err != nil { // whatever the umask
		return err
	}
	if info, err := f.Stat(); err != nil || info.Size() >= header+capacity {
		return err
	}
	_, err = f.WriteAt(make([]byte, header+capacity), 0)
	return err
}

// Writer appends to a stream.
type Writer struct {
	f       *os.File
	written int64
}

// Append goes on with the stream of a ring.
func Append(name string) (*Writer, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	written, err := count(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Writer{f, written}, nil
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (n int, err error) {
	for n < len(p) {
		at := w.written % capacity
		part := p[n:min(len(p), n+piece, n+int(capacity-at))]
		if _, err := w.f.WriteAt(part, header+at); err != nil {
			return n, err
		}
		w.written += int64(len(part))
		if _, err := w.f.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(w.written)), 0); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// Close implements io.Closer.
func (w *Writer) Close() error { return w.f.Close() }

// Reader reads a stream that may still be written.
type Reader struct {
	f  *os.File
	at int64 // what of the stream was read
}

// Open reads a ring from the oldest byte that it keeps.
func Open(name string) (*Reader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	return &Reader{f: f}, nil
}

// Next copies what was written since the call before, and says how many bytes of
// that are not kept any more. A task can write anything into its ring: of no
// count is more read than fits, and nothing of a ring that it has cut off.
func (r *Reader) Next(to io.Writer) (lost int64, err error) {
	defer func() {
		if errors.Is(err, io.EOF) {
			lost, err = 0, nil
		}
	}()
	end, err := count(r.f)
	if err != nil || end <= r.at {
		return 0, err
	}
	from := max(r.at, end-Kept)
	part := make([]byte, end-from)
	for n := 0; n < len(part); {
		at := (from + int64(n)) % capacity
		m, err := r.f.ReadAt(part[n:min(len(part), n+int(capacity-at))], header+at)
		if err != nil {
			return 0, err
		}
		n += m
	}
	now, err := count(r.f)
	if err != nil {
		return 0, err
	}
	// What was overwritten meanwhile.
	if over := now - Kept - from; over > 0 {
		over = min(over, int64(len(part)))
		from, part = from+over, part[over:]
	}
	lost, r.at = from-r.at, end
	_, err = to.Write(part)
	return lost, err
}

// Close implements io.Closer.
func (r *Reader) Close() error { return r.f.Close() }

func count(f *os.File) (int64, error) {
	var b [header]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(b[:]) &^ (1 << 63)), nil
}
