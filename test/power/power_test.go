package power

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/rig"
	"github.com/deckhand/deckhand/test/vm"
)

// A node loses its power at random instants of a task, and of the recovery from
// the cut before. The same command, after the next boot, ends the task as if
// nothing had happened: what was acknowledged is there, and the node is clean.
func TestPowerCuts(t *testing.T) {
	seed := number(t, "DECKHAND_TEST_SEED", uint64(time.Now().UnixNano()))
	cuts := int(number(t, "DECKHAND_POWER_CUTS", 2))
	// The proof that the test can fail takes as long as two more cuts: it comes
	// with the thorough ones.
	thorough := cuts > 2
	programs := map[string]string{"deckhand": filepath.Join(t.TempDir(), "deckhand")}
	vm.Build(t, programs["deckhand"], "./cmd/deckhand")
	if thorough {
		programs["careless"] = filepath.Join(t.TempDir(), "careless")
		vm.Build(t, programs["careless"], "-overlay", rig.Overlay(t, "journal/log.go",
			"var fdatasync = unix.Fdatasync\n", "var _, fdatasync = unix.Fdatasync, func(int) error { return nil }\n"), "./cmd/deckhand")
		// A user who may not open Docker's data syncs nothing there.
		programs["ordinary"] = filepath.Join(t.TempDir(), "ordinary")
		vm.Build(t, programs["ordinary"], "-overlay", rig.Overlay(t, "internal/engine/sync.go",
			"node.SyncFilesystem(ctx, info.DataRoot)", `node.SyncFilesystem(ctx, info.DataRoot+"/of/root")`), "./cmd/deckhand")
	}
	p := newPlan(t, programs)
	var tally tally
	t.Cleanup(func() { t.Logf("seed %d: %s", seed, tally.String()) })
	if thorough {
		// Docker takes a layer that the power took half of for whole, when it had noted that it is
		// there. No other test runs meanwhile: they need the layer that does not come.
		for _, program := range []string{"deckhand", "ordinary"} {
			t.Run("between two layers, "+program, func(t *testing.T) {
				p.registry.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
					// Docker asks for the whole layer, and nobody else does.
					holds := strings.HasSuffix(r.URL.Path, p.top) && r.Header.Get("Range") == ""
					if holds {
						<-r.Context().Done()
					}
					return holds
				})
				defer p.registry.Intercept(nil)
				h := newHistory(t, p, program, p.image)
				// By then ext4 has written what Docker noted, and not what it had no need to write.
				h.runAndCut(instant{after: machine.ImageCheck, delay: 15 * time.Second}, rand.New(rand.NewPCG(0, 0)), 0)
				p.registry.Intercept(nil)
				problems := h.recover()
				t.Log(h.account())
				for _, problem := range problems {
					t.Error(problem)
				}
				tally.add(h, problems)
			})
		}
	}
	for round := 0; 2*round < cuts; round++ {
		t.Run(fmt.Sprint("round ", round+1), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, uint64(round)))
			h := newHistory(t, p, "deckhand", p.image)
			// Two in a row: the second one hits the recovery.
			for range min(2, cuts-2*round) {
				// Often nothing is kept that was not flushed: that is the worst for whoever
				// forgot to. Otherwise a part is, which is the worst for whoever relies on order.
				h.runAndCut(p.instant(random), random, max(0, random.Float64()*1.5-0.5))
			}
			problems := h.recover()
			t.Log(h.account())
			for _, problem := range problems {
				t.Error(problem)
			}
			tally.add(h, problems)
		})
	}
	// Docker does not wait until what it has removed stays so.
	t.Run("an image has gone", func(t *testing.T) {
		t.Parallel()
		h := newHistory(t, p, "deckhand", p.image)
		h.runAndCut(instant{said: "deleted the image"}, rand.New(rand.NewPCG(0, 0)), 0)
		problems := h.recover()
		t.Log(h.account())
		for _, problem := range problems {
			t.Error(problem)
		}
		tally.add(h, problems)
	})
	if thorough {
		t.Run("unsynced", func(t *testing.T) {
			t.Parallel()
			h := newHistory(t, p, "careless", p.image)
			h.runAndCut(instant{after: machine.ImageCheck}, rand.New(rand.NewPCG(0, 0)), 0)
			problems := h.recover()
			t.Logf("%s\n%s", h.account(), strings.Join(problems, "\n"))
			if !slices.ContainsFunc(problems, func(s string) bool { return strings.Contains(s, "acknowledged") }) {
				t.Error("nothing was lost although the journal was not synced: the power cut test proves nothing")
			}
		})
	}
}

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// tally counts what was done to all nodes together.
type tally struct {
	mu    sync.Mutex
	hit   map[string]int // cuts, by where the journal had the task afterwards
	wrong int            // rounds
}

func (x *tally) add(h *history, problems []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.hit == nil {
		x.hit = map[string]int{}
	}
	for i := range h.cuts {
		x.hit[h.foundAfter(i)]++
	}
	if len(problems) > 0 {
		x.wrong++
	}
}

func (x *tally) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	cuts, where := 0, []string{}
	for _, state := range slices.Sorted(maps.Keys(x.hit)) {
		cuts += x.hit[state]
		where = append(where, fmt.Sprint(x.hit[state], " at ", state))
	}
	return fmt.Sprintf("%d cuts, which the journal survived with %s; %d rounds ended wrongly", cuts, strings.Join(where, ", "), x.wrong)
}
