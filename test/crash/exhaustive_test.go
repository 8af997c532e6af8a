package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/test/crash/instrument"
)

// TestExhaustive runs the exhaustive proof (TestEveryCrash of cmd/deckhand) in a
// process for each processor.
func TestExhaustive(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	r, err := instrument.Module("../..", out)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(out, "proof.test")
	build := exec.Command("go", "test", "-c", "-tags", "crash", "-overlay", r.Overlay, "-o", program, "./cmd/deckhand")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs in containers too
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	plan := planOf(t, Plan{ShortPairs: 1, Pairs: 1})
	plan.Shards = 4 * runtime.NumCPU()
	began := time.Now()
	limit := "0"
	if deadline, ok := t.Deadline(); ok {
		limit = time.Until(deadline.Add(-10 * time.Second)).String() // or it would outlive this process
	}
	var all counter
	var wait sync.WaitGroup
	for i := range plan.Shards {
		p := plan
		p.Shard, p.Result = i, filepath.Join(out, fmt.Sprint("tally-", i))
		wait.Go(func() {
			cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestEveryCrash$", "-test.timeout="+limit, "-test.v")
			cmd.Dir = "../../cmd/deckhand"
			// Without settings of the tester's own.
			cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "DECKHAND_") }), p.variable())
			said, err := cmd.CombinedOutput()
			var y Tally
			text, readErr := os.ReadFile(p.Result)
			if readErr == nil {
				readErr = json.Unmarshal(text, &y)
			}
			all.add(y)
			if err := errors.Join(err, readErr); err != nil {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
	wait.Wait()
	t.Logf("seed %d: %s", plan.Seed, all.Line(time.Since(began)))
	unseen := all.Unseen(r.Effects)
	t.Logf("%d of %d effects were passed; the others are\n%s", len(r.Effects)-len(unseen), len(r.Effects), strings.Join(unseen, "\n"))
	if all.Missed > 1+all.Doubles/100 {
		t.Error("too many recoveries did not pass the points at which they were to be killed: this proves nothing about those")
	}
}

// planOf is a plan for this process, as the environment changes it:
//
//	CRASH_SHAPES        names of shapes, with commas between them
//	CRASH_PLAN          a Plan as JSON, of which what is named counts
//	DECKHAND_TEST_SEED  repeats a sample
func planOf(t *testing.T, p Plan) Plan {
	t.Helper()
	p.Seed, p.Shards = uint64(time.Now().UnixNano()), 1
	if text := os.Getenv("DECKHAND_TEST_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &p.Seed); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv(planVariable); text != "" {
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatalf("%s: %v", planVariable, err)
		}
	}
	if text := os.Getenv("CRASH_SHAPES"); text != "" {
		p.Only = strings.Split(text, ",")
	}
	if len(p.Shapes()) == 0 {
		t.Fatalf("no shape is called %q", p.Only)
	}
	return p
}
