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
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/own"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// Engine is what running asks of Docker.
type Engine interface {
	helper.Engine
	Container(ctx context.Context, name string) (engine.Container, error)
	Restarted(ctx context.Context, id string, since time.Time) (bool, error)
	Wait(ctx context.Context, id string) (engine.Exit, error)
	CopyFrom(ctx context.Context, id, path string, read func(io.Reader) error) error
	CopyTo(ctx context.Context, id, dir string, tar io.Reader) error
}

// WhatExecutor is the kind of fact that says how an executor ended; its detail
// is a Result.
const WhatExecutor = "executor"

// WhatContainer is the kind of fact that names the container of an executor.
const WhatContainer = "container"

// Result is how an executor ended.
type Result struct {
	tes.ExecutorLog
	Executor  int    `json:"executor"` // index in the document
	OOMKilled bool   `json:"oom_killed,omitempty"`
	TimedOut  bool   `json:"timed_out,omitempty"` // the task's time was over
	Reason    string `json:"reason,omitempty"`    // why, when it did not end by itself with 0
}

// Step is the Run state.
type Step struct {
	Task       *tes.Task
	Engine     Engine
	Containers *Containers
	Tree       func(attempt int, n machine.Notes) *worktree.Tree
	Owner      *own.Owner
	Grace      time.Duration // from SIGTERM to SIGKILL
	TimeLimit  time.Duration // of the node, for all executors together; zero for none
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
			r, err = s.execute(ctx, t, n, i, began)
			if errors.Is(err, engine.ErrNotFound) && !errors.Is(err, machine.ErrLost) {
				// Whatever was asked of the container: a prune can take it before its start
				// and, its end seen, before its output is read.
				err = fmt.Errorf("somebody removed the container of executor %d: %w: %w", i, machine.ErrLost, err)
			}
			if err != nil {
				return err
			}
		}
		if began.IsZero() {
			began = r.StartTime
		}
		if r.ExitCode != 0 {
			s.Log.Info("executor failed", "executor", i, "exit_code", r.ExitCode, "reason", r.Reason, "ignored", e.IgnoreError)
			// The time is the task's, whose executors after this one have none left.
			if !e.IgnoreError || r.TimedOut {
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
	// What is copied into a container was copied when its start is announced.
	_, begun := n.Get(WhatExecutor, strconv.Itoa(i))
	copies := !begun && len(s.Tree(t.Attempt, n).Plan.Merges) > 0
	if errors.Is(err, engine.ErrNotFound) && copies {
		c, err = engine.Container{State: engine.Created}, nil // a process died while it renewed it
	}
	if errors.Is(err, engine.ErrNotFound) {
		return Result{}, fmt.Errorf("container %s of executor %d is gone: %w", name, i, machine.ErrLost)
	}
	if err != nil {
		return Result{}, err
	}
	f, found := following{container: c, began: began, out: s.output(t, n, i)}, "executor started"
	if c.State == engine.Created {
		if err := s.unstarted(ctx, n, c, i); err != nil {
			return Result{}, err
		}
		if copies {
			if c, err = s.renew(ctx, t, n, i); err != nil {
				return Result{}, err
			}
			f.container = c
		}
		// Before anything is copied: Docker mounts for that what it mounts for a start.
		if err := s.checkMounts(ctx, n, f.out.tree, i, c); err != nil {
			return Result{}, err
		}
		if copies {
			if err := s.copyInputs(ctx, n, i, f.out.tree, c.ID); err != nil {
				return Result{}, err
			}
		}
		if err := s.checkGate(f.out.tree, i, c); err != nil {
			return Result{}, err
		}
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
			return Result{}, fmt.Errorf("executor %d: %w", i, err)
		}
	} else {
		found = "executor found again"
		if f.exits, err = s.waitAgain(ctx, c.ID); err != nil {
			return Result{}, err
		}
	}
	if err := s.openGate(ctx, t, n, i, f.out.tree); err != nil {
		return Result{}, err
	}
	s.Log.Info(found, "executor", i, "container", name)
	return s.follow(ctx, n, i, f)
}

// checkMounts refuses to start a container when an earlier executor has put a
// link, or nothing, where a directory of the task is to be mounted: a volume that
// the image declares inside another one. The same holds for the place of an input that
// is mounted, which moreover must be the file that the executors before have seen.
func (s *Step) checkMounts(ctx context.Context, n machine.Notes, tree *worktree.Tree, i int, c engine.Container) error {
	err := tree.CheckBinds(func(source string) error { return s.Owner.CheckSource(ctx, n, tree, source) })
	if err != nil {
		return fmt.Errorf("cannot start executor %d: %w", i, err)
	}
	for _, m := range c.Binds {
		err := s.Owner.CheckSource(ctx, n, tree, m.Source)
		var journal *machine.JournalError
		switch {
		case err == nil:
		case errors.As(err, &journal), machine.FaultOf(err) != machine.TaskFault, ctx.Err() != nil:
			return err
		default:
			return machine.Faultf(machine.TaskFault,
				"cannot start executor %d: its image has a volume at %s, and an earlier executor has replaced that directory: %w", i, m.Target, err)
		}
	}
	return nil
}

// unstarted makes sure that a container that was not started, as Docker says, was
// not: a daemon that was killed while it started one does not know.
func (s *Step) unstarted(ctx context.Context, n machine.Notes, c engine.Container, i int) error {
	note, begun := n.Get(WhatExecutor, strconv.Itoa(i))
	if !begun {
		return nil
	}
	restarted, err := s.Engine.Restarted(ctx, c.ID, note.Time)
	if restarted && err == nil {
		err = fmt.Errorf("executor %d was being started when Docker was restarted: %w", i, machine.ErrLost)
	}
	return err
}

// output is what an executor writes; the document may not be at hand.
func (s *Step) output(t *machine.Task, n machine.Notes, i int) *output {
	o := &output{tree: s.Tree(t.Attempt, n), index: i, owner: s.Owner, notes: n}
	if i < len(s.Task.Executors) {
		o.executor = s.Task.Executors[i]
	}
	return o
}

// refused is the end of an executor whose command cannot be started. Its files
// are there all the same.
func (s *Step) refused(ctx context.Context, n machine.Notes, out *output, why *engine.StartError) (Result, error) {
	if err := out.place(ctx); err != nil {
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
	limit, setting := limitOf(s.Task, s.TimeLimit)
	expired, stop := timer(deadline(limit, c, f.began))
	defer stop()
	var exit engine.Exit
wait:
	for {
		select {
		case exit = <-f.exits:
			break wait
		case <-expired:
			s.Log.Warn("time limit reached; stopping the executor", "executor", i, "limit", limit, "setting", setting)
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
	stdout, stderr, failed, err := f.out.ends(ctx, s.Engine, c.ID)
	if err != nil {
		return Result{}, err
	}
	// When it ended is what counts: a process before this one may have stopped it
	// and died, or it may have ended in time while there was none.
	over := deadline(limit, ended, f.began)
	late := !over.IsZero() && !ended.Finished.Before(over)
	r := Result{Executor: i, OOMKilled: ended.OOMKilled, TimedOut: late, Reason: s.reason(ended, failed, f.out.tree.Dir), ExecutorLog: tes.ExecutorLog{
		StartTime: ended.Started, EndTime: ended.Finished, ExitCode: exit.Code, Stdout: stdout, Stderr: stderr,
	}}
	if late {
		r.Reason = fmt.Sprintf("the time limit of %s was reached (%s)", limit, setting)
	}
	if late && r.ExitCode == 0 {
		r.ExitCode = terminated // the command took the SIGTERM for a reason to end well
	}
	if err := f.out.place(ctx); err != nil {
		return Result{}, err
	}
	return s.ended(ctx, n, i, r)
}

// Exit codes of commands that SIGKILL and SIGTERM ended, as a shell gives them.
const (
	killed     = 137
	terminated = 143
)

// deadline is when the task's time is over; zero for a limit of zero, which is none.
func deadline(limit time.Duration, c engine.Container, began time.Time) time.Time {
	if limit <= 0 {
		return time.Time{}
	}
	if began.IsZero() {
		began = c.Started
	}
	if began.IsZero() {
		began = time.Now()
	}
	return began.Add(limit)
}

// timer returns a channel that fires at a time, and never at the zero time.
func timer(at time.Time) (<-chan time.Time, func()) {
	if at.IsZero() {
		return nil, func() {}
	}
	t := time.NewTimer(time.Until(at))
	return t.C, func() { t.Stop() }
}

// reason says why an executor did not end well; failed is what kept our binary in
// its container from its work, and dir where its output is kept. The kernel kills one process for want of memory: the command itself may
// have minded that or not. On a busy node Docker does not hear of it when the
// container ends at once.
func (s *Step) reason(c engine.Container, failed, dir string) string {
	asked, job := s.Task.Resources.RAMGB > 0, c.JobCgroup() != ""
	limit := "resources.ram_gb allows"
	switch {
	case asked && job:
		limit = "resources.ram_gb or its job allows"
	case job:
		limit = "its job or this node allows"
	case !asked:
		limit = "this node gives it; ask for more with resources.ram_gb"
	}
	switch {
	case c.OOMKilled && c.ExitCode == 0:
		return "out of memory: one of its processes was killed, because they used more than " + limit
	case c.OOMKilled:
		return "out of memory: it used more than " + limit
	case c.ExitCode != 0 && strings.HasPrefix(failed, cannotKeep):
		return failed + "; it is kept on the disk of " + dir
	case c.ExitCode != 0 && strings.HasPrefix(failed, cannotStart):
		return failed
	case c.ExitCode == killed && (asked || job):
		return "its command was killed (SIGKILL), most likely because it ran out of memory: it may use no more than " + limit
	case c.ExitCode == killed:
		return "its command was killed (SIGKILL), as the kernel does when the node's memory runs out, or by somebody else"
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
	for _, note := range n.All(whatHelper) {
		if note.Kind == machine.KindDone {
			continue
		}
		if err := s.Engine.Stop(ctx, note.Name, 0); err != nil {
			return err
		}
	}
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
		if r.Stdout, r.Stderr, _, err = s.output(t, n, i).ends(ctx, s.Engine, name); err != nil {
			s.Log.Warn("cannot read what a stopped executor had written", "executor", i, "error", err)
		}
		if err := n.Done(ctx, machine.Fact{What: WhatExecutor, Name: note.Name, Detail: r}); err != nil {
			return err
		}
	}
	return nil
}
