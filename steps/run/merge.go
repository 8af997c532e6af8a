package run

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// whatMounts is the kind of fact that says which input directories in the image's
// trees are mounted after all; its detail is ownDirs. Its intent is written before
// the containers are made anew.
const whatMounts = "mounts"

type ownDirs struct {
	Directories []string `json:"directories"`
}

// OwnDirs are the input directories in the image's trees in which no image of the
// task has anything, as worktree.NewPlan takes them. Before Settle there are none. It
// panics when what Settle has journaled cannot be read.
func OwnDirs(n machine.Notes) []string {
	note, ok := n.Of(machine.ImageCheck).Get(whatMounts, "own")
	if !ok {
		return nil
	}
	var own ownDirs
	if err := json.Unmarshal(note.Detail, &own); err != nil {
		panic(fmt.Sprintf("the journaled mounts of directories cannot be read: %v", err))
	}
	return own.Directories
}

// Settle is called when all containers are there. It makes durable what they mount:
// Docker may keep them on another disk, so that after a power cut they would start with
// streams that are not there, or are empty, and fail as if it was by their commands.
func (c *Containers) Settle(ctx context.Context, t *machine.Task, n machine.Notes) error {
	if err := c.mountOwn(ctx, t, n); err != nil {
		return err
	}
	if err := node.SyncFilesystem(ctx, c.Tree(t.Attempt, n).Dir); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return machine.Faultf(machine.NodeFault, "cannot make the work tree durable: %w", err)
	}
	return nil
}

// mountOwn looks what the containers' images have in the places of input
// directories. In which none has anything, those are mounted, and the containers made
// anew with the mounts.
func (c *Containers) mountOwn(ctx context.Context, t *machine.Task, n machine.Notes) error {
	note, decided := n.Get(whatMounts, "own")
	if decided && note.Kind == machine.KindDone {
		return nil
	}
	fact := machine.Fact{What: whatMounts, Name: "own", Detail: ownDirs{OwnDirs(n)}}
	if !decided {
		var own ownDirs
		for _, m := range c.Tree(t.Attempt, n).Plan.Merges {
			has, err := c.have(ctx, t, m.Target)
			if err != nil {
				return err
			}
			if !has {
				own.Directories = append(own.Directories, m.Target)
			}
		}
		if len(own.Directories) == 0 {
			return nil
		}
		fact.Detail = own
		if err := n.Intent(ctx, fact); err != nil {
			return err
		}
	}
	for i := range c.Task.Executors {
		if err := c.Renew(ctx, t, n, i); err != nil {
			return err
		}
	}
	return n.Done(ctx, fact)
}

// have says whether an image of the task has anything in a directory.
func (c *Containers) have(ctx context.Context, t *machine.Task, dir string) (bool, error) {
	for i := range c.Task.Executors {
		kind, entries, err := look(ctx, c.Engine, c.Name(t, i), dir)
		if err != nil {
			return false, err
		}
		if kind != 0 && (kind != tar.TypeDir || entries) {
			return true, nil
		}
		if kind != 0 {
			continue
		}
		// Of a container that is gone Docker says no more than of a path that is not there.
		if _, err := c.Engine.Container(ctx, c.Name(t, i)); errors.Is(err, engine.ErrNotFound) {
			return false, fmt.Errorf("somebody removed the container of executor %d: %w", i, machine.ErrLost)
		} else if err != nil {
			return false, err
		}
	}
	return false, nil
}

// copier reads files of a container that need not run.
type copier interface {
	CopyFrom(ctx context.Context, id, path string, read func(io.Reader) error) error
}

// look says what kind of file a container has at a path, 0 for none, and whether
// it is a directory with entries.
func look(ctx context.Context, e copier, container, p string) (kind byte, entries bool, err error) {
	err = e.CopyFrom(ctx, container, p, func(archive io.Reader) error {
		r := tar.NewReader(archive)
		h, err := r.Next()
		if err != nil {
			return err
		}
		kind = h.Typeflag
		_, err = r.Next()
		entries = err == nil
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	})
	if errors.Is(err, engine.ErrNotFound) {
		return 0, false, nil
	}
	return kind, entries, err
}

// Renew makes the container of an executor that was not started anew, as the work
// tree is planned now.
func (c *Containers) Renew(ctx context.Context, t *machine.Task, n machine.Notes, executor int) error {
	name := c.Name(t, executor)
	imageID := announced(n.Of(machine.ImageCheck), name)
	if imageID == "" {
		return fmt.Errorf("the journal does not say which image container %s has: %w", name, machine.ErrLost)
	}
	img, err := c.Engine.Image(ctx, imageID)
	if err == nil {
		if err := c.Engine.Remove(context.WithoutCancel(ctx), name); err != nil {
			return err
		}
		err = c.Create(ctx, t, n, executor, img)
	}
	if errors.Is(err, engine.ErrNotFound) {
		return fmt.Errorf("the image of executor %d went away: %w: %w", executor, err, machine.ErrLost)
	}
	return err
}

// renew makes an executor's container anew before input directories are copied
// into it. What an earlier process has begun to copy may still be on its way, to a
// container that is then no more.
func (s *Step) renew(ctx context.Context, t *machine.Task, n machine.Notes, i int) (engine.Container, error) {
	if err := s.Containers.Renew(ctx, t, n, i); err != nil {
		return engine.Container{}, err
	}
	return s.Engine.Container(ctx, s.Containers.Name(t, i))
}

// copyInputs copies into an executor's container the input directories that its
// image has too.
func (s *Step) copyInputs(ctx context.Context, n machine.Notes, i int, tree *worktree.Tree, container string) error {
	for _, m := range tree.Plan.Merges {
		if err := s.merge(ctx, n, container, tree.Source(m), m.Target); err != nil {
			return fmt.Errorf("cannot copy the input directory %s into the container of executor %d: %w", m.Target, i, err)
		}
	}
	return nil
}

// dockers are files that Docker mounts into every container.
var dockers = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

// merge copies what is in a directory of this node into one of a container. The
// directories that the container has stay what they are.
func (s *Step) merge(ctx context.Context, n machine.Notes, container, source, target string) error {
	at := func(name string) string { return path.Join(target, name) }
	made := map[string]bool{} // directories that the container does not have
	var names []string
	err := fs.WalkDir(os.DirFS(source), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return machine.Faultf(machine.NodeFault, "%w", err)
		case slices.Contains(dockers, at(name)):
			return n.Warn(ctx, fmt.Sprintf("%s of an input directory is left out: Docker has a file of its own there; give it as an input by itself", at(name)))
		case e.IsDir() && !made[path.Dir(name)]:
			kind, _, err := look(ctx, s.Engine, container, at(name))
			if kind == tar.TypeSymlink && err == nil {
				kind, _, err = look(ctx, s.Engine, container, at(name)+"/.") // where it leads
				if kind == 0 && err == nil {
					return machine.Faultf(machine.TaskFault, "the image has a link at %s that leads nowhere", at(name))
				}
			}
			switch {
			case err != nil:
				return err
			case kind != 0 && kind != tar.TypeDir:
				return machine.Faultf(machine.TaskFault, "the image has a file at %s", at(name))
			case kind != 0:
				return nil
			}
			made[name] = true
		case e.IsDir():
			made[name] = true
		}
		names = append(names, name)
		return nil
	})
	if err != nil || len(names) == 0 {
		return err
	}
	read, write := io.Pipe()
	archived := make(chan error, 1)
	go func() {
		err := archive(write, source, target, names)
		archived <- err
		_ = write.CloseWithError(err) // never fails
	}()
	err = s.Engine.CopyTo(ctx, container, "/", read)
	_ = read.CloseWithError(io.ErrClosedPipe) // as above
	if failed := <-archived; failed != nil && !errors.Is(failed, io.ErrClosedPipe) {
		return machine.Faultf(machine.NodeFault, "%w", failed)
	}
	return err
}

// archive writes a tar of files and directories below source, under their places
// in the container.
func archive(w io.Writer, source, target string, names []string) error {
	t := tar.NewWriter(w)
	for _, name := range names {
		if err := archiveOne(t, filepath.Join(source, name), path.Join(target, name)); err != nil {
			return err
		}
	}
	return t.Close()
}

func archiveOne(t *tar.Writer, file, as string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read-only
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	// Whoever runs deckhand is nobody in the container.
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname = as[1:], 0, 0, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if err := t.WriteHeader(h); err != nil || info.IsDir() {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
