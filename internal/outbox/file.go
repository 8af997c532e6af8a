package outbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// File is a file with one event a line. Several roots may share it: whoever
// writes to it has its lock.
type File struct {
	path string
	// last is the id of the event that was written last; empty before the first,
	// which a dead process may have written without saying so in the journal.
	last string
}

// searched is how much of the end of the file is searched for an event, in bytes.
const searched = 1 << 20

// NewFile returns the file of that name, which need not be there yet. It makes
// none: on a full disk that is no reason not to run.
func NewFile(path string) (*File, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &File{path: path}, unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK)
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	}
	return &File{path: path}, unix.Access(path, unix.R_OK|unix.W_OK)
}

// Name is that of its place in the journal.
func (f *File) Name() string { return "file" }

// Deliver appends the event, durably, or leaves the file as it was.
func (f *File) Deliver(ctx context.Context, e Event) error {
	line, err := e.encode()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if e.ID == f.last {
		return nil // only the journal does not know
	}
	// Somebody may have moved the file away since.
	file, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // the lock goes with it; what was written is durable
	if err := lock(ctx, file); err != nil {
		return fmt.Errorf("cannot lock %s: %w", f.path, err)
	}
	tail, end, err := mend(file)
	if err != nil {
		return err
	}
	there := f.last == "" && bytes.Contains(tail, []byte(begins+e.ID+`"`))
	if !there {
		_, err = file.Write(append(line, '\n'))
	}
	if err == nil {
		err = file.Sync() // also when the process that wrote it did not come to that
	}
	if err != nil {
		return errors.Join(err, file.Truncate(end)) // what it shows is whole, at any time
	}
	f.last = e.ID
	return nil
}

// lock takes the file from whoever else writes to it, which takes moments.
func lock(ctx context.Context, file *os.File) error {
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// begins is how the JSON of an event begins, in front of its id.
const begins = `{"specversion":"1.0","id":"`

// mend cuts off a line that a dead process has not written to its end. It returns
// the last of the file then, and where that ends. Only what may be the beginning
// of an event is cut off: what else the file holds is somebody's.
func mend(file *os.File) (tail []byte, end int64, err error) {
	info, err := file.Stat()
	if err != nil {
		return nil, 0, err
	}
	end = info.Size()
	tail = make([]byte, min(end, searched))
	if _, err := file.ReadAt(tail, end-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	whole := bytes.LastIndexByte(tail, '\n') + 1
	torn := tail[whole:]
	if len(torn) == 0 {
		return tail, end, nil
	}
	text := bytes.TrimRight(torn, "\x00") // a power cut may leave zeros where the line was to be
	if n := min(len(text), len(begins)); string(text[:n]) != begins[:n] {
		return nil, 0, fmt.Errorf("the last line of %s is no event and has no end; give events.file another name", file.Name())
	}
	end -= int64(len(torn))
	return tail[:whole], end, file.Truncate(end)
}
