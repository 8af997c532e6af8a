package scrub

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/own"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/machine"
)

// Engine is what scrubbing asks of Docker.
type Engine interface {
	ledger.Engine
	Containers(ctx context.Context, labels map[string]string) ([]engine.Container, error)
	Stop(ctx context.Context, id string, grace time.Duration) error
	Remove(ctx context.Context, id string) error
	Volumes(ctx context.Context, labels map[string]string, prefixes ...string) ([]engine.Volume, error)
	RemoveVolume(ctx context.Context, name string) error
	Networks(ctx context.Context, labels map[string]string) ([]engine.Network, error)
	RemoveNetwork(ctx context.Context, id string) error
}

// Kind is what sort of thing an item is.
type Kind string

const (
	Container Kind = "container"
	Volume    Kind = "volume"
	Network   Kind = "network"
	Directory Kind = "directory"
	Image     Kind = "image"
	Program   Kind = "program" // a copy of deckhand for containers, of another version or not whole
	Upload    Kind = "upload"  // what an upload of an earlier task had left at its storage
)

// Item is one thing that goes, stays or could not go: on the node, unless it is an Upload. Its
// JSON form is public.
type Item struct {
	Kind  Kind   `json:"kind"`
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"` // freed, where that is known
	Why   string `json:"why"`

	id    string              // how Docker is asked for it
	image machine.ImageRecord // of an Image
}

// Same says whether two findings are of one thing.
func (i Item) Same(other Item) bool { return i.Kind == other.Kind && i.Name == other.Name }

// Report is what a scrub did, or would do. Its JSON form is public.
type Report struct {
	Removed         []Item `json:"removed"`
	Kept            []Item `json:"kept"`
	Failed          []Item `json:"failed"` // Why says why it stays
	FreeBytesBefore uint64 `json:"free_bytes_before"`
	FreeBytesAfter  uint64 `json:"free_bytes_after"`
}

// Cleaner finds and removes what earlier tasks of this root left. It touches
// nothing that does not carry the root's label, or its name where Docker has lost
// the labels of a volume, does not lie below TasksDir or is not a pending
// deletion of the image ledger.
type Cleaner struct {
	Engine   Engine
	RootID   string
	TasksDir string
	Bin      string        // directory of deckhand's binary for containers
	Grace    time.Duration // from SIGTERM to SIGKILL for a container that still runs
	Owner    *own.Owner
	Meter    *progress.Meter // counts what is removed of directories
	// Undone is told what an Undo has removed, with the bytes that came back; nil for nobody.
	Undone func(Item)
}

// Find lists what is to go and what stays, changing nothing. keep is the
// attempt whose things stay, nil for none; dir is its directory's name.
func (c *Cleaner) Find(ctx context.Context, keep *machine.TaskRef, dir string, images []machine.ImageRecord) (gone, kept []Item, err error) {
	root, prefix := map[string]string{engine.LabelRoot: c.RootID}, engine.RootPrefix(c.RootID)
	add := func(i Item, labels map[string]string) {
		// Docker loses labels, see engine.Docker.Volumes.
		forgotten := len(labels) == 0 && keep != nil && strings.HasPrefix(i.Name, fmt.Sprintf("%s%s-%d-", prefix, dir, keep.Attempt))
		if ours(keep, labels) || forgotten {
			i.Why = "belongs to the task that runs"
			kept = append(kept, i)
			return
		}
		i.Why = "left by " + owner(labels)
		gone = append(gone, i)
	}
	var containers []engine.Container
	var volumes []engine.Volume
	var networks []engine.Network
	ask, inner := group.WithContext(ctx)
	ask.Go(func() (err error) { containers, err = c.Engine.Containers(inner, root); return err })
	ask.Go(func() (err error) { volumes, err = c.Engine.Volumes(inner, root, prefix); return err })
	ask.Go(func() (err error) { networks, err = c.Engine.Networks(inner, root); return err })
	if err := ask.Wait(); err != nil {
		return nil, nil, err
	}
	for _, x := range containers {
		add(Item{Kind: Container, Name: x.Name, id: x.ID}, x.Labels)
	}
	ran := slices.ContainsFunc(kept, func(i Item) bool { return i.Kind == Container })
	stays, err := c.staying(ctx, gone, len(volumes)+len(networks) > 0 || slices.ContainsFunc(images, pending))
	if err != nil {
		return nil, nil, err
	}
	// Docker does not remove what a container of somebody else has.
	inUse := func(i Item, has func(engine.Container) bool) bool {
		at := slices.IndexFunc(stays, func(x engine.Container) bool { return !ours(keep, x.Labels) && has(x) })
		if at >= 0 {
			i.Why = "container " + stays[at].Name + " uses it"
			kept = append(kept, i)
		}
		return at >= 0
	}
	for _, x := range volumes {
		i := Item{Kind: Volume, Name: x.Name, Bytes: x.Bytes, id: x.Name}
		if !inUse(i, func(c engine.Container) bool { return slices.Contains(c.Volumes, x.Name) }) {
			add(i, x.Labels)
		}
	}
	for _, x := range networks {
		i := Item{Kind: Network, Name: x.Name, id: x.ID}
		if !inUse(i, func(c engine.Container) bool { return slices.Contains(x.Users, c.ID) }) {
			add(i, x.Labels)
		}
	}
	entries, err := os.ReadDir(c.TasksDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("cannot list the task directories: %w", err)
	}
	for _, e := range entries {
		i := c.directory(e.Name(), "the directory of an earlier task")
		if keep != nil && e.Name() == dir {
			i.Why = "belongs to the task that runs"
			kept = append(kept, i)
			continue
		}
		gone = append(gone, i)
	}
	if keep != nil {
		older, err := c.olderAttempts(dir, keep.Attempt)
		if err != nil {
			return nil, nil, err
		}
		gone = append(gone, older...)
	}
	old, used, err := c.images(ctx, stays, images)
	if err != nil {
		return nil, nil, err
	}
	gone, kept = append(gone, old...), append(kept, used...)
	programs, err := helper.Old(c.Bin)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list the programs of other versions: %w", err)
	}
	for _, f := range programs {
		i := Item{Kind: Program, Name: f.Path, Bytes: f.Bytes, Why: "of another version, or not whole"}
		if ran {
			i.Why = "a container of the task may run it"
			kept = append(kept, i)
			continue
		}
		gone = append(gone, i)
	}
	return gone, kept, nil
}

// staying lists the containers of the whole node that are not among gone, if needed.
func (c *Cleaner) staying(ctx context.Context, gone []Item, needed bool) ([]engine.Container, error) {
	if !needed {
		return nil, nil
	}
	all, err := c.Engine.Containers(ctx, nil)
	return slices.DeleteFunc(slices.Clone(all), func(x engine.Container) bool {
		return slices.ContainsFunc(gone, func(i Item) bool { return i.Kind == Container && i.id == x.ID })
	}), err
}

// images sorts the images of the ledger into those that go and those that stay,
// when no containers are there but those.
func (c *Cleaner) images(ctx context.Context, stays []engine.Container, images []machine.ImageRecord) (old, kept []Item, err error) {
	users := map[string]string{} // name of a container, by image ID
	for _, x := range stays {
		users[x.ImageID] = x.Name
	}
	held := map[string]bool{} // by reference
	for _, r := range images {
		if !pending(r) || !r.Lone {
			continue
		}
		img, err := c.Engine.Image(ctx, r.ImageID)
		if err != nil && !errors.Is(err, engine.ErrNotFound) {
			return nil, nil, err
		}
		held[r.Reference] = err == nil && ledger.Held(images, r, img)
	}
	for _, r := range images {
		i := Item{Kind: Image, Name: r.Reference, Why: "used by task " + r.Task, image: r}
		user, used := users[r.ImageID]
		switch {
		case r.Last:
			i.Why = "the last image used"
		case pending(r) && used:
			i.Why = "its deletion is pending until container " + user + " is gone"
		case pending(r) && held[r.Reference]:
			i.Why = "its deletion is pending while somebody else may have it by its digest"
		case pending(r):
			i.Why = "its deletion was pending"
			old = append(old, i)
			continue
		}
		kept = append(kept, i)
	}
	return old, kept, nil
}

func pending(r machine.ImageRecord) bool { return r.Phase == machine.Removing }

// olderAttempts lists the work trees of the task's own earlier attempts.
func (c *Cleaner) olderAttempts(dir string, attempt int) ([]Item, error) {
	entries, err := os.ReadDir(filepath.Join(c.TasksDir, dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot list the attempts of a task: %w", err)
	}
	var older []Item
	for _, e := range entries {
		if e.Name() != strconv.Itoa(attempt) {
			older = append(older, c.directory(filepath.Join(dir, e.Name()), "an earlier attempt at this task"))
		}
	}
	return older, nil
}

// directory is one below TasksDir.
func (c *Cleaner) directory(name, why string) Item {
	return Item{Kind: Directory, Name: filepath.Join(c.TasksDir, name), id: name, Why: why}
}

// Remove removes one item that Find listed and returns the bytes it freed. An
// error says why it stays.
func (c *Cleaner) Remove(ctx context.Context, n machine.Notes, i Item) (int64, error) {
	switch i.Kind {
	case Container:
		if err := c.Engine.Stop(ctx, i.id, c.Grace); err != nil {
			return 0, err
		}
		return 0, c.Engine.Remove(ctx, i.id)
	case Volume:
		return i.Bytes, c.Engine.RemoveVolume(ctx, i.id)
	case Network:
		return 0, c.Engine.RemoveNetwork(ctx, i.id)
	case Program:
		return i.Bytes, c.removeProgram(ctx, i.Name)
	case Directory:
		return c.removeDir(ctx, n, filepath.Join(c.TasksDir, filepath.Dir(i.id)), filepath.Base(i.id))
	default:
		return ledger.Remove(ctx, n, c.Engine, i.image)
	}
}

// removeProgram removes a copy of deckhand, unless a container is left that may run
// it when it is started again.
func (c *Cleaner) removeProgram(ctx context.Context, name string) error {
	left, err := c.Engine.Containers(ctx, map[string]string{engine.LabelRoot: c.RootID})
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("container %s may run %s: %w", left[0].Name, name, engine.ErrInUse)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return machine.Faultf(machine.NodeFault, "cannot remove a program of another version: %w", err)
	}
	return nil
}

// removeDir removes one directory below base; what cannot go is an error that
// names it. The notes may be nil.
func (c *Cleaner) removeDir(ctx context.Context, n machine.Notes, base, name string) (int64, error) {
	removed, err := node.RemoveTree(ctx, base, name, c.Meter)
	if err == nil && len(removed.Kept) > 0 && c.Owner != nil {
		// Some of it may belong to the users of containers.
		taken := c.Owner.Take(ctx, n, filepath.Join(base, name))
		before := removed.Bytes
		removed, err = node.RemoveTree(ctx, base, name, c.Meter)
		removed.Bytes += before
		if err == nil && len(removed.Kept) > 0 && taken != nil {
			return removed.Bytes, fmt.Errorf("cannot remove %s: %w", filepath.Join(base, name), taken)
		}
	}
	if err == nil {
		err = left(removed, base, name)
	}
	return removed.Bytes, err
}

// left is an error that names what of a directory could not go, if any.
func left(r node.Removed, base, name string) error {
	if len(r.Kept) == 0 {
		return nil
	}
	first := r.Kept[0]
	return machine.Faultf(machine.NodeFault, "cannot remove %d of what is in %s, such as %s: %s",
		r.KeptTotal, filepath.Join(base, name), first.Path, first.Why)
}

func ours(keep *machine.TaskRef, labels map[string]string) bool {
	return keep != nil && labels[engine.LabelTask] == keep.Task && labels[engine.LabelAttempt] == strconv.Itoa(keep.Attempt)
}

func owner(labels map[string]string) string {
	if labels[engine.LabelTask] == "" {
		return "a process that died"
	}
	if len(labels) == 0 {
		return "a task that Docker has forgotten"
	}
	return fmt.Sprintf("task %s, attempt %s", labels[engine.LabelTask], labels[engine.LabelAttempt])
}
