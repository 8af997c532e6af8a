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

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/tes"
)

// Tree is the work tree of one attempt on this node.
//
//	dirs/N      directories mounted into every executor
//	files/N     single files mounted into every executor
//	merges/N    directories whose files are copied into every executor's container
//	logs/       the executors' streams: those that go to files, until they have
//	            ended, and the ends of the others
//	gate/       a file for each executor whose command may begin; containers
//	            read it
//	binds/N     the holders of inputs that are mounted and not copied
//	captured/   what was fetched from ended containers, at its container path,
//	            with an empty place for each mount
type Tree struct {
	Dir  string // absolute
	Plan Plan

	mounts map[string]Mount // by target
	// deepest is how many elements the longest target has.
	deepest int
}

// New returns the work tree of an attempt below taskDir (a directory of its
// own for each attempt: a container of an older one cannot write into it).
// own is as for NewPlan.
func New(taskDir string, attempt int, t *tes.Task, own ...string) *Tree {
	return Planned(filepath.Join(taskDir, fmt.Sprint(attempt)), NewPlan(t, own...))
}

// Planned returns the work tree in a directory, for a process without the document.
func Planned(dir string, plan Plan) *Tree {
	tree := &Tree{Dir: dir, Plan: plan, mounts: map[string]Mount{}}
	for _, m := range tree.Plan.Mounts {
		tree.mounts[m.Target] = m
		tree.deepest = max(tree.deepest, strings.Count(m.Target, "/"))
	}
	return tree
}

// Staging is the tree as inputs are put into it: those that are merged into
// containers lie in the places from which they are copied.
func (t *Tree) Staging() *Tree {
	plan := t.Plan
	plan.Mounts = slices.Concat(plan.Merges, plan.Mounts)
	return Planned(t.Dir, plan)
}

// Prepare makes the empty tree: directories that any user of a container may
// write to, an empty file for each single-file mount, and the holders of inputs that are
// not copied. It keeps what is there. No container may have run.
func (t *Tree) Prepare() error {
	for _, dir := range []string{"", "dirs", "files", "merges", "logs", "captured"} {
		if err := os.MkdirAll(filepath.Join(t.Dir, dir), 0o700); err != nil {
			return err
		}
	}
	// Any user of a container looks for a file in it.
	if err := mkdir(filepath.Join(t.Dir, "gate"), 0o755); err != nil {
		return err
	}
	for _, m := range t.Plan.Merges {
		if err := mkdirOpen(t.Source(m)); err != nil {
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
	return t.hold()
}

// Missing says whether a power cut took away what Prepare has made: no executor can.
func (t *Tree) Missing() bool {
	var all []string
	for _, m := range t.Plan.Mounts {
		all = append(all, t.Source(m))
	}
	for i := range t.Plan.Binds {
		all = append(all, t.holder(i))
	}
	return slices.ContainsFunc(all, func(name string) bool {
		_, err := os.Lstat(name)
		return errors.Is(err, fs.ErrNotExist)
	})
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
func mkdirOpen(dir string) error { return mkdir(dir, 0o777) }

func mkdir(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, mode) // whatever the umask
}

// Source returns the absolute path of a mount on the node.
func (t *Tree) Source(m Mount) string { return filepath.Join(t.Dir, m.Source) }

// Log returns the path of an executor's stream on the node; name is "stdout" or "stderr".
func (t *Tree) Log(executor int, name string) string {
	return filepath.Join(t.Dir, "logs", fmt.Sprintf("%d.%s", executor, name))
}

// Ring returns the path of the end of an executor's stream that goes to no file.
func (t *Tree) Ring(executor int, name string) string { return t.Log(executor, name) + ".ring" }

// Gate returns the path on the node of the file that lets an executor's command
// begin.
func (t *Tree) Gate(executor int) string {
	return filepath.Join(t.Dir, "gate", fmt.Sprint(executor))
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
	found := Place{filepath.Join(t.Dir, "captured"), strings.TrimPrefix(container, "/")}
	for at, depth := 0, 0; depth < t.deepest && at < len(container); depth++ {
		end := strings.IndexByte(container[at+1:], '/')
		if at += 1 + end; end < 0 {
			at = len(container)
		}
		m, ok := t.mounts[container[:at]]
		switch {
		case ok && !m.File:
			found = Place{t.Source(m), strings.TrimPrefix(container[at:], "/")}
		case ok && at == len(container):
			found = Place{filepath.Join(t.Dir, "files"), path.Base(m.Source)}
		}
	}
	if found.Name == "" {
		found.Name = "."
	}
	return found
}

// Captured says whether a container path lies in no mount.
func (t *Tree) Captured(container string) bool {
	return t.Where(container).Base == filepath.Join(t.Dir, "captured")
}

// CheckSource says why Docker must not mount a path of this attempt's on the
// node: Docker follows links in it, and a container may have put one there. No
// container of the task may run between the check and the mount.
func (t *Tree) CheckSource(source string) error {
	rel, err := filepath.Rel(t.Dir, source)
	if err != nil || !filepath.IsLocal(rel) {
		return nil // none that a container could write to
	}
	f, err := node.OpenBeneath(t.Dir, rel, unix.O_PATH)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was read
	info, err := f.Stat()
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		err = unix.ELOOP
	}
	return err
}
