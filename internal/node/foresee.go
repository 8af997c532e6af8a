package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Foresight says what RemoveTree would do to one tree after the other, without
// changing anything.
type Foresight struct {
	names map[inode]uint32 // how many names of a file with several would be gone
}

type inode struct{ dev, ino uint64 }

// maxLinked bounds the files with several names that are followed. The bytes of
// more than those are not counted.
const maxLinked = 100_000

// Tree says what RemoveTree would do to base/name. It holds two directories open
// at a time, and its memory grows with the depth alone. A directory that cannot
// be read, or that is moved meanwhile, is an error.
func (f *Foresight) Tree(ctx context.Context, base, name string) (Removed, error) {
	if f.names == nil {
		f.names = map[inode]uint32{}
	}
	fd, err := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return Removed{}, nil
	}
	w := walk{Foresight: f, fd: fd, at: []above{{name: base}}}
	if err == nil {
		defer func() { unix.Close(w.fd) }()
		var down bool
		if down, err = w.entry(name); down {
			err = w.down(ctx)
		}
	}
	if err != nil {
		return w.removed, fmt.Errorf("cannot look through %s: %w", filepath.Join(base, name), err)
	}
	return w.removed, nil
}

// walk is one pass through a tree.
type walk struct {
	*Foresight
	removed Removed
	fd      int     // of the last directory of at
	at      []above // the directory that is read and those above it; the first is base
}

// above is a directory that is being read.
type above struct {
	name   string
	inode  inode
	next   int64 // where to go on reading
	blocks uint64
	flag   string // what keeps anything from leaving it
	stays  bool
}

// down reads the directory that was entered last, and all below it.
func (w *walk) down(ctx context.Context) error {
	buf := direntBuffers.Get().(*[direntBuffer]byte)
	defer direntBuffers.Put(buf)
	for len(w.at) > 1 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Getdents(w.fd, buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = w.up()
		}
		if err != nil {
			return err
		}
		for name, e := range dirents(buf[:n]) {
			w.at[len(w.at)-1].next = e.next
			down, err := w.entry(name)
			if err != nil {
				return err
			}
			if down {
				break
			}
		}
	}
	return nil
}

// entry looks at an entry of the directory that is read, and enters it when it is
// a directory.
func (w *walk) entry(name string) (down bool, err error) {
	var st unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_NLINK | unix.STATX_BLOCKS | unix.STATX_INO
	err = unix.Statx(w.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, mask, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	d := &w.at[len(w.at)-1]
	id := inode{uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), st.Ino}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		fd, err := openBeneath(w.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if errors.Is(err, unix.EXDEV) {
			w.keep(name, "another filesystem is mounted there")
			return false, nil
		}
		if err != nil {
			return false, err
		}
		unix.Close(w.fd)
		w.fd = fd
		w.at = append(w.at, above{name: name, inode: id, blocks: st.Blocks, flag: lockFlag(st)})
		return true, nil
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		w.keep(name, "in use, or another filesystem is mounted there")
	case lockFlag(st) != "":
		w.keep(name, lockFlag(st))
	case d.flag != "":
		w.keep(name, "its directory is "+d.flag)
	case st.Nlink > 1:
		gone, known := w.names[id]
		if known || len(w.names) < maxLinked {
			w.names[id] = gone + 1
		}
		if gone+1 < st.Nlink {
			st.Blocks = 0 // it has another name
		}
		w.count(st.Blocks)
	default:
		w.count(st.Blocks)
	}
	return false, nil
}

// up leaves a directory that was read to its end.
func (w *walk) up() error {
	d := w.at[len(w.at)-1]
	fd, err := unix.Openat(w.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	unix.Close(w.fd)
	w.fd = fd
	w.at = w.at[:len(w.at)-1]
	parent := &w.at[len(w.at)-1]
	if len(w.at) > 1 {
		var st unix.Statx_t
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO, &st); err != nil {
			return err
		}
		if (inode{uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), st.Ino}) != parent.inode {
			return fmt.Errorf("%s was moved meanwhile", d.name)
		}
		if _, err := unix.Seek(fd, parent.next, 0); err != nil {
			return err
		}
	}
	switch {
	case d.stays:
		parent.stays = true
	case d.flag != "":
		w.keep(d.name, d.flag)
	case parent.flag != "":
		w.keep(d.name, "its directory is "+parent.flag)
	default:
		w.count(d.blocks)
	}
	return nil
}

// keep notes an entry of the directory that is read as one that stays.
func (w *walk) keep(name, why string) {
	w.at[len(w.at)-1].stays = true
	w.removed.KeptTotal++
	if len(w.removed.Kept) < keptListed {
		path := w.at[0].name
		for _, d := range w.at[1:] {
			path += "/" + d.name
		}
		w.removed.Kept = append(w.removed.Kept, Left{Path: path + "/" + name, Why: why})
	}
}

func (w *walk) count(blocks uint64) {
	w.removed.Entries++
	w.removed.Bytes += int64(blocks) * 512
}
