package storage

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
)

// minPreallocate is the size from which a file gets its blocks before its
// bytes: less would cost more than it saves.
const minPreallocate = 1 << 20

// createPart makes a new file in place of whatever has the name. No link can
// lead it elsewhere, as O_EXCL follows none.
func createPart(dir *os.Root, name string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	f, err := dir.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if err := dir.Remove(name); err != nil {
			return nil, err
		}
		f, err = dir.OpenFile(name, flags, 0o600)
	}
	return f, err
}

// openPart opens a file that createPart made, and nothing else. An os.Root
// follows links inside its directory, O_NOFOLLOW or not, so the file that was
// opened is compared with the one that has the name.
func openPart(dir *os.Root, name string) (*os.File, error) {
	named, err := dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !named.Mode().IsRegular() {
		return nil, errNoPart
	}
	f, err := dir.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	opened, err := f.Stat()
	if err == nil && (!os.SameFile(named, opened) || opened.Sys().(*syscall.Stat_t).Nlink != 1) {
		err = errNoPart
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

var errNoPart = errors.New("not a part file")

// preallocate gives a file its blocks, so that a disk that is too small says so
// at once and the file lies in few pieces.
func preallocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			// The filesystem cannot; what it says about its space has to do.
			if free := freeBytesAt(f.Name()); free >= 0 && free < size {
				return unix.ENOSPC
			}
			return nil
		default:
			return err
		}
	}
}

// freeBytesAt is what may still be written at a path; -1 when nobody knows.
func freeBytesAt(path string) int64 {
	space, err := node.SpaceAt(path)
	if err != nil || space.TotalBytes == 0 {
		return -1
	}
	return int64(space.FreeBytes)
}
