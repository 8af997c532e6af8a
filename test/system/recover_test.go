package system

import (
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// An epilog ends what its own job still runs, and nothing of another job's.
func TestRecoverOfAJob(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	// The run has as long to roll back as its container has to stop.
	w.Env = append(w.Env, "SLURM_JOB_ID=7", "DECKHAND_RUN_CGROUP_PARENT=none", "DECKHAND_RUN_STOP_GRACE=10m")
	image := w.Image(t, "task:1", rig.Spec{})
	run := w.Start(t, tes.Task{ID: "t", Executors: []tes.Executor{Sh(image.Tag, "sleep 1000")}})
	run.Until(t, "executor started")
	for _, args := range [][]string{{}, {"--job", "70"}} {
		r := w.Deckhand(t, append([]string{"recover"}, args...)...)
		if r.Code != 0 || !strings.Contains(r.Stdout, "left alone, it runs: task t") {
			t.Errorf("recover %v: %+v", args, r)
		}
	}
	r := w.Deckhand(t, "recover", "--job", "7")
	if r.Code != 0 || !strings.Contains(r.Stdout, "ended task t") {
		t.Errorf("recover --job: %+v", r)
	}
	if code, log := run.End(t); code != 75 {
		t.Errorf("the run ended with %d, want 75\n%s", code, log)
	}
	w.Clean(t)
}
