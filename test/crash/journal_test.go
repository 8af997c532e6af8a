package crash

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/crash/instrument"
	"github.com/deckhand/deckhand/test/crash/point"
)

// TestJournal kills a process that writes a journal at each point inside it, and
// again at points of what the next process does with what it finds. Nothing that
// was acknowledged is lost, and nothing is left that does not belong there.
func TestJournal(t *testing.T) {
	t.Parallel()
	plan := planOf(t, Plan{Pairs: 1})
	program, effects, err := instrument.Build("../..", t.TempDir(), "./test/crash/testdata/writer")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w := &writers{program: program, plan: plan}
	for _, s := range []journalShape{{name: "new"}, {name: "with a history", old: 3}} {
		t.Run(s.name, func(t *testing.T) { w.explore(t, s) })
	}
	t.Logf("seed %d: %s", plan.Seed, w.tally.Line(time.Since(began)))
	effects = slices.DeleteFunc(effects, func(name string) bool { return !strings.HasPrefix(name, "journal.") })
	unseen := w.tally.Unseen(effects)
	t.Logf("%d of %d effects inside the journal were passed; the others are\n%s", len(effects)-len(unseen), len(effects), strings.Join(unseen, "\n"))
}

// journalShape is what a writer finds.
type journalShape struct {
	name string
	old  int // finished tasks that are old enough to be dropped
}

// writers are processes that write journals.
type writers struct {
	program string // with crash points
	plan    Plan
	tally   counter
	found   string // the journal that the first writer of a shape finds
}

func (w *writers) explore(t *testing.T, s journalShape) {
	w.found = filepath.Join(t.TempDir(), "journal")
	if err := prepare(w.found, s.old); err != nil {
		t.Fatal(err)
	}
	trace := w.kill(t, s)
	points := slices.DeleteFunc(Distinct(trace), unsteady.MatchString)
	w.tally.add(Tally{Shapes: 1, Passed: len(trace), Points: len(points)})
	if len(points) < 50 {
		t.Errorf("a writer has passed only %d points: %q", len(points), points)
	}
	workers := make([]int, 2*runtime.NumCPU())
	onNodes(workers, points, func(_ int, at string) {
		again := slices.DeleteFunc(Distinct(w.kill(t, s, at)), unsteady.MatchString)
		for _, second := range sample(w.plan, s.name+" "+at, w.plan.Pairs, again) {
			w.kill(t, s, at, second)
		}
	})
}

// kill makes a journal, has a writer killed at each of the points in turn, and
// one that comes to its end. It returns the points that the last one has passed.
func (w *writers) kill(t *testing.T, s journalShape, points ...string) []string {
	dir, err := os.MkdirTemp("/dev/shm", "deckhand-writers")
	if err != nil {
		t.Error(err)
		return nil
	}
	defer os.RemoveAll(dir)
	p := &written{dir: filepath.Join(dir, "journal"), trace: filepath.Join(dir, "trace"), acked: map[string]uint64{}}
	count := Tally{}
	switch len(points) {
	case 1:
		count.Singles = 1
	case 2:
		count.Doubles = 1
	}
	var got error
	if s.old > 0 {
		got = os.CopyFS(p.dir, os.DirFS(w.found))
	}
	var passed []string
	for i, at := range append(slices.Clone(points), "") {
		killed, trace, err := p.run(w.program, fmt.Sprint("task", i), at)
		passed = trace
		if killed {
			count.Kills++
		} else if at != "" {
			count.Missed++
			err = errors.Join(err, fmt.Errorf("the writer ended without passing %s", at))
		}
		if err = errors.Join(err, p.lost()); err != nil {
			got = errors.Join(got, fmt.Errorf("after process %d: %w", i+1, err))
			break
		}
	}
	if got == nil {
		got = p.unclean()
	}
	if got != nil {
		count.Failures++
		t.Errorf("killed at %s:\n%v", strings.Join(points, "\n  and "), got)
	}
	count.See(passed)
	w.tally.add(count)
	return passed
}

// written is a journal and what its writers were told.
type written struct {
	dir, trace string
	acked      map[string]uint64 // the newest acknowledged record of each task
}

// prepare writes a journal with old tasks. No process is started
// meanwhile, which would hold the journal's lock until it runs its own program.
func prepare(dir string, tasks int) error {
	old := journal.Options{
		BootID: "boot", AnyFilesystem: true, Now: func() time.Time { return time.Now().AddDate(0, -1, 0) },
		Retention: journal.Retention{Keep: 1000},
	}
	for i := range tasks {
		j, err := journal.Open(dir, old)
		if err != nil {
			return err
		}
		for _, e := range journaltest.Task(fmt.Sprint("old", i), 1) {
			if _, err := j.Append(context.Background(), e); err != nil {
				return err
			}
		}
		if err := j.Close(); err != nil {
			return err
		}
	}
	return nil
}

// run runs one writer, which dies at a point when one is given.
func (p *written) run(program, task, at string) (killed bool, trace []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), runDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, p.dir, task)
	cmd.Env = []string{point.AtVariable + "=" + at, point.TraceVariable + "=" + p.trace}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = errors.Join(os.RemoveAll(p.trace), cmd.Run())
	for lines := bufio.NewScanner(&stdout); lines.Scan(); {
		var task string
		var seq uint64
		if n, _ := fmt.Sscanf(lines.Text(), "ack %s %d", &task, &seq); n == 2 {
			p.acked[task] = seq
		}
	}
	passed, readErr := os.ReadFile(p.trace)
	trace = strings.Split(strings.TrimSpace(string(passed)), "\n")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL && trace[len(trace)-1] == at {
		return true, trace, readErr
	}
	if err = errors.Join(err, readErr); err != nil {
		err = fmt.Errorf("a writer ended with %w\n%s", err, stderr.String())
	}
	return false, trace, err
}

// lost says what was acknowledged and is not in the journal, as a reader finds
// it that changes nothing.
func (p *written) lost() (lost error) {
	if len(p.acked) == 0 {
		return nil
	}
	v, err := journal.OpenView(p.dir)
	if err != nil {
		return err
	}
	defer func() { lost = errors.Join(lost, v.Close()) }()
	for _, task := range slices.Sorted(maps.Keys(p.acked)) {
		head, ok, err := v.Head(task)
		if err != nil {
			return err
		}
		if seq := p.acked[task]; !ok || head.Seq < seq {
			lost = errors.Join(lost, fmt.Errorf("record %d of task %s was acknowledged, and the newest one is %d", seq, task, head.Seq))
		}
	}
	return lost
}

// unclean says what is wrong with the journal after a writer has come to its end.
func (p *written) unclean() (problems error) {
	report, err := journal.Verify(p.dir, machine.Legal)
	if err != nil {
		return err
	}
	for _, r := range report.Problems {
		problems = errors.Join(problems, fmt.Errorf("task %q, record %d: %s", r.Task, r.Seq, r.What))
	}
	var after check.Node
	if err := after.ReadDisk(filepath.Dir(p.dir), ""); err != nil {
		return err
	}
	after.Root = nil // the trace
	for _, left := range check.Clean(check.Node{}, after) {
		problems = errors.Join(problems, errors.New(left))
	}
	v, err := journal.OpenView(p.dir)
	if err != nil {
		return errors.Join(problems, err)
	}
	defer func() { problems = errors.Join(problems, v.Close()) }()
	heads, err := v.Heads()
	for _, h := range heads {
		if strings.HasPrefix(h.Task, "old") {
			problems = errors.Join(problems, fmt.Errorf("task %s was to be dropped", h.Task))
		}
	}
	return errors.Join(problems, err)
}
