package worktree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
)

// maxLinks bounds the symbolic links that one path may pass, as Linux does.
const maxLinks = 40

// Resolve follows symbolic links as the container would see them: an absolute
// target starts at the container's root, and nothing leads out of the tree. The
// physical path is the container path without links. No container of the task may
// run meanwhile. The error is fs.ErrNotExist when the path does not exist in the tree.
func (t *Tree) Resolve(container string) (physical string, info fs.FileInfo, err error) {
	return t.resolve(container, true, unlimited)
}

// Lookup is Resolve without following a link in the last component.
func (t *Tree) Lookup(container string) (physical string, info fs.FileInfo, err error) {
	return t.resolve(container, false, unlimited)
}

func unlimited() error { return nil }

// resolve calls step for each component that it has to look at by itself.
func (t *Tree) resolve(container string, last bool, step func() error) (physical string, info fs.FileInfo, err error) {
	todo := steps(container)
	if !slices.ContainsFunc(todo, dots) { // which are about where a link leads
		physical = "/" + strings.Join(todo, "/")
		info, err = t.lstat(physical)
		switch {
		case err == nil && (!last || info.Mode()&fs.ModeSymlink == 0):
			return physical, info, nil
		case err != nil && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR):
			return "", nil, err
		}
	}
	w := &way{tree: t, at: "/"}
	defer w.close()
	for links := 0; len(todo) > 0; {
		if err := step(); err != nil {
			return "", nil, err
		}
		name := todo[0]
		todo = todo[1:]
		if dots(name) {
			if err := w.onDirectory(); err != nil {
				return "", nil, fmt.Errorf("cannot resolve %s: %w", container, err)
			}
			if name == ".." {
				w.move(path.Dir(w.at), nil)
			}
			continue
		}
		f, info, err := w.enter(name)
		if err != nil {
			return "", nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 || !last && len(todo) == 0 {
			w.move(path.Join(w.at, name), f)
			continue
		}
		target, err := readlink(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", nil, err
		}
		if links++; links > maxLinks {
			return "", nil, fmt.Errorf("cannot resolve %s: %w", container, unix.ELOOP)
		}
		todo = append(steps(target), todo...)
		if strings.HasPrefix(target, "/") {
			w.move("/", nil)
		}
	}
	info, err = t.lstat(w.at)
	return w.at, info, err
}

// way is how far a path was followed: at is a container path without links.
type way struct {
	tree *Tree
	at   string
	dir  *os.File // at, opened with O_PATH; nil when it is not open yet
}

// move goes to another container path without links.
func (w *way) move(to string, dir *os.File) {
	w.close()
	w.at, w.dir = to, dir
}

// enter opens what has a name in the directory, with O_PATH. A link is opened itself.
func (w *way) enter(name string) (f *os.File, info fs.FileInfo, err error) {
	next := path.Join(w.at, name)
	if _, mounted := w.tree.mounts[next]; mounted {
		f, err = w.tree.open(next, unix.O_PATH)
	} else {
		if w.dir == nil {
			if w.dir, err = w.tree.open(w.at, unix.O_PATH); err != nil {
				return nil, nil, err
			}
		}
		f, err = node.OpenIn(w.dir, name, unix.O_PATH)
	}
	if err != nil {
		return nil, nil, err
	}
	if info, err = f.Stat(); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// onDirectory says ENOTDIR when the way has come to something else.
func (w *way) onDirectory() error {
	if w.dir == nil { // it came there from one of its entries
		return nil
	}
	info, err := w.dir.Stat()
	if err == nil && !info.IsDir() {
		err = unix.ENOTDIR
	}
	return err
}

func (w *way) close() {
	if w.dir != nil {
		_ = w.dir.Close() // nothing was read
		w.dir = nil
	}
}

// open opens a container path in which there are no links.
func (t *Tree) open(physical string, flags int) (*os.File, error) {
	place := t.Where(physical)
	return node.OpenBeneath(place.Base, place.Name, flags)
}

func (t *Tree) lstat(physical string) (fs.FileInfo, error) {
	f, err := t.open(physical, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was read
	return f.Stat()
}

// readlink reads a link that was opened with O_PATH.
func readlink(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", fmt.Errorf("cannot read the link %s: %w", f.Name(), err)
	}
	return string(buf[:n]), nil
}

// steps splits a path as the kernel follows it: a slash at its end asks for a
// directory, as a dot does.
func steps(p string) []string {
	var parts []string
	for _, c := range strings.Split(p, "/") {
		if c != "" {
			parts = append(parts, c)
		}
	}
	if len(parts) > 0 && strings.HasSuffix(p, "/") {
		parts = append(parts, ".")
	}
	return parts
}

func dots(component string) bool { return component == "." || component == ".." }

// components splits a path; "." and empty components are left out.
func components(p string) []string {
	var parts []string
	for _, c := range strings.Split(p, "/") {
		if c != "" && c != "." {
			parts = append(parts, c)
		}
	}
	return parts
}

// OpenFile opens a regular file that the container left, following links
// inside the tree. It never waits for a FIFO and never opens a device, whatever
// takes the file's place meanwhile. Of an input that is mounted it opens what the
// container sees.
func (t *Tree) OpenFile(container string) (*os.File, fs.FileInfo, error) {
	physical, _, err := t.Resolve(container)
	if err != nil {
		return nil, nil, err
	}
	at, err := t.open(physical, unix.O_PATH)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = at.Close() }() // f stays open without it
	info, err := at.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("cannot read %s: it is %s, not a regular file", container, describe(info.Mode()))
	}
	if b, ok := t.held(info); ok {
		return b.Open()
	}
	// Through /proc the very file that was looked at is opened.
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read %s: %w", container, errors.Unwrap(err))
	}
	return f, info, nil
}

func describe(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	default:
		return "a special file"
	}
}
