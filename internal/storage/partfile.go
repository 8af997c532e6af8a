package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
)

// minPreallocate is the size from which a file gets its blocks before its
// bytes: less would cost more than it saves.
const minPreallocate = 1 << 20

// partFile is a file in a directory that does not have its final name yet.
type partFile struct {
	*os.File
	dir *os.File
	// name is the one that it has meanwhile. One that has none goes with the process.
	name string
}

// createPart makes a new file in place of whatever has the name. No link can
// lead it elsewhere, as O_EXCL follows none.
func createPart(dir *os.File, name string) (*partFile, error) {
	var fd int
	create := func() (err error) {
		fd, err = unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	}
	err := whole(create)
	if errors.Is(err, fs.ErrExist) {
		if err := removeIn(dir, name); err != nil {
			return nil, err
		}
		err = whole(create)
	}
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return newPartFile(fd, dir, name), nil
}

// createUnnamed makes a new file that has no name before its final one, which takes half
// of what a name and another one take. On a filesystem that has no such files it gets
// the given name.
func createUnnamed(dir *os.File, name string, mode fs.FileMode) (*partFile, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err != nil {
		return createPart(dir, name) // which tells if it was anything else
	}
	return newPartFile(fd, dir, ""), nil
}

func newPartFile(fd int, dir *os.File, name string) *partFile {
	return &partFile{os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), dir, name}
}

// openPart opens a file that createPart made, and nothing else.
func openPart(dir *os.File, name string) (*partFile, error) {
	var fd int
	err := whole(func() (err error) {
		fd, err = unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	f := newPartFile(fd, dir, name)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1) {
		err = errNoPart
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

var errNoPart = errors.New("not a part file")

// Begun is how many bytes of the disk a process that died has left of a file that is not
// whole. Fetch uses them again or gives them back before it takes more.
func Begun(dir *os.File, name string) int64 {
	var st unix.Stat_t
	err := whole(func() error { return unix.Fstatat(int(dir.Fd()), partName(name, ""), &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return 0
	}
	return st.Blocks * 512
}

// setMode gives the file its mode, if the umask has taken something from it.
func (p *partFile) setMode(mode fs.FileMode) error {
	info, err := p.Stat()
	if err != nil || info.Mode().Perm() == mode.Perm() {
		return err
	}
	return p.Chmod(mode)
}

// publish gives the file its final name, in place of whatever has it.
func (p *partFile) publish(name string) error {
	if p.name == "" {
		err := p.link(name)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		part := partName(name, "")
		if err := removeIn(p.dir, part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := p.link(part); err != nil {
			return err
		}
		p.name = part
	}
	err := whole(func() error { return unix.Renameat(int(p.dir.Fd()), p.name, int(p.dir.Fd()), name) })
	if err != nil {
		return &os.LinkError{Op: "rename", Old: p.name, New: filepath.Join(p.dir.Name(), name), Err: err}
	}
	return nil
}

// link gives its first name to a file that has none.
func (p *partFile) link(name string) error {
	err := whole(func() error { return unix.Linkat(int(p.Fd()), "", int(p.dir.Fd()), name, unix.AT_EMPTY_PATH) })
	if errors.Is(err, unix.ENOENT) { // for want of CAP_DAC_READ_SEARCH
		at := fmt.Sprintf("/proc/self/fd/%d", p.Fd())
		err = whole(func() error { return unix.Linkat(unix.AT_FDCWD, at, int(p.dir.Fd()), name, unix.AT_SYMLINK_FOLLOW) })
	}
	if err != nil {
		return &os.PathError{Op: "link", Path: filepath.Join(p.dir.Name(), name), Err: err}
	}
	return nil
}

// remove takes away the name that the file has meanwhile.
func (p *partFile) remove() error {
	if p.name == "" {
		return nil
	}
	return removeIn(p.dir, p.name)
}

// removeIn removes a file of a directory.
func removeIn(dir *os.File, name string) error {
	if err := whole(func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) }); err != nil {
		return &os.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return nil
}

// WriteFile makes a file of a directory, which appears under its name when it is whole.
// sync makes it durable.
func WriteFile(dir *os.File, name, content string, mode fs.FileMode, sync bool) error {
	f, err := createUnnamed(dir, partName(name, ""), mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err == nil {
		err = f.setMode(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err == nil {
		err = f.publish(name)
	}
	if err != nil {
		err = errors.Join(err, f.remove())
	}
	return errors.Join(err, f.Close())
}

// whole makes a system call until no signal interrupts it.
func whole(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// preallocate gives a file its blocks, so that a disk that is too small says so
// at once and the file lies in few pieces.
func preallocate(f *os.File, size int64) error {
	err := whole(func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		// The filesystem cannot; what it says about its space has to do.
		if free := freeBytesAt(f.Name()); free >= 0 && free < size {
			return unix.ENOSPC
		}
		return nil
	}
	return err
}

// freeBytesAt is what may still be written at a path; -1 when nobody knows.
func freeBytesAt(path string) int64 {
	space, err := node.SpaceAt(path)
	if err != nil || space.TotalBytes == 0 {
		return -1
	}
	return int64(space.FreeBytes)
}
