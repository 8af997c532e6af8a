package crash_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/crash"
	"github.com/deckhand/deckhand/test/crash/instrument"
	"github.com/deckhand/deckhand/test/crash/point"
)

// A prune that is killed at any of its effects has removed what it was to remove
// or nothing; the next one does the rest, and no kept record is touched.
func TestPruneKilledAnywhere(t *testing.T) {
	t.Parallel()
	program, _, err := instrument.Build("../..", t.TempDir(), "./cmd/deckhand")
	if err != nil {
		t.Fatal(err)
	}
	// Without settings of the tester's own.
	own := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "DECKHAND_") })
	const tasks, keep = 40, 3
	full := filepath.Join(t.TempDir(), "root")
	fill(t, full, tasks)

	// prune runs on a copy of the root, and is killed at a point when one is named.
	prune := func(at string) (root string, trace []string) {
		t.Helper()
		root, listed := filepath.Join(t.TempDir(), "root"), filepath.Join(t.TempDir(), "trace")
		if err := os.CopyFS(root, os.DirFS(full)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "journal", "prune", "--keep", fmt.Sprint(keep), "--root", root)
		cmd.Env = append(slices.Clone(own), point.TraceVariable+"="+listed, point.AtVariable+"="+at)
		said, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if killed != (at != "") || !killed && err != nil {
			t.Fatalf("prune to be killed at %q: %v\n%s", at, err, said)
		}
		text, err := os.ReadFile(listed)
		if err != nil {
			t.Fatal(err)
		}
		return root, strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	all := records(t, full)
	root, points := prune("")
	kept := records(t, root)
	if len(all) != tasks || len(kept) != keep {
		t.Fatalf("%d tasks were to become %d, and became %d", len(all), keep, len(kept))
	}
	pruned := 0
	points = crash.Distinct(points)
	for _, at := range points {
		root, _ := prune(at)
		switch left := records(t, root); len(left) {
		case tasks:
		case keep:
			pruned++
		default:
			t.Errorf("killed at %s: %d tasks are left", at, len(left))
		}
		// What comes after it: another prune.
		next := exec.Command(program, "journal", "prune", "--keep", fmt.Sprint(keep), "--root", root)
		next.Env = own
		said, err := next.CombinedOutput()
		if err != nil {
			t.Errorf("killed at %s: the next prune: %v\n%s", at, err, said)
		}
		left := records(t, root)
		for task, n := range kept {
			if left[task] != n {
				t.Errorf("killed at %s: task %s has %d records, not %d", at, task, left[task], n)
			}
		}
		if len(left) != keep {
			t.Errorf("killed at %s: the next prune left %d tasks", at, len(left))
		}
		dirs, err := filepath.Glob(filepath.Join(root, "journal", "0*"))
		if err != nil || len(dirs) != 2 {
			t.Errorf("killed at %s: directories of tables: %v", at, dirs)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d points; a kill at %d of them came after the prune had taken effect", len(points), pruned)
	if pruned == 0 || pruned == len(points) {
		t.Error("all points are on one side of the change: this test tests nothing")
	}
}

// fill makes a root whose journal has finished tasks.
func fill(t *testing.T, root string, tasks int) {
	t.Helper()
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(filepath.Join(root, "journal"), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range tasks {
		for _, e := range journaltest.Task(fmt.Sprint("t", i), 1) {
			if _, err := j.Append(context.Background(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// records counts those of each task of a journal, which must be sound.
func records(t *testing.T, root string) map[string]int {
	t.Helper()
	dir := filepath.Join(root, "journal")
	r, err := journal.Verify(dir, machine.Legal)
	if err != nil || len(r.Problems) > 0 {
		t.Fatalf("verify: %v, %+v", err, r.Problems)
	}
	v, err := journal.OpenView(dir)
	if err != nil {
		t.Fatal(err)
	}
	heads, err := v.Heads()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, h := range heads {
		list := journaltest.Records(t, v, h.Task)
		journaltest.Chained(t, list, h)
		counts[h.Task] = len(list)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return counts
}
