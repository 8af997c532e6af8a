package system

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/tes"
)

// When the engine starts a task again while its first process lives, the second
// one takes it over as it is: exactly one goes on, and nothing is started again.
func TestSecondProcessTakesOver(t *testing.T) {
	t.Parallel()
	for _, state := range stuckStates {
		for _, frozen := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/frozen=%v", state, frozen), func(t *testing.T) {
				t.Parallel()
				s := newStuck(t, state, "")
				first := s.begin(t)
				started := s.started(t)
				if frozen {
					first.signal(t, unix.SIGSTOP)
				}
				second := s.Start(t, s.task, "--stop-grace", "10m") // the first one gets that too
				if log := first.ends(t, 75); !strings.Contains(log, "another process goes on") {
					t.Errorf("the first process does not say why it leaves:\n%s", log)
				}
				second.Until(t, `"resuming"`)
				if is := s.Status(t, 3, s.task.ID); !is.Running || is.Owner == nil || is.Owner.PID != second.Process.Pid {
					t.Errorf("status: %+v, want process %d", is, second.Process.Pid)
				}
				if state == "Run" {
					second.Until(t, "executor found again")
					if now := s.started(t); now != started {
						t.Errorf("the container was restarted: %s, was %s", now, started)
					}
				}
				s.release(t)
				second.ends(t, 0)
				if got := s.Path(t, s.task.ID); got != complete {
					t.Errorf("the task went through %s, want %s", got, complete)
				}
				s.whole(t)
			})
		}
	}
}

// started says which containers run, and since when.
func (w *World) started(t *testing.T) string {
	t.Helper()
	ids := w.running(t)
	if len(ids) == 0 {
		return ""
	}
	return w.Docker(t, append([]string{"inspect", "--format", "{{.Id}} {{.State.StartedAt}}"}, ids...)...)
}

// A roll-back that is taken over ends as it was going to.
func TestSecondProcessTakesOverRollBack(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	first := s.begin(t, "--stop-grace", "10m")
	first.signal(t, unix.SIGINT)
	first.entered(t, "RollingBack")
	// It has as long to leave as the container has to stop.
	second := s.Start(t, s.task, "--stop-grace", "10m")
	first.ends(t, 75)
	second.Until(t, `"resuming"`)
	s.release(t)
	second.ends(t, 4)
	if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Canceled"; got != want {
		t.Errorf("the task went through %s, want %s", got, want)
	}
	s.Clean(t)
}

// A signal that comes while the first process is being fenced is not lost: the
// task is rolled back, by whoever has it then.
func TestSignalWhileTakingOver(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "trap 'exit 9' TERM")
	first := s.begin(t)
	second := s.Start(t, s.task)
	second.Until(t, "fencing")
	second.signal(t, unix.SIGTERM)
	first.ends(t, 75)
	second.ends(t, 75)
	if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Interrupted"; got != want {
		t.Errorf("the task went through %s, want %s", got, want)
	}
	s.Clean(t)
}

// However many processes come at once, one of them ends the task.
func TestManyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	var all []*Background
	for range 5 {
		all = append(all, s.Start(t, s.task, "--stop-grace", "10m"))
	}
	s.oneOf(t, all)
	if got := s.Path(t, s.task.ID); got != complete {
		t.Errorf("the task went through %s, want %s", got, complete)
	}
	s.whole(t)
}

// Several successors at once, of an owner that lives or is frozen, and of each
// other: one of them goes on with the container as it is.
func TestManySuccessors(t *testing.T) {
	t.Parallel()
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("frozen=%v", frozen), func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, "Run", "")
			owner := s.begin(t)
			started := s.started(t)
			if frozen {
				owner.signal(t, unix.SIGSTOP)
			}
			var successors []*Background
			for range 5 {
				successors = append(successors, s.Start(t, s.task, "--stop-grace", "10m"))
			}
			owner.ends(t, 75)
			if now := s.oneOf(t, successors); now != started {
				t.Errorf("the container was restarted: %s, was %s", now, started)
			}
			if got := s.Path(t, s.task.ID); got != complete {
				t.Errorf("the task went through %s, want %s", got, complete)
			}
			s.whole(t)
		})
	}
}

// oneOf lets one of several processes end the task, when the others have left it, and says
// which container it went on with.
func (s *stuck) oneOf(t *testing.T, all []*Background) (started string) {
	t.Helper()
	ended := make(chan int, len(all))
	for _, b := range all {
		go func() {
			code, _ := b.End(t)
			ended <- code
		}()
	}
	for range len(all) - 1 {
		if code := <-ended; code != 75 {
			t.Errorf("a process that does not go on ended with %d", code)
		}
	}
	eventually(t, "an owner, and its executor", func() bool { return s.Status(t, 3, s.task.ID).Running && s.noted() != "" })
	started = s.started(t)
	s.release(t)
	if code := <-ended; code != 0 {
		t.Errorf("the process that went on ended with %d", code)
	}
	return started
}

// A successor that announced itself and then froze keeps nobody from the task,
// and is no reason for the next owner to leave its container behind.
func TestFrozenSuccessor(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "trap 'exit 9' TERM")
	first := s.begin(t)
	// As far as such a process comes; it is this one.
	done, err := node.Succeed(s.Root, node.Process{PID: first.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	second := s.Start(t, s.task)
	first.ends(t, 75)
	second.Until(t, "executor found again")
	second.signal(t, unix.SIGTERM)
	second.ends(t, 75)
	if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Interrupted"; got != want {
		t.Errorf("the task went through %s, want %s", got, want)
	}
	if err := done(); err != nil {
		t.Error(err)
	}
	s.Clean(t)
}

// A process in another PID namespace cannot be fenced from here; it is left alone.
func TestOwnerInAnotherNamespace(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	owner := s.prepare(t, s.task)
	owner.Args = append([]string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc", owner.Path}, owner.Args[1:]...)
	path, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	owner.Path = path
	owner.start(t)
	s.still(t, owner)
	o := s.MustRun(t, 75, s.task)
	if !strings.Contains(o.Stderr, "cannot fence") || !strings.Contains(o.Stderr, "PID namespace") {
		t.Errorf("it does not say why it leaves: %s", o.Stderr)
	}
	s.release(t)
	owner.ends(t, 0)
	s.whole(t)
}

// The owner is not fenced for the sake of another document, unless --fresh
// asks for it.
func TestOtherDocumentWhileRunning(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "trap 'exit 9' TERM")
	first := s.begin(t)
	started := s.started(t)
	other := tes.Task{
		ID:        s.task.ID,
		Executors: []tes.Executor{{Image: s.task.Executors[0].Image, Command: []string{"echo", "other"}}},
	}
	if o := s.MustRun(t, 2, other); !strings.Contains(o.Stderr, "--fresh") {
		t.Errorf("the refusal does not say what to do: %s", o.Stderr)
	}
	if now := s.started(t); now != started {
		t.Errorf("the container is %q, was %q", now, started)
	}
	if is := s.Status(t, 3, s.task.ID); !is.Running || is.Owner.PID != first.Process.Pid {
		t.Errorf("status: %+v", is)
	}
	o := s.MustRun(t, 0, other, "--fresh")
	first.ends(t, 75)
	if l := o.Log(t); len(o.Task.Logs) != 2 || l.Logs[0].Stdout != "other\n" {
		t.Errorf("the logs are %+v", o.Task.Logs)
	}
	if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Interrupted "+complete; got != want {
		t.Errorf("the task went through %s, want %s", got, want)
	}
	s.Clean(t)
}

// Another task waits as long as it is told to.
func TestAnotherTaskWaits(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	first := s.begin(t)
	other := tes.Task{ID: "other", Executors: []tes.Executor{Sh(s.task.Executors[0].Image, "true")}}
	o := s.MustRun(t, 75, other)
	if !strings.Contains(o.Stderr, s.task.ID) || !strings.Contains(o.Stderr, "--lock-wait") {
		t.Errorf("it does not say who has the node: %s", o.Stderr)
	}
	if o.Task.State != "" {
		t.Errorf("a result was written, though the task has to run again: %s", o.Task.State)
	}
	for _, test := range []struct {
		signal unix.Signal
		code   int
	}{{unix.SIGTERM, 75}, {unix.SIGINT, 4}} {
		b := s.Start(t, other, "--lock-wait", "10m")
		b.Until(t, "busy")
		b.signal(t, test.signal)
		b.ends(t, test.code)
	}
	if r := s.Deckhand(t, "status", "other"); r.Code != 4 {
		t.Errorf("status of a task that never began: %+v", r)
	}
	second := s.Start(t, other, "--lock-wait", "10m")
	second.Until(t, "busy")
	s.release(t)
	first.ends(t, 0)
	second.ends(t, 0)
	s.whole(t)
	mine, others := s.Records(t, s.task.ID), s.Records(t, "other")
	if end := mine[len(mine)-1].Time; others[0].Time.Before(end) {
		t.Errorf("the other task began at %s, before the first had ended at %s", others[0].Time, end)
	}
}

// A frozen owner is not fenced for another task: that waits, or says that the
// node is busy.
func TestAnotherTaskLeavesAFrozenOwner(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	owner := s.begin(t)
	owner.signal(t, unix.SIGSTOP)
	other := tes.Task{ID: "other", Executors: []tes.Executor{Sh(s.task.Executors[0].Image, "true")}}
	s.MustRun(t, 75, other)
	waits := s.Start(t, other, "--lock-wait", "10m")
	waits.Until(t, "busy")
	s.release(t)
	owner.signal(t, unix.SIGCONT)
	owner.ends(t, 0)
	waits.ends(t, 0)
	s.whole(t)
}

// Tasks that wait for the node run one after the other, also when the owner that
// they wait for dies: the first of them rolls it back.
func TestSeveralTasksWait(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "trap 'exit 9' TERM")
	owner := s.begin(t)
	tasks := map[string]*Background{}
	for _, id := range []string{"a", "b", "c"} {
		task := tes.Task{ID: id, Executors: []tes.Executor{Sh(s.task.Executors[0].Image, "sleep 0.2")}}
		tasks[id] = s.Start(t, task, "--lock-wait", "10m")
		tasks[id].Until(t, "busy")
	}
	owner.Kill(t)
	type span struct{ began, ended time.Time }
	var spans []span
	for id, b := range tasks {
		b.ends(t, 0)
		if got := s.Path(t, id); got != complete {
			t.Errorf("task %s went through %s", id, got)
		}
		records := s.Records(t, id)
		spans = append(spans, span{records[0].Time, records[len(records)-1].Time})
	}
	if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Interrupted"; got != want {
		t.Errorf("the dead task went through %s, want %s", got, want)
	}
	mine := s.Records(t, s.task.ID)
	slices.SortFunc(spans, func(x, y span) int { return x.began.Compare(y.began) })
	before := mine[len(mine)-1].Time
	for _, next := range spans {
		if next.began.Before(before) {
			t.Errorf("a task began at %s, before the one before it had ended at %s", next.began, before)
		}
		before = next.ended
	}
	s.Clean(t)
}

// The process that has the dead owner's number now is not the owner.
func TestReusedPidIsNotShot(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	s.begin(t).Kill(t)

	innocent := exec.Command("sleep", "1h")
	if err := innocent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = innocent.Process.Kill()
		_ = innocent.Wait() // killed
	})
	self, err := node.Self()
	if err != nil {
		t.Fatal(err)
	}
	owner := node.Owner{Process: self, Task: s.task.ID, Since: time.Now()}
	owner.PID, owner.Start = innocent.Process.Pid, 1
	text, err := json.Marshal(owner)
	if err != nil {
		t.Fatal(err)
	}
	write := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(s.Root, "owner.json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if is := s.Status(t, 3, s.task.ID); is.Running {
		t.Errorf("status: %+v", is)
	}
	if r := s.Deckhand(t, "cancel", s.task.ID); r.Code == 0 {
		t.Errorf("cancel: %+v", r)
	}

	// The root is held, by somebody who is not written down.
	lock, err := os.OpenFile(filepath.Join(s.Root, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s.MustRun(t, 75, s.task, "--fresh") // for any document
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}

	write()
	b := s.Start(t, s.task)
	b.Until(t, "executor found again")
	s.release(t)
	b.ends(t, 0)
	s.whole(t)
	if pid, err := unix.Wait4(innocent.Process.Pid, nil, unix.WNOHANG, nil); pid != 0 || err != nil {
		t.Errorf("the innocent process has ended (%d, %v)", pid, err)
	}
}
