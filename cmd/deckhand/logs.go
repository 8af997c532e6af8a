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

	"github.com/deckhand/deckhand/internal/ring"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/run"
)

// followEvery is how often a followed journal is looked at again.
const followEvery = 500 * time.Millisecond

// outputEvery is how often the followed output of an executor is: of a stream
// without a file only the end is kept.
const outputEvery = 100 * time.Millisecond

func newLogsCommand(a *app) *cobra.Command {
	var executor int
	var stderr, follow bool
	cmd := &cobra.Command{
		Use:   "logs TASK",
		Short: "What an executor has written: all that goes to a file while it runs, the end otherwise",
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
	var written source
	defer func() {
		if written != nil {
			_ = written.Close() // read-only
		}
	}()
	for attempt := 0; ; {
		head, err := a.task(name)
		if err != nil {
			return err
		}
		if written != nil && head.Attempt != attempt {
			return nil // it was that of an attempt which has ended
		}
		name, attempt = head.Task, head.Attempt
		// Asked before reading, so that what was written last is read.
		goesOn := follow && a.executes(head)
		if written == nil {
			tree := worktree.New(filepath.Join(a.tasksDir(), taskDir(name)), attempt, &tes.Task{})
			if written, err = openFile(tree.Log(executor, stream)); err != nil {
				return err
			}
			if written == nil {
				if printed, err := a.recordedLog(head, executor, stream); printed || err != nil {
					return err
				}
				if written, err = openRing(tree.Ring(executor, stream)); err != nil {
					return err
				}
			}
			if written == nil && !goesOn {
				return usage("executor %d of task %s has not ended on this node, or there is none; they count from 0 (--executor)", executor, head.Task)
			}
		}
		if written != nil {
			lost, err := written.Next(a.stdout)
			if err != nil {
				return err
			}
			if lost > 0 {
				a.log.Warn("the older output of a stream without a file is not kept", "bytes", lost)
			}
		}
		if !goesOn {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(outputEvery):
		}
	}
}

// source is what a stream is read from, while it may still be written.
type source interface {
	// Next copies what was written since the call before, and says how many bytes
	// of that are not there any more.
	Next(to io.Writer) (lost int64, err error)
	Close() error
}

// openFile opens the file of a stream; nil when it has none, or not yet.
func openFile(name string) (source, error) {
	f, err := os.Open(name)
	if err == nil {
		return file{f}, nil
	}
	return nil, unlessMissing(err)
}

// openRing opens what has the end of a stream without a file, likewise.
func openRing(name string) (source, error) {
	r, err := ring.Open(name)
	if err == nil {
		return r, nil
	}
	return nil, unlessMissing(err)
}

func unlessMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

type file struct{ *os.File }

func (f file) Next(to io.Writer) (int64, error) {
	_, err := io.Copy(to, f.File)
	return 0, err
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

// recordedLog prints the end of a stream that the journal has kept, once the executor
// has ended. It is false before.
func (a *app) recordedLog(head machine.Head, executor int, stream string) (printed bool, err error) {
	v, head, err := a.viewTask(head.Task)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	result, found, err := executorResult(v, head, executor)
	if err != nil || !found {
		return false, err
	}
	text := result.Stdout
	if stream == "stderr" {
		text = result.Stderr
	}
	_, err = io.WriteString(a.stdout, text)
	return true, err
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
