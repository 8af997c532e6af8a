package worktree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MkdirAll makes the directories that lead to a container path and opens the
// innermost one. Every user may write to them.
func (t *Tree) MkdirAll(container string) (*os.Root, error) {
	place := t.Where(container)
	root, err := place.Open()
	if err != nil || place.Name == "." {
		return root, err
	}
	for _, part := range components(place.Name) {
		inner, err := enter(root, part)
		if err := errors.Join(err, root.Close()); err != nil {
			return nil, fmt.Errorf("cannot make the directory %s: %w", container, err)
		}
		root = inner
	}
	return root, nil
}

// Parent opens the directory on the node that holds the file at a container path,
// making those that lead there, and returns the file's name in it.
func (t *Tree) Parent(container string) (dir *os.File, name string, err error) {
	place := t.Where(container)
	name = path.Base(place.Name)
	var root *os.Root
	if place.Base == filepath.Join(t.Dir, "files") {
		root, err = place.Open()
	} else {
		root, err = t.MkdirAll(path.Dir(path.Clean(container)))
	}
	if err != nil {
		return nil, "", err
	}
	dir, err = root.Open(".")
	return dir, name, errors.Join(err, root.Close())
}

// enter opens a directory in root and makes it when it is not there.
func enter(root *os.Root, name string) (*os.Root, error) {
	switch err := root.Mkdir(name, 0o777); {
	case err == nil:
		// Whatever the umask: executors run as any user.
		if err := root.Chmod(name, 0o777); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, err
	}
	return root.OpenRoot(name)
}

// Link puts a file of the attempt's own (below Dir) at a container path,
// replacing what is there unless that is a directory. Links that a container
// left are followed as the container would follow them, for the directory; the
// last component is replaced. No container of the task may run meanwhile.
func (t *Tree) Link(file, container string) error {
	dir, name := path.Dir(path.Clean(container)), path.Base(container)
	place := t.Where(container)
	if place.Base != filepath.Join(t.Dir, "files") {
		physical, _, err := t.Resolve(dir)
		if errors.Is(err, fs.ErrNotExist) {
			physical = dir
			made, err := t.MkdirAll(dir)
			if err != nil {
				return err
			}
			if err := made.Close(); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		place = t.Where(physical)
		place.Name = path.Join(place.Name, name)
	}
	root, err := place.Open()
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // nothing is written through it
	if err := root.Remove(place.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot replace %s: %w", container, err)
	}
	holder, err := root.OpenFile(path.Dir(place.Name), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = holder.Close() }() // read-only
	if err := unix.Linkat(unix.AT_FDCWD, file, int(holder.Fd()), path.Base(place.Name), 0); err != nil {
		return fmt.Errorf("cannot put %s in place: %w", container, err)
	}
	return nil
}
