// Package download stages a task's inputs into its work tree.
package download

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// Storage is what staging asks of the places that inputs come from.
type Storage interface {
	Stat(ctx context.Context, url string) (storage.Object, error)
	List(ctx context.Context, url string) iter.Seq2[storage.Object, error]
	Fetch(ctx context.Context, r storage.FetchRequest) (storage.Fetched, error)
}

// WhatInputs is the kind of fact that says which inputs are staged; its detail
// is a batch of File.
const WhatInputs = "inputs"

// File is one staged file: whole, verified and durable.
type File struct {
	Path  string `json:"path"` // in the container
	Bytes int64  `json:"bytes"`
}

// Step is the Download state.
type Step struct {
	Task     *tes.Task
	Storage  Storage
	Tree     func(attempt int, n machine.Notes) *worktree.Tree
	Parallel int // files at a time
	Meter    *progress.Meter
	Log      *slog.Logger

	known known
}

var _ machine.Step = (*Step)(nil)

// State implements machine.Step.
func (s *Step) State() machine.State { return machine.Download }

// Probe says whether files were staged.
func (s *Step) Probe(_ context.Context, _ *machine.Task, n machine.Notes) (machine.Progress, error) {
	if len(n.All(WhatInputs)) == 0 {
		return machine.None, nil
	}
	return machine.Partial, nil
}

// item is one file to stage.
type item struct {
	path    string // in the container
	url     string
	content *string
	object  storage.Object
}

// Do implements machine.Step.
func (s *Step) Do(ctx context.Context, t *machine.Task, n machine.Notes) error {
	if len(s.Task.Inputs) == 0 {
		return nil
	}
	s.Meter.Reset("inputs")
	tree := s.Tree(t.Attempt, n).Staging()
	items, err := s.expand(ctx, n, tree)
	if err != nil {
		return err
	}
	done, err := batch.Read[File](n, WhatInputs)
	if err != nil {
		return err
	}
	staged := map[string]File{}
	for _, f := range done {
		staged[f.Path] = f
	}
	var todo []item
	var need int64
	for _, i := range items {
		s.Meter.AddTotal(1, max(0, i.object.Size))
		if f, done := staged[i.path]; done && inPlace(tree, f) {
			s.Meter.AddBytes(max(0, i.object.Size))
			s.Meter.FileDone()
			continue
		}
		need += max(0, i.object.Size)
		todo = append(todo, i)
	}
	if err := fits(tree.Dir, need); err != nil {
		return err
	}
	if len(todo) == 0 {
		return nil
	}
	// The files' names follow from the document, so one intent announces them all.
	if err := n.Intent(ctx, machine.Fact{What: WhatInputs, Name: "all", Detail: map[string]int64{"files": int64(len(todo)), "bytes": need}}); err != nil {
		return err
	}
	s.Log.Info("staging inputs", "files", len(todo), "bytes", need)
	disk, err := node.OpenFilesystem(tree.Dir)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot stage inputs: %w", err)
	}
	defer disk.Close()
	journal := batch.NewWriter(n, WhatInputs, func(f File) int { return len(f.Path) + 32 })
	journal.Durable = func() error {
		if err := disk.Sync(); err != nil {
			return machine.Faultf(machine.NodeFault, "%w", err)
		}
		return nil
	}
	downloads, inner := group.WithContext(ctx)
	downloads.SetLimit(s.Parallel)
	for _, i := range todo {
		downloads.Go(func() error {
			if err := inner.Err(); err != nil {
				return err
			}
			f, err := s.stage(inner, tree, i)
			if err != nil {
				return err
			}
			s.Meter.FileDone()
			return journal.Add(ctx, f)
		})
	}
	// What was staged stays staged, also when another file failed.
	return errors.Join(downloads.Wait(), journal.Flush(ctx))
}

// expand lists the files of all inputs, each place once, and makes the
// directories of inputs, which may be empty.
func (s *Step) expand(ctx context.Context, n machine.Notes, tree *worktree.Tree) ([]item, error) {
	m, inputs := newMerge(s.Task.Inputs)
	for _, in := range inputs {
		p := path.Clean(in.Path)
		var err error
		switch {
		case in.Content != nil:
			m.file(item{path: p, content: in.Content, object: storage.Object{Size: int64(len(*in.Content))}})
		case in.Type == tes.Directory:
			err = s.directory(ctx, m, in.URL, p)
		default:
			var o storage.Object
			if o, err = s.stat(ctx, in.URL); err == nil {
				m.file(item{path: p, url: in.URL, object: o})
			}
		}
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", p, err)
		}
	}
	items, dirs, leftOut := m.result()
	for _, sentence := range leftOut {
		if err := n.Warn(ctx, sentence); err != nil {
			return nil, err
		}
	}
	for _, d := range dirs {
		if err := mkdir(tree, d); err != nil {
			return nil, fmt.Errorf("input %s: %w", d, err)
		}
	}
	return items, nil
}

// directory adds what an input directory holds.
func (s *Step) directory(ctx context.Context, m *merge, url, p string) error {
	m.dir(p)
	for o, err := range s.Storage.List(ctx, url) {
		if err != nil {
			return err
		}
		at := path.Join(p, o.Name)
		if o.Mode.IsDir() {
			m.dir(at)
		} else {
			m.file(item{path: at, url: o.URL, object: o})
		}
	}
	return nil
}

func mkdir(tree *worktree.Tree, p string) error {
	root, err := tree.MkdirAll(p)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "%w", err)
	}
	return root.Close()
}

// stage brings one file to its place, whole and verified; a large one also durable.
func (s *Step) stage(ctx context.Context, tree *worktree.Tree, i item) (File, error) {
	dir, name, err := tree.Parent(i.path)
	if err != nil {
		return File{}, fmt.Errorf("input %s: %w", i.path, err)
	}
	defer func() { _ = dir.Close() }() // it was only looked into
	if i.content != nil {
		if err := writeContent(dir, name, *i.content); err != nil {
			return File{}, machine.Faultf(machine.NodeFault, "cannot write the content of input %s: %w", i.path, err)
		}
		s.Meter.AddBytes(int64(len(*i.content)))
		return File{i.path, int64(len(*i.content))}, nil
	}
	got, err := s.Storage.Fetch(ctx, storage.FetchRequest{
		URL: i.url, Dir: dir, Name: name, Version: i.object.Version, NoSync: i.object.Size >= 0 && i.object.Size < node.SyncTogether,
	})
	if err != nil {
		return File{}, fmt.Errorf("input %s: %w", i.path, err)
	}
	return File{i.path, got.Bytes}, nil
}

// writeContent writes a file under its final name only when it is whole.
func writeContent(dir *os.Root, name, content string) (err error) {
	// A name that no input has, and that is short whatever the input's is.
	part := fmt.Sprintf(".%x.deckhand-part", sha256.Sum256([]byte(name)))
	f, err := dir.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	err = errors.Join(err, f.Chmod(0o666))
	if err == nil && int64(len(content)) >= node.SyncTogether {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, dir.Remove(part))
	}
	return dir.Rename(part, name)
}

func fits(dir string, need int64) error {
	space, err := node.SpaceAt(dir)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot tell the free space of %s: %w", dir, err)
	}
	if uint64(need) > space.FreeBytes {
		return machine.Faultf(machine.NodeFault, "not enough space for the inputs: they have %s and %s are free in %s; free some or run the task elsewhere",
			units.BytesSize(float64(need)), units.BytesSize(float64(space.FreeBytes)), dir)
	}
	return nil
}

// inPlace says whether a journaled file is still there: a power cut may have
// undone its rename.
func inPlace(tree *worktree.Tree, f File) bool {
	_, info, err := tree.Lookup(f.Path)
	return err == nil && info.Mode().IsRegular() && info.Size() == f.Bytes
}

// Undo has nothing to do: the inputs are in the task's directory, which goes as
// a whole.
func (s *Step) Undo(context.Context, *machine.Task, machine.Notes) error { return nil }
