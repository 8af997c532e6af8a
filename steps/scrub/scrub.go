// Package scrub makes the node clean before a task's first byte is fetched: it
// removes what earlier tasks of this root left, and makes sure that there is
// room for this one.
package scrub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/room"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// Phase is what a meter says of the removal of leftovers.
const Phase = "leftovers"

// WhatRemoved is the kind of fact that says what was removed; its detail is an Item.
const WhatRemoved = "removed"

// Keep says when a task's directory stays after its end.
type Keep string

const (
	KeepNever     Keep = "never"
	KeepOnFailure Keep = "on-failure"
	KeepAlways    Keep = "always"
)

// Step is the Scrub state. It also owns the task's directory: it makes it, and
// its Undo removes it.
type Step struct {
	Cleaner *Cleaner
	// RolledBack went with the roll-back of another task, before this one began: the step tells
	// of it with what it removes itself.
	RolledBack []Item
	// Dir is the name of the task's directory below Cleaner.TasksDir.
	Dir string
	// Tree is the attempt's work tree; nil when the step only rolls back.
	Tree func(attempt int, n machine.Notes) *worktree.Tree
	// Choose decides, when the tree is there, which inputs get no file of their own in it.
	Choose func(ctx context.Context, tree *worktree.Tree, n machine.Notes) error
	// Settle removes what earlier tasks have left at storages.
	Settle func(ctx context.Context, n machine.Notes) error
	Keep   Keep
	Room   *room.Room
	Log    *slog.Logger
}

var _ machine.Step = (*Step)(nil)

// State implements machine.Step.
func (s *Step) State() machine.State { return machine.Scrub }

// Probe implements machine.Step. Scrubbing is always done again: it is cheap
// when nothing is left.
func (s *Step) Probe(context.Context, *machine.Task, machine.Notes) (machine.Progress, error) {
	return machine.None, nil
}

// Do implements machine.Step.
func (s *Step) Do(ctx context.Context, t *machine.Task, n machine.Notes) error {
	s.Cleaner.Meter.Reset(Phase)
	for _, i := range s.RolledBack {
		if err := n.Done(ctx, machine.Fact{What: WhatRemoved, Name: i.Name, Detail: i}); err != nil {
			return err
		}
	}
	// What has this attempt's names before it has made anything is of another one, of which the
	// journal was lost: its containers would be taken for this one's, and what is in its directory too.
	var keep *machine.TaskRef
	if _, made := n.Get(whatDirectory, s.Dir); made {
		keep = &machine.TaskRef{Task: t.ID, Attempt: t.Attempt}
	}
	gone, _, err := s.Cleaner.Find(ctx, keep, s.Dir, n.Images())
	if err != nil {
		return err
	}
	for _, i := range gone {
		if err := s.remove(ctx, n, i); err != nil {
			return err
		}
	}
	if err := s.Settle(ctx, n); err != nil {
		return err
	}
	tree := s.Tree(t.Attempt, n)
	if err := n.Intent(ctx, machine.Fact{What: whatDirectory, Name: s.Dir, Detail: directory{worktree.Layout}}); err != nil {
		return err
	}
	err = tree.Prepare()
	if err == nil {
		if err := s.Choose(ctx, tree, n); err != nil {
			return err
		}
		err = s.Tree(t.Attempt, n).Prepare()
	}
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot make the task's directory: %w; free space or mend the permissions of %s", err, s.Cleaner.TasksDir)
	}
	// What is known to be too small even when the images of earlier tasks go is
	// told before they do.
	back, err := s.oldImages(ctx, n.Images())
	if err != nil {
		return err
	}
	return s.Room.Check(ctx, n, back)
}

// whatDirectory is the kind of fact that tells of the task's directory.
const whatDirectory = "directory"

type directory struct {
	Layout int `json:"layout"`
}

// LaidOut says whether the directory of an attempt was laid out by the rules of
// this version.
func LaidOut(n machine.Notes) bool {
	for _, note := range n.Of(machine.Scrub).All(whatDirectory) {
		var d directory
		return json.Unmarshal(note.Detail, &d) == nil && d.Layout == worktree.Layout
	}
	return false
}

// remove removes one item. Only a silent engine and the journal are errors:
// anything else stays, with a warning, and the room is checked afterwards.
func (s *Step) remove(ctx context.Context, n machine.Notes, i Item) error {
	freed, err := s.Cleaner.Remove(ctx, n, i)
	var journal *machine.JournalError
	switch {
	case errors.As(err, &journal), machine.FaultOf(err) == machine.EngineFault, ctx.Err() != nil:
		return errors.Join(err, ctx.Err())
	case errors.Is(err, engine.ErrInUse):
		s.Log.Info("still in use; the next scrub tries again", "kind", i.Kind, "name", i.Name)
		return nil
	case err != nil:
		s.Log.Warn("cannot remove what an earlier task left", "kind", i.Kind, "name", i.Name, "error", err)
		return n.Warn(ctx, fmt.Sprintf("scrub: cannot remove %s %s: %v", i.Kind, i.Name, err))
	}
	i.Bytes = freed
	s.Log.Info("removed", "kind", i.Kind, "name", i.Name, "bytes", freed, "why", i.Why)
	if i.Kind == Image {
		return nil // the ledger has journaled it
	}
	return n.Done(ctx, machine.Fact{What: WhatRemoved, Name: i.Name, Detail: i})
}

// oldImages is how many bytes the images have that may be deleted for the task;
// layers that they share count for each.
func (s *Step) oldImages(ctx context.Context, images []machine.ImageRecord) (bytes int64, err error) {
	for _, r := range images {
		if !r.PulledByUs || r.ImageID == "" {
			continue
		}
		img, err := s.Cleaner.Engine.Image(ctx, r.ImageID)
		if errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		bytes += img.Size
	}
	return bytes, nil
}

// Undo removes the task's directory, unless it is to be kept.
func (s *Step) Undo(ctx context.Context, t *machine.Task, n machine.Notes) error {
	if err := s.Cleaner.Owner.Clear(ctx); err != nil {
		return err
	}
	failed := t.Outcome != machine.Complete
	if s.Keep == KeepAlways || s.Keep == KeepOnFailure && failed && t.Outcome != machine.Interrupted {
		s.Log.Info("keeping the work directory until the next task", "dir", filepath.Join(s.Cleaner.TasksDir, s.Dir))
		return nil
	}
	if _, err := os.Lstat(filepath.Join(s.Cleaner.TasksDir, s.Dir)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	s.Cleaner.Meter.Reset("work directory")
	freed, err := s.Cleaner.removeDir(ctx, n, s.Cleaner.TasksDir, s.Dir)
	if err == nil && s.Cleaner.Undone != nil {
		i := s.Cleaner.directory(s.Dir, "the directory of task "+t.ID)
		i.Bytes = freed
		s.Cleaner.Undone(i)
	}
	return err
}
