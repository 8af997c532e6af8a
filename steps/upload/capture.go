package upload

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/storage/glob"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// capture fetches the outputs that stayed in the containers' own filesystems.
// What several executors have made is taken from the last of them.
func (s *Step) capture(ctx context.Context, t *machine.Task, tree *worktree.Tree) error {
	taken := map[string]bool{}
	safe := map[string]bool{}
	for _, pattern := range tree.Plan.Captured {
		for i := len(s.Task.Executors) - 1; i >= 0; i-- {
			name := s.Containers.Name(t, i)
			if !safe[name] {
				if err := s.checkMounts(ctx, tree, i, name); err != nil {
					return err
				}
				safe[name] = true
			}
			paths := []string{glob.Unescape(pattern)}
			if glob.HasMeta(pattern) {
				var err error
				if paths, err = s.matching(ctx, name, pattern, tree, taken); err != nil {
					return err
				}
			}
			for _, p := range paths {
				if taken[p] {
					continue
				}
				there, err := s.captureFrom(ctx, name, p, tree)
				if err != nil {
					return err
				}
				if there {
					taken[p] = true
				}
			}
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

// matching lists what a container has made or changed that a pattern matches and
// that is not taken yet, as many paths as may be left. What else the image has in
// the same place is no output of the task, and what is mounted need not be fetched.
func (s *Step) matching(ctx context.Context, container, pattern string, tree *worktree.Tree, taken map[string]bool) ([]string, error) {
	left := s.MaxFiles - len(taken)
	var paths []string
	err := s.Engine.Changes(ctx, container, func(changes iter.Seq[string]) error {
		paths = nil
		bytes := worktree.PathBytes * left // as a Reader allows
		for p := range changes {
			if taken[p] || !glob.Match(pattern, p) || !tree.Captured(p) {
				continue
			}
			if bytes -= len(p); len(paths) >= left || bytes < 0 {
				return s.tooMany(pattern, worktree.ErrTooMuch)
			}
			paths = append(paths, p)
		}
		return nil
	})
	if errors.Is(err, engine.ErrNotFound) {
		return nil, nil
	}
	return paths, err
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
