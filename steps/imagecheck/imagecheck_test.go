package imagecheck_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/ledger/ledgertest"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/room"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/imagecheck"
)

// node is an engine's images, a registry and the containers of one task.
type node struct {
	*ledgertest.Store
	registry map[string]string // reference -> content
	asked    []string          // references that the registry was asked about or for
	down     bool
	pulling  func(ref string) error // called when a pull begins; its error ends it
	listing  func()                 // called when all images are about to be listed
	make     func(img engine.Image) error
	need     engine.PullNeed
	needed   func(ref string) error           // called when a manifest is asked for; its error is the answer
	base     int64                            // bytes that all images have in common
	alike    []string                         // contents that have a layer in common
	tight    bool                             // whether there is no room beside old images
	tighter  func(of []*engine.Manifest) bool // whether there is no room at all
}

func newNode() *node { return &node{Store: ledgertest.NewStore(), registry: map[string]string{}} }

func (e *node) RemoteDigest(_ context.Context, ref string) (string, error) {
	e.asked = append(e.asked, ref)
	if e.down {
		return "", machine.Faultf(machine.RetryLater, "no answer")
	}
	return ledgertest.ID(e.registry[ref]), nil
}

func (e *node) Pull(_ context.Context, ref string, report func(engine.PullProgress)) error {
	e.asked = append(e.asked, ref)
	if e.pulling != nil {
		if err := e.pulling(ref); err != nil {
			return err
		}
	}
	content, ok := e.registry[ref]
	switch {
	case e.down:
		return machine.Faultf(machine.RetryLater, "no answer")
	case !ok:
		return machine.Faultf(machine.TaskFault, "manifest unknown")
	}
	report(engine.PullProgress{Named: e.Load(ref, content)})
	return nil
}

func (e *node) Images(ctx context.Context) ([]engine.Image, error) {
	if e.listing != nil {
		e.listing()
	}
	return e.Store.Images(ctx)
}

func (e *node) Manifest(_ context.Context, ref string) (*engine.Manifest, error) {
	if e.needed != nil {
		if err := e.needed(ref); err != nil {
			return nil, err
		}
	}
	return &engine.Manifest{Reference: ref, IDs: []string{ledgertest.ID(e.registry[ref])}}, nil
}

// PullNeed is what is set, and what images save whose content is to be pulled or has a
// layer in common with it.
func (e *node) PullNeed(_ context.Context, of []*engine.Manifest, old ...string) (engine.PullNeed, error) {
	need := e.need
	if len(old) > 0 && e.tight || len(old) == 0 && e.tighter != nil && e.tighter(of) {
		need.Peak = 1 << 60
	}
	for _, m := range of {
		content := e.registry[m.Reference]
		like := []string{content}
		if slices.Contains(e.alike, content) {
			like = e.alike
		}
		saves := func(of string) bool { return e.Has(of) && slices.Contains(old, ledgertest.ID(of)) }
		stays := func(of string) bool { return e.Has(of) && !slices.Contains(old, ledgertest.ID(of)) }
		if slices.ContainsFunc(like, saves) && !slices.ContainsFunc(like, stays) {
			need.Saved++
		}
	}
	return need, nil
}

// LayerBytes: all images have their lowest layer in common.
func (e *node) LayerBytes(_ context.Context, img engine.Image, _ *engine.Manifest) ([]int64, error) {
	if e.base == 0 {
		return nil, nil
	}
	return []int64{e.base, img.Size - e.base}, nil
}

func (e *node) Image(ctx context.Context, ref string) (engine.Image, error) {
	img, err := e.Store.Image(ctx, ref)
	if e.base > 0 {
		img.Layers = []string{"base", img.ID}
	}
	return img, err
}

// Create, Settle and Remove make node the containers of the task.
func (e *node) Create(ctx context.Context, _ *machine.Task, _ machine.Notes, _ int, img engine.Image) error {
	if e.make != nil {
		if err := e.make(img); err != nil {
			return err
		}
	}
	_, err := e.Image(ctx, img.ID)
	return err
}

func (e *node) Settle(context.Context, *machine.Task, machine.Notes) error { return nil }

func (e *node) Remove(context.Context, *machine.Task, machine.Notes) error { return nil }

// world is a node and its journal.
type world struct {
	*node
	memory *journaltest.Memory
	policy imagecheck.Policy
	keep   ledger.Keep
	room   room.Room
	tasks  int
}

func newWorld() *world {
	return &world{node: newNode(), memory: journaltest.NewMemory(), policy: imagecheck.Auto, keep: ledger.Keep{Tasks: 1}, room: room.Room{Dir: "/"}}
}

// tb is what testing.T and rapid.T have in common.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// task is one attempt at a task; it may be taken up by several processes.
type task struct {
	*world
	machine.Task
	step  *imagecheck.Step
	notes machine.Notes
}

func (w *world) task(t tb, refs ...string) *task {
	t.Helper()
	w.tasks++
	doc := &tes.Task{}
	for _, r := range refs {
		doc.Executors = append(doc.Executors, tes.Executor{Image: r, Command: []string{"true"}})
	}
	notes, err := machine.NodeNotes(w.memory)
	if err != nil {
		t.Fatal(err)
	}
	return &task{
		world: w, Task: machine.Task{ID: fmt.Sprint("t", w.tasks), Attempt: 1}, notes: notes,
		step: &imagecheck.Step{
			Task: doc, Engine: w.node, Containers: w.node, Policy: w.policy, Keep: w.keep, Room: &w.room,
			Meter: new(progress.Meter), Log: slog.New(slog.DiscardHandler),
			Wait: func(context.Context, time.Duration) error { return nil },
		},
	}
}

func (k *task) do() error { return k.step.Do(context.Background(), &k.Task, k.notes) }

// run does the step for a task with these images, which must succeed, and
// returns how each came.
func (w *world) run(t tb, refs ...string) string {
	t.Helper()
	k := w.task(t, refs...)
	if err := k.do(); err != nil {
		t.Fatalf("task with %v: %v", refs, err)
	}
	return k.came(t)
}

// came is how each image of the task came, in their order.
func (k *task) came(t tb) string {
	t.Helper()
	var words []string
	for _, note := range k.notes.All(imagecheck.WhatImage) {
		var i imagecheck.Image
		if err := json.Unmarshal(note.Detail, &i); err != nil {
			t.Fatal(err)
		}
		words = append(words, i.Pull)
	}
	return strings.Join(words, " ")
}

// ledger describes the ledger, newest last: reference, phase, whose, last.
func (w *world) ledger(t tb) []string {
	t.Helper()
	n, err := w.memory.Node()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range n.Images {
		line := r.Reference + " " + string(r.Phase)
		if r.Phase == machine.Pulling != (r.ImageID == "") {
			t.Errorf("%+v: only a pull has no image ID", r)
		}
		if r.PulledByUs {
			line += " ours"
		}
		if r.Last {
			line += " last"
		}
		lines = append(lines, line)
	}
	return lines
}

func (w *world) wantLedger(t tb, want ...string) {
	t.Helper()
	if got := w.ledger(t); !slices.Equal(got, want) {
		t.Errorf("ledger:\n %s\nwant:\n %s", strings.Join(got, "\n "), strings.Join(want, "\n "))
	}
}

func want(t tb, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

const (
	a    = "r.test/a:1"
	b    = "r.test/b:1"
	c    = "r.test/c:1"
	mine = "site.test/mine:1"
)

func digest(ref, content string) string {
	return ledgertest.Repository(ref) + "@" + ledgertest.ID(content)
}

func TestSameImage(t *testing.T) {
	w := newWorld()
	w.registry[a], w.registry[digest(a, "x")] = "x", "x"
	want(t, "first", w.run(t, a), "pulled")
	want(t, "second", w.run(t, a), "reused")
	want(t, "the registry was asked for", w.asked, []string{a, a})
	w.asked = nil
	want(t, "by digest", w.run(t, digest(a, "x")), "reused")
	want(t, "the registry was asked for", w.asked, []string{})
	w.wantLedger(t, a+" present ours", digest(a, "x")+" present ours last")
}

func TestOtherImageGoesBeforeThePull(t *testing.T) {
	w := newWorld()
	w.registry[a], w.registry[b] = "x", "y"
	w.run(t, a)
	w.pulling = func(string) error {
		if w.Has("x") {
			t.Error("the old image is there while the new one is pulled")
		}
		w.wantLedger(t, b+" pulling last")
		return nil
	}
	want(t, "came", w.run(t, b), "pulled")
	w.wantLedger(t, b+" present ours last")
}

// Room is looked for when the old image has gone and before the new one comes.
func TestRoomForImages(t *testing.T) {
	const large = 1 << 60
	prepare := func() *world {
		w := newWorld()
		w.room = room.Room{Dir: "/", Images: func(context.Context) (string, error) { return "/", nil }}
		w.registry["r.test/a:1"], w.registry["r.test/b:1"], w.registry["r.test/c:1"] = "a", "b", "c"
		w.run(t, "r.test/a:1")
		w.asked = nil
		return w
	}
	w := prepare()
	w.tighter = func(of []*engine.Manifest) bool {
		want(t, "asked for the size of", len(of), 2)
		want(t, "the old image is there", w.Has("a"), false)
		return true
	}
	err := w.task(t, "r.test/b:1", "r.test/c:1").do()
	if machine.FaultOf(err) != machine.NodeFault || !strings.Contains(fmt.Sprint(err), "1EiB for image r.test/b:1, r.test/c:1") {
		t.Errorf("%v", err)
	}
	want(t, "asked of the registry", len(w.asked), 0)

	w = prepare()
	w.room.Disk = large
	w.needed = func(ref string) error { t.Errorf("asked for the size of %v", ref); return nil }
	if err := w.task(t, "r.test/a:1").do(); machine.FaultOf(err) != machine.NodeFault {
		t.Errorf("with nothing to pull: %v", err)
	}

	w = prepare()
	w.need.Peak = large
	w.needed = func(string) error { return machine.Faultf(machine.RetryLater, "the registry is silent") }
	want(t, "when it cannot be told", w.run(t, "r.test/b:1"), "pulled")

	w = prepare()
	w.needed = func(string) error { return fmt.Errorf("cannot use it: %w", engine.ErrPlatform) }
	if err := w.task(t, "r.test/b:1").do(); !errors.Is(err, engine.ErrPlatform) || len(w.asked) > 0 || !w.Has("a") {
		t.Errorf("for another platform: %v, and the registry was asked for %v", err, w.asked)
	}

	w = prepare()
	w.needed = func(string) error { return machine.Faultf(machine.EngineFault, "Docker is silent") }
	if err := w.task(t, "r.test/b:1").do(); machine.FaultOf(err) != machine.EngineFault {
		t.Errorf("without Docker: %v", err)
	}
}

// layers is a world with images x and y that have a layer in common, and z that has not.
func layers(t *testing.T) *world {
	w := newWorld()
	w.room = room.Room{Dir: "/", Images: func(context.Context) (string, error) { return "/", nil }}
	w.alike = []string{"x", "y"}
	w.registry[a], w.registry[b], w.registry[c] = "x", "y", "z"
	w.run(t, a)
	return w
}

// An old image goes after the pull when that saves layers, all others stay in their
// order, and there is room for both.
func TestOldImageWithLayersOfTheNewOne(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(w *world)
		refs   []string
		late   bool
	}{
		{"shared", func(*world) {}, []string{b}, true},
		{"not shared", func(*world) {}, []string{c}, false},
		{"one of two", func(*world) {}, []string{c, b}, true},
		{"no room for both", func(w *world) { w.tight = true }, []string{b}, false},
		{"somebody else's image has them", func(w *world) { w.alike = append(w.alike, "s"); w.Load(mine, "s") }, []string{b}, false},
		{"nobody can tell", func(w *world) {
			w.needed = func(string) error { return machine.Faultf(machine.RetryLater, "the registry is silent") }
		}, []string{b}, false},
		{"nobody can tell of one", func(w *world) {
			w.needed = func(ref string) error {
				if ref == c {
					return machine.Faultf(machine.RetryLater, "the registry is silent")
				}
				return nil
			}
		}, []string{c, b}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := layers(t)
			test.change(w)
			w.pulling = func(ref string) error {
				want(t, "the old image is there in the pull of "+ref, w.Has("x"), test.late)
				return nil
			}
			k := w.task(t, test.refs...)
			if err := k.do(); err != nil {
				t.Fatal(err)
			}
			want(t, "the old image is there in the end", w.Has("x"), false)
			var last []string
			for _, ref := range test.refs {
				last = append(last, ref+" present ours last")
			}
			w.wantLedger(t, last...)
		})
	}
}

// When the pull fails, the old image is the last one as it was before.
func TestOldImageStaysWhenThePullFails(t *testing.T) {
	for _, next := range []string{b, a} { // another one, or the tag has moved
		w := layers(t)
		w.run(t, c, a)
		w.registry[a] = "y"
		w.pulling = func(string) error { return machine.Faultf(machine.RetryLater, "the registry fails") }
		k := w.task(t, next)
		if err := k.do(); machine.FaultOf(err) != machine.RetryLater {
			t.Fatal(err)
		}
		if err := k.step.Undo(t.Context(), &k.Task, k.notes); err != nil {
			t.Fatal(err)
		}
		if next == a {
			w.wantLedger(t, a+" present ours last")
		} else {
			w.wantLedger(t, a+" present ours last", c+" present ours last")
		}
		want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{true, false})
		w.pulling = nil
		w.run(t, c)
		want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{false, false})
	}
}

// Killed at any write between the pull and the deletion, the next task deletes the old
// image: the same one, or another after the roll-back. That uses either, if it wants.
func TestKilledBeforeTheOldImageGoes(t *testing.T) {
	for _, next := range []string{"resumed", a, b, c} {
		writes := 0
		for n := 0; ; n++ {
			w := layers(t)
			k := w.task(t, b)
			w.kill(n)
			err := k.do()
			if err == nil {
				writes = n
				break
			}
			w.memory.Reopen()
			k.notes = again(t, w, k)
			content := map[string]string{"resumed": "y", a: "x", b: "y", c: "z"}[next]
			if next == "resumed" {
				if err := k.do(); err != nil {
					t.Fatal(err)
				}
				w.wantLedger(t, b+" present ours last")
			} else {
				if err := k.step.Undo(t.Context(), &k.Task, k.notes); err != nil {
					t.Fatal(err)
				}
				w.asked = nil
				had := w.Has(content)
				want(t, fmt.Sprint("killed at ", n, ", then ", next), w.run(t, next), map[bool]string{true: "reused", false: "pulled"}[had])
				w.wantLedger(t, next+" present ours last")
			}
			for _, other := range []string{"x", "y", "z"} {
				want(t, fmt.Sprint("killed at ", n, ", then ", next, ": ", other, " is there"), w.Has(other), other == content)
			}
		}
		if writes < 5 {
			t.Errorf("only %d writes", writes)
		}
	}
}

// A disk that has no room for both images of a tag that has moved is given the old one's.
func TestMovedTagOnASmallDisk(t *testing.T) {
	for _, moved := range []bool{true, false} {
		w := layers(t)
		w.policy = imagecheck.Always
		if moved {
			w.registry[a] = "y"
		}
		w.tighter = func([]*engine.Manifest) bool { return w.Has("x") }
		err := w.task(t, a).do()
		want(t, "failed", machine.FaultOf(err) == machine.NodeFault, !moved)
		want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{!moved, moved})
	}
}

func TestForeignImage(t *testing.T) {
	w := newWorld()
	w.registry[a], w.registry[b] = "x", "y"
	w.Load(a, "x")
	want(t, "came", w.run(t, a), "present")
	w.wantLedger(t, a+" present last")
	w.run(t, b)
	if !w.Has("x") {
		t.Error("another's image was deleted")
	}
	w.wantLedger(t, b+" present ours last")
}

// An image of ours under a name that somebody else gave it.
func TestForeignName(t *testing.T) {
	w := newWorld()
	w.policy = imagecheck.Missing
	w.registry[a], w.registry[b] = "x", "y"
	w.run(t, a)
	w.Tag("x", mine)
	want(t, "came", w.run(t, mine), "reused")
	w.wantLedger(t, a+" present ours", mine+" present last")
	w.run(t, b)
	want(t, "names left", w.Names("x"), []string{mine})
	w.wantLedger(t, b+" present ours last")
}

func TestMovedTag(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		w := newWorld()
		w.registry[a] = "x"
		w.run(t, a)
		w.registry[a] = "y"
		w.pulling = func(string) error {
			if !w.Has("x") {
				t.Error("the old image went before the new one was there")
			}
			return nil
		}
		want(t, "came", w.run(t, a), "pulled")
		want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{false, true})
		w.wantLedger(t, a+" present ours last")
	})
	t.Run("ours, with room for two tasks' images", func(t *testing.T) {
		w := newWorld()
		w.keep.Tasks = 2
		w.registry[a] = "x"
		w.run(t, a)
		w.registry[a] = "y"
		w.run(t, a)
		want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{false, true})
	})
	t.Run("another's", func(t *testing.T) {
		w := newWorld()
		w.Load(a, "x")
		w.registry[a] = "y"
		want(t, "came", w.run(t, a), "pulled")
		want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{true, true})
		w.wantLedger(t, a+" present ours last")
	})
	t.Run("moved on the node by somebody else", func(t *testing.T) {
		w := newWorld()
		w.policy = imagecheck.Missing
		w.registry[a] = "x"
		w.run(t, a)
		w.Load(a, "y")
		want(t, "came", w.run(t, a), "present")
		want(t, "ours, theirs", []bool{w.Has("x"), w.Has("y")}, []bool{false, true})
		w.wantLedger(t, a+" present last")
	})
	t.Run("old one is wanted by its digest", func(t *testing.T) {
		w := newWorld()
		w.registry[a] = "x"
		w.run(t, a)
		w.registry[a] = "y"
		want(t, "came", w.run(t, a, digest(a, "x")), "pulled reused")
		want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{true, true})
	})
}

func TestSets(t *testing.T) {
	w := newWorld()
	w.registry[a], w.registry[b] = "x", "y"
	want(t, "both", w.run(t, a, b, a), "pulled pulled")
	want(t, "one", w.run(t, a), "reused")
	want(t, "a, b", []bool{w.Has("x"), w.Has("y")}, []bool{true, false})
	want(t, "both again", w.run(t, b, a), "pulled reused")
	w.wantLedger(t, a+" present ours last", b+" present ours last")
}

func TestInUse(t *testing.T) {
	w := newWorld()
	w.registry[a], w.registry[b] = "x", "y"
	w.run(t, a)
	w.Use("x", true)
	w.run(t, b)
	w.wantLedger(t, a+" removing ours", b+" present ours last")
	w.run(t, a) // wanted again before it could go
	w.wantLedger(t, a+" present ours last")
	w.run(t, b)
	w.Use("x", false)
	w.run(t, b)
	w.wantLedger(t, b+" present ours last")
	want(t, "old", w.Has("x"), false)
}

func TestKeepTwo(t *testing.T) {
	w := newWorld()
	w.keep.Tasks = 2
	contents := []string{"x", "y", "z"}
	for _, c := range contents {
		w.registry["r.test/"+c+":1"] = c
		w.run(t, "r.test/"+c+":1")
	}
	want(t, "x, y, z", []bool{w.Has("x"), w.Has("y"), w.Has("z")}, []bool{false, true, true})
}

// Kept images have no more bytes than they may, also when the size of the one
// that comes is known only then.
func TestKeepBytes(t *testing.T) {
	w := newWorld() // each image has 1000 bytes
	w.keep = ledger.Keep{Tasks: 9, Bytes: 2500}
	for _, c := range []string{"x", "y", "z"} {
		w.registry["r.test/"+c+":1"] = c
	}
	w.run(t, "r.test/x:1")
	w.run(t, "r.test/y:1")
	w.run(t, "r.test/x:1")
	w.pulling = func(string) error {
		want(t, "kept until the size is known", w.Has("y"), true)
		return nil
	}
	w.run(t, "r.test/z:1")
	w.wantLedger(t, "r.test/x:1 present ours", "r.test/z:1 present ours last")
	want(t, "x, y, z", []bool{w.Has("x"), w.Has("y"), w.Has("z")}, []bool{true, false, true})
	w.keep.Bytes = 500
	want(t, "came", w.run(t, "r.test/z:1"), "reused")
	w.wantLedger(t, "r.test/z:1 present ours last")
}

// What the images that are kept have in common takes its bytes once, also when they
// are used again.
func TestKeepBytesOfSharedLayers(t *testing.T) {
	for _, test := range []struct {
		bytes int64
		stays bool
	}{{1800, true}, {1799, false}} {
		w := newWorld() // each image has 1000 bytes
		w.base, w.keep = 200, ledger.Keep{Tasks: 9, Bytes: test.bytes}
		w.registry[a], w.registry[b] = "x", "y"
		w.run(t, a)
		w.run(t, b)
		for range 2 {
			want(t, "the kept image is there", w.Has("x"), test.stays)
			w.run(t, b)
			if test.stays {
				want(t, "came", w.run(t, a)+" "+w.run(t, b), "reused reused")
			}
		}
	}
}

// Kept images go when what a task needs does not fit beside them.
func TestKeptImagesMakeRoom(t *testing.T) {
	for _, large := range []bool{false, true} {
		w := newWorld()
		w.keep.Tasks = 9
		w.room = room.Room{Dir: "/", Images: func(context.Context) (string, error) { return "/", nil }}
		w.registry[a], w.registry[b] = "x", "y"
		w.run(t, a)
		asked := 0
		w.tighter = func([]*engine.Manifest) bool { asked++; return asked == 1 || large }
		err := w.task(t, b).do()
		want(t, "refused", machine.FaultOf(err) == machine.NodeFault, large)
		want(t, "the kept image is there", w.Has("x"), false)
		want(t, "the wanted image is there", w.Has("y"), !large)
	}
}

// A disk that gets full while an image comes is given the room of kept images, as
// many as it takes, the one used longest ago first; never that of the task's own.
func TestFullDiskInThePull(t *testing.T) {
	const d, big = "r.test/d:1", "r.test/big:1"
	for _, test := range []struct {
		room int // how many images may be there for the pull to end
		gone []string
		code machine.Fault
	}{{4, nil, ""}, {3, []string{"y"}, ""}, {1, []string{"x", "y", "z"}, ""}, {0, []string{"x", "z"}, machine.NodeFault}} {
		t.Run(fmt.Sprint("room for ", test.room), func(t *testing.T) {
			w := newWorld()
			w.keep.Tasks = 9
			w.registry[a], w.registry[b], w.registry[c], w.registry[d], w.registry[big] = "x", "y", "z", "d", "big"
			for _, ref := range []string{a, b, c, a} {
				w.run(t, ref)
			}
			w.Load(d, "d") // which the task uses as well, and nobody of us brought
			pulls, tries := 0, len(test.gone)+1
			if !slices.Contains(test.gone, "y") && len(test.gone) > 0 {
				w.Use("y", true) // by a container of somebody else's
				tries++
			}
			w.pulling = func(string) error {
				if pulls++; pulls > tries {
					return errKilled
				}
				images, err := w.Store.Images(t.Context())
				if err != nil || len(images) > test.room {
					return errors.Join(err, machine.Faultf(machine.NodeFault, "cannot pull: %w", engine.ErrNoSpace))
				}
				return nil
			}
			k := w.task(t, d, big)
			err := k.do()
			if test.code != "" != errors.Is(err, engine.ErrNoSpace) || err != nil && machine.FaultOf(err) != test.code {
				t.Errorf("%v", err)
			}
			want(t, "pulls", pulls, tries)
			for _, content := range []string{"x", "y", "z"} {
				want(t, content+" is there", w.Has(content), !slices.Contains(test.gone, content))
			}
			want(t, "the task's other image is there", w.Has("d"), true)
			if err != nil {
				if err := k.step.Undo(t.Context(), &k.Task, k.notes); err != nil {
					t.Fatal(err)
				}
				w.wantLedger(t, d+" present last", b+" removing ours")
			}
		})
	}
}

func TestPolicies(t *testing.T) {
	for _, test := range []struct {
		policy imagecheck.Policy
		ref    string
		node   string // content on it under ref, by others
		down   bool
		asked  int
		came   string
		fault  machine.Fault
	}{
		{imagecheck.Auto, a, "", false, 1, "pulled", ""},
		{imagecheck.Auto, a, "x", false, 1, "present", ""},
		{imagecheck.Auto, a, "x", true, 1, "present", ""},
		{imagecheck.Auto, a, "old", false, 2, "pulled", ""},
		{imagecheck.Auto, digest(a, "x"), "x", false, 0, "present", ""},
		{imagecheck.Auto, a, "", true, 1, "", machine.RetryLater},
		{imagecheck.Auto, b, "", false, 1, "", machine.TaskFault},
		{imagecheck.Always, a, "x", false, 1, "present", ""},
		{imagecheck.Always, a, "old", false, 1, "pulled", ""},
		{imagecheck.Always, a, "x", true, 1, "", machine.RetryLater},
		{imagecheck.Missing, a, "old", false, 0, "present", ""},
		{imagecheck.Missing, a, "", false, 1, "pulled", ""},
		{imagecheck.Never, a, "old", false, 0, "present", ""},
		{imagecheck.Never, a, "", false, 0, "", machine.TaskFault},
	} {
		t.Run(fmt.Sprintf("%s %s %q down=%v", test.policy, test.ref, test.node, test.down), func(t *testing.T) {
			w := newWorld()
			w.policy, w.down = test.policy, test.down
			w.registry[a], w.registry[digest(a, "x")] = "x", "x"
			if test.node != "" {
				w.Load(test.ref, test.node)
			}
			k := w.task(t, test.ref)
			err := k.do()
			if test.fault != "" && (err == nil || machine.FaultOf(err) != test.fault) || test.fault == "" && err != nil {
				t.Errorf("error %v, want fault %q", err, test.fault)
			}
			want(t, "came", k.came(t), test.came)
			want(t, "requests", len(w.asked), test.asked)
			want(t, "warnings", len(k.notes.All(machine.WhatWarning)), map[bool]int{true: 1}[test.down && test.came != ""])
		})
	}
}

// What was pulled stays when a later image of the set cannot be had; what was
// being pulled leaves the ledger.
func TestFailedPull(t *testing.T) {
	w := newWorld()
	w.registry[a] = "x"
	k := w.task(t, a, b)
	if err := k.do(); machine.FaultOf(err) != machine.TaskFault || err == nil {
		t.Fatal(err)
	}
	w.wantLedger(t, a+" present ours last", b+" pulling last")
	if err := k.step.Undo(t.Context(), &k.Task, k.notes); err != nil {
		t.Fatal(err)
	}
	w.wantLedger(t, a+" present ours last")
}

// Somebody deletes the image between the pull and the container.
func TestImageGoesAway(t *testing.T) {
	for _, policy := range []imagecheck.Policy{imagecheck.Auto, imagecheck.Never} {
		w := newWorld()
		w.policy = policy
		w.registry[a] = "x"
		w.Load(a, "x")
		w.make = func(engine.Image) error {
			w.make = nil
			return w.RemoveImage(t.Context(), a)
		}
		w.pulling = func(string) error {
			w.wantLedger(t, a+" pulling last")
			return nil
		}
		k := w.task(t, a)
		if err := k.do(); (err != nil) != (policy == imagecheck.Never) {
			t.Errorf("%s: %v", policy, err)
		} else if err == nil {
			want(t, "came", k.came(t), "pulled")
			w.wantLedger(t, a+" present ours last")
		}
	}
}

// brief has an image go away as soon as it has been pulled, once.
type brief struct {
	*node
	pulled string
}

func (b *brief) Pull(ctx context.Context, ref string, report func(engine.PullProgress)) error {
	if err := b.node.Pull(ctx, ref, report); err != nil || b.pulled != "" {
		return err
	}
	b.pulled = ref
	return b.RemoveImage(ctx, ref)
}

// What a tag named before goes also when the image that it names now has to be pulled
// twice, because somebody deleted it at once.
func TestImageGoesAwayInItsPull(t *testing.T) {
	w := newWorld()
	w.registry[a] = "x"
	w.run(t, a)
	w.registry[a] = "y"
	k := w.task(t, a)
	k.step.Engine = &brief{node: w.node}
	if err := k.do(); err != nil {
		t.Fatal(err)
	}
	want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{false, true})
	w.wantLedger(t, a+" present ours last")
}

// late has an image go away while Docker makes its container, once.
type late struct {
	*node
	image string
}

func (l *late) Create(ctx context.Context, t *machine.Task, n machine.Notes, executor int, img engine.Image) error {
	if err := l.node.Create(ctx, t, n, executor, img); err != nil || l.image == "" {
		return err
	}
	gone := l.image
	l.image = ""
	return l.RemoveImage(ctx, gone)
}

// Docker looks for containers before it deletes an image, and may not know yet of
// the one that it makes. The container is as good as any, so what nobody may pull
// is not missed.
func TestImageGoesAwayUnderItsContainer(t *testing.T) {
	for _, policy := range []imagecheck.Policy{imagecheck.Auto, imagecheck.Never} {
		w := newWorld()
		w.policy = policy
		w.registry[a] = "x"
		w.Load(a, "x")
		k := w.task(t, a)
		k.step.Containers = &late{w.node, a}
		if err := k.do(); err != nil {
			t.Errorf("%s: %v", policy, err)
		}
		if policy == imagecheck.Auto {
			want(t, "came", k.came(t), "pulled")
			w.wantLedger(t, a+" present ours last")
		}
	}
}

var errKilled = errors.New("killed")

// kill makes the journal fail at its nth write from now, as if the process had
// been killed before it (n counts from 1).
func (w *world) kill(n int) {
	w.memory.Fail = func(machine.Entry) (bool, error) {
		if n--; n < 0 {
			return false, errKilled
		}
		return false, nil
	}
}

// A task that is killed at any write of the journal, or in its pull, ends as it
// would have ended, and says that it pulled.
func TestResume(t *testing.T) {
	ends := func(t *testing.T, w *world, k *task) {
		t.Helper()
		w.memory.Reopen()
		w.pulling, w.make = nil, nil
		k.notes = again(t, w, k)
		if err := k.do(); err != nil {
			t.Fatal(err)
		}
		want(t, "came", k.came(t), "pulled")
		want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{false, true})
		w.wantLedger(t, k.step.Task.Images()[0]+" present ours last")
	}
	for _, next := range []string{a, b} { // the tag moves, or another image is wanted
		for n := 0; ; n++ {
			w := newWorld()
			w.registry[a] = "x"
			w.run(t, a)
			w.registry[a], w.registry[b] = "y", "y"
			k := w.task(t, next)
			w.kill(n)
			err := k.do()
			if err == nil {
				if n < 4 {
					t.Errorf("%s: only %d writes", next, n)
				}
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			t.Run(fmt.Sprintf("%s write %d", next, n), func(t *testing.T) { ends(t, w, k) })
		}
		for _, late := range []bool{false, true} { // Docker ends the pull while the next process looks
			t.Run(fmt.Sprintf("%s in the pull, late=%v", next, late), func(t *testing.T) {
				w := newWorld()
				w.registry[a] = "x"
				w.run(t, a)
				w.registry[a], w.registry[b] = "y", "y"
				k := w.task(t, next)
				w.pulling = func(string) error { return errKilled }
				if err := k.do(); !errors.Is(err, errKilled) {
					t.Fatal(err)
				}
				if late {
					w.listing = func() { w.Load(next, "y") }
				}
				ends(t, w, k)
			})
		}
	}
}

// After a power cut what a pull had brought, and nobody had journaled, is no image to run: its
// layers may not have been on the disk. It is pulled again, twice, for Docker may have others of
// its layers, and goes with a roll-back.
func TestPullBeforeAPowerCut(t *testing.T) {
	begun := func(t *testing.T, came func(w *world)) (*world, *task) {
		t.Helper()
		w := newWorld()
		w.registry[a] = "x"
		k := w.task(t, a)
		k.step.BootID = "before"
		w.pulling = func(string) error { came(w); return errKilled }
		if err := k.do(); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		w.pulling, w.asked, w.Removed = nil, nil, nil
		w.memory.Reopen()
		k.notes = again(t, w, k)
		return w, k
	}
	named := func(w *world) { w.Load(a, "x") }
	nameless := func(w *world) {
		w.Load(a, "x")
		if err := errors.Join(w.RemoveName(a), w.RemoveName(digest(a, "x"))); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name    string
		came    func(w *world)
		boot    string
		removed []string
	}{
		{"named", named, "after", []string{a, a}},
		{"made and not named", nameless, "after", []string{ledgertest.ID("x"), a}},
		{"layers alone", func(*world) {}, "after", []string{a}}, // which one pull takes up, and its removal removes
		{"the process died, and not the node", named, "before", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, k := begun(t, test.came)
			k.step.BootID = test.boot
			if err := k.do(); err != nil {
				t.Fatal(err)
			}
			want(t, "removed", w.Removed, test.removed)
			want(t, "pulled again", len(w.asked), map[bool]int{true: 2}[test.boot == "after"])
			want(t, "came", k.came(t), "pulled")
			w.wantLedger(t, a+" present ours last")
		})
	}
	// Whoever goes on cannot know what the one before it had taken up: nothing counts that was not
	// pulled after a removal of what was pulled in this boot.
	t.Run("killed on the way", func(t *testing.T) {
		for n := 0; ; n++ {
			w, k := begun(t, named)
			k.step.BootID = "after"
			var did []string
			w.pulling = func(string) error { did = append(did, "pull"); return nil }
			k.step.Engine = &watched{w.node, &did}
			w.kill(n)
			err := k.do()
			if err == nil {
				if n < 3 {
					t.Errorf("only %d writes", n)
				}
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			w.memory.Reopen()
			k.notes = again(t, w, k)
			if err := k.do(); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(did, " "), "pull remove pull") {
				t.Errorf("killed at write %d: %v", n, did)
			}
			w.wantLedger(t, a+" present ours last")
		}
	})
	t.Run("rolled back", func(t *testing.T) {
		w, k := begun(t, named)
		k.step.BootID = "after"
		if err := k.step.Undo(t.Context(), &k.Task, k.notes); err != nil {
			t.Fatal(err)
		}
		want(t, "it is there", w.Has("x"), false)
		w.wantLedger(t)
	})
	t.Run("it was there before", func(t *testing.T) {
		w := newWorld()
		w.registry[a] = "x"
		w.Load(mine, "x")
		k := w.task(t, a)
		k.step.BootID = "before"
		w.pulling = func(string) error { w.Load(a, "x"); return errKilled }
		if err := k.do(); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		w.pulling, w.asked = nil, nil
		w.memory.Reopen()
		k.notes, k.step.BootID = again(t, w, k), "after"
		if err := k.do(); err != nil {
			t.Fatal(err)
		}
		want(t, "removed", w.Removed, []string(nil))
		want(t, "came", k.came(t), "present")
	})
}

// watched is a node that notes what is removed.
type watched struct {
	*node
	did *[]string
}

func (w *watched) RemoveImage(ctx context.Context, ref string) error {
	*w.did = append(*w.did, "remove")
	return w.node.RemoveImage(ctx, ref)
}

// again is the notes of a task that another process takes up: those of its
// journaled records, without what the dead one had in memory only.
func again(t tb, w *world, k *task) machine.Notes {
	t.Helper()
	n, err := machine.NodeNotes(w.memory)
	if err != nil {
		t.Fatal(err)
	}
	return &resumed{Notes: n, before: k.notes}
}

// resumed has the notes of the process before it and its own.
type resumed struct {
	machine.Notes
	before machine.Notes
}

func (r *resumed) Get(what, name string) (machine.Note, bool) {
	if n, ok := r.Notes.Get(what, name); ok {
		return n, true
	}
	return r.before.Get(what, name)
}

func (r *resumed) All(what string) []machine.Note {
	all := r.Notes.All(what)
	for _, n := range r.before.All(what) {
		if _, ok := r.Notes.Get(what, n.Name); !ok {
			all = append(all, n)
		}
	}
	return all
}

// An image that a dead process of ours deleted, before it could journal that, and
// that somebody else brings back when the task has been rolled back, is theirs.
func TestUndoForgetsWhatHasGone(t *testing.T) {
	w := newWorld()
	w.registry[a], w.registry[b] = "x", "y"
	w.Load(b, "y") // so nothing is pulled
	w.run(t, a)
	k := w.task(t, b)
	w.kill(2) // announced, about to delete; the deletion is not journaled
	if err := k.do(); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	want(t, "the old image is there", w.Has("x"), false)
	w.memory.Reopen()
	k.notes = again(t, w, k)
	if err := k.step.Undo(t.Context(), &k.Task, k.notes); err != nil {
		t.Fatal(err)
	}
	w.wantLedger(t, b+" present last")
	w.Load(a, "x")
	w.run(t, b)
	want(t, "the image that somebody brought is there", w.Has("x"), true)
}

// An image that somebody brings while another one of the task is pulled is theirs,
// whether the task goes on or is rolled back.
func TestSomebodyPullsMeanwhile(t *testing.T) {
	for _, rolledBack := range []bool{false, true} {
		w := newWorld()
		w.registry[a], w.registry[b], w.registry["r.test/c:1"] = "x", "y", "z"
		k := w.task(t, a, b)
		w.pulling = func(string) error {
			w.pulling = nil
			w.Load(b, "y")
			if rolledBack {
				return errKilled
			}
			return nil
		}
		if err := k.do(); (err != nil) != rolledBack {
			t.Fatal(err)
		}
		if rolledBack {
			w.memory.Reopen()
			k.notes = again(t, w, k)
			if err := k.step.Undo(t.Context(), &k.Task, k.notes); err != nil {
				t.Fatal(err)
			}
		}
		w.run(t, "r.test/c:1")
		want(t, "the image that somebody brought is there", w.Has("y"), true)
	}
}

// An image of others that lost its name to our pull, because the tag had moved, stays
// although nothing but a name of ours is left; whoever journals the pull.
func TestOurPullTakesTheirName(t *testing.T) {
	const a2 = "r.test/a:2"
	for _, killed := range []bool{false, true} {
		w := newWorld()
		w.registry[a], w.registry[a2], w.registry[b] = "x", "x", "z"
		w.Load(a, "x")
		w.run(t, a2)
		w.registry[a] = "y"
		k := w.task(t, a)
		if killed {
			w.kill(2) // the pull is not journaled
		}
		if err := k.do(); (err != nil) != killed {
			t.Fatal(err)
		}
		w.memory.Reopen()
		w.run(t, b)
		want(t, "their image, ours", []bool{w.Has("x"), w.Has("y")}, []bool{true, false})
		w.wantLedger(t, a2+" removing ours", b+" present ours last")
	}
}

// An image that Docker is just naming or deleting has no name for a moment. It is
// not taken for somebody's, as one is that stays so; and others are not waited for.
func TestImageWithoutNames(t *testing.T) {
	const a2 = "r.test/a:2"
	for _, test := range []struct {
		what  string
		pull  string // of content x
		soon  func(w *world)
		waits bool
		left  bool
	}{
		{"it stays", a, nil, true, true},
		{"it is named", a, func(w *world) { w.Load(a2, "x") }, true, false},
		{"it is deleted", a, func(w *world) { _ = w.RemoveImage(context.Background(), digest(a, "x")) }, true, false},
		{"another is pulled", b, nil, false, true},
	} {
		t.Run(test.what, func(t *testing.T) {
			w := newWorld()
			w.registry[a], w.registry[b], w.registry["r.test/c:1"] = "x", "y", "z"
			w.Load(digest(a, "x"), "x") // without a tag
			waits := 0
			k := w.task(t, test.pull)
			k.step.Wait = func(context.Context, time.Duration) error {
				if waits++; waits == 1 && test.soon != nil {
					test.soon(w)
				}
				return nil
			}
			if err := k.do(); err != nil {
				t.Fatal(err)
			}
			want(t, "waited", waits > 0, test.waits)
			_ = w.RemoveImage(t.Context(), a2) // by whom it was named
			w.run(t, "r.test/c:1")
			want(t, "the image is there", w.Has("x"), test.left)
		})
	}
}

// A name that is there when the pull begins, and that another root removes before the
// pull gives it, is ours.
func TestOurPullGivesTheNameAnew(t *testing.T) {
	w := newWorld()
	w.policy = imagecheck.Always
	w.registry[a], w.registry[b] = "x", "y"
	w.Load(a, "x")
	w.pulling = func(string) error { w.pulling = nil; return w.RemoveImage(t.Context(), a) }
	w.run(t, a)
	w.run(t, b)
	want(t, "old, new", []bool{w.Has("x"), w.Has("y")}, []bool{false, true})
}

// An engine that does not find something else when it makes the container is not
// taken for one without the image, which stays in the ledger.
func TestNotFoundForAnotherReason(t *testing.T) {
	w := newWorld()
	w.registry[a] = "x"
	w.make = func(engine.Image) error { return fmt.Errorf("no such plugin: %w", engine.ErrNotFound) }
	if err := w.task(t, a).do(); !errors.Is(err, engine.ErrNotFound) {
		t.Error(err)
	}
	want(t, "the registry was asked for", w.asked, []string{a})
	w.wantLedger(t, a+" present ours last")
}

// An image that is journaled as ready is the attempt's, wherever its tag points
// when another process goes on.
func TestResumeStaysWithTheImage(t *testing.T) {
	w := newWorld()
	w.registry[a] = "x"
	k := w.task(t, a)
	if err := k.do(); err != nil {
		t.Fatal(err)
	}
	w.registry[a] = "y"
	w.asked = nil
	k.notes = again(t, w, k)
	if err := k.do(); err != nil {
		t.Fatal(err)
	}
	want(t, "came", k.came(t), "pulled")
	want(t, "the registry was asked for", w.asked, []string{})
	w.wantLedger(t, a+" present ours last")
}

// crowd decides how full the disk is for the next task: whether old images leave room
// for new ones, and whether it gets full in a pull.
func (e *node) crowd(t *rapid.T) {
	e.alike = []string{"x", "y"}
	e.tight = rapid.Bool().Draw(t, "tight")
	full := rapid.SampledFrom([]int{0, 0, 0, 1, 5}).Draw(t, "pulls that fill the disk")
	e.pulling = func(string) error {
		if full--; full >= 0 {
			return machine.Faultf(machine.NodeFault, "cannot pull: %w", engine.ErrNoSpace)
		}
		return nil
	}
}

// Whatever tasks, administrators and crashes do: what others brought or named
// stays, and what we brought goes when the last task does not use it.
func TestNothingForeignGoesNothingOfOursLeaks(t *testing.T) {
	refs := []string{"r.test/a:1", "r.test/a:2", "r.test/b:1"}
	contents := []string{"x", "y", "z"}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.room.Images = func(context.Context) (string, error) { return "/", nil }
		for _, r := range refs {
			w.registry[r] = "x"
		}
		for _, r := range refs {
			for _, c := range contents {
				w.registry[digest(r, c)] = c
			}
		}
		theirs := map[string]bool{}  // content that was there before we pulled it
		named := map[string]string{} // names that others gave, to content
		touched := map[string]bool{} // content that has had a name of others
		ref := func(t *rapid.T) string {
			r := rapid.SampledFrom(refs).Draw(t, "ref")
			if rapid.Bool().Draw(t, "by digest") {
				return digest(r, rapid.SampledFrom(contents).Draw(t, "content"))
			}
			return r
		}
		ours := func(content string) bool {
			n, err := w.memory.Node()
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(n.Images, func(r machine.ImageRecord) bool { return r.ImageID == ledgertest.ID(content) && r.PulledByUs })
		}
		var running *task
		var last []string
		finish := func(t *rapid.T) {
			if running == nil {
				return
			}
			w.memory.Reopen()
			running.notes = again(t, w, running)
			if rapid.Bool().Draw(t, "resumed") {
				if err := running.do(); err != nil {
					t.Fatal(err)
				}
			} else if err := running.step.Undo(context.Background(), &running.Task, running.notes); err != nil {
				t.Fatal(err)
			} else {
				last = nil // what it used is whatever it had
			}
			running = nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"task": func(t *rapid.T) {
				finish(t)
				w.policy = rapid.SampledFrom([]imagecheck.Policy{imagecheck.Auto, imagecheck.Always, imagecheck.Missing}).Draw(t, "policy")
				last = rapid.SliceOfN(rapid.Custom(ref), 1, 2).Draw(t, "images")
				w.crowd(t)
				k := w.task(t, last...)
				w.kill(rapid.IntRange(0, 12).Draw(t, "killed at"))
				err := k.do()
				w.memory.Fail, w.pulling = nil, nil
				if err != nil && !errors.Is(err, errKilled) && !errors.Is(err, engine.ErrNoSpace) {
					t.Fatal(err)
				}
				if err != nil {
					running = k
				}
			},
			"tag moves": func(t *rapid.T) {
				w.registry[rapid.SampledFrom(refs).Draw(t, "ref")] = rapid.SampledFrom(contents).Draw(t, "content")
			},
			"somebody pulls": func(t *rapid.T) {
				finish(t) // one who pulls what we are pulling cannot be told from us
				r := ref(t)
				c := w.registry[r]
				// A tag that they move lets go of what it named: what has a name of
				// ours as well is ours then.
				if was, err := w.Image(context.Background(), r); err == nil && was.ID != ledgertest.ID(c) {
					for _, content := range contents {
						if was.ID == ledgertest.ID(content) && ours(content) {
							theirs[content] = false
						}
					}
				}
				theirs[c] = theirs[c] || !w.Has(c)
				touched[c] = true
				w.Load(r, c)
			},
			"somebody tags": func(t *rapid.T) {
				c := rapid.SampledFrom(contents).Draw(t, "content")
				if w.Has(c) {
					w.Tag(c, "site.test/"+c+":mine")
					named["site.test/"+c+":mine"] = c
					touched[c] = true
				}
			},
			"somebody uses": func(t *rapid.T) {
				if c := rapid.SampledFrom(contents).Draw(t, "content"); w.Has(c) {
					w.Use(c, rapid.Bool().Draw(t, "used"))
				}
			},
			"": func(t *rapid.T) {
				for c := range theirs {
					if theirs[c] && !w.Has(c) {
						t.Fatalf("image %s was there before and is gone", c)
					}
				}
				for name, c := range named {
					if !slices.Contains(w.Names(c), name) {
						t.Fatalf("somebody's name %s is gone", name)
					}
				}
				if running != nil || last == nil {
					return
				}
				for _, c := range contents {
					if w.Has(c) && !touched[c] && !ours(c) {
						t.Fatalf("image %s of ours is not in the ledger: %v", c, w.ledger(t))
					}
				}
			},
		})
	})
}
