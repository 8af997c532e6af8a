package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// TakeTree gives everything below a directory to the directory's own owner, who
// can then read, and search, what was closed to everybody. dir is trusted and may
// be reached by any path; what is in it may be written by somebody hostile, but
// not meanwhile:
//
//   - No symbolic link is followed; links themselves are given away.
//   - No mount point is crossed, and nothing is done to what is mounted.
//   - Memory grows with the length of the longest path alone, descriptors do not.
//
// What is refused goes to refused, which says whether to go on. The error is
// that of ctx or dir, or what refused did not accept.
func TakeTree(ctx context.Context, dir string, refused func(path string, err error) bool) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot take over %s: %w", dir, err)
	}
	t := &taker{fd: fd, path: []byte(dir), refused: refused}
	defer func() { unix.Close(t.fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("cannot take over %s: %w", dir, err)
	}
	t.uid, t.gid = int(st.Uid), int(st.Gid)
	return t.walk(ctx)
}

// taker is at a directory, which is open.
type taker struct {
	uid, gid int
	refused  func(path string, err error) bool

	fd    int
	path  []byte // one for all levels: every one of its own would be too much in a deep tree
	above []passed
}

// passed is a directory on the way to where a taker is.
type passed struct {
	length   int // of its path
	dev, ino uint64
	next     int64 // where to go on in it
}

func (t *taker) walk(ctx context.Context) error {
	buf := direntBuffers.Get().(*[direntBuffer]byte)
	defer direntBuffers.Put(buf)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Getdents(t.fd, buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			if err := t.refuse(".", err); err != nil {
				return err
			}
			n = 0
		}
		if n <= 0 {
			if len(t.above) == 0 {
				return nil
			}
			if err := t.leave(); err != nil {
				return err
			}
			continue
		}
		for name, e := range dirents(buf[:n]) {
			entered, err := t.take(name, e.next)
			if err != nil {
				return err
			}
			if entered {
				break // what is left of buf is read again
			}
		}
	}
}

// take gives one entry away, and enters it when it is a directory.
func (t *taker) take(name string, next int64) (entered bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(t.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, t.refuse(name, err)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if err := t.give(name, st); err != nil {
		if err := t.refuse(name, err); err != nil || !isDir {
			return false, err
		}
	}
	if !isDir {
		return false, nil
	}
	fd, err := openBeneath(t.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, t.refuse(name, err)
	}
	var here unix.Stat_t
	if err := unix.Fstat(t.fd, &here); err != nil {
		unix.Close(fd)
		return false, err
	}
	t.above = append(t.above, passed{len(t.path), here.Dev, here.Ino, next})
	unix.Close(t.fd)
	t.fd, t.path = fd, append(append(t.path, '/'), name...)
	return true, nil
}

// give gives one entry away when it is not the owner's, or closed to him.
func (t *taker) give(name string, st unix.Stat_t) error {
	kind, mode := st.Mode&unix.S_IFMT, st.Mode&0o777
	switch kind {
	case unix.S_IFDIR:
		mode |= 0o700
	case unix.S_IFREG:
		mode |= 0o400
	}
	if int(st.Uid) == t.uid && mode == st.Mode&0o777 {
		return nil
	}
	// The very inode that is no mount is changed, whatever has its name by then.
	fd, err := openBeneath(t.fd, name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if int(st.Uid) != t.uid {
		if err := unix.Fchownat(fd, "", t.uid, t.gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if mode == st.Mode&0o777 {
		return nil
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}

// leave goes back to the directory above.
func (t *taker) leave() error {
	to := t.above[len(t.above)-1]
	t.above = t.above[:len(t.above)-1]
	t.path = t.path[:to.length]
	fd, err := unix.Openat(t.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot go back to %s: %w", t.path, err)
	}
	unix.Close(t.fd)
	t.fd = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("cannot go back to %s: %w", t.path, err)
	}
	if st.Dev != to.dev || st.Ino != to.ino {
		return fmt.Errorf("cannot go back to %s: somebody has moved what is in it", t.path)
	}
	_, err = unix.Seek(fd, to.next, 0)
	return err
}

func (t *taker) refuse(name string, err error) error {
	p := filepath.Join(string(t.path), name)
	if t.refused(p, err) {
		return nil
	}
	return fmt.Errorf("cannot take over %s: %w", p, err)
}
