package node

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// noOpenat2 is set once the kernel, or a seccomp filter, turned out not to have openat2(2).
var noOpenat2 atomic.Bool

// openBeneath opens a path of the directory dirfd, without "..": one element when
// the kernel has no openat2. It follows no symbolic link (ELOOP, or ENOTDIR) and
// enters no mount (EXDEV).
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

// OpenBeneath opens name, which may have any number of elements and any length,
// below the directory base. base is trusted and may be reached by any path; of
// name no symbolic link is followed (ELOOP, or ENOTDIR) and no mount is entered
// (EXDEV). With O_PATH it does nothing to what it opens, be it a FIFO or a
// device, and a link in the last place is opened itself.
func OpenBeneath(base, name string, flags int) (*os.File, error) {
	fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: base, Err: err}
	}
	for rest := name; rest != ""; {
		part, after := cutPath(rest)
		how := flags
		if after != "" {
			how = unix.O_PATH | unix.O_DIRECTORY
		}
		next, err := openBeneath(fd, part, how)
		if errors.Is(err, errOneElement) {
			continue
		}
		rest = after
		unix.Close(fd)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: filepath.Join(base, name), Err: err}
		}
		fd = next
	}
	return os.NewFile(uintptr(fd), filepath.Join(base, name)), nil
}

// OpenIn is OpenBeneath for one element of a directory that is open.
func OpenIn(dir *os.File, name string, flags int) (*os.File, error) {
	at := filepath.Join(dir.Name(), name)
	fd, err := openBeneath(int(dir.Fd()), name, flags)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: at, Err: err}
	}
	return os.NewFile(uintptr(fd), at), nil
}

// errOneElement: the kernel turned out to be an old one.
var errOneElement = errors.New("one element at a time")

// cutPath splits a path after as many elements as one call can take.
func cutPath(name string) (part, rest string) {
	most := unix.PathMax - 1
	if noOpenat2.Load() {
		most = 0 // one element
	}
	if len(name) <= most {
		return name, ""
	}
	at := strings.LastIndexByte(name[:most+1], '/')
	if at <= 0 {
		if at = strings.IndexByte(name, '/'); at < 0 {
			return name, ""
		}
	}
	return name[:at], strings.TrimLeft(name[at:], "/")
}

// openBeneathOld is openBeneath for Linux before 5.6: it compares mount ids.
// Device numbers would not do, a bind mount keeps them.
func openBeneathOld(dirfd int, name string, flags int) (int, error) {
	if strings.Contains(name, "/") {
		return -1, errOneElement // O_NOFOLLOW is about the last one only
	}
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

// dirent is what a directory says of an entry.
type dirent struct {
	kind byte  // DT_, a hint
	next int64 // where the entry after it is, for lseek(2)
}

// dirents yields the names of a buffer that getdents64(2) filled, without "."
// and "..".
func dirents(buf []byte) iter.Seq2[string, dirent] {
	// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, char name[].
	const off, reclen, kind, name = 8, 16, 18, 19
	return func(yield func(string, dirent) bool) {
		for len(buf) > name {
			n := int(binary.NativeEndian.Uint16(buf[reclen:]))
			text, _, _ := bytes.Cut(buf[name:n], []byte{0})
			e := dirent{buf[kind], int64(binary.NativeEndian.Uint64(buf[off:]))}
			if s := string(text); s != "." && s != ".." && !yield(s, e) {
				return
			}
			buf = buf[n:]
		}
	}
}
