package node

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Succeed announces that this process is about to fence owner and to go on with
// its task: an owner that is stopped after that leaves without rolling back. The
// announcement ends with done, or with the process.
//
// It is a lock on the byte of the lock file whose number is the owner's process
// id, shared, for there may be several successors. The lock file's own lock,
// flock(2), is of another kind and is not touched by it.
func Succeed(root string, owner Process) (done func() error, err error) {
	f, err := os.OpenFile(filepath.Join(root, lockFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	announcement := unix.Flock_t{Type: unix.F_RDLCK, Start: int64(owner.PID), Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &announcement); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

// Successor says whether another living process has announced that it goes on
// with the task of this one.
func Successor(root string) bool {
	f, err := os.OpenFile(filepath.Join(root, lockFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	announced := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(os.Getpid()), Len: 1}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &announced)
	return err == nil && announced.Type != unix.F_UNLCK
}
