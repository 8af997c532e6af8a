package worktree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrTooMuch ends the reading of a tree that holds, or by its links seems to
// hold, more than the reader may look at.
var ErrTooMuch = errors.New("too many files, directories and links")

// Reader looks through what containers left in a tree. Whoever wrote the tree
// may be hostile, and a few links to directories make it endless for all that
// matters; so a reader looks at a limited number of entries, whose paths have
// PathBytes on average and whose links linkSteps. Neither time nor memory grow
// beyond that.
type Reader struct {
	tree                  *Tree
	entries, bytes, steps int // left
}

const (
	PathBytes = 256
	linkSteps = 32
)

// Reader returns a reader of as many entries at most.
func (t *Tree) Reader(entries int) *Reader {
	return &Reader{tree: t, entries: entries, bytes: PathBytes * entries, steps: linkSteps * entries}
}

func (r *Reader) step() error {
	if r.steps--; r.steps < 0 {
		return ErrTooMuch
	}
	return nil
}

// Resolve is Tree.Resolve.
func (r *Reader) Resolve(container string) (physical string, info fs.FileInfo, err error) {
	return r.tree.resolve(container, true, r.step)
}

// Dangling says whether a container path that does not exist is a link all the same.
func (r *Reader) Dangling(container string) bool {
	_, info, err := r.tree.resolve(container, false, r.step)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// Entry is an entry of a directory: a link is one itself.
type Entry struct {
	name string
	mode fs.FileMode
	size int64
}

// Size is in bytes.
func (e *Entry) Size() int64 { return e.size }

// Name implements fs.DirEntry.
func (e *Entry) Name() string { return e.name }

// IsDir implements fs.DirEntry.
func (e *Entry) IsDir() bool { return e.mode.IsDir() }

// Type implements fs.DirEntry.
func (e *Entry) Type() fs.FileMode { return e.mode.Type() }

// Info implements fs.DirEntry; it tells nothing.
func (e *Entry) Info() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }

// ReadDir lists a directory, following links inside the tree.
func (r *Reader) ReadDir(container string) iter.Seq2[fs.DirEntry, error] {
	return func(yield func(fs.DirEntry, error) bool) {
		physical, _, err := r.Resolve(container)
		if err != nil {
			yield(nil, err)
			return
		}
		for e, err := range r.List(physical) {
			if !yield(&e, err) {
				return
			}
		}
	}
}

// listed is how many entries of a directory are in memory at a time; fewer come in the
// order of their names.
const listed = 1024

// List lists a directory in whose container path there are no links. It ends after
// the first error.
func (r *Reader) List(physical string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		// Without O_DIRECTORY a FIFO would be waited for.
		dir, err := r.tree.open(physical, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer func() { _ = dir.Close() }() // read-only
		for more := true; more; {
			var entries []Entry
			if entries, more, err = r.some(dir, physical); err != nil {
				yield(Entry{}, err)
				return
			}
			if !more {
				_ = dir.Close() // directories may be nested deeper than files may be open
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// some reads entries of an open directory and says whether there may be more.
func (r *Reader) some(dir *os.File, physical string) (entries []Entry, more bool, err error) {
	for len(entries) < listed {
		names, err := dir.Readdirnames(listed - len(entries))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, false, err
		}
		if err != nil {
			slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.name, b.name) })
			return entries, false, nil
		}
		for _, name := range names {
			r.entries--
			if r.bytes -= len(physical) + 1 + len(name); r.entries < 0 || r.bytes < 0 {
				return nil, false, fmt.Errorf("cannot list %.200s: %w", physical, ErrTooMuch)
			}
			e, err := r.entry(dir, physical, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, false, fmt.Errorf("cannot look at %.200s in %.200s: %w", name, physical, err)
			}
			entries = append(entries, e)
		}
	}
	return entries, true, nil
}

// entry looks at one entry of an open directory. In place of a mount there is
// something empty.
func (r *Reader) entry(dir *os.File, physical, name string) (Entry, error) {
	if m, mounted := r.tree.mounts[strings.TrimSuffix(physical, "/")+"/"+name]; mounted && m.File {
		info, err := r.tree.lstat(m.Target)
		if err != nil {
			return Entry{}, err
		}
		return Entry{name, info.Mode(), info.Size()}, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Entry{}, err
	}
	return Entry{name, modeOf(st.Mode), st.Size}, nil
}

// modeOf turns the type in a st_mode into a fs.FileMode.
func modeOf(mode uint32) fs.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		return fs.ModeDevice
	}
	return fs.ModeIrregular
}
