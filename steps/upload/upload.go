// Package upload publishes a task's outputs.
package upload

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/own"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/sorted"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// Storage is what publishing asks of the places that outputs go to.
type Storage interface {
	Put(ctx context.Context, r storage.PutRequest) error
	// Abort removes what an unfinished Put left there. It never touches a
	// published file.
	Abort(ctx context.Context, url string, left storage.Unfinished) error
	Join(url, name string) string
}

// Engine reads from containers that have ended.
type Engine interface {
	Container(ctx context.Context, name string) (engine.Container, error)
	CopyFrom(ctx context.Context, id, path string, read func(io.Reader) error) error
	Changes(ctx context.Context, id string, read func(iter.Seq[string]) error) error
}

// Containers names the containers of the executors.
type Containers interface {
	Name(t *machine.Task, executor int) string
}

// Missing says what an output is that the task did not make.
type Missing string

const (
	MissingWarn  Missing = "warn"
	MissingError Missing = "error"
)

// WhatOutputs is the kind of fact that says which outputs are published; its
// detail is a batch of Published. Its intent is written when all of them are durable on the
// node, so that a power cut cannot make a later upload publish less.
const WhatOutputs = "outputs"

// Step is the Upload state.
type Step struct {
	Task       *tes.Task
	Storage    Storage
	Engine     Engine
	Containers Containers
	Tree       func(attempt int, n machine.Notes) *worktree.Tree
	Owner      *own.Owner
	BootID     string
	Missing    Missing
	// MaxFiles bounds the files, directories and links that are looked at for all
	// outputs: whoever made them may be hostile.
	MaxFiles int
	Parallel int // files at a time
	Meter    *progress.Meter
	Log      *slog.Logger

	places places
}

var _ machine.Step = (*Step)(nil)

// State implements machine.Step.
func (s *Step) State() machine.State { return machine.Upload }

// Probe implements machine.Step. When the node went down before the outputs
// were made durable, they are lost with it.
func (s *Step) Probe(_ context.Context, t *machine.Task, n machine.Notes) (machine.Progress, error) {
	if len(s.Task.Outputs) == 0 {
		return machine.None, nil
	}
	if finished(n) {
		return machine.Done, nil
	}
	if _, err := os.Lstat(s.Tree(t.Attempt, n).Dir); errors.Is(err, os.ErrNotExist) {
		return machine.None, fmt.Errorf("the outputs are gone with the task's directory: %w", machine.ErrLost)
	}
	for _, err := range n.Each(WhatOutputs) {
		return machine.Partial, err // they are announced
	}
	if t.Boot != "" && t.Boot != s.BootID {
		return machine.None, fmt.Errorf("the node was restarted before the outputs were safely on its disk: %w", machine.ErrLost)
	}
	return machine.None, nil
}

// Do implements machine.Step. After an executor's failure it publishes what
// exists, and a failure of its own does not hide the executor's.
func (s *Step) Do(ctx context.Context, t *machine.Task, n machine.Notes) error {
	// The directory may be gone, when a process died at the very end.
	if len(s.Task.Outputs) == 0 || finished(n) {
		return nil
	}
	s.Meter.Reset("outputs")
	if err := s.spare(ctx, t, n, s.publish(ctx, t, n)); err != nil {
		return err
	}
	return n.Done(ctx, machine.Fact{What: whatUpload, Name: "all"})
}

// spare makes an error a warning when an executor has failed: that is what
// counts, and what other outputs there are is published all the same.
func (s *Step) spare(ctx context.Context, t *machine.Task, n machine.Notes, err error) error {
	var journal *machine.JournalError
	if err == nil || !t.Failed || errors.As(err, &journal) || ctx.Err() != nil {
		return err
	}
	return n.Warn(ctx, "not all outputs were uploaded: "+err.Error())
}

// whatUpload is the kind of fact that says that nothing is left to publish.
const whatUpload = "upload"

func finished(n machine.Notes) bool {
	note, ok := n.Get(whatUpload, "all")
	return ok && note.Kind == machine.KindDone
}

func (s *Step) publish(ctx context.Context, t *machine.Task, n machine.Notes) (err error) {
	tree := s.Tree(t.Attempt, n)
	// The containers have ended; what they have left may be closed to this user.
	if err := s.Owner.Take(ctx, n, tree.Dir); err != nil {
		return err
	}
	list := sorted.New(filepath.Join(tree.Dir, "outputs.list"), strings.Compare)
	defer func() { err = errors.Join(err, list.Close()) }()
	todo, err := s.list(ctx, t, n, tree, list)
	if err != nil || todo == 0 {
		return err
	}
	if err := s.secure(ctx, n, tree, list); err != nil {
		return err
	}
	s.Log.Info("uploading outputs", "files", todo)
	b := batch.NewWriter(n, WhatOutputs, func(f Published) int { return len(f.Path) + len(f.URL) + 128 })
	uploads, inner := group.WithContext(ctx)
	uploads.SetLimit(s.Parallel)
	var spared atomic.Int64
	var listErr error
	for f, err := range files(list) {
		if listErr = cmp.Or(err, inner.Err()); listErr != nil {
			break
		}
		if f.published {
			continue
		}
		uploads.Go(func() error {
			if err := inner.Err(); err != nil {
				return err
			}
			if err := s.send(inner, t, n, tree, f.File); err != nil {
				err = fmt.Errorf("output %s: %w", f.Path, err)
				// A store that has not answered for so long is not asked for every file.
				if inner.Err() != nil || machine.FaultOf(err) == machine.RetryLater || spared.Add(1) > told {
					return err
				}
				return s.spare(ctx, t, n, err)
			}
			s.Meter.FileDone()
			return b.Add(ctx, s.log(f.File))
		})
	}
	if err := uploads.Wait(); err != nil {
		listErr = err // why the list was not read to its end
	}
	return errors.Join(listErr, b.Flush(ctx))
}

// list fills the list with what is published and with the files of all outputs, and returns
// how many are to be published.
func (s *Step) list(ctx context.Context, t *machine.Task, n machine.Notes, tree *worktree.Tree, list *sorted.List) (todo int64, err error) {
	for p, err := range batch.Read[Published](n, WhatOutputs) {
		if err == nil {
			err = list.Add(sorted.Entry{Key: p.key()})
		}
		if err != nil {
			return 0, err
		}
	}
	err = s.collect(ctx, t, n, tree, func(f File) error {
		e, err := encode(f, s.log(f))
		if err != nil {
			return err
		}
		return list.Add(e)
	})
	if err != nil {
		return 0, err
	}
	for f, err := range files(list) {
		if err != nil {
			return 0, err
		}
		s.Meter.AddTotal(1, f.Size)
		if f.published {
			s.Meter.AddBytes(f.Size)
			s.Meter.FileDone()
			continue
		}
		todo++
	}
	return todo, nil
}

// secure makes the outputs durable on the node and then announces them.
func (s *Step) secure(ctx context.Context, n machine.Notes, tree *worktree.Tree, list *sorted.List) error {
	if secured(n) {
		return nil
	}
	if err := makeDurable(ctx, tree, list); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return machine.Faultf(machine.NodeFault, "cannot make the outputs durable: %w", err)
	}
	size := 0
	var urls []string
	for f, err := range files(list) {
		if err != nil {
			return err
		}
		if f.published {
			continue
		}
		url := redact.URL(s.url(f.File))
		if size+len(url) > announced {
			if err := announce(ctx, n, "", urls); err != nil {
				return err
			}
			urls, size = nil, 0
		}
		urls, size = append(urls, url), size+len(url)
	}
	// The last one says that all are announced.
	return announce(ctx, n, "all", urls)
}

// secured says that the outputs are durable in the work tree, and announced.
func secured(n machine.Notes) bool {
	note, ok := n.Get(WhatOutputs, "all")
	return ok && note.Kind == machine.KindIntent
}

// announced is about how many bytes of URLs one intent names: a record must fit
// into one transaction, and JSON may take several bytes for one.
const announced = 32 << 10

func announce(ctx context.Context, n machine.Notes, name string, urls []string) error {
	return n.Intent(ctx, machine.Fact{What: WhatOutputs, Name: name, Detail: map[string]any{"urls": urls}})
}

// makeDurable brings files to the disk: large ones each by itself, then the others
// together, and what leads to all of them. The task may have renamed a directory when
// what is in it had been on the disk for long.
func makeDurable(ctx context.Context, tree *worktree.Tree, list *sorted.List) error {
	for f, err := range files(list) {
		if err != nil {
			return err
		}
		if f.published || f.Size < node.SyncTogether {
			continue
		}
		if err := syncFile(tree, f.physical); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return node.SyncFilesystem(ctx, tree.Dir)
}

func syncFile(tree *worktree.Tree, p string) error {
	f, _, err := tree.OpenFile(p)
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // of a filesystem that is only read, whose file is mounted as an input
	}
	return errors.Join(err, f.Close())
}

func (s *Step) send(ctx context.Context, t *machine.Task, n machine.Notes, tree *worktree.Tree, f File) error {
	file, info, err := tree.OpenFile(f.physical)
	if err != nil {
		if errors.Is(err, worktree.ErrReplaced) {
			return err
		}
		return machine.Faultf(machine.NodeFault, "cannot read it: %w", err)
	}
	defer func() { _ = file.Close() }() // read-only
	url, target := s.url(f), s.log(f).Target
	free, err := s.places.take(ctx, url)
	if err != nil {
		return err
	}
	defer free()
	before, err := uploadOf(n, target)
	if err != nil {
		return err
	}
	return s.Storage.Put(ctx, storage.PutRequest{
		URL: url, File: file, Size: info.Size(), Tag: s.tag(t), Upload: before,
		Begin: func(_ context.Context, upload storage.Upload) error {
			// Not the context of the group: what another file's failure ends is
			// this transfer, not what is known about it.
			return n.Intent(context.WithoutCancel(ctx), machine.Fact{What: whatInParts, Name: target, Detail: inParts{text(redact.URL(url)), upload}})
		},
	})
}

// whatInParts is the kind of fact that says which uploads in parts were begun:
// its name is the target of a Published. It is written before the upload is
// made at the storage, and again with its ID before the first part is sent.
const whatInParts = "upload in parts"

type inParts struct {
	URL string `json:"url"`
	storage.Upload
}

// uploadOf returns what an earlier process noted of the upload in parts that it
// began to a target, or nil.
func uploadOf(n machine.Notes, target string) (*storage.Upload, error) {
	note, begun := n.Get(whatInParts, target)
	if !begun {
		return nil, nil
	}
	p, err := readInParts(note)
	return &p.Upload, err
}

func readInParts(note machine.Note) (p inParts, err error) {
	if err := json.Unmarshal(note.Detail, &p); err != nil {
		return p, fmt.Errorf("the journaled upload in parts cannot be read: %w", err)
	}
	return p, nil
}

// tag marks what an attempt leaves at a destination before it is whole. Like the
// container's name it has root, task and attempt: another node may be at the
// same task.
func (s *Step) tag(t *machine.Task) string { return s.Containers.Name(t, 0) }

// Undo removes what an unfinished upload left at its destination. Published
// files stay: the task may already run on another node.
func (s *Step) Undo(ctx context.Context, t *machine.Task, n machine.Notes) error {
	if t.Outcome == machine.Complete {
		return nil // every upload has ended
	}
	var failed error
	var left []owed
	trying, cancel := limited(ctx, undoTime)
	defer cancel()
	remove := func(url string, u storage.Unfinished) {
		err := s.Storage.Abort(trying, url, u)
		failed = errors.Join(failed, err)
		if err != nil && len(left) < maxDebts {
			left = append(left, owed{url, u})
		}
	}
	for note, err := range n.Each(WhatOutputs) {
		if err != nil {
			return err
		}
		if note.Kind != machine.KindIntent {
			continue
		}
		var d struct {
			URLs []string `json:"urls"`
		}
		if err := json.Unmarshal(note.Detail, &d); err != nil {
			return fmt.Errorf("the journaled outputs cannot be read: %w", err)
		}
		for _, url := range d.URLs {
			remove(url, storage.Unfinished{Tag: s.tag(t)})
		}
	}
	for _, note := range n.All(whatInParts) {
		p, err := readInParts(note)
		if err != nil {
			return err
		}
		remove(p.URL, storage.Unfinished{Tag: s.tag(t), Upload: &p.Upload})
	}
	if len(left) > 0 {
		if err := owe(ctx, n, t, left); err != nil {
			return err
		}
	}
	return failed
}
