package upload

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/sorted"
	"github.com/deckhand/deckhand/internal/storage/glob"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// capture fetches the outputs that stayed in the containers' own filesystems.
// What several executors have made is taken from the last of them.
func (s *Step) capture(ctx context.Context, t *machine.Task, tree *worktree.Tree) (err error) {
	if len(tree.Plan.Captured) == 0 {
		return nil
	}
	list := sorted.New(filepath.Join(tree.Dir, "captured.list"), strings.Compare)
	defer func() { err = errors.Join(err, list.Close()) }()
	for i := len(s.Task.Executors) - 1; i >= 0; i-- {
		if err := s.checkMounts(ctx, tree, i, s.Containers.Name(t, i)); err != nil {
			return err
		}
		err := s.candidates(ctx, s.Containers.Name(t, i), tree, func(c candidate) error {
			c.executor = i
			return list.Add(c.encode())
		})
		if err != nil {
			return err
		}
	}
	if err := s.count(list, tree); err != nil {
		return err
	}
	taken := ""
	for e, err := range list.All() {
		if err != nil {
			return err
		}
		c := decodeCandidate(e)
		if c.path == taken {
			continue
		}
		there, err := s.captureFrom(ctx, s.Containers.Name(t, c.executor), c.path, tree)
		if err != nil {
			return err
		}
		if there {
			taken = c.path
		}
	}
	return nil
}

// candidate is a path to look for in the container of an executor, for a pattern of
// worktree.Plan.Captured. There can be millions.
type candidate struct {
	path              string
	executor, pattern int
}

func (c candidate) encode() sorted.Entry {
	value := binary.AppendUvarint(binary.AppendUvarint(nil, uint64(c.executor)), uint64(c.pattern))
	return sorted.Entry{Key: c.path, Value: value}
}

func decodeCandidate(e sorted.Entry) candidate {
	executor, n := binary.Uvarint(e.Value)
	pattern, _ := binary.Uvarint(e.Value[n:])
	return candidate{e.Key, int(executor), int(pattern)}
}

// count refuses more different paths than there may be outputs.
func (s *Step) count(list *sorted.List, tree *worktree.Tree) error {
	paths, last := 0, ""
	for e, err := range list.All() {
		if err != nil {
			return err
		}
		if e.Key == last {
			continue
		}
		last = e.Key
		if paths++; paths > s.MaxFiles {
			return s.tooMany(tree.Plan.Captured[decodeCandidate(e).pattern], worktree.ErrTooMuch)
		}
	}
	return nil
}

// checkMounts refuses to read from a container when an executor has put a link, or
// nothing, in the place of a directory of the task that it had mounted: Docker
// mounts anew what the container had, wherever a link leads.
func (s *Step) checkMounts(ctx context.Context, tree *worktree.Tree, executor int, container string) error {
	c, err := s.Engine.Container(ctx, container)
	if errors.Is(err, engine.ErrNotFound) {
		return nil // then nothing is read
	}
	if err != nil {
		return err
	}
	if err := tree.CheckBinds(tree.CheckSource); err != nil {
		return machine.Faultf(machine.FaultOf(err), "cannot take outputs from the container of executor %d: %w", executor, err)
	}
	for _, m := range c.Binds {
		if err := tree.CheckSource(m.Source); err != nil {
			return machine.Faultf(machine.TaskFault,
				"cannot take outputs from the container of executor %d: its image has a volume at %s, and that directory was replaced: %w", executor, m.Target, err)
		}
	}
	return nil
}

// candidates adds what may be an output in a container: the paths that outputs name,
// and what it has made or changed that a pattern matches. What else the image has in
// the same place is no output of the task, and what is mounted need not be fetched.
func (s *Step) candidates(ctx context.Context, container string, tree *worktree.Tree, add func(candidate) error) error {
	var patterns []int
	for i, pattern := range tree.Plan.Captured {
		if glob.HasMeta(pattern) {
			patterns = append(patterns, i)
		} else if err := add(candidate{path: glob.Unescape(pattern), pattern: i}); err != nil {
			return err
		}
	}
	if len(patterns) == 0 {
		return nil
	}
	err := s.Engine.Changes(ctx, container, func(changes iter.Seq[string]) error {
		paths, bytes := 0, worktree.PathBytes*s.MaxFiles // as a Reader allows
		for p := range changes {
			at := slices.IndexFunc(patterns, func(i int) bool { return glob.Match(tree.Plan.Captured[i], p) })
			if at < 0 || !tree.Captured(p) {
				continue
			}
			if paths, bytes = paths+1, bytes-len(p); paths > s.MaxFiles || bytes < 0 {
				return s.tooMany(tree.Plan.Captured[patterns[at]], worktree.ErrTooMuch)
			}
			if err := add(candidate{path: p, pattern: patterns[at]}); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, engine.ErrNotFound) {
		return nil
	}
	return err
}

func (s *Step) captureFrom(ctx context.Context, container, p string, tree *worktree.Tree) (bool, error) {
	err := s.Engine.CopyFrom(ctx, container, p, func(archive io.Reader) error {
		if err := unpack(tar.NewReader(archive), path.Dir(p), tree); err != nil {
			return machine.Faultf(machine.NodeFault, "cannot take output %s from the container: %w", p, err)
		}
		return nil
	})
	if errors.Is(err, engine.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// unpack writes what Docker archived to its container path in the work tree.
// Devices, FIFOs and sockets are left out: they are no outputs. So is what is
// mounted: Docker archives it too, but it is in the work tree already.
func unpack(r *tar.Reader, parent string, tree *worktree.Tree) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p := path.Join(parent, path.Clean("/"+h.Name))
		if !tree.Captured(p) {
			continue
		}
		if err := unpackOne(r, h, p, parent, tree); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
}

func unpackOne(r io.Reader, h *tar.Header, p, parent string, tree *worktree.Tree) (err error) {
	if h.Typeflag == tar.TypeDir {
		dir, err := tree.MkdirAll(p)
		if err != nil {
			return err
		}
		return dir.Close()
	}
	dir, err := tree.MkdirAll(path.Dir(p))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	name := path.Base(p)
	if err := dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := dir.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
		if err != nil {
			return err
		}
		err = copySparse(f, r, h.Size)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return dir.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return hardLink(tree, path.Join(parent, path.Clean("/"+h.Linkname)), p)
	}
	return nil
}

// hole is the size of the blocks that become holes when they are all zeros.
const hole = 64 << 10

// copySparse copies to an empty file. Docker's archives have every zero of a
// file's holes: written down, they could fill the disk.
func copySparse(f *os.File, r io.Reader, size int64) error {
	buf, zeros := make([]byte, hole), make([]byte, hole)
	for at := int64(0); at < size; {
		block := buf[:min(hole, size-at)]
		if _, err := io.ReadFull(r, block); err != nil {
			return err
		}
		if !bytes.Equal(block, zeros[:len(block)]) {
			if _, err := f.WriteAt(block, at); err != nil {
				return err
			}
		}
		at += int64(len(block))
	}
	return f.Truncate(size)
}

// hardLink gives a file that was unpacked a second name.
func hardLink(tree *worktree.Tree, first, second string) error {
	from, to := tree.Where(first), tree.Where(second)
	root, err := to.Open()
	if err != nil {
		return err
	}
	return errors.Join(root.Link(from.Name, to.Name), root.Close())
}
