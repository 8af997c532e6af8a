// Package download stages a task's inputs into its work tree.
package download

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/sorted"
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
	Join(url, name string) string
}

// WhatInputs is the kind of fact that says which inputs are staged; its detail
// is a batch of File.
const WhatInputs = "inputs"

// File is one staged file: whole, verified and durable.
type File struct {
	Path  string `json:"path"` // in the container
	Bytes int64  `json:"bytes"`
	// Mounted files were not copied; see worktree.Bind.
	Mounted bool `json:"mounted,omitempty"`
}

// Step is the Download state.
type Step struct {
	Task     *tes.Task
	Storage  Storage
	Tree     func(attempt int, n machine.Notes) *worktree.Tree
	Parallel int // files at a time
	// Mount are the directories of the node whose files are mounted instead of being
	// copied, where that is safe.
	Mount  []string
	BootID string
	Meter  *progress.Meter
	Log    *slog.Logger

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

// Do implements machine.Step.
func (s *Step) Do(ctx context.Context, t *machine.Task, n machine.Notes) (err error) {
	if len(s.Task.Inputs) == 0 {
		return nil
	}
	s.Meter.Reset("inputs")
	tree := s.Tree(t.Attempt, n).Staging()
	list := sorted.New(filepath.Join(tree.Dir, "inputs.list"), inTree)
	defer func() { err = errors.Join(err, list.Close()) }()
	if err := s.list(ctx, n, tree, list); err != nil {
		return err
	}
	before := t.Boot != "" && t.Boot == s.BootID
	files, need, err := s.lay(ctx, n, tree, list, before)
	if err != nil {
		return err
	}
	if err := fits(tree, list, need); err != nil {
		return err
	}
	if files == 0 {
		return nil
	}
	_, resumed := n.Get(WhatInputs, "all")
	// The files' names follow from the document, so one intent announces them all.
	if err := n.Intent(ctx, machine.Fact{What: WhatInputs, Name: "all", Detail: map[string]int64{"files": files, "bytes": need}}); err != nil {
		return err
	}
	s.Log.Info("staging inputs", "files", files, "bytes", need)
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
	work := make(chan job)
	for range s.Parallel {
		downloads.Go(func() error {
			for w := range work {
				f, err := s.stage(inner, w, !resumed)
				w.dir.release()
				if err != nil {
					return err
				}
				s.Meter.FileDone()
				if err := journal.Add(ctx, f); err != nil {
					return err
				}
			}
			return nil
		})
	}
	listErr := s.deal(inner, tree, list, work, before, func(f File) error { return journal.Add(ctx, f) })
	close(work)
	if err := downloads.Wait(); err != nil {
		listErr = err // why the list was not read to its end
	}
	// What was staged stays staged, also when another file failed.
	return errors.Join(listErr, journal.Flush(ctx))
}

// job is a file to be staged under a name in a directory.
type job struct {
	place
	dir  *parent
	name string
}

// deal gives out the files that are not in place, in the order of the tree, and mounts
// those that are not to be copied. before says that another process of this boot may have
// staged some.
func (s *Step) deal(ctx context.Context, tree *worktree.Tree, list *sorted.List, work chan<- job, before bool, staged func(File) error) error {
	parents := parents{tree: tree}
	defer parents.close()
	for p, err := range merged(list.All()) {
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return err
		}
		if p.kind != aFile || inPlace(tree, p) {
			continue
		}
		if b, bound := tree.Plan.Bound(p.path); bound {
			f, err := s.hold(tree, b)
			if err == nil {
				err = staged(f)
			}
			if err != nil {
				return err
			}
			continue
		}
		if before && unjournaled(tree, p) {
			s.Meter.AddBytes(p.size)
			s.Meter.FileDone()
			if err := staged(File{Path: p.path, Bytes: p.size}); err != nil {
				return err
			}
			continue
		}
		dir, name, err := parents.of(p.path)
		if err != nil {
			return fmt.Errorf("input %s: %w", p.path, err)
		}
		select {
		case work <- job{p, dir, name}:
		case <-ctx.Done():
			dir.release()
			return ctx.Err()
		}
	}
	return nil
}

// list fills the list with what all inputs hold and what the journal says is staged.
func (s *Step) list(ctx context.Context, n machine.Notes, tree *worktree.Tree, list *sorted.List) error {
	var turn uint64
	add := func(x entry) error {
		if x.kind != stagedEntry {
			turn++
			x.turn = turn
		}
		e, err := x.encode()
		if err != nil {
			return err
		}
		return list.Add(e)
	}
	for f, err := range batch.Read[File](n, WhatInputs) {
		if _, bound := tree.Plan.Bound(f.Path); err == nil && bound == f.Mounted {
			err = add(entry{path: f.Path, kind: stagedEntry, item: item{size: f.Bytes}})
		}
		if err != nil {
			return err
		}
	}
	look := &lookUp{Step: s, tree: tree}
	look.staged = sync.OnceValues(func() (map[string]int64, error) { return look.inputsStaged(n) })
	for some := range slices.Chunk(outerFirst(s.Task.Inputs), lookedUp) {
		objects, err := look.up(ctx, some)
		if err != nil {
			return err
		}
		for k, i := range some {
			in := s.Task.Inputs[i]
			p := path.Clean(in.Path)
			switch {
			case look.asks(i):
				err = add(entry{path: p, item: item{size: objects[k].Size, input: i + 1, version: objects[k].Version}})
			case in.Content != nil:
				err = add(entry{path: p, item: item{size: int64(len(*in.Content)), input: i + 1}})
			case in.Type == tes.Directory:
				err = s.directory(ctx, add, i, p)
			default:
				b, _ := tree.Plan.Bound(p)
				err = add(entry{path: p, item: item{size: b.Size, input: i + 1}})
			}
			if err != nil {
				return fmt.Errorf("input %s: %w", p, err)
			}
		}
	}
	return nil
}

// directory adds what an input directory holds, whose path is p.
func (s *Step) directory(ctx context.Context, add func(entry) error, input int, p string) error {
	url := s.Task.Inputs[input].URL
	if err := add(entry{path: p, kind: dirEntry, item: item{input: input + 1}}); err != nil {
		return err
	}
	for o, err := range s.Storage.List(ctx, url) {
		if err != nil {
			return err
		}
		x := entry{path: path.Join(p, o.Name), item: item{size: o.Size, input: input + 1, url: o.URL, version: o.Version}}
		if s.Storage.Join(url, o.Name) == o.URL {
			x.url = ""
		}
		if o.Mode.IsDir() {
			x = entry{path: x.path, kind: dirEntry, item: item{input: input + 1}}
		}
		if err := add(x); err != nil {
			return err
		}
	}
	return nil
}

// lay makes the directories of inputs, which may be empty, and returns how many files
// are to be staged and how many bytes are to be copied for them. before says what it says
// in deal.
func (s *Step) lay(ctx context.Context, n machine.Notes, tree *worktree.Tree, list *sorted.List, before bool) (files, need int64, err error) {
	left := 0
	for p, err := range merged(list.All()) {
		if err != nil {
			return 0, 0, err
		}
		_, bound := tree.Plan.Bound(p.path)
		switch {
		case p.kind == leftOut:
			if left++; left <= told {
				err = n.Warn(ctx, fmt.Sprintf("%s of an input directory is left out: something whose path says more is to be there", p.path))
			}
		case p.kind == aDir:
			if err = mkdir(tree, p.path); err != nil {
				err = fmt.Errorf("input %s: %w", p.path, err)
			}
		case bound && inPlace(tree, p):
		case bound:
			files++
		case inPlace(tree, p):
			s.Meter.AddTotal(1, max(0, p.size))
			s.Meter.AddBytes(max(0, p.size))
			s.Meter.FileDone()
		default:
			s.Meter.AddTotal(1, max(0, p.size))
			files++
			if !before || !unjournaled(tree, p) {
				need += takes(s.url(p), tree.Dir, p.size)
			}
		}
		if err != nil {
			return 0, 0, err
		}
	}
	if more := left - told; more > 0 {
		err = n.Warn(ctx, fmt.Sprintf("%d more places of input directories are left out", more))
	}
	return files, need, err
}

// told bounds the warnings about a merge: each is a record of the journal.
const told = 20

func mkdir(tree *worktree.Tree, p string) error {
	root, err := tree.MkdirAll(p)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "%w", err)
	}
	return root.Close()
}

// stage brings one file to its place, whole and verified; a large one also durable. fresh
// says that no other process has begun to.
func (s *Step) stage(ctx context.Context, p job, fresh bool) (File, error) {
	if in := s.Task.Inputs[p.input-1]; in.Content != nil {
		content := *in.Content
		sync := int64(len(content)) >= node.SyncTogether
		if err := storage.WriteFile(p.dir.File, p.name, content, 0o666, sync); err != nil {
			return File{}, machine.Faultf(machine.NodeFault, "cannot write the content of input %s: %w", p.path, err)
		}
		s.Meter.AddBytes(int64(len(content)))
		return File{Path: p.path, Bytes: int64(len(content))}, nil
	}
	got, err := s.Storage.Fetch(ctx, storage.FetchRequest{
		URL: s.url(p.place), Dir: p.dir.File, Name: p.name, Version: p.version, NoSync: p.size >= 0 && p.size < node.SyncTogether,
		Fresh: fresh,
	})
	if err != nil {
		return File{}, fmt.Errorf("input %s: %w", p.path, err)
	}
	return File{Path: p.path, Bytes: got.Bytes}, nil
}

// url is where a file is fetched from.
func (s *Step) url(p place) string {
	in := s.Task.Inputs[p.input-1]
	switch {
	case p.url != "":
		return p.url
	case in.Type == tes.Directory:
		return s.Storage.Join(in.URL, strings.TrimPrefix(strings.TrimPrefix(p.path, path.Clean(in.Path)), "/"))
	}
	return in.URL
}

// fits says whether there is room for so many bytes of inputs. What a process that died
// had brought of a file that is not whole has its room already, and is only looked for
// where it matters.
func fits(tree *worktree.Tree, list *sorted.List, need int64) error {
	space, err := node.SpaceAt(tree.Dir)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot tell the free space of %s: %w", tree.Dir, err)
	}
	if uint64(need) <= space.FreeBytes {
		return nil
	}
	here, err := begun(tree, list)
	if err != nil {
		return err
	}
	if need = max(0, need-here); uint64(need) > space.FreeBytes {
		return machine.Faultf(machine.NodeFault, "not enough space for the inputs: they have %s and %s are free in %s; free some or run the task elsewhere",
			units.BytesSize(float64(need)), units.BytesSize(float64(space.FreeBytes)), tree.Dir)
	}
	return nil
}

// begun adds up what there is of files that are not whole.
func begun(tree *worktree.Tree, list *sorted.List) (bytes int64, err error) {
	parents := parents{tree: tree}
	defer parents.close()
	for p, err := range merged(list.All()) {
		if err != nil {
			return 0, err
		}
		if p.kind != aFile || p.size <= 0 {
			continue
		}
		dir, name, err := parents.of(p.path)
		if err != nil {
			return 0, fmt.Errorf("input %s: %w", p.path, err)
		}
		bytes += min(storage.Begun(dir.File, name), p.size)
		dir.release()
	}
	return bytes, nil
}

// inPlace says whether a file is journaled as staged and still there: a power cut may
// have undone its rename.
func inPlace(tree *worktree.Tree, p place) bool {
	return p.staged >= 0 && isFile(tree, p.path, p.staged)
}

// unjournaled says whether a process that died had staged a file whose note was not
// written yet: a file gets its name when it is whole. After another boot that says nothing,
// as the file may not have reached the disk. An empty one may be what holds a mount's place.
func unjournaled(tree *worktree.Tree, p place) bool {
	return p.size > 0 && isFile(tree, p.path, p.size)
}

func isFile(tree *worktree.Tree, p string, size int64) bool {
	_, info, err := tree.Lookup(p)
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// Undo has nothing to do: the inputs are in the task's directory, which goes as
// a whole.
func (s *Step) Undo(context.Context, *machine.Task, machine.Notes) error { return nil }
