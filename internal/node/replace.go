package node

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// NewSuffix ends the name of a file that ReplaceFile has not put in place yet.
const NewSuffix = ".deckhand-new"

// ReplaceFile writes a whole file, or leaves the one that is there, whose mode
// it then keeps. The content is durable when it returns, the name when the
// directory is.
//
// Until it is whole it is a hidden file whose name follows from the file's own:
// what a killed process has left is taken up by whoever writes the same file
// next. Several processes may write one file; each of them writes it whole.
func ReplaceFile(name string, data []byte, mode fs.FileMode) error {
	return ReplaceFileBy(name, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// ReplaceFileBy is ReplaceFile with content that need not be in memory: after an error of
// write the file is as it was.
func ReplaceFileBy(name string, mode fs.FileMode, write func(io.Writer) error) error {
	if info, err := os.Stat(name); err == nil {
		mode = info.Mode().Perm()
	}
	hidden := newName(name)
	f, err := openAlone(hidden)
	if err != nil {
		return err
	}
	// The lock goes with the descriptor, and the name before it.
	defer func() { _ = f.Close() }()
	err = f.Truncate(0)
	if err == nil {
		err = write(f)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(hidden, name)
	}
	if err != nil {
		_ = os.Remove(hidden) // the error is what counts
	}
	return err
}

// newName is the name of a file until it is whole.
func newName(name string) string {
	dir, base := filepath.Split(name)
	hidden := "." + base + NewSuffix
	if len(hidden) > unix.NAME_MAX {
		hidden = fmt.Sprintf(".%x%s", sha256.Sum256([]byte(base)), NewSuffix)
	}
	return filepath.Join(dir, hidden)
}

// openAlone opens a file for this process alone and makes it when it is not there.
func openAlone(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		// A filesystem without locks: there, whoever writes last wins.
		if errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return f, nil
		}
		opened, statErr := f.Stat()
		if err := errors.Join(err, statErr); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// The one before may have put it in place meanwhile.
		if named, err := os.Lstat(name); err == nil && os.SameFile(opened, named) {
			return f, nil
		}
		_ = f.Close() // nothing was written
	}
}
