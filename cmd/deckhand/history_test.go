package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/imagecheck"
	"github.com/deckhand/deckhand/steps/run"
)

// history is a program of its own for the tests. history TASK=END... writes tasks
// into the journal of DECKHAND_ROOT; END is complete, executor-error,
// system-error, interrupted, canceled, or dead for a process that died while
// the executor ran.
func history() int {
	root := os.Getenv("DECKHAND_ROOT")
	if err := node.PrepareRoot(root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, arg := range os.Args[1:] {
		task, end, _ := strings.Cut(arg, "=")
		if err := remember(root, task, end); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}

// holder is another program for the tests. holder TASK holds DECKHAND_ROOT for a
// task, as a run does that does not answer on its socket, until a signal ends it. It
// says so when it does.
func holder() int {
	lock, err := node.Lock(os.Getenv("DECKHAND_ROOT"))
	if err == nil {
		var self node.Process
		if self, err = node.Self(); err == nil {
			err = lock.SetOwner(node.Owner{Process: self, Task: os.Args[1], Since: time.Now()})
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("held")
	time.Sleep(time.Hour)
	runtime.KeepAlive(lock) // what nobody uses any more is closed, and the lock goes with it
	return 0
}

// remember takes a task through the real machine and the real journal, with
// steps that only write down what real ones would.
func remember(root, task, end string) (err error) {
	j, err := journal.Open(filepath.Join(root, "journal"), journal.Options{BootID: "an earlier boot"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	m := &machine.Machine{
		Journal: j, Steps: map[machine.State]machine.Step{}, MaxAttempts: 3, Log: slog.New(slog.DiscardHandler),
	}
	for _, state := range machine.Working {
		m.Steps[state] = &pastStep{state: state, task: task, end: end, cancel: cancel}
	}
	_, err = m.Start(ctx, task, "document of "+task)
	if errors.Is(err, errDied) {
		err = nil
	}
	return err
}

var errDied = errors.New("the process died")

// pastStep writes the notes of a step whose effects are long gone.
type pastStep struct {
	state     machine.State
	task, end string
	cancel    context.CancelCauseFunc
}

func (s *pastStep) State() machine.State { return s.state }

func (s *pastStep) Probe(context.Context, *machine.Task, machine.Notes) (machine.Progress, error) {
	return machine.None, nil
}

func (s *pastStep) Undo(context.Context, *machine.Task, machine.Notes) error { return nil }

const pastImage = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func (s *pastStep) Do(ctx context.Context, _ *machine.Task, n machine.Notes) error {
	switch s.state {
	case machine.ImageCheck:
		return s.image(ctx, n)
	case machine.Run:
		return s.execute(ctx, n)
	}
	return nil
}

func (s *pastStep) image(ctx context.Context, n machine.Notes) error {
	const reference = "registry.example/tool:1"
	if s.end == "system-error" {
		return machine.Faultf(machine.TaskFault, "cannot pull %s: there is no such image", reference)
	}
	entry := machine.ImageRecord{
		Reference: reference, ImageID: pastImage, Digest: "registry.example/tool@" + pastImage, PulledByUs: true,
		Phase: machine.Present, Task: s.task, Since: time.Now().UTC(), Last: true,
	}
	return n.Done(ctx, machine.Fact{
		What: imagecheck.WhatImage, Name: reference,
		Detail: imagecheck.Image{Reference: reference, ImageID: pastImage, Digest: entry.Digest, Pull: imagecheck.Pulled},
		Images: []machine.ImageRecord{entry},
	})
}

func (s *pastStep) execute(ctx context.Context, n machine.Notes) error {
	if err := n.Intent(ctx, machine.Fact{What: run.WhatExecutor, Name: "0"}); err != nil {
		return err
	}
	switch s.end {
	case "dead":
		return &machine.JournalError{Err: errDied} // the one error that leaves a state as it is
	case "canceled":
		s.cancel(machine.ErrCancel)
		return ctx.Err()
	case "interrupted":
		s.cancel(machine.ErrInterrupt)
		return ctx.Err()
	}
	result := run.Result{ExecutorLog: tes.ExecutorLog{Stdout: "hello from " + s.task + "\n", Stderr: "a complaint\n"}}
	if s.end == "executor-error" {
		result.ExitCode, result.Reason = 7, "its command failed"
	}
	if err := n.Done(ctx, machine.Fact{What: run.WhatExecutor, Name: "0", Detail: result}); err != nil {
		return err
	}
	if result.ExitCode != 0 {
		return &machine.ExecutorFailure{ExitCode: result.ExitCode, Reason: result.Reason}
	}
	return nil
}
