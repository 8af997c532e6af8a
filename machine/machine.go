package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// Causes with which the context of Run is cancelled.
var (
	// ErrCancel: the user wants the task to end Canceled.
	ErrCancel = errors.New("canceled by the user")
	// ErrInterrupt: the engine wants the process to go; the task runs again later.
	ErrInterrupt = errors.New("interrupted by the engine")
)

// Machine takes the attempts of one task through their states.
type Machine struct {
	Journal Journal
	// Steps has one step for each working state.
	Steps map[State]Step
	// MaxAttempts bounds the attempts in a row that lose their container.
	MaxAttempts int
	Log         *slog.Logger
	// Opening returns what the first record of an attempt says in its detail; may
	// be nil. Its context may be cancelled already.
	Opening func(context.Context) any
	// Entered is called after each transition is journaled; may be nil.
	Entered func(Head)
}

// Start begins a new attempt and works until it has ended.
func (m *Machine) Start(ctx context.Context, task, document string) (Head, error) {
	a, err := m.begin(ctx, task, document)
	if err != nil {
		return Head{}, err
	}
	m.entered(a)
	head, err := m.work(ctx, a)
	for err == nil && head.State == Interrupted && head.Fault == Lost {
		if a, err = m.begin(ctx, task, document); err != nil {
			return head, err
		}
		m.entered(a)
		head, err = m.work(ctx, a)
	}
	return head, err
}

func (m *Machine) begin(ctx context.Context, task, document string) (*attempt, error) {
	var opening any
	if m.Opening != nil {
		opening = m.Opening(ctx)
	}
	return begin(ctx, m.Journal, task, document, opening)
}

// Resume goes on with the unfinished attempt, and with further attempts where
// its container was lost.
func (m *Machine) Resume(ctx context.Context, task, reason string) (Head, error) {
	a, err := m.takeUp(ctx, task, reason, nil)
	if err != nil {
		return Head{}, err
	}
	head, err := m.work(ctx, a)
	if err == nil && head.State == Interrupted && head.Fault == Lost {
		return m.Start(ctx, task, head.Document)
	}
	return head, err
}

// RollBack ends the unfinished attempt of a task without going on with it. An
// attempt that was already rolling back keeps its outcome; any other one ends
// Interrupted.
func (m *Machine) RollBack(ctx context.Context, task, reason string) (Head, error) {
	return m.rollBackFor(ctx, task, reason, nil)
}

// Resumption is the detail of the record that a process takes up an attempt.
type Resumption struct {
	// GivenUp says that the process only ends the attempt: whether the task runs
	// again, here or elsewhere, is not known to it.
	GivenUp bool `json:"given_up"`
}

// GiveUp is RollBack by a process that does not go on with the task at all. The
// journal says so, for those who wait for the task's end.
func (m *Machine) GiveUp(ctx context.Context, task, reason string) (Head, error) {
	return m.rollBackFor(ctx, task, reason, Resumption{GivenUp: true})
}

func (m *Machine) rollBackFor(ctx context.Context, task, reason string, detail any) (Head, error) {
	a, err := m.takeUp(ctx, task, reason, detail)
	if err != nil {
		return Head{}, err
	}
	if a.head.State != RollingBack {
		if err := m.rollBack(ctx, a, InterruptedByUs, Interrupted, RetryLater, reason); err != nil {
			return a.head, err
		}
	}
	return m.work(ctx, a)
}

// takeUp loads an unfinished attempt and journals that a new process has it.
func (m *Machine) takeUp(ctx context.Context, task, reason string, detail any) (*attempt, error) {
	a, err := resume(ctx, m.Journal, task)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	head := a.head
	head.Resumed++
	text, err := encode(detail)
	if err != nil {
		return nil, err
	}
	r := Record{Kind: KindResume, From: head.State, To: head.State, Reason: reason, Detail: text}
	if err := a.append(ctx, r, head, nil); err != nil {
		return nil, err
	}
	m.Log.Info("resuming", "task", task, "attempt", head.Attempt, "state", head.State, "reason", reason)
	return a, nil
}

// work runs steps until the attempt has ended. Its error is one that leaves
// the attempt unfinished: the journal or the engine does not answer.
func (m *Machine) work(ctx context.Context, a *attempt) (Head, error) {
	probe := a.head.Resumed > 0
	for !a.head.State.Final() {
		var err error
		switch state := a.head.State; state {
		case RollingBack:
			err = m.finishRollBack(ctx, a)
		case Accepted:
			if ctx.Err() != nil {
				err = m.stopped(ctx, a)
				break
			}
			err = m.fire(ctx, a, Scrub, move{event: Started})
		default:
			err = m.perform(ctx, a, m.Steps[state], probe)
			probe = false
		}
		if err != nil {
			return a.head, err
		}
	}
	return a.head, nil
}

// perform runs one step and fires the event that came of it.
func (m *Machine) perform(ctx context.Context, a *attempt, step Step, probe bool) error {
	if ctx.Err() != nil {
		return m.stopped(ctx, a)
	}
	state := step.State()
	task := &Task{ID: a.head.Task, Attempt: a.head.Attempt, Failed: a.head.Failed != nil, Boot: a.boot}
	notes := &stepNotes{a, state}
	err := m.do(ctx, step, task, notes, probe)

	var journal *JournalError
	var failed *ExecutorFailure
	switch {
	case errors.As(err, &journal):
		return err
	case ctx.Err() != nil && err != nil:
		return m.stopped(ctx, a)
	case errors.As(err, &failed):
		return m.fire(ctx, a, Upload, move{
			event: ExecutorsFinished, reason: failed.Error(), detail: failed,
			change: func(h *Head) { h.Failed = failed; h.Reason = failed.Error() },
		})
	case errors.Is(err, ErrLost):
		return m.lost(ctx, a, err)
	case err != nil:
		m.Log.Error("step failed", "state", state, "fault", FaultOf(err), "error", err)
		outcome := SystemError
		if FaultOf(err) == RetryLater {
			outcome = Interrupted
		}
		return m.rollBack(ctx, a, StepFailed, outcome, FaultOf(err), err.Error())
	case state == Upload:
		return m.finish(ctx, a)
	default:
		event := success[state]
		return m.fire(ctx, a, next(state, event), move{event: event})
	}
}

func (m *Machine) do(ctx context.Context, step Step, t *Task, n Notes, probe bool) error {
	if probe {
		progress, err := step.Probe(ctx, t, n)
		if err != nil {
			return err
		}
		m.Log.Info("found on the node", "state", step.State(), "progress", progress.String())
	}
	return step.Do(ctx, t, n)
}

// finish ends an attempt whose outputs are published: what it made on the node
// goes first, so that a final state means a clean node.
func (m *Machine) finish(ctx context.Context, a *attempt) error {
	event, final := Completed, Complete
	if a.head.Failed != nil {
		event, final = ExecutorFailed, ExecutorError
	}
	if err := m.undo(ctx, a, final); err != nil {
		return err
	}
	return m.fire(ctx, a, final, move{event: event, reason: a.head.Reason})
}

// stopped begins the roll-back that the cancelled context asks for.
func (m *Machine) stopped(ctx context.Context, a *attempt) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ErrCancel) {
		return m.rollBack(ctx, a, CanceledByUser, Canceled, "", cause.Error())
	}
	return m.rollBack(ctx, a, InterruptedByUs, Interrupted, RetryLater, cause.Error())
}

// lost ends an attempt whose container is gone; another one follows unless
// that has happened too often.
func (m *Machine) lost(ctx context.Context, a *attempt, cause error) error {
	count := a.head.Lost + 1
	outcome, fault, reason := Interrupted, Lost, cause.Error()
	if count >= m.MaxAttempts {
		outcome, fault = SystemError, NodeFault
		reason = fmt.Sprintf("%s; that was attempt %d of %d (run.max_attempts)", reason, count, m.MaxAttempts)
	}
	return m.fire(ctx, a, RollingBack, move{event: StepFailed, reason: reason, change: func(h *Head) {
		h.Outcome, h.Fault, h.Reason, h.Lost = outcome, fault, reason, count
	}})
}

func (m *Machine) rollBack(ctx context.Context, a *attempt, event Event, outcome State, fault Fault, reason string) error {
	return m.fire(ctx, a, RollingBack, move{event: event, reason: reason, change: func(h *Head) {
		h.Outcome, h.Fault, h.Reason = outcome, fault, reason
	}})
}

func (m *Machine) finishRollBack(ctx context.Context, a *attempt) error {
	if err := m.undo(ctx, a, a.head.Outcome); err != nil {
		return err
	}
	return m.fire(ctx, a, a.head.Outcome, move{event: RolledBack, reason: a.head.Reason})
}

// undo runs every step's Undo, last step first. What stays behind although the
// engine answers is a warning: the next scrub meets it again.
func (m *Machine) undo(ctx context.Context, a *attempt, outcome State) error {
	ctx = context.WithoutCancel(ctx)
	task := &Task{ID: a.head.Task, Attempt: a.head.Attempt, Outcome: outcome, Failed: a.head.Failed != nil, Boot: a.boot}
	for i := len(Working) - 1; i >= 0; i-- {
		step := m.Steps[Working[i]]
		notes := &stepNotes{a, step.State()}
		err := step.Undo(ctx, task, notes)
		var journal *JournalError
		switch {
		case err == nil:
		case errors.As(err, &journal):
			return fmt.Errorf("cannot roll back %s of task %s: %w", step.State(), task.ID, err)
		case FaultOf(err) == EngineFault:
			err = fmt.Errorf("cannot roll back %s of task %s: %w", step.State(), task.ID, err)
			return errors.Join(err, notes.Warn(ctx, err.Error())) // no transition will tell why it ended here
		default:
			m.Log.Warn("left behind; the next scrub tries again", "state", step.State(), "error", err)
			if err := notes.Warn(ctx, fmt.Sprintf("left behind by %s: %v", step.State(), err)); err != nil {
				return err
			}
			if step.State() != Upload {
				return nil // what stays, such as a container, may use what earlier steps made
			}
		}
	}
	return nil
}

func (m *Machine) fire(ctx context.Context, a *attempt, to State, mv move) error {
	if err := a.fire(ctx, to, mv); err != nil {
		return err
	}
	m.entered(a)
	return nil
}

func (m *Machine) entered(a *attempt) {
	if m.Entered != nil {
		m.Entered(a.head)
	}
}

// next is the state that an event leads to; the caller knows that there is one.
func next(from State, event Event) State {
	for _, t := range Table {
		if t.From == from && t.Event == event {
			return t.To
		}
	}
	return ""
}
