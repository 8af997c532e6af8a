package machine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// script is a step that does what a test tells it and writes down its calls.
type script struct {
	state machine.State
	calls *[]string
	probe func() (machine.Progress, error)
	do    func(context.Context, *machine.Task, machine.Notes) error
	undo  func() error
}

func (s *script) State() machine.State { return s.state }

func (s *script) Probe(context.Context, *machine.Task, machine.Notes) (machine.Progress, error) {
	*s.calls = append(*s.calls, "probe "+string(s.state))
	if s.probe != nil {
		return s.probe()
	}
	return machine.None, nil
}

func (s *script) Do(ctx context.Context, t *machine.Task, n machine.Notes) error {
	*s.calls = append(*s.calls, "do "+string(s.state))
	if err := n.Intent(ctx, machine.Fact{What: "effect", Name: string(s.state)}); err != nil {
		return err
	}
	if s.do != nil {
		if err := s.do(ctx, t, n); err != nil {
			return err
		}
	}
	return n.Done(ctx, machine.Fact{What: "effect", Name: string(s.state)})
}

func (s *script) Undo(ctx context.Context, _ *machine.Task, _ machine.Notes) error {
	*s.calls = append(*s.calls, "undo "+string(s.state))
	if ctx.Err() != nil {
		return errors.New("undone with a cancelled context")
	}
	if s.undo != nil {
		return s.undo()
	}
	return nil
}

// rig is a machine over a journal in memory.
type rig struct {
	*machine.Machine
	memory *journaltest.Memory
	calls  []string
	steps  map[machine.State]*script
}

func newRig() *rig {
	r := &rig{memory: journaltest.NewMemory(), steps: map[machine.State]*script{}}
	r.Machine = &machine.Machine{
		Journal: r.memory, Steps: map[machine.State]machine.Step{}, MaxAttempts: 3, Log: slog.New(slog.DiscardHandler),
	}
	for _, s := range machine.Working {
		r.steps[s] = &script{state: s, calls: &r.calls}
		r.Steps[s] = r.steps[s]
	}
	return r
}

// path is the states that the task went through, attempt by attempt.
func (r *rig) path(t *testing.T) string {
	t.Helper()
	var states []string
	for rec, err := range r.memory.Records("t") {
		if err != nil {
			t.Fatal(err)
		}
		if rec.Kind == machine.KindTransition {
			states = append(states, string(rec.To))
			if !machine.Legal(rec.From, rec.Event, rec.To) {
				t.Errorf("record %d is not legal: %s %s %s", rec.Seq, rec.From, rec.Event, rec.To)
			}
		}
	}
	return strings.Join(states, " ")
}

const happy = "Accepted Scrub ImageCheck Download Run Upload Complete"

func TestPaths(t *testing.T) {
	failed := &machine.ExecutorFailure{Executor: 1, ExitCode: 7, Reason: "its command failed"}
	fail := func(err error) func(context.Context, *machine.Task, machine.Notes) error {
		return func(context.Context, *machine.Task, machine.Notes) error { return err }
	}
	for _, c := range []struct {
		name  string
		state machine.State
		err   error
		path  string
		fault machine.Fault
	}{
		{"all well", "", nil, happy, ""},
		{"executor fails", machine.Run, failed, "Accepted Scrub ImageCheck Download Run Upload ExecutorError", ""},
		{"input missing", machine.Download, errors.New("no such input"), "Accepted Scrub ImageCheck Download RollingBack SystemError", machine.TaskFault},
		{"disk full", machine.Scrub, machine.Faultf(machine.NodeFault, "disk full"), "Accepted Scrub RollingBack SystemError", machine.NodeFault},
		{"server busy", machine.Upload, machine.Faultf(machine.RetryLater, "busy"), "Accepted Scrub ImageCheck Download Run Upload RollingBack Interrupted", machine.RetryLater},
		{"no Docker", machine.ImageCheck, machine.Faultf(machine.EngineFault, "silent"), "Accepted Scrub ImageCheck RollingBack SystemError", machine.EngineFault},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig()
			if c.err != nil {
				r.steps[c.state].do = fail(c.err)
			}
			head, err := r.Start(t.Context(), "t", "doc")
			if err != nil {
				t.Fatal(err)
			}
			if got := r.path(t); got != c.path {
				t.Errorf("went %s, want %s", got, c.path)
			}
			if head.Fault != c.fault {
				t.Errorf("fault is %q, want %q", head.Fault, c.fault)
			}
			if n, _ := r.memory.Node(); n.Active != nil {
				t.Errorf("%v is still active", n.Active)
			}
			if undone := slices.Index(r.calls, "undo Scrub"); undone != len(r.calls)-1 {
				t.Errorf("the attempt did not end with its undoing, last step first: %v", r.calls)
			}
		})
	}
}

func TestStopped(t *testing.T) {
	for cause, final := range map[error]machine.State{machine.ErrCancel: machine.Canceled, machine.ErrInterrupt: machine.Interrupted} {
		for _, state := range machine.Working {
			t.Run(fmt.Sprint(final, " in ", state), func(t *testing.T) {
				r := newRig()
				ctx, cancel := context.WithCancelCause(t.Context())
				r.steps[state].do = func(ctx context.Context, _ *machine.Task, _ machine.Notes) error {
					cancel(cause)
					return ctx.Err()
				}
				head, err := r.Start(ctx, "t", "doc")
				if err != nil {
					t.Fatal(err)
				}
				if head.State != final {
					t.Errorf("ended %s, want %s", head.State, final)
				}
				if got := r.path(t); !strings.HasSuffix(got, string(state)+" RollingBack "+string(final)) {
					t.Errorf("went %s", got)
				}
			})
		}
	}
}

func TestLostContainerIsRunAgain(t *testing.T) {
	r := newRig()
	lost := 0
	r.steps[machine.Run].do = func(context.Context, *machine.Task, machine.Notes) error {
		if lost++; lost <= 2 {
			return fmt.Errorf("container gone: %w", machine.ErrLost)
		}
		return nil
	}
	head, err := r.Start(t.Context(), "t", "doc")
	if err != nil {
		t.Fatal(err)
	}
	if head.State != machine.Complete || head.Attempt != 3 {
		t.Errorf("ended %s in attempt %d", head.State, head.Attempt)
	}
}

func TestLostTooOften(t *testing.T) {
	r := newRig()
	r.steps[machine.Run].do = func(context.Context, *machine.Task, machine.Notes) error { return machine.ErrLost }
	head, err := r.Start(t.Context(), "t", "doc")
	if err != nil {
		t.Fatal(err)
	}
	if head.State != machine.SystemError || head.Attempt != 3 || head.Fault != machine.NodeFault {
		t.Errorf("ended %s (%s) in attempt %d", head.State, head.Fault, head.Attempt)
	}
}

func TestSilentEngineLeavesTheRollBackUnfinished(t *testing.T) {
	r := newRig()
	r.steps[machine.Run].do = func(context.Context, *machine.Task, machine.Notes) error { return errors.New("broken") }
	r.steps[machine.ImageCheck].undo = func() error { return machine.Faultf(machine.EngineFault, "silent") }
	if _, err := r.Start(t.Context(), "t", "doc"); machine.FaultOf(err) != machine.EngineFault {
		t.Fatalf("error is %v", err)
	}
	told := false
	for rec := range r.memory.Records("t") {
		told = told || rec.To == machine.RollingBack && strings.Contains(string(rec.Detail), "silent")
	}
	if !told {
		t.Error("the journal does not tell why the attempt is unfinished")
	}
	r.steps[machine.ImageCheck].undo = nil
	head, err := r.Resume(t.Context(), "t", "again")
	if err != nil || head.State != machine.SystemError {
		t.Errorf("ended %s, %v", head.State, err)
	}
}

func TestWhatStaysBehindIsAWarning(t *testing.T) {
	r := newRig()
	r.steps[machine.Scrub].undo = func() error { return machine.Faultf(machine.NodeFault, "immutable file") }
	head, err := r.Start(t.Context(), "t", "doc")
	if err != nil || head.State != machine.Complete {
		t.Fatalf("ended %s, %v", head.State, err)
	}
	for rec := range r.memory.Records("t") {
		if strings.Contains(string(rec.Detail), "immutable file") {
			return
		}
	}
	t.Error("nothing in the journal tells of it")
}

var errCut = errors.New("cut off")

// A journal that fails at any append, whether or not the entry is in it, ends
// the process; the next one ends the task as it would have ended.
func TestJournalFailsAnywhere(t *testing.T) {
	appends := 0
	for range newRigAfterRun(t).memory.Records("t") {
		appends++
	}
	for at := 1; at <= appends; at++ {
		for _, written := range []bool{false, true} {
			t.Run(fmt.Sprintf("append %d, written %v", at, written), func(t *testing.T) {
				r := newRig()
				count := 0
				r.memory.Fail = func(machine.Entry) (bool, error) {
					if count++; count == at {
						return written, errCut
					}
					return false, nil
				}
				_, err := r.Start(t.Context(), "t", "doc")
				var failed *machine.JournalError
				if !errors.As(err, &failed) {
					t.Fatalf("the run went on: %v", err)
				}
				r.memory.Reopen()
				head, known, err := r.memory.Head("t")
				if err != nil {
					t.Fatal(err)
				}
				switch machine.Decide(head, known, "doc", false) {
				case machine.StartNew:
					head, err = r.Start(t.Context(), "t", "doc")
				case machine.Resume:
					head, err = r.Resume(t.Context(), "t", "cut off")
				}
				if err != nil || head.State != machine.Complete || head.Attempt != 1 {
					t.Errorf("ended %s in attempt %d, %v", head.State, head.Attempt, err)
				}
				if got := r.path(t); got != happy {
					t.Errorf("went %s", got)
				}
			})
		}
	}
}

func newRigAfterRun(t *testing.T) *rig {
	t.Helper()
	r := newRig()
	if _, err := r.Start(t.Context(), "t", "doc"); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestResumedStepIsProbedOnce(t *testing.T) {
	r := newRig()
	count := 0
	r.memory.Fail = func(e machine.Entry) (bool, error) {
		if e.Record.To == machine.Download && e.Record.Kind == machine.KindDone {
			count++
			return false, errCut
		}
		return false, nil
	}
	if _, err := r.Start(t.Context(), "t", "doc"); err == nil {
		t.Fatal("the run went on")
	}
	r.memory.Reopen()
	r.calls = nil
	if _, err := r.Resume(t.Context(), "t", "cut off"); err != nil {
		t.Fatal(err)
	}
	want := []string{"probe Download", "do Download", "do Run", "do Upload"}
	if got := r.calls[:4]; !slices.Equal(got, want) {
		t.Errorf("calls are %v, want %v", got, want)
	}
}

func TestRollBack(t *testing.T) {
	r := newRig()
	r.steps[machine.Run].do = func(context.Context, *machine.Task, machine.Notes) error { return nil }
	r.memory.Fail = func(e machine.Entry) (bool, error) {
		if e.Record.To == machine.Upload {
			return false, errCut
		}
		return false, nil
	}
	if _, err := r.Start(t.Context(), "t", "doc"); err == nil {
		t.Fatal("the run went on")
	}
	r.memory.Reopen()
	head, err := r.RollBack(t.Context(), "t", "another task wants the node")
	if err != nil || head.State != machine.Interrupted {
		t.Errorf("ended %s, %v", head.State, err)
	}
	if _, err := r.RollBack(t.Context(), "t", "again"); err == nil {
		t.Error("an ended attempt was rolled back")
	}
}

func TestNotes(t *testing.T) {
	r := newRig()
	r.steps[machine.Scrub].do = func(ctx context.Context, _ *machine.Task, n machine.Notes) error {
		images := []machine.ImageRecord{{Reference: "a", ImageID: "sha256:1", Phase: machine.Present}}
		if err := n.Done(ctx, machine.Fact{What: "x", Name: "1", Detail: map[string]int{"size": 3}, Images: images}); err != nil {
			return err
		}
		note, ok := n.Get("x", "1")
		if !ok || note.Kind != machine.KindDone || !strings.Contains(string(note.Detail), `"size":3`) {
			t.Errorf("note is %+v, %v", note, ok)
		}
		if got := n.Images(); len(got) != 1 || got[0].Reference != "a" {
			t.Errorf("ledger is %v", got)
		}
		return errors.Join(n.Warn(ctx, "once"), n.Warn(ctx, "once"))
	}
	r.steps[machine.ImageCheck].do = func(_ context.Context, _ *machine.Task, n machine.Notes) error {
		if _, ok := n.Get("x", "1"); ok {
			t.Error("a step sees another step's notes")
		}
		return nil
	}
	if _, err := r.Start(t.Context(), "t", "doc"); err != nil {
		t.Fatal(err)
	}
	warnings := 0
	for rec := range r.memory.Records("t") {
		if strings.Contains(string(rec.Detail), `"message":"once"`) {
			warnings++
		}
	}
	if warnings != 1 {
		t.Errorf("the warning stands %d times", warnings)
	}
}

// Facts without names are read back from the journal, all of them and by whoever goes on,
// and are not kept in memory. Those of other steps and attempts are not among them.
func TestNotesOfMany(t *testing.T) {
	r := newRig()
	var seen []string
	r.steps[machine.Scrub].do = func(ctx context.Context, _ *machine.Task, n machine.Notes) error {
		return n.Done(ctx, machine.Fact{What: "many", Detail: map[string]int{"n": 100}})
	}
	r.steps[machine.Download].do = func(ctx context.Context, task *machine.Task, n machine.Notes) error {
		err := errors.Join(n.Intent(ctx, machine.Fact{What: "many"}), n.Done(ctx, machine.Fact{What: "other"}))
		for i := range 2 {
			err = errors.Join(err, n.Done(ctx, machine.Fact{What: "many", Detail: map[string]int{"n": task.Attempt*10 + i}}))
		}
		if kept := n.All("many"); len(kept) != 0 {
			t.Errorf("kept are %v", kept)
		}
		if _, ok := n.Get("many", ""); ok {
			t.Error("a fact without a name is found by it")
		}
		seen = nil
		for note, eachErr := range n.Each("many") {
			var d struct{ N int }
			err = errors.Join(err, eachErr, json.Unmarshal(note.Detail, &d))
			seen = append(seen, fmt.Sprint(note.Kind, " ", d.N))
		}
		return err
	}
	want := func(all ...string) {
		t.Helper()
		if !slices.Equal(seen, all) {
			t.Errorf("read %q, want %q", seen, all)
		}
	}
	r.memory.Fail = func(e machine.Entry) (bool, error) {
		if e.Record.To == machine.Run {
			return false, errCut
		}
		return false, nil
	}
	if _, err := r.Start(t.Context(), "t", "doc"); err == nil {
		t.Fatal("the run went on")
	}
	want("intent 0", "done 10", "done 11")
	r.memory.Reopen()
	if _, err := r.Resume(t.Context(), "t", "cut off"); err != nil {
		t.Fatal(err)
	}
	want("intent 0", "done 10", "done 11", "intent 0", "done 10", "done 11")
	if _, err := r.Start(t.Context(), "t", "doc"); err != nil { // a second attempt
		t.Fatal(err)
	}
	want("intent 0", "done 20", "done 21")
}
