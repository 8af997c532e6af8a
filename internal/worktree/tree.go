package worktree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
)

// Tree is the work tree of one attempt on this node.
//
//	dirs/N      directories mounted into every executor
//	files/N     single files mounted into every executor
//	logs/       the executors' streams that go to files, until they have ended
//	captured/   what was fetched from ended containers, at its container path,
//	            with an empty place for each mount
type Tree struct {
	Dir  string // absolute
	Plan Plan
}

// New returns the work tree of an attempt below taskDir (a directory of its
// own for each attempt: a container of an older one cannot write into it).
func New(taskDir string, attempt int, t *tes.Task) *Tree {
	return &Tree{Dir: filepath.Join(taskDir, fmt.Sprint(attempt)), Plan: NewPlan(t)}
}

// Prepare makes the empty tree: directories that any user of a container may
// write to, and an empty file for each single-file mount. It keeps what is there.
func (t *Tree) Prepare() error {
	for _, dir := range []string{"", "dirs", "files", "logs", "captured"} {
		if err := os.MkdirAll(filepath.Join(t.Dir, dir), 0o700); err != nil {
			return err
		}
	}
	for _, m := range t.Plan.Mounts {
		create, place := mkdirOpen, filepath.Join(t.Dir, "captured", m.Target)
		if m.File {
			create = createOpen
		}
		err := os.MkdirAll(filepath.Dir(place), 0o700)
		if err := errors.Join(err, create(place), create(t.Source(m))); err != nil {
			return err
		}
	}
	return nil
}

// createOpen makes an empty file that every user may write to.
func createOpen(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o666), f.Close())
}

// mkdirOpen makes a directory that every user may write to: executors run as
// whatever user their image names. Directories above it are 0700.
func mkdirOpen(dir string) error {
	if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o777) // whatever the umask
}

// Source returns the absolute path of a mount on the node.
func (t *Tree) Source(m Mount) string { return filepath.Join(t.Dir, m.Source) }

// Log returns the path of an executor's stream on the node; name is "stdout" or "stderr".
func (t *Tree) Log(executor int, name string) string {
	return filepath.Join(t.Dir, "logs", fmt.Sprintf("%d.%s", executor, name))
}

// Place is where a container path lives on the node: a name below a directory
// that is opened as an os.Root, so that no link in it leads out.
type Place struct {
	Base string // absolute directory on the node
	Name string // relative to Base, "." for Base itself
}

// Open opens the directory that holds the place.
func (p Place) Open() (*os.Root, error) { return os.OpenRoot(p.Base) }

// Where returns the place of a container path as the document gives it,
// without following any link in the tree.
func (t *Tree) Where(container string) Place {
	container = path.Clean(container)
	for _, m := range t.Plan.Mounts {
		if m.File && container == m.Target {
			return Place{filepath.Join(t.Dir, "files"), path.Base(m.Source)}
		}
		if !m.File && within(container, m.Target) {
			rel := strings.TrimPrefix(strings.TrimPrefix(container, m.Target), "/")
			if rel == "" {
				rel = "."
			}
			return Place{t.Source(m), rel}
		}
	}
	rel := strings.TrimPrefix(container, "/")
	if rel == "" {
		rel = "."
	}
	return Place{filepath.Join(t.Dir, "captured"), rel}
}

// maxLinks bounds the symbolic links that one path may pass, as Linux does.
const maxLinks = 40

// Captured says whether a container path lies in no mount.
func (t *Tree) Captured(container string) bool {
	return t.Where(container).Base == filepath.Join(t.Dir, "captured")
}

// Resolve follows symbolic links as the container would see them: an absolute
// target starts at the container's root, and nothing leads out of the tree. It
// must not run while a container of the task does. The error is fs.ErrNotExist
// when the path does not exist in the tree.
func (t *Tree) Resolve(container string) (Place, fs.FileInfo, error) {
	return t.resolve(container, true)
}

// Lookup is Resolve without following a link in the last component.
func (t *Tree) Lookup(container string) (Place, fs.FileInfo, error) {
	return t.resolve(container, false)
}

func (t *Tree) resolve(container string, last bool) (Place, fs.FileInfo, error) {
	todo := components(container)
	at := "/"
	place := t.Where(at)
	var info fs.FileInfo
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			at = path.Dir(at)
			place, info = t.Where(at), nil
			continue
		}
		next := path.Join(at, name)
		p := t.Where(next)
		fi, err := lstat(p)
		if err != nil {
			return Place{}, nil, err
		}
		if fi.Mode()&fs.ModeSymlink != 0 && (last || len(todo) > 0) {
			if links++; links > maxLinks {
				return Place{}, nil, fmt.Errorf("cannot resolve %s: %w", container, unix.ELOOP)
			}
			target, err := readlink(p)
			if err != nil {
				return Place{}, nil, err
			}
			todo = append(components(target), todo...)
			if strings.HasPrefix(target, "/") {
				at = "/"
			}
			continue
		}
		at, place, info = next, p, fi
	}
	if info == nil {
		fi, err := lstat(place)
		if err != nil {
			return Place{}, nil, err
		}
		info = fi
	}
	return place, info, nil
}

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

func lstat(p Place) (fs.FileInfo, error) {
	root, err := p.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // read-only
	return root.Lstat(p.Name)
}

func readlink(p Place) (string, error) {
	root, err := p.Open()
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }() // read-only
	return root.Readlink(p.Name)
}

// OpenFile opens a regular file that the container left, following links
// inside the tree. It never blocks on a FIFO and never opens a device.
func (t *Tree) OpenFile(container string) (*os.File, fs.FileInfo, error) {
	place, info, err := t.Resolve(container)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("cannot read %s: it is %s, not a regular file", container, describe(info.Mode()))
	}
	root, err := place.Open()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = root.Close() }() // f stays open without it
	f, err := root.OpenFile(place.Name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	// A Root follows links that stay inside it.
	if now, err := f.Stat(); err != nil || !os.SameFile(info, now) {
		return nil, nil, errors.Join(fmt.Errorf("cannot read %s: it changed meanwhile", container), err, f.Close())
	}
	return f, info, nil
}

// ReadDir lists a directory that the container left, following links inside
// the tree, sorted by name.
func (t *Tree) ReadDir(container string) ([]fs.DirEntry, error) {
	place, info, err := t.Resolve(container)
	if err != nil {
		return nil, err
	}
	root, err := place.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // read-only
	dir, err := root.OpenFile(place.Name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }() // read-only
	if now, err := dir.Stat(); err != nil || !os.SameFile(info, now) {
		return nil, errors.Join(fmt.Errorf("cannot list %s: it changed meanwhile", container), err)
	}
	entries, err := dir.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
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
