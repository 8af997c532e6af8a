package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

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
		Short: "What an executor has written: all of it while the task is on the node, its end afterwards",
		Args:  cobra.ExactArgs(1),
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
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until the attempt ends")
	return cmd
}

func (a *app) logs(ctx context.Context, name string, executor int, stream string, follow bool) (err error) {
	head, known, err := a.head(name)
	if err != nil {
		return err
	}
	if !known {
		return &exit{statusUnknown, fmt.Errorf("no task %s on %s", name, a.conf.Root)}
	}
	tree := worktree.New(a.tasksDir()+"/"+taskDir(head.Task), head.Attempt, &tes.Task{})
	f, err := os.Open(tree.Log(executor, stream))
	if errors.Is(err, os.ErrNotExist) {
		return a.recordedLog(head, executor, stream)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read-only
	for {
		if _, err := io.Copy(a.stdout, f); err != nil {
			return err
		}
		if !follow {
			return nil
		}
		if head, known, err = a.head(head.Task); err != nil || !known || head.State != machine.Run {
			if err == nil {
				_, err = io.Copy(a.stdout, f)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// head reads a task's head from a copy of the journal.
func (a *app) head(name string) (head machine.Head, known bool, err error) {
	v, ok, err := a.view()
	if err != nil || !ok {
		return head, false, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	heads, err := v.Heads()
	if err != nil {
		return head, false, err
	}
	return find(heads, name)
}

// recordedLog prints the end of a stream that the journal has kept.
func (a *app) recordedLog(head machine.Head, executor int, stream string) (err error) {
	v, ok, err := a.view()
	if err != nil || !ok {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	result, found, err := executorResult(v, head, executor)
	if err != nil {
		return err
	}
	if !found {
		return usage("executor %d of task %s has written nothing on this node", executor, head.Task)
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
