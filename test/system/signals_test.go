package system

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// told is what a run is told while it stands still, and how it ends then.
type told struct {
	signals []unix.Signal // one after the other: the first one counts
	code    int
	final   string
	result  tes.State // of the result document; empty when there is none
	reason  string
}

var toldToStop = []told{
	{[]unix.Signal{unix.SIGTERM}, 75, "Interrupted", "", "interrupted by the engine"},
	{[]unix.Signal{unix.SIGINT}, 4, "Canceled", tes.Canceled, "canceled by the user"},
	{[]unix.Signal{unix.SIGTERM, unix.SIGINT}, 75, "Interrupted", "", "interrupted by the engine"},
	{[]unix.Signal{unix.SIGINT, unix.SIGTERM}, 4, "Canceled", tes.Canceled, "canceled by the user"},
}

func (x told) String() string { return fmt.Sprint(x.signals) }

// tell sends the signals, has what the run waits for come, if it is to come, and waits
// for the end, however long that takes, and says how long it took.
func (x told) tell(t *testing.T, b *Background, code int, comes func()) {
	t.Helper()
	began := time.Now()
	b.signal(t, x.signals[0])
	b.Until(t, "stopping")
	for _, s := range x.signals[1:] { // the kernel would deliver both in an order of its own
		_ = b.Process.Signal(s) // it may have ended
	}
	if comes != nil {
		comes()
	}
	b.ends(t, code)
	t.Logf("ended %s after %s", time.Since(began).Round(time.Millisecond), x)
}

// A run that is told to stop in any state rolls back, whatever it waits for.
func TestSignalInEachState(t *testing.T) {
	t.Parallel()
	for _, state := range stuckStates {
		for _, test := range toldToStop {
			t.Run(state+"/"+test.String(), func(t *testing.T) {
				t.Parallel()
				s := newStuck(t, state, "trap 'exit 9' TERM")
				result := filepath.Join(s.Dir, "result.json")
				b := s.begin(t, "--result", result)
				test.tell(t, b, test.code, nil)
				if got, want := s.Path(t, s.task.ID), upTo(state)+" RollingBack "+test.final; got != want {
					t.Errorf("the task went through %s, want %s", got, want)
				}
				for _, r := range s.Records(t, s.task.ID) {
					if r.To == "RollingBack" && r.Kind == "transition" && r.Reason != test.reason {
						t.Errorf("the journal says %q, want %q", r.Reason, test.reason)
					}
				}
				s.hasResult(t, result, test.result)
				if is := s.Status(t, 1, s.task.ID); is.Running || is.State != test.final {
					t.Errorf("status: %+v", is)
				}
				s.release(t)
				if state == "Scrub" {
					// What the task did not make is the next scrub's.
					s.Deckhand(t, "scrub")
				}
				s.tidyUnlessPublished(t)
				s.Clean(t)
				if len(test.signals) > 1 {
					return
				}
				s.MustRun(t, 0, s.task)
				s.whole(t)
			})
		}
	}
}

// A run that is told to stop while it rolls back goes on with that: it ends as
// it was going to, and as soon as it was going to.
func TestSignalWhileRollingBack(t *testing.T) {
	t.Parallel()
	for _, test := range toldToStop {
		t.Run(test.String(), func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, "Run", "")
			b := s.begin(t, "--stop-grace", "10m")
			// As by the command, which sends a signal where this takes too long.
			answer, err := s.control().Post("http://deckhand/v1/cancel?task="+s.task.ID, "", nil)
			must(t, err)
			must(t, answer.Body.Close())
			b.entered(t, "RollingBack")
			test.tell(t, b, 4, func() { s.release(t) })
			if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Canceled"; got != want {
				t.Errorf("the task went through %s, want %s", got, want)
			}
			s.Clean(t)
		})
	}
}

// A run that is told to stop while it rolls back another task ends when that is
// done, and has then begun nothing of its own.
func TestSignalWhileRollingBackAnotherTask(t *testing.T) {
	t.Parallel()
	for _, test := range toldToStop[:2] {
		t.Run(test.String(), func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, "Run", "")
			s.begin(t).Kill(t)
			next := tes.Task{ID: "next", Executors: []tes.Executor{Sh(s.task.Executors[0].Image, "true")}}
			b := s.Start(t, next, "--stop-grace", "10m")
			b.entered(t, "RollingBack")
			test.tell(t, b, test.code, func() { s.release(t) })
			if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Interrupted"; got != want {
				t.Errorf("the dead task went through %s, want %s", got, want)
			}
			if got, want := s.Path(t, next.ID), "Accepted RollingBack "+test.final; got != want {
				t.Errorf("the next task went through %s, want %s", got, want)
			}
			s.Clean(t)
		})
	}
}

// hasResult checks a result document: that there is none, or its state and that
// it tells of an executor that was stopped.
func (s *stuck) hasResult(t *testing.T, name string, want tes.State) {
	t.Helper()
	text, err := os.ReadFile(name)
	if want == "" {
		if err == nil {
			t.Errorf("a result was written, though the task runs again: %s", text)
		}
		return
	}
	var task tes.Task
	if err := json.Unmarshal(text, &task); err != nil {
		t.Fatalf("result: %v", err)
	}
	if task.State != want || len(task.Logs) != 1 {
		t.Fatalf("the result is %s with %d logs, want %s with one", task.State, len(task.Logs), want)
	}
	executors := task.Logs[0].Logs
	if s.state == "Run" && (len(executors) != 1 || executors[0].ExitCode != 9 || executors[0].EndTime.IsZero()) {
		t.Errorf("the stopped executor's log is %+v", executors)
	}
}

// A container that does not heed SIGTERM is killed after the grace.
func TestStubbornContainerIsKilled(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	b := s.begin(t, "--stop-grace", "1s")
	b.signal(t, unix.SIGTERM)
	b.ends(t, 75)
	s.Clean(t)
	for _, r := range s.Records(t, s.task.ID) {
		if r.Kind == "done" && r.Detail["what"] == "executor" && r.Detail["exit_code"] != 137.0 {
			t.Errorf("the executor ended with %v, want SIGKILL", r.Detail["exit_code"])
		}
	}
}

// A hang-up is what the end of a session brings: the engine's, not the user's.
func TestHangUp(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "trap 'exit 9' TERM")
	b := s.begin(t)
	b.signal(t, unix.SIGHUP)
	b.ends(t, 75)
	s.Clean(t)
}

// Who signals again after a second does not want to wait; the next start cleans up.
func TestSecondSignalLeavesAtOnce(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	b := s.begin(t, "--stop-grace", "10m")
	b.signal(t, unix.SIGTERM)
	b.entered(t, "RollingBack")
	time.Sleep(1100 * time.Millisecond) // a sooner one counts as the first
	b.signal(t, unix.SIGTERM)
	if log := b.ends(t, 75); !strings.Contains(log, "leaving at once") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	if len(s.running(t)) != 1 {
		t.Fatal("the container does not run: there was nothing to leave behind")
	}
	if is := s.Status(t, 3, s.task.ID); is.Running || is.State != "RollingBack" {
		t.Errorf("status: %+v", is)
	}
	next := tes.Task{ID: "next", Executors: []tes.Executor{Sh(s.task.Executors[0].Image, "true")}}
	s.MustRun(t, 0, next, "--stop-grace", "1s")
	if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Interrupted"; got != want {
		t.Errorf("the task went through %s, want %s", got, want)
	}
	s.Clean(t)
}

// Whatever a roll-back waits for, such as a Docker that does not answer: a second
// signal is the end of it, and the next start cleans up.
func TestSecondSignalInEachState(t *testing.T) {
	t.Parallel()
	d := rig.NewDaemon(t)
	// Once in each state.
	runs := slices.DeleteFunc(underDockerRuns(), func(r *underDocker) bool { return strings.Contains(r.name, ",") })
	standStill(t, d, runs)
	silence(t, d)
	for _, r := range runs {
		if r.signal == 0 {
			r.run.signal(t, unix.SIGTERM)
			r.run.entered(t, "RollingBack")
		}
	}
	time.Sleep(1100 * time.Millisecond) // a sooner one counts as the first
	for _, r := range runs {
		if r.state != "Scrub" { // where nothing was made yet that Docker knows of
			r.run.signal(t, unix.SIGTERM)
		}
	}
	for _, r := range runs {
		if log := r.run.ends(t, 75); r.state != "Scrub" && !strings.Contains(log, "leaving at once") {
			t.Errorf("%s: the log does not say that it leaves:\n%s", r.name, log)
		}
	}
	if err := unix.Kill(d.Pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			next := tes.Task{ID: "next", Executors: []tes.Executor{Sh(r.task.Executors[0].Image, "true")}}
			r.gate.unlock()
			r.MustRun(t, 0, next, "--stop-grace", "1s")
			if got, want := r.Path(t, r.task.ID), upTo(r.state)+" RollingBack Interrupted"; got != want {
				t.Errorf("the task went through %s, want %s", got, want)
			}
			r.tidyUnlessPublished(t)
			r.Clean(t)
		})
	}
}

// silence stops a daemon in the middle of whatever it does.
func silence(t *testing.T, d *rig.Daemon) {
	t.Helper()
	if err := unix.Kill(d.Pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon to stand still", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(stat), ") T ")
	})
}

// Slurm sends a signal to the process and to its group: twice, at once.
func TestTwoSignalsAtOnceAreOne(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	b := s.begin(t, "--stop-grace", "2s")
	// Two of one number would be one for the kernel already.
	b.signal(t, unix.SIGTERM)
	b.signal(t, unix.SIGHUP)
	if log := b.ends(t, 75); strings.Contains(log, "leaving at once") {
		t.Errorf("the second one counted:\n%s", log)
	}
	if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Interrupted"; got != want {
		t.Errorf("the task went through %s, want %s", got, want)
	}
	s.Clean(t)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		task   string
		before func(t *testing.T, s *stuck, b *Background)
		after  func(t *testing.T, s *stuck, b *Background)
	}{
		{name: "by id", task: "stuck-in-Run"},
		{name: "by prefix", task: "stuck-i"},
		{name: "last", task: "last"},
		{
			name: "without a socket", task: "stuck-in-Run",
			before: func(t *testing.T, s *stuck, _ *Background) {
				if err := os.Remove(filepath.Join(s.Root, "control.sock")); err != nil {
					t.Fatal(err)
				}
			},
		},
		{
			name: "frozen owner", task: "stuck-in-Run",
			before: func(t *testing.T, _ *stuck, b *Background) { b.signal(t, unix.SIGSTOP) },
			after:  func(t *testing.T, _ *stuck, b *Background) { b.signal(t, unix.SIGCONT) },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, "Run", "trap 'exit 9' TERM")
			result := filepath.Join(s.Dir, "result.json")
			b := s.begin(t, "--result", result)
			if test.before != nil {
				test.before(t, s, b)
			}
			if r := s.Deckhand(t, "cancel", test.task); r.Code != 0 || !strings.Contains(r.Stdout, s.task.ID) {
				t.Errorf("cancel: %+v", r)
			}
			if test.after != nil {
				test.after(t, s, b)
			}
			b.ends(t, 4)
			s.hasResult(t, result, tes.Canceled)
			if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Canceled"; got != want {
				t.Errorf("the task went through %s, want %s", got, want)
			}
			s.Clean(t)
		})
	}
}

// Only the task that runs can be canceled.
func TestCancelOfAnotherTask(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	if r := s.Deckhand(t, "cancel", s.task.ID); r.Code == 0 {
		t.Errorf("cancel on an idle node: %+v", r)
	}
	s.MustRun(t, 0, tes.Task{ID: "ended", Executors: []tes.Executor{Sh(s.task.Executors[0].Image, "true")}})
	b := s.begin(t)
	for _, name := range []string{"ended", "unheard-of", "stuck-in-Run-2"} {
		if r := s.Deckhand(t, "cancel", name); r.Code == 0 {
			t.Errorf("cancel %s: %+v", name, r)
		}
	}
	s.release(t)
	b.ends(t, 0)
	if r := s.Deckhand(t, "cancel", s.task.ID); r.Code == 0 {
		t.Errorf("cancel of a task that has ended: %+v", r)
	}
	s.whole(t)
}
