package system

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// Eight roots work on one node at once, as on a node that is packed with tasks:
// with images that share content and layers, killed now and then. No run fails
// because another root deleted its image, each does its work, and in the end the
// images that nobody used last are gone.
func TestManyRootsOnOneNode(t *testing.T) {
	t.Parallel()
	const roots, rounds = 8, 4
	first := NewWorld(t)
	shared := rig.Spec{Marker: "many", Shared: 1 << 20}
	images := []rig.Ref{
		first.Image(t, "many:1", shared),
		first.Image(t, "many:2", shared), // the same content under another tag
		first.Image(t, "other:1", rig.Spec{Marker: "other", Shared: 1 << 20}),
		first.Image(t, "third:1", rig.Spec{Marker: "third"}),
	}
	last := first.Image(t, "last:1", rig.Spec{Marker: "last"})
	worlds := []*World{first}
	for len(worlds) < roots {
		w := &World{Node: NewNode(t, first.DockerHost), Registry: first.Registry, Dir: t.TempDir(), Docker: first.Docker}
		t.Cleanup(func() {
			w.Deckhand(t, "recover")
			w.Deckhand(t, "scrub")
		})
		worlds = append(worlds, w)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	each := func(do func(i int, w *World, r *rand.Rand)) {
		var all sync.WaitGroup
		for i, w := range worlds {
			all.Go(func() { do(i, w, rand.New(rand.NewPCG(seed, uint64(i)))) })
		}
		all.Wait()
	}
	each(func(i int, w *World, r *rand.Rand) {
		for round := range rounds {
			img := images[r.IntN(len(images))]
			name := img.Tag
			task := tes.Task{ID: fmt.Sprintf("r%d-%d", i, round)}
			task.Executors = []tes.Executor{Sh(name, "sleep 0.1")}
			b := w.prepare(t, task)
			b.start(t)
			if r.IntN(3) == 0 {
				time.Sleep(time.Duration(r.IntN(900)) * time.Millisecond)
				_ = b.Process.Kill() // it may have ended
				b.End(t)
				continue
			}
			if code, log := b.End(t); code != 0 {
				t.Errorf("root %d, task %s with %s ended with %d:\n%s", i, task.ID, name, code, log)
			}
		}
	})
	// Two tasks, for a deletion that Docker refused while another root used the image.
	for round := range 2 {
		each(func(i int, w *World, _ *rand.Rand) {
			task := tes.Task{ID: fmt.Sprintf("last-%d-%d", i, round), Executors: []tes.Executor{Sh(last.Tag, "true")}}
			if r := w.Deckhand(t, "run", w.Save(t, task)); r.Code != 0 {
				t.Errorf("root %d: %+v", i, r)
			}
		})
	}
	on(t, last.ID, last.Tag)
	for i, w := range worlds {
		w.Clean(t)
		for _, r := range w.Images(t).Ledger {
			if r.Reference != last.Tag || r.Phase != "present" {
				t.Errorf("root %d has %+v in its ledger", i, r)
			}
		}
	}
	for _, img := range images {
		off(t, img.Tag, img.ID)
	}
	left := strings.Fields(first.Docker(t, "images", "--filter", "reference="+first.Registry.Addr()+"/*", "--format", "{{.Repository}}:{{.Tag}}"))
	for _, name := range left {
		if name != last.Tag {
			t.Errorf("image %s is left", name)
		}
	}
}
