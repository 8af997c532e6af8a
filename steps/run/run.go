// Package run runs a task's executors, one after the other, in containers that
// outlive this process: a later one finds them again by their names.
package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// Engine is what running asks of Docker.
type Engine interface {
	Container(ctx context.Context, name string) (engine.Container, error)
	Start(ctx context.Context, id string) error
	WaitNext(ctx context.Context, id string) (<-chan engine.Exit, error)
	Wait(ctx context.Context, id string) (engine.Exit, error)
	Stop(ctx context.Context, id string, grace time.Duration) error
	Log(ctx context.Context, id string, stdout, stderr io.Writer) error
}

// WhatExecutor is the kind of fact that says how an executor ended; its detail
// is a Result.
const WhatExecutor = "executor"

// Result is how an executor ended.
type Result struct {
	tes.ExecutorLog
	Executor  int    `json:"executor"` // index in the document
	OOMKilled bool   `json:"oom_killed,omitempty"`
	Reason    string `json:"reason,omitempty"` // why, when it did not end by itself with 0
}

// Step is the Run state.
type Step struct {
	Task       *tes.Task
	Engine     Engine
	Containers *Containers
	Tree       func(attempt int) *worktree.Tree
	Grace      time.Duration // from SIGTERM to SIGKILL
	TimeLimit  time.Duration // for all executors together; zero for none
	BootID     string
	Meter      *progress.Meter
	Log        *slog.Logger
}

var _ machine.Step = (*Step)(nil)

// State implements machine.Step.
func (s *Step) State() machine.State { return machine.Run }

// Probe says how many executors have ended. An executor that had started
// before the node went down is lost: what it wrote may not have reached the disk.
func (s *Step) Probe(_ context.Context, t *machine.Task, n machine.Notes) (machine.Progress, error) {
	notes := n.All(WhatExecutor)
	if len(notes) > 0 && t.Boot != "" && t.Boot != s.BootID {
		return machine.None, fmt.Errorf("the node was restarted while executor %s had started: %w", notes[len(notes)-1].Name, machine.ErrLost)
	}
	ended := 0
	for _, note := range notes {
		if note.Kind == machine.KindDone {
			ended++
		}
	}
	switch {
	case len(notes) == 0:
		return machine.None, nil
	case ended < len(s.Task.Executors):
		return machine.Partial, nil
	default:
		return machine.Done, nil
	}
}

// Do implements machine.Step. It returns a machine.ExecutorFailure for the
// first executor that failed and may not.
func (s *Step) Do(ctx context.Context, t *machine.Task, n machine.Notes) error {
	var began time.Time
	for i, e := range s.Task.Executors {
		s.Meter.Reset(fmt.Sprintf("executor %d of %d", i+1, len(s.Task.Executors)))
		r, ended, err := result(n, i)
		if err != nil {
			return err
		}
		if !ended {
			if r, err = s.execute(ctx, t, n, i, began); err != nil {
				return err
			}
		}
		if began.IsZero() {
			began = r.StartTime
		}
		if r.ExitCode != 0 {
			s.Log.Info("executor failed", "executor", i, "exit_code", r.ExitCode, "reason", r.Reason, "ignored", e.IgnoreError)
			if !e.IgnoreError {
				return &machine.ExecutorFailure{Executor: i, ExitCode: r.ExitCode, Reason: r.Reason}
			}
		}
	}
	return nil
}

// result reads an executor's result from the notes, when it has ended.
func result(n machine.Notes, executor int) (Result, bool, error) {
	note, ok := n.Get(WhatExecutor, strconv.Itoa(executor))
	if !ok || note.Kind != machine.KindDone {
		return Result{}, false, nil
	}
	var r Result
	if err := json.Unmarshal(note.Detail, &r); err != nil {
		return Result{}, false, fmt.Errorf("the journaled result of executor %d cannot be read: %w", executor, err)
	}
	return r, true, nil
}

// execute takes one executor from wherever it is to its journaled end. began is
// when the first executor started, zero when this is the first.
func (s *Step) execute(ctx context.Context, t *machine.Task, n machine.Notes, i int, began time.Time) (Result, error) {
	name := s.Containers.Name(t, i)
	c, err := s.Engine.Container(ctx, name)
	if errors.Is(err, engine.ErrNotFound) {
		return Result{}, fmt.Errorf("container %s of executor %d is gone: %w", name, i, machine.ErrLost)
	}
	if err != nil {
		return Result{}, err
	}
	f := following{container: c, began: began, out: s.output(t, i)}
	if c.State == engine.Created {
		// Before the start: a command that ends at once is not missed.
		if f.exits, err = s.Engine.WaitNext(ctx, c.ID); err != nil {
			return Result{}, err
		}
		if err := n.Intent(ctx, machine.Fact{What: WhatExecutor, Name: strconv.Itoa(i), Detail: map[string]string{"container": name}}); err != nil {
			return Result{}, err
		}
		var refused *engine.StartError
		switch err := s.Engine.Start(context.WithoutCancel(ctx), c.ID); {
		case errors.As(err, &refused):
			return s.refused(ctx, n, f.out, refused)
		case errors.Is(err, engine.ErrNotFound):
			return Result{}, fmt.Errorf("container %s of executor %d is gone: %w", name, i, machine.ErrLost)
		case err != nil:
			return Result{}, err
		}
		s.Log.Info("executor started", "executor", i, "container", name)
	} else {
		s.Log.Info("executor found again", "executor", i, "container", name, "container_state", c.State)
		if f.exits, err = s.waitAgain(ctx, c.ID); err != nil {
			return Result{}, err
		}
	}
	return s.follow(ctx, n, i, f)
}

// output is what an executor writes; the document may not be at hand.
func (s *Step) output(t *machine.Task, i int) *output {
	o := &output{tree: s.Tree(t.Attempt), index: i}
	if i < len(s.Task.Executors) {
		o.executor = s.Task.Executors[i]
	}
	return o
}

// refused is the end of an executor whose command cannot be started. Its files
// are there all the same.
func (s *Step) refused(ctx context.Context, n machine.Notes, out *output, why *engine.StartError) (Result, error) {
	if err := out.place(); err != nil {
		return Result{}, err
	}
	now := time.Now().UTC()
	return s.ended(ctx, n, out.index, Result{Executor: out.index, Reason: why.Error(), ExecutorLog: tes.ExecutorLog{
		StartTime: now, EndTime: now, ExitCode: why.ExitCode, Stderr: why.Error() + "\n",
	}})
}

// waitAgain waits for a container that was started by an earlier process.
func (s *Step) waitAgain(ctx context.Context, id string) (<-chan engine.Exit, error) {
	exits := make(chan engine.Exit, 1)
	go func() {
		exit, err := s.Engine.Wait(ctx, id)
		if err != nil {
			exit = engine.Exit{Err: err}
		}
		exits <- exit
	}()
	return exits, nil
}

// following is an executor that has started.
type following struct {
	container engine.Container
	began     time.Time // of the first executor, zero when this is it
	exits     <-chan engine.Exit
	out       *output
}

// follow waits for the end of an executor and takes down what came of it.
func (s *Step) follow(ctx context.Context, n machine.Notes, i int, f following) (Result, error) {
	c := f.container
	expired, stop := s.limit(c, f.began)
	defer stop()
	late := false
	var exit engine.Exit
wait:
	for {
		select {
		case exit = <-f.exits:
			break wait
		case <-expired:
			late = true
			s.Log.Warn("time limit reached; stopping the executor", "executor", i, "limit", s.TimeLimit)
			if err := s.Engine.Stop(ctx, c.ID, s.Grace); err != nil {
				return Result{}, err
			}
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}
	switch {
	case errors.Is(exit.Err, engine.ErrNotFound):
		return Result{}, fmt.Errorf("the container of executor %d was removed while it ran: %w", i, machine.ErrLost)
	case exit.Err != nil:
		return Result{}, exit.Err
	}
	ended, err := s.Engine.Container(ctx, c.ID)
	if err != nil {
		return Result{}, err
	}
	stdout, stderr, err := f.out.ends(ctx, s.Engine, c.ID)
	if err != nil {
		return Result{}, err
	}
	r := Result{Executor: i, OOMKilled: ended.OOMKilled, Reason: reason(ended, late, s.TimeLimit), ExecutorLog: tes.ExecutorLog{
		StartTime: ended.Started, EndTime: ended.Finished, ExitCode: exit.Code, Stdout: stdout, Stderr: stderr,
	}}
	if late && r.ExitCode == 0 {
		r.ExitCode = terminated // the command took the SIGTERM for a reason to end well; it did not end its work
	}
	if err := f.out.place(); err != nil {
		return Result{}, err
	}
	return s.ended(ctx, n, i, r)
}

// terminated is the exit code of a command that a SIGTERM ended, as a shell gives it.
const terminated = 143

// limit returns a channel that fires when the task's time is over.
func (s *Step) limit(c engine.Container, began time.Time) (<-chan time.Time, func()) {
	if s.TimeLimit <= 0 {
		return nil, func() {}
	}
	if began.IsZero() {
		began = c.Started
	}
	if began.IsZero() {
		began = time.Now()
	}
	timer := time.NewTimer(time.Until(began.Add(s.TimeLimit)))
	return timer.C, func() { timer.Stop() }
}

func reason(c engine.Container, late bool, limit time.Duration) string {
	switch {
	case late:
		return fmt.Sprintf("the time limit of %s was reached (run.time_limit)", limit)
	case c.OOMKilled:
		return "out of memory: it used more than resources.ram_gb allows"
	case c.ExitCode != 0:
		return "its command failed"
	}
	return ""
}

func (s *Step) ended(ctx context.Context, n machine.Notes, i int, r Result) (Result, error) {
	s.Log.Info("executor ended", "executor", i, "exit_code", r.ExitCode)
	return r, n.Done(ctx, machine.Fact{What: WhatExecutor, Name: strconv.Itoa(i), Detail: r})
}

// Undo stops what still runs and journals how far it came. The containers
// themselves go with the step that made them.
func (s *Step) Undo(ctx context.Context, t *machine.Task, n machine.Notes) error {
	for _, note := range n.All(WhatExecutor) {
		if note.Kind == machine.KindDone {
			continue
		}
		i, err := strconv.Atoi(note.Name)
		if err != nil {
			return err
		}
		name := s.Containers.Name(t, i)
		if err := s.Engine.Stop(ctx, name, s.Grace); err != nil {
			return err
		}
		c, err := s.Engine.Container(ctx, name)
		if errors.Is(err, engine.ErrNotFound) || err == nil && c.Started.IsZero() {
			continue
		}
		if err != nil {
			return err
		}
		r := Result{Executor: i, OOMKilled: c.OOMKilled, Reason: "stopped before its end", ExecutorLog: tes.ExecutorLog{
			StartTime: c.Started, EndTime: c.Finished, ExitCode: c.ExitCode,
		}}
		if r.Stdout, r.Stderr, err = s.output(t, i).ends(ctx, s.Engine, name); err != nil {
			s.Log.Warn("cannot read what a stopped executor had written", "executor", i, "error", err)
		}
		if err := n.Done(ctx, machine.Fact{What: WhatExecutor, Name: note.Name, Detail: r}); err != nil {
			return err
		}
	}
	return nil
}
