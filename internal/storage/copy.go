package storage

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// copyChunk is how many bytes the kernel copies between two looks at the limits.
const copyChunk = writeBackEvery

// copyFile copies size bytes of src to the empty file dst. Blocks are shared
// where the filesystem can: a later write to either file does not reach the
// other. Holes stay holes. counted is told of the bytes as they are copied, and how many
// of them the disk had to move; its error ends the copy.
func copyFile(dst, src *os.File, size int64, counted func(n, moved int64) error) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	if st.Size != size {
		return fmt.Errorf("%w: it had %d bytes and now has %d", ErrChanged, size, st.Size)
	}
	if size == 0 {
		return madeUp(src)
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return counted(size, 0)
	}
	if free := freeBytesAt(dst.Name()); free >= 0 && min(st.Blocks*512, size) > free {
		return unix.ENOSPC
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		data, hole, err := extent(src, at, size)
		if err != nil {
			return err
		}
		if data > at {
			if err := counted(data-at, 0); err != nil {
				return err
			}
		}
		for at = data; at < hole; {
			n := min(copyChunk, hole-at)
			if err := copyRange(dst, src, at, n); err != nil {
				return err
			}
			writeBack(dst, at, n)
			at += n
			if err := counted(n, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// madeUp refuses a file whose size is zero and which has content nevertheless,
// as those of procfs.
func madeUp(f *os.File) error {
	if n, _ := f.ReadAt(make([]byte, 1), 0); n > 0 {
		return machine.Faultf(machine.TaskFault, "its size is 0 and yet it has content: the kernel makes it up; copy it to a file first")
	}
	return nil
}

// extent returns where the next data at or after an offset begins and ends.
func extent(f *os.File, at, size int64) (data, hole int64, err error) {
	fd := int(f.Fd())
	data, err = unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // only a hole is left
		return size, size, nil
	case errors.Is(err, unix.EINVAL): // the filesystem does not tell
		return at, size, nil
	case err != nil:
		return 0, 0, err
	}
	hole, err = unix.Seek(fd, data, unix.SEEK_HOLE)
	return min(data, size), min(hole, size), err
}

// copyRange copies n bytes at an offset. A source that has fewer has changed.
func copyRange(dst, src *os.File, at, n int64) error {
	for end := at + n; at < end; {
		from, to := at, at
		m, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(end-at), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS),
			errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM), err == nil && m == 0:
			// Not between these two, or not of a file that makes up its content
			// as it is read (procfs): through memory then.
			return copyThrough(dst, src, at, end-at)
		case err != nil:
			return err
		}
		at += int64(m)
	}
	return nil
}

func copyThrough(dst, src *os.File, at, n int64) error {
	buf := make([]byte, min(n, maxBuffer))
	section := io.NewSectionReader(src, at, n)
	// Only Write: io.Copy would ask the files to do it themselves.
	to := struct{ io.Writer }{io.NewOffsetWriter(dst, at)}
	copied, err := io.CopyBuffer(to, struct{ io.Reader }{section}, buf)
	if err == nil && copied < n {
		return fmt.Errorf("%w: it became shorter", ErrChanged)
	}
	return err
}

// CopyTakes is how many bytes of a disk the copy of a file of this node takes in a directory:
// none for its holes, and none at all where it shares the file's blocks.
func CopyTakes(path, dir string, size int64) int64 {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return size // copying says why
	}
	defer func() { _ = f.Close() }() // read-only
	var st unix.Stat_t
	switch {
	case unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG:
		return size
	case Clones(f, dir):
		return 0
	}
	return min(size, st.Blocks*512)
}

// Clones says whether a copy of a file in a directory would share its blocks. It tries
// with a part of the file, in a file that has no name.
func Clones(src *os.File, dir string) bool {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false // no filesystem that shares blocks is without
	}
	defer func() { _ = unix.Close(fd) }() // it goes with that
	const part = 1 << 20                  // a multiple of every filesystem's block
	info, err := src.Stat()
	if err != nil || info.Size() < part {
		return false
	}
	return unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{Src_fd: int64(src.Fd()), Src_length: part}) == nil
}
