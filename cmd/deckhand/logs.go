package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/run"
)

// followEvery is how often a followed file or journal is looked at again.
const followEvery = 500 * time.Millisecond

func newLogsCommand(a *app) *cobra.Command {
	var executor int
	var stderr, follow bool
	cmd := &cobra.Command{
		Use:   "logs TASK",
		Short: "What an executor has written: all of it while it runs, its end afterwards",
		Example: `  deckhand logs last --follow
  deckhand logs task-7 --executor 1 --stderr`,
		Args:              oneArgument("TASK"),
		ValidArgsFunction: a.completeTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			stream := "stdout"
			if stderr {
				stream = "stderr"
			}
			return a.logs(cmd.Context(), args[0], executor, stream, follow)
		},
	}
	cmd.Flags().IntVar(&executor, "executor", 0, "`index` of the executor in the document, from 0")
	cmd.Flags().BoolVar(&stderr, "stderr", false, "standard error instead of standard output")
	cmd.Flags().BoolVar(&follow, "follow", false, "wait for it and go on until the executors have ended")
	return cmd
}

func (a *app) logs(ctx context.Context, name string, executor int, stream string, follow bool) (err error) {
	var f *os.File
	defer func() {
		if f != nil {
			_ = f.Close() // read-only
		}
	}()
	for attempt := 0; ; {
		head, err := a.task(name)
		if err != nil {
			return err
		}
		if f != nil && head.Attempt != attempt {
			return nil // the file was that of an attempt which has ended
		}
		name, attempt = head.Task, head.Attempt
		// Asked before reading, so that what was written last is read.
		goesOn := follow && a.executes(head)
		if f == nil {
			tree := worktree.New(filepath.Join(a.tasksDir(), taskDir(name)), attempt, &tes.Task{})
			f, err = os.Open(tree.Log(executor, stream))
			if errors.Is(err, os.ErrNotExist) && head.State == machine.Run {
				if written, err := a.dockerLog(ctx, head, executor, stream, follow); written || err != nil {
					return err
				}
			}
			if errors.Is(err, os.ErrNotExist) && !goesOn {
				return a.recordedLog(head, executor, stream)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if f != nil {
			if _, err := io.Copy(a.stdout, f); err != nil {
				return err
			}
		}
		if !goesOn {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// dockerLog copies a stream that goes to no file from Docker's log. It is false
// when the executor has not started.
func (a *app) dockerLog(ctx context.Context, head machine.Head, executor int, stream string, follow bool) (_ bool, err error) {
	v, head, err := a.viewTask(head.Task)
	if err != nil {
		return false, err
	}
	n, err := v.Node()
	if err := errors.Join(err, v.Close()); err != nil {
		return false, err
	}
	docker, err := a.connect(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, docker.Close()) }()
	containers := run.Containers{RootID: n.RootID}
	c, err := docker.Container(ctx, containers.Name(&machine.Task{ID: head.Task, Attempt: head.Attempt}, executor))
	if errors.Is(err, engine.ErrNotFound) || err == nil && c.State == engine.Created {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	stdout, stderr := a.stdout, io.Discard
	if stream == "stderr" {
		stdout, stderr = stderr, stdout
	}
	if follow {
		return true, docker.Logs(ctx, c.ID, stdout, stderr)
	}
	return true, docker.Log(ctx, c.ID, stdout, stderr)
}

// executes says whether a process is at work on a task whose executors have not
// ended yet.
func (a *app) executes(head machine.Head) bool {
	switch head.State {
	case machine.Accepted, machine.Scrub, machine.ImageCheck, machine.Download, machine.Run:
	default:
		return false
	}
	owner, alive, err := a.owner()
	return err == nil && alive && owner.Task == head.Task
}

// recordedLog prints the end of a stream that the journal has kept.
func (a *app) recordedLog(head machine.Head, executor int, stream string) (err error) {
	v, head, err := a.viewTask(head.Task)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	result, found, err := executorResult(v, head, executor)
	if err != nil {
		return err
	}
	if !found {
		return usage("executor %d of task %s has not ended on this node, or there is none; they count from 0 (--executor)", executor, head.Task)
	}
	text := result.Stdout
	if stream == "stderr" {
		text = result.Stderr
	}
	_, err = io.WriteString(a.stdout, text)
	return err
}

// executorResult finds how an executor of the newest attempt ended.
func executorResult(v *journal.View, head machine.Head, executor int) (result run.Result, found bool, err error) {
	for r, err := range v.Records(head.Task) {
		if err != nil {
			return result, false, err
		}
		if r.Attempt != head.Attempt || r.Kind != machine.KindDone {
			continue
		}
		var fact struct {
			What string `json:"what"`
			run.Result
		}
		if err := json.Unmarshal(r.Detail, &fact); err != nil {
			return result, false, err
		}
		if fact.What == run.WhatExecutor && fact.Executor == executor {
			result, found = fact.Result, true
		}
	}
	return result, found, nil
}
