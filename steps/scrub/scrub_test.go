package scrub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/ledger/ledgertest"
	"github.com/deckhand/deckhand/internal/room"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/scrub"
)

const root = "0123456789abcdef"

// docker is an engine's containers, volumes, networks and images.
type docker struct {
	*ledgertest.Store
	containers []engine.Container
	volumes    []engine.Volume
	networks   []engine.Network
	refuse     map[string]error // by name or ID
	calls      []string
}

// Volumes that Docker has lost the labels of.
const (
	forgotten = "deckhand-" + root + "-old-1-0-v1"
	present   = "deckhand-" + root + "-t-2-0-v1"
	foreign   = "deckhand-" + root + "0-old-1-0-v1"
)

func (d *docker) Containers(_ context.Context, labels map[string]string) ([]engine.Container, error) {
	return matching(d.containers, labels, func(c engine.Container) map[string]string { return c.Labels }), d.refuse["list"]
}

func (d *docker) Volumes(_ context.Context, labels map[string]string, prefixes ...string) ([]engine.Volume, error) {
	found := matching(d.volumes, labels, func(v engine.Volume) map[string]string { return v.Labels })
	for _, v := range d.volumes {
		if len(v.Labels) == 0 && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(v.Name, p) }) {
			found = append(found, v)
		}
	}
	return found, nil
}

func (d *docker) Networks(_ context.Context, labels map[string]string) ([]engine.Network, error) {
	return matching(d.networks, labels, func(n engine.Network) map[string]string { return n.Labels }), nil
}

func matching[T any](all []T, labels map[string]string, of func(T) map[string]string) (found []T) {
	for _, x := range all {
		has := true
		for k, v := range labels {
			has = has && of(x)[k] == v
		}
		if has {
			found = append(found, x)
		}
	}
	return found
}

func (d *docker) Stop(_ context.Context, id string, grace time.Duration) error {
	d.calls = append(d.calls, fmt.Sprintf("stop %s %s", id, grace))
	return nil
}

func (d *docker) Remove(_ context.Context, id string) error {
	d.calls = append(d.calls, "remove container "+id)
	if err := d.refuse[id]; err != nil {
		return err
	}
	d.containers = slices.DeleteFunc(d.containers, func(c engine.Container) bool { return c.ID == id })
	return nil
}

func (d *docker) RemoveVolume(_ context.Context, name string) error {
	d.calls = append(d.calls, "remove volume "+name)
	if err := d.refuse[name]; err != nil {
		return err
	}
	d.volumes = slices.DeleteFunc(d.volumes, func(v engine.Volume) bool { return v.Name == name })
	return nil
}

func (d *docker) RemoveNetwork(_ context.Context, id string) error {
	d.calls = append(d.calls, "remove network "+id)
	d.networks = slices.DeleteFunc(d.networks, func(n engine.Network) bool { return n.ID == id })
	return nil
}

func labels(root, task, attempt string) map[string]string {
	return map[string]string{engine.LabelRoot: root, engine.LabelTask: task, engine.LabelAttempt: attempt}
}

// node is a node with leftovers, and the step of task t, attempt 2, which a process had
// begun.
type node struct {
	*docker
	*scrub.Step
	dir   string
	notes machine.Notes
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"old/1/sub", "t/1/sub", "t/2/sub"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := &docker{
		Store: ledgertest.NewStore(), refuse: map[string]error{},
		containers: []engine.Container{
			{ID: "c1", Name: "old", Labels: labels(root, "old", "1")},
			{ID: "c2", Name: "earlier", Labels: labels(root, "t", "1")},
			{ID: "c3", Name: "present", Labels: labels(root, "t", "2")},
			{ID: "c4", Name: "other root", Labels: labels("other", "old", "1")},
			{ID: "c5", Name: "unlabelled"},
		},
		volumes: []engine.Volume{{Name: "v1", Bytes: 7, Labels: labels(root, "old", "1")}, {Name: "v2", Labels: labels(root, "t", "2")}, {Name: "v3"},
			{Name: forgotten}, {Name: present}, {Name: foreign}},
		networks: []engine.Network{{ID: "n1", Name: "net", Labels: labels(root, "old", "1")}, {ID: "n2", Name: "bridge"}},
	}
	notes, err := machine.NodeNotes(journaltest.NewMemory())
	if err == nil {
		err = notes.Intent(t.Context(), machine.Fact{What: "directory", Name: "t"})
	}
	if err != nil {
		t.Fatal(err)
	}
	n := &node{docker: d, dir: dir, notes: notes}
	n.Step = &scrub.Step{
		Cleaner: &scrub.Cleaner{Engine: d, RootID: root, TasksDir: dir, Grace: 3 * time.Second},
		Dir:     "t", Keep: scrub.KeepNever, Log: slog.New(slog.DiscardHandler),
		Room: &room.Room{Dir: dir},
		Tree: func(attempt int, _ machine.Notes) *worktree.Tree {
			return worktree.New(filepath.Join(dir, "t"), attempt, &tes.Task{})
		},
		Choose: func(context.Context, *worktree.Tree, machine.Notes) error { return nil },
		Settle: func(context.Context, machine.Notes) error { return nil },
	}
	return n
}

func (n *node) do(t *testing.T) error {
	t.Helper()
	return n.Do(t.Context(), &machine.Task{ID: "t", Attempt: 2}, n.notes)
}

// ledger puts images into the journal.
func (n *node) ledger(t *testing.T, images ...machine.ImageRecord) {
	t.Helper()
	if err := n.notes.Done(t.Context(), machine.Fact{What: "test", Name: "ledger", Images: images}); err != nil {
		t.Fatal(err)
	}
}

// left lists what is on the node.
func (n *node) left(t *testing.T) string {
	t.Helper()
	var names []string
	for _, c := range n.containers {
		names = append(names, c.ID)
	}
	for _, v := range n.volumes {
		names = append(names, v.Name)
	}
	for _, x := range n.networks {
		names = append(names, x.ID)
	}
	for _, p := range []string{"old", "t/1", "t/2"} {
		if _, err := os.Lstat(filepath.Join(n.dir, p)); err == nil {
			names = append(names, p)
		}
	}
	return strings.Join(names, " ")
}

func kinds(items []scrub.Item) string {
	var words []string
	for _, i := range items {
		words = append(words, string(i.Kind)+" "+filepath.Base(i.Name))
	}
	return strings.Join(words, ", ")
}

func TestDo(t *testing.T) {
	n := newNode(t)
	for range 2 { // doing it again is harmless
		if err := n.do(t); err != nil {
			t.Fatal(err)
		}
		if got, want := n.left(t), "c3 c4 c5 v2 v3 "+present+" "+foreign+" n2 t/2"; got != want {
			t.Errorf("left: %s, want %s", got, want)
		}
	}
	want := []string{"stop c1 3s", "remove container c1", "stop c2 3s", "remove container c2", "remove volume v1", "remove volume " + forgotten, "remove network n1"}
	if !slices.Equal(n.calls, want) {
		t.Errorf("calls %q, want %q", n.calls, want)
	}
	if removed := n.notes.All(scrub.WhatRemoved); len(removed) != 7 {
		t.Errorf("%d removals are journaled, want 7: %+v", len(removed), removed)
	}
}

func TestFind(t *testing.T) {
	n := newNode(t)
	for _, test := range []struct {
		name string
		keep *machine.TaskRef
		gone string
		kept string
	}{
		{"for a task", &machine.TaskRef{Task: "t", Attempt: 2},
			"container old, container earlier, volume v1, volume " + forgotten + ", network net, directory old, directory 1",
			"container present, volume v2, volume " + present + ", directory t"},
		{"for nobody", nil,
			"container old, container earlier, container present, volume v1, volume v2, volume " + forgotten + ", volume " + present + ", network net, directory old, directory t", ""},
	} {
		gone, kept, err := n.Cleaner.Find(t.Context(), test.keep, "t", nil)
		if err != nil || kinds(gone) != test.gone || kinds(kept) != test.kept {
			t.Errorf("%s: %v\n gone %s\n want %s\n kept %s\n want %s", test.name, err, kinds(gone), test.gone, kinds(kept), test.kept)
		}
		for _, i := range append(gone, kept...) {
			if i.Why == "" {
				t.Errorf("%s: %s %s without a reason", test.name, i.Kind, i.Name)
			}
		}
	}
	if len(n.calls) > 0 {
		t.Errorf("it did %q", n.calls)
	}
}

// What has the names of an attempt that has made nothing yet is of another one, whose
// journal was lost: it goes.
func TestOfALostJournal(t *testing.T) {
	n := newNode(t)
	var err error
	if n.notes, err = machine.NodeNotes(journaltest.NewMemory()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.do(t); err != nil {
			t.Fatal(err)
		}
		if got, want := n.left(t), "c4 c5 v3 "+foreign+" n2 t/2"; got != want {
			t.Errorf("left: %s, want %s", got, want)
		}
		if _, err := os.Lstat(filepath.Join(n.dir, "t/2/sub")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was in the attempt's directory is there (%v)", err)
		}
	}
}

// Images stay, except those whose deletion is pending and that no container needs.
func TestImages(t *testing.T) {
	id := ledgertest.ID
	for _, test := range []struct {
		name  string
		user  engine.Container
		phase machine.Phase
		gone  bool
	}{
		{"used by a task", engine.Container{}, machine.Present, false},
		{"pending", engine.Container{}, machine.Removing, true},
		{"pending, needed by somebody", engine.Container{ID: "x", Name: "scanner", ImageID: id("x")}, machine.Removing, false},
		{"pending, needed by another image's user", engine.Container{ID: "x", Name: "scanner", ImageID: id("y")}, machine.Removing, true},
		{"pending, needed by what goes", engine.Container{ID: "x", ImageID: id("x"), Labels: labels(root, "old", "1")}, machine.Removing, true},
		{"pending, needed by the task", engine.Container{ID: "x", ImageID: id("x"), Labels: labels(root, "t", "2")}, machine.Removing, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.containers = append(n.containers, test.user)
			n.Load("r.test/x:1", "x")
			n.ledger(t, machine.ImageRecord{Reference: "r.test/x:1", ImageID: id("x"), PulledByUs: true, Phase: test.phase})
			if err := n.do(t); err != nil {
				t.Fatal(err)
			}
			if n.Has("x") == test.gone || len(n.notes.Images()) == 0 != test.gone {
				t.Errorf("on the node: %v; ledger: %+v", n.Has("x"), n.notes.Images())
			}
		})
	}
}

// What cannot be removed is a warning, and the task runs; only an engine that
// does not answer ends it.
func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		name     string
		err      error
		fails    bool
		warnings int
	}{
		{"in use", engine.ErrInUse, false, 0},
		{"node", machine.Faultf(machine.NodeFault, "read-only file system"), false, 1},
		{"engine", machine.Faultf(machine.EngineFault, "no answer"), true, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.refuse = map[string]error{"c1": test.err}
			err := n.do(t)
			if (err != nil) != test.fails || test.fails && !errors.Is(err, test.err) {
				t.Errorf("error %v", err)
			}
			if w := n.notes.All(machine.WhatWarning); len(w) != test.warnings {
				t.Errorf("%d warnings: %+v", len(w), w)
			}
			if want := "c1 c3 c4 c5 v2 v3 " + present + " " + foreign + " n2 t/2"; !test.fails && n.left(t) != want {
				t.Errorf("left: %s, want %s", n.left(t), want)
			}
		})
	}
	n := newNode(t)
	n.refuse["list"] = machine.Faultf(machine.EngineFault, "no answer")
	before := n.left(t)
	if err := n.do(t); machine.FaultOf(err) != machine.EngineFault || n.left(t) != before {
		t.Errorf("without an engine: %v; left: %s", err, n.left(t))
	}
}

// What a task is known to need is compared with what is free and what deleting
// the images of earlier tasks gives back at most.
func TestRoom(t *testing.T) {
	for _, test := range []struct {
		name        string
		disk, floor int64
		images      bool
		enough      bool
	}{
		{"nothing asked", 0, 0, false, true},
		{"a little", 1000, 1000, false, true},
		{"task", 1 << 60, 0, false, false},
		{"floor", 0, 1 << 60, false, false},
		{"most there is", 1<<63 - 1, 1<<63 - 1, false, false},
		{"old images are large enough", 1 << 60, 0, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.Room.Disk, n.Room.Floor.Bytes = test.disk, test.floor
			n.Room.Images = func(context.Context) (string, error) { return n.dir, nil }
			if test.images {
				n.Load("r.test/x:1", "x")
				n.Load("r.test/theirs:1", "theirs")
				n.Size = 1 << 61
				n.ledger(t, machine.ImageRecord{Reference: "r.test/x:1", ImageID: ledgertest.ID("x"), PulledByUs: true, Phase: machine.Present},
					machine.ImageRecord{Reference: "r.test/gone:1", ImageID: ledgertest.ID("gone"), PulledByUs: true, Phase: machine.Present},
					machine.ImageRecord{Reference: "r.test/theirs:1", ImageID: ledgertest.ID("theirs"), Phase: machine.Present})
			}
			err := n.do(t)
			if (err == nil) != test.enough || err != nil && machine.FaultOf(err) != machine.NodeFault {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestUndo(t *testing.T) {
	for _, test := range []struct {
		keep    scrub.Keep
		outcome machine.State
		stays   bool
	}{
		{scrub.KeepNever, machine.Complete, false}, {scrub.KeepNever, machine.SystemError, false},
		{scrub.KeepOnFailure, machine.Complete, false}, {scrub.KeepOnFailure, machine.ExecutorError, true},
		{scrub.KeepOnFailure, machine.Interrupted, false},
		{scrub.KeepAlways, machine.Complete, true}, {scrub.KeepAlways, machine.Interrupted, true},
	} {
		n := newNode(t)
		n.Keep = test.keep
		var undone []scrub.Item
		n.Cleaner.Undone = func(i scrub.Item) { undone = append(undone, i) }
		if err := os.WriteFile(filepath.Join(n.dir, "t/2/data"), make([]byte, 100_000), 0o644); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := n.Undo(t.Context(), &machine.Task{ID: "t", Attempt: 2, Outcome: test.outcome}, n.notes); err != nil {
				t.Fatal(err)
			}
			if stays := strings.Contains(n.left(t), "t/2"); stays != test.stays {
				t.Errorf("%s, %s: the directory stays: %v", test.keep, test.outcome, stays)
			}
		}
		if !strings.Contains(n.left(t), "old") {
			t.Error("another task's directory went")
		}
		want := scrub.Item{Kind: scrub.Directory, Name: filepath.Join(n.dir, "t")}
		if told := len(undone) == 1 && undone[0].Same(want) && undone[0].Bytes >= 100_000; told == test.stays || test.stays && len(undone) > 0 {
			t.Errorf("%s, %s: told of %+v", test.keep, test.outcome, undone)
		}
	}
}
