package imagecheck_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/ledger/ledgertest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/imagecheck"
)

// roots are the journals of one node that several runs share, each with the
// containers of its task.
type roots struct {
	*node
	all   []*root
	boots int // of the node
}

// boot is what the kernel calls the present boot.
func (r *roots) boot() string { return fmt.Sprint("boot ", r.boots) }

type root struct {
	*world
	roots   *roots
	uses    []string // IDs of the images that its containers refer to
	running *task    // whose process has died
	during  func()   // what others do while this root is busy, once
	after   int      // how many moments of this root pass before that
}

func newRoots(n int) *roots {
	r := &roots{node: newNode()}
	for range n {
		x := &root{world: newWorld(), roots: r}
		x.room.Images = func(context.Context) (string, error) { return "/", nil }
		x.node = r.node
		r.all = append(r.all, x)
	}
	return r
}

// others is a moment in which others may do what was to happen while this root is
// busy: before each question to Docker, and in the middle of what Docker does for it.
func (x *root) others() {
	f := x.during
	if f == nil {
		return
	}
	if x.after--; x.after >= 0 {
		return
	}
	x.during = nil
	f()
	x.roots.Between = x.others
}

func (x *root) Image(ctx context.Context, ref string) (engine.Image, error) {
	x.others()
	return x.node.Image(ctx, ref)
}

func (x *root) Images(ctx context.Context) ([]engine.Image, error) {
	x.others()
	return x.node.Images(ctx)
}

func (x *root) RemoveImage(ctx context.Context, ref string) error {
	x.others()
	return x.node.RemoveImage(ctx, ref)
}

func (x *root) Pull(ctx context.Context, ref string, report func(engine.PullProgress)) error {
	x.others()
	return x.node.Pull(ctx, ref, report)
}

func (x *root) Manifest(ctx context.Context, ref string) (*engine.Manifest, error) {
	x.others()
	return x.node.Manifest(ctx, ref)
}

func (x *root) PullNeed(ctx context.Context, of []*engine.Manifest, old ...string) (engine.PullNeed, error) {
	x.others()
	return x.node.PullNeed(ctx, of, old...)
}

func (x *root) Create(ctx context.Context, _ *machine.Task, _ machine.Notes, _ int, img engine.Image) error {
	x.others()
	if _, err := x.node.Image(ctx, img.ID); err != nil {
		return err
	}
	x.uses = append(x.uses, img.ID)
	x.roots.count()
	return nil
}

func (x *root) Settle(context.Context, *machine.Task, machine.Notes) error { return nil }

func (x *root) Remove(context.Context, *machine.Task, machine.Notes) error {
	x.uses = nil
	x.roots.count()
	return nil
}

// count tells the store which images have containers.
func (r *roots) count() {
	for _, c := range []string{"x", "y", "z"} {
		r.Use(c, slices.ContainsFunc(r.all, func(x *root) bool { return slices.Contains(x.uses, ledgertest.ID(c)) }))
	}
}

// end ends what the root was doing: its process is started again, or another
// task rolls back what a dead one left.
func (x *root) end(t tb, resume bool) {
	t.Helper()
	if k := x.running; k != nil {
		x.running = nil
		x.memory.Reopen()
		x.pulling = nil
		k.notes, k.step.BootID = again(t, x.world, k), x.roots.boot()
		if resume {
			if err := k.do(); err != nil {
				t.Fatal(err)
			}
		} else if err := k.step.Undo(context.Background(), &k.Task, k.notes); err != nil {
			t.Fatal(err)
		}
	}
	x.uses = nil
	x.roots.count()
}

// work runs a task on this root, whose process is killed at a write of the
// journal.
func (x *root) work(t tb, policy imagecheck.Policy, killed int, refs ...string) {
	t.Helper()
	x.policy = policy
	k := x.task(t, refs...)
	k.step.Engine, k.step.Containers, k.step.BootID = x, x, x.roots.boot()
	k.step.Wait = func(context.Context, time.Duration) error { x.roots.Store.Settle(); return nil }
	x.kill(killed)
	x.roots.Between = x.others
	err := k.do()
	x.roots.Between = nil
	x.memory.Fail, x.during, x.pulling = nil, nil, nil
	switch {
	case errors.Is(err, errKilled), errors.Is(err, engine.ErrNoSpace):
		x.running = k
	case err != nil:
		t.Fatalf("task with %v: %v", refs, err)
	}
}

// held says whether a root waits with the deletion of an image.
func (r *roots) held(t tb, img engine.Image) bool {
	t.Helper()
	return slices.ContainsFunc(r.all, func(x *root) bool {
		n, err := x.memory.Node()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(n.Images, func(r machine.ImageRecord) bool {
			return r.ImageID == img.ID && r.Phase == machine.Removing && ledger.Held(n.Images, r, img)
		})
	})
}

// However the runs of one node get into each other's way: none fails for want of
// an image that another deleted, and in the end no image is left that the last
// tasks do not use. Where tags move, some wait until nobody else can have them by
// their digest.
func TestManyRootsShareImages(t *testing.T) {
	t.Run("tags stay", func(t *testing.T) { shareImages(t, false) })
	t.Run("tags move", func(t *testing.T) { shareImages(t, true) })
}

func shareImages(t *testing.T, moves bool) {
	const z = "r.test/z:1"
	contents := []string{"x", "y"}
	tags := []string{"r.test/a:1", "r.test/a:2", "r.test/b:1"}
	refs := append([]string{digest("r.test/c", "x"), digest("r.test/c", "y")}, tags...)
	rapid.Check(t, func(t *rapid.T) {
		r := newRoots(3)
		for _, tag := range tags {
			r.registry[tag] = "x"
		}
		for _, c := range contents {
			r.registry[digest("r.test/c", c)] = c
		}
		r.registry[z] = "z"
		free := func(t *rapid.T, not *root) *root {
			i := rapid.IntRange(0, len(r.all)-1).Draw(t, "root")
			if r.all[i] == not {
				return nil
			}
			return r.all[i]
		}
		// A name that another root removes and a pull gives again, in a process that dies
		// then, is not found.
		task := func(t *rapid.T, x *root) {
			during := x.during
			x.during = nil
			x.end(t, rapid.Bool().Draw(t, "resumed"))
			x.during = during
			policy := rapid.SampledFrom([]imagecheck.Policy{imagecheck.Auto, imagecheck.Always, imagecheck.Missing}).Draw(t, "policy")
			images := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
				return rapid.SampledFrom(refs).Draw(t, "ref")
			}), 1, 2).Draw(t, "images")
			killed := 1000
			if x.during == nil {
				killed = rapid.IntRange(0, 12).Draw(t, "killed at")
			}
			x.crowd(t)
			x.work(t, policy, killed, images...)
		}
		t.Repeat(map[string]func(*rapid.T){
			"task": func(t *rapid.T) {
				x := free(t, nil)
				if other := free(t, x); other != nil {
					x.during, x.after = func() { task(t, other) }, rapid.IntRange(0, 40).Draw(t, "moment")
				}
				task(t, x)
			},
			"ends": func(t *rapid.T) {
				free(t, nil).end(t, rapid.Bool().Draw(t, "resumed"))
			},
			"the node starts again": func(*rapid.T) { r.boots++ },
			"tag moves": func(t *rapid.T) {
				if !moves {
					t.Skip("tags stay")
				}
				// What a dead process pulled is not found when, before its root goes
				// on, the tag moves and another root pulls it again.
				for _, x := range r.all {
					x.end(t, true)
				}
				r.registry[rapid.SampledFrom(tags).Draw(t, "ref")] = rapid.SampledFrom(contents).Draw(t, "content")
			},
			"": func(t *rapid.T) {
				for _, x := range r.all {
					for _, id := range x.uses {
						if _, err := r.Image(context.Background(), id); err != nil {
							t.Fatalf("an image in use: %v", err)
						}
					}
				}
			},
		})
		for _, x := range r.all {
			x.end(t, true)
		}
		for range 2 { // a deletion that was refused is tried again
			for _, x := range r.all {
				x.work(t, imagecheck.Auto, 1000, z)
			}
		}
		images, err := r.Images(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range images {
			switch {
			case img.ID == ledgertest.ID("z"):
			case !r.held(t, img):
				t.Fatalf("image %v is left, and no root knows that it has to go", img)
			case !moves:
				t.Fatalf("image %v is held, and nobody else has it", img)
			}
		}
	})
}
