package upload

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/storage/glob"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// File is one file to publish.
type File struct {
	Path string // in the container
	URL  string // with its secrets; never journaled
	Size int64
}

// log is the file as the journal and the result know it.
func (f File) log() tes.OutputFileLog {
	return tes.OutputFileLog{URL: redact.URL(f.URL), Path: f.Path, SizeBytes: f.Size}
}

// collect finds the files of all outputs in the work tree, in the order of the
// document. What is missing is a warning or an error, as the step is told.
func (s *Step) collect(ctx context.Context, t *machine.Task, n machine.Notes, tree *worktree.Tree) ([]File, error) {
	if err := s.capture(ctx, t, tree); err != nil {
		return nil, err
	}
	var files []File
	for i := range s.Task.Outputs {
		out := &s.Task.Outputs[i]
		found, err := s.find(ctx, n, tree, out)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 && (out.Type != tes.Directory || out.Wildcard()) {
			if s.Missing == MissingError {
				return nil, machine.Faultf(machine.TaskFault, "output %s was not made by the task (outputs.missing is \"error\")", out.Path)
			}
			if err := n.Warn(ctx, fmt.Sprintf("output %s was not made by the task; nothing is uploaded for it", out.Path)); err != nil {
				return nil, err
			}
		}
		files = append(files, found...)
	}
	return files, nil
}

// find lists the files of one output.
func (s *Step) find(ctx context.Context, n machine.Notes, tree *worktree.Tree, out *tes.Output) ([]File, error) {
	if !out.Wildcard() {
		p := path.Clean(out.LiteralPath())
		return s.walk(ctx, n, tree, p, out.URL, out.Type, map[string]bool{})
	}
	var files []File
	for match, err := range glob.Expand(tree, path.Clean(out.Path)) {
		if err != nil {
			return nil, machine.Faultf(machine.TaskFault, "output %s: %w", out.Path, err)
		}
		// A pattern says what to take; each match is taken as what it is.
		found, err := s.walk(ctx, n, tree, match, s.Storage.Join(out.URL, out.Relative(match)), "", map[string]bool{})
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	return files, nil
}

// walk lists the file at a container path, or the files below a directory. An
// empty want takes either. above holds the directories that the walk is in: a
// link back to one of them ends there.
func (s *Step) walk(ctx context.Context, n machine.Notes, tree *worktree.Tree, p, url string, want tes.FileType, above map[string]bool) ([]File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	place, info, err := tree.Resolve(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, n.Warn(ctx, fmt.Sprintf("output %s cannot be read and is left out: %v", p, err))
	}
	switch {
	case info.Mode().IsRegular() && want != tes.Directory:
		return []File{{p, url, info.Size()}}, nil
	case info.IsDir() && want != tes.File:
		at := path.Join(place.Base, place.Name)
		if above[at] {
			return nil, n.Warn(ctx, fmt.Sprintf("output %s is a link to a directory above it and is left out", p))
		}
		above[at] = true
		defer delete(above, at)
		entries, err := tree.ReadDir(p)
		if err != nil {
			return nil, machine.Faultf(machine.NodeFault, "cannot list output %s: %w", p, err)
		}
		var files []File
		for _, e := range entries {
			found, err := s.walk(ctx, n, tree, path.Join(p, e.Name()), s.Storage.Join(url, e.Name()), "", above)
			if err != nil {
				return nil, err
			}
			files = append(files, found...)
		}
		return files, nil
	default:
		return nil, n.Warn(ctx, fmt.Sprintf("output %s is not %s and is left out", p, kindName(want)))
	}
}

func kindName(want tes.FileType) string {
	switch want {
	case tes.File:
		return "a file"
	case tes.Directory:
		return "a directory"
	}
	return "a file or a directory"
}

// capture fetches the outputs that stayed in the containers' own filesystems,
// from the last container that has them.
func (s *Step) capture(ctx context.Context, t *machine.Task, tree *worktree.Tree) error {
	for _, p := range tree.Plan.Captured {
		for i := len(s.Task.Executors) - 1; i >= 0; i-- {
			taken, err := s.captureFrom(ctx, s.Containers.Name(t, i), p, tree)
			if err != nil {
				return err
			}
			if taken {
				break
			}
		}
	}
	return nil
}

func (s *Step) captureFrom(ctx context.Context, container, p string, tree *worktree.Tree) (bool, error) {
	archive, err := s.Engine.CopyFrom(ctx, container, p)
	if errors.Is(err, engine.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = archive.Close() }() // read-only
	if err := unpack(tar.NewReader(archive), path.Dir(p), tree); err != nil {
		return false, machine.Faultf(machine.NodeFault, "cannot take output %s from the container: %w", p, err)
	}
	return true, nil
}

// unpack writes what Docker archived to its container path in the work tree.
// Devices, FIFOs and sockets are left out: they are no outputs.
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
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return dir.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return tree.Link(onNode(tree, path.Join(parent, path.Clean("/"+h.Linkname))), p)
	}
	return nil
}

// onNode is the place on the node of a hard link's first name.
func onNode(tree *worktree.Tree, container string) string {
	place := tree.Where(container)
	return path.Join(place.Base, place.Name)
}
