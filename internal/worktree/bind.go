package worktree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// Bind is an input that is not copied: every executor has the file itself, by a
// read-only bind mount.
//
// In the tree there is a holder in its place, on which the container's mount is
// made: an empty file of the same size, all of it a hole. Its other name, in
// binds/, tells it from every other file, wherever an executor moves it.
type Bind struct {
	Target string `json:"target"` // absolute path in the container
	Source string `json:"source"` // absolute path on the node, without links
	// What the file was when it was chosen.
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	Inode    uint64    `json:"inode"`
}

// NewBind describes the file that is to be mounted at target.
func NewBind(target, source string, info fs.FileInfo) Bind {
	return Bind{target, source, info.Size(), info.ModTime().UTC(), info.Sys().(*syscall.Stat_t).Ino}
}

// ErrReplaced says that the file of a Bind is not the one that was chosen any more.
var ErrReplaced = errors.New("it changed since the task began")

// Open opens the file, when it still is the one that was chosen.
func (b Bind) Open() (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(b.Source, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, b.changed(err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || !b.is(info)) {
		err = ErrReplaced
	}
	if err != nil {
		return nil, nil, errors.Join(b.changed(err), f.Close())
	}
	return f, info, nil
}

// is says whether a file is the one that was chosen. What else may change, such as its
// number of links, says nothing about its content.
func (b Bind) is(info fs.FileInfo) bool {
	now := NewBind(b.Target, b.Source, info)
	return now.Size == b.Size && now.Inode == b.Inode && now.Modified.Equal(b.Modified)
}

func (b Bind) changed(err error) error {
	return machine.Faultf(machine.TaskFault, "input %s is mounted from %s, which cannot be used any more: %w; "+
		"files below storage.file.mount must not change while tasks run", b.Target, b.Source, err)
}

// CheckBinds says why Docker must not mount the inputs that are not copied: a file
// changed, or an executor has put something else in the way to a holder, and Docker would
// follow a link there. checkSource is Tree.CheckSource. No container of the task may
// run between the check and the mount.
func (t *Tree) CheckBinds(checkSource func(source string) error) error {
	for _, b := range t.Plan.Binds {
		f, _, err := b.Open()
		if err != nil {
			return err
		}
		_ = f.Close() // nothing was read
		place := t.Where(b.Target)
		if err := checkSource(filepath.Join(place.Base, place.Name)); err != nil {
			return fmt.Errorf("an executor has replaced what leads to input %s: %w", b.Target, err)
		}
	}
	return nil
}

// holder is the name of a holder that no executor reaches.
func (t *Tree) holder(bind int) string { return filepath.Join(t.Dir, "binds", strconv.Itoa(bind)) }

// hold makes the holders. It keeps those that are there.
func (t *Tree) hold() error {
	if len(t.Plan.Binds) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(t.Dir, "binds"), 0o700); err != nil {
		return err
	}
	for i, b := range t.Plan.Binds {
		if err := createOpen(t.holder(i)); err != nil {
			return err
		}
		if err := os.Truncate(t.holder(i), b.Size); err != nil {
			return err
		}
		if t.Holds(b) {
			continue
		}
		if err := t.Link(t.holder(i), b.Target); err != nil {
			return err
		}
	}
	return nil
}

// Holds says whether the holder of an input is in its place.
func (t *Tree) Holds(b Bind) bool {
	_, info, err := t.Lookup(b.Target)
	if err != nil {
		return false
	}
	held, ok := t.held(info)
	return ok && held.Target == b.Target
}

// held returns the input that a file of the tree holds the place of.
func (t *Tree) held(info fs.FileInfo) (Bind, bool) {
	for i, b := range t.Plan.Binds {
		holder, err := os.Lstat(t.holder(i))
		if err == nil && os.SameFile(holder, info) {
			return b, true
		}
	}
	return Bind{}, false
}

// Bound returns the input at a container path that is mounted and not copied.
func (p Plan) Bound(container string) (Bind, bool) {
	for _, b := range p.Binds {
		if b.Target == container {
			return b, true
		}
	}
	return Bind{}, false
}
