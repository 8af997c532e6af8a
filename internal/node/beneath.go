package node

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// noOpenat2 is set once the kernel, or a seccomp filter, turned out not to have openat2(2).
var noOpenat2 atomic.Bool

// openBeneath opens one path element of the directory dirfd. It follows no
// symbolic link (ELOOP, or ENOTDIR) and enters no mount (EXDEV).
func openBeneath(dirfd int, name string, flags int) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	for !noOpenat2.Load() {
		fd, err := unix.Openat2(dirfd, name, &unix.OpenHow{
			Flags:   uint64(flags),
			Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
		})
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
			noOpenat2.Store(true)
		default:
			return fd, err
		}
	}
	return openBeneathOld(dirfd, name, flags)
}

// openBeneathOld is openBeneath for Linux before 5.6: it compares mount ids.
// Device numbers would not do, a bind mount keeps them.
func openBeneathOld(dirfd int, name string, flags int) (int, error) {
	fd, err := unix.Openat(dirfd, name, flags, 0)
	if err != nil {
		return -1, err
	}
	above, err := mountID(dirfd)
	var here string
	if err == nil {
		here, err = mountID(fd)
	}
	if err == nil && above != here {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mountID reads it from proc_pid_fdinfo(5), which has it since Linux 3.15.
func mountID(fd int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id), nil
		}
	}
	return "", fmt.Errorf("no mnt_id in /proc/self/fdinfo/%d", fd)
}

// unlockDir gives its owner all rights to the directory name of dirfd, which
// may be unreadable. Through /proc the very inode that was opened is changed.
func unlockDir(dirfd int, name string) error {
	fd, err := openBeneath(dirfd, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o700) != nil {
		return unix.EACCES // not ours: the answer we had
	}
	return nil
}

// direntBuffer is how much of a directory is read at a time.
const direntBuffer = 16 << 10

var direntBuffers = sync.Pool{New: func() any { return new([direntBuffer]byte) }}

// dirents yields the names and DT_ types of a buffer that getdents64(2) filled,
// without "." and "..".
func dirents(buf []byte) iter.Seq2[string, byte] {
	// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, char name[].
	const reclen, kind, name = 16, 18, 19
	return func(yield func(string, byte) bool) {
		for len(buf) > name {
			n := int(binary.NativeEndian.Uint16(buf[reclen:]))
			text, _, _ := bytes.Cut(buf[name:n], []byte{0})
			if s := string(text); s != "." && s != ".." && !yield(s, buf[kind]) {
				return
			}
			buf = buf[n:]
		}
	}
}
