package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// gateEngine has one container that runs in no namespace of this machine, and
// runs helpers, which end with a code.
type gateEngine struct {
	Engine  // what is not here is not to be called
	state   engine.State
	network string // empty is one of its own
	code    int
	silent  bool // Docker does not answer when a helper is to be made
	left    bool // a helper of an earlier process is there

	made    []engine.Spec
	removed int
	stopped []string
}

func (e *gateEngine) Container(context.Context, string) (engine.Container, error) {
	return engine.Container{ID: "0123456789abcdef", Name: "c", ImageID: "sha256:i", State: e.state, PID: os.Getpid(), Network: e.network}, nil
}

func (e *gateEngine) Create(_ context.Context, s engine.Spec) (string, error) {
	switch {
	case e.silent:
		return "", machine.Faultf(machine.EngineFault, "silence")
	case e.left:
		return "", engine.ErrExists
	}
	e.made, e.left = append(e.made, s), true
	return "h", nil
}

func (e *gateEngine) WaitNext(context.Context, string) (<-chan engine.Exit, error) {
	exits := make(chan engine.Exit, 1)
	exits <- engine.Exit{Code: e.code}
	return exits, nil
}

func (e *gateEngine) Start(context.Context, string) error { return nil }

func (e *gateEngine) Log(_ context.Context, _ string, _, stderr io.Writer) error {
	_, err := io.WriteString(stderr, "not permitted\n")
	return err
}

func (e *gateEngine) Stop(_ context.Context, id string, _ time.Duration) error {
	e.stopped = append(e.stopped, id)
	return nil
}

func (e *gateEngine) Remove(context.Context, string) error {
	e.removed++
	e.left = false
	return nil
}

// Where the addresses cannot be closed the command does not begin, or begins with
// a warning, as the policy has it.
func TestGate(t *testing.T) {
	for name, test := range map[string]struct {
		engine gateEngine
		off    bool // nothing is to be closed
		warn   bool
		open   bool // the command begins
		fault  machine.Fault
		warns  bool
		helped int    // helpers that ran
		says   string // the error
	}{
		"closed":                       {engine: gateEngine{}, open: true, helped: 1},
		"one was left":                 {engine: gateEngine{left: true}, open: true, helped: 1},
		"refused":                      {engine: gateEngine{code: 1}, fault: machine.NodeFault, says: "not permitted", helped: 1},
		"refused, warn":                {engine: gateEngine{code: 1}, warn: true, open: true, warns: true, helped: 1},
		"silence":                      {engine: gateEngine{silent: true}, fault: machine.EngineFault},
		"silence, warn":                {engine: gateEngine{silent: true}, warn: true, fault: machine.EngineFault},
		"the node's own network":       {engine: gateEngine{network: "host"}, fault: machine.NodeFault, says: "\"host\""},
		"the node's own network, warn": {engine: gateEngine{network: "host"}, warn: true, open: true, warns: true},
		"another container's network":  {engine: gateEngine{network: "container:1"}, fault: machine.NodeFault, says: "\"container:1\""},
		"off":                          {engine: gateEngine{silent: true}, off: true, open: true},
		"paused":                       {engine: gateEngine{state: engine.Paused}, open: true, helped: 1},
		"it has ended":                 {engine: gateEngine{state: engine.Exited}},
		"it was never run":             {engine: gateEngine{state: engine.Created}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, tes.Task{Executors: []tes.Executor{{}, {}}})
			e := &test.engine
			if e.state == "" {
				e.state = engine.Running
			}
			if !test.off {
				f.containers.Hardening.Block = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("fd00::1/128")}
			}
			f.containers.Hardening.BlockOrWarn = test.warn
			tree := f.containers.Tree(2, f.notes)
			if err := closeGate(tree.Gate(1)); err != nil {
				t.Fatal(err)
			}
			s := &Step{Engine: e, Containers: f.containers, Tree: f.containers.Tree, Log: slog.New(slog.DiscardHandler)}
			for range 2 { // again does no more than is left to do
				err := s.openGate(t.Context(), f.task, f.notes, 1, tree)
				if (err != nil) != (test.fault != "") || err != nil && machine.FaultOf(err) != test.fault {
					t.Errorf("the error is %v, want a fault of %q", err, test.fault)
				}
				if test.fault == machine.NodeFault && (!strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "run.block_failure")) {
					t.Errorf("the error is %v", err)
				}
			}
			_, err := os.Stat(tree.Gate(1))
			if open := err == nil; open != test.open {
				t.Errorf("the gate is open: %t, want %t", open, test.open)
			}
			if _, err := os.Stat(tree.Gate(0)); err == nil {
				t.Error("another executor's gate is open")
			}
			if warned := len(f.notes.All(machine.WhatWarning)) > 0; warned != test.warns {
				t.Errorf("warned: %t, want %t", warned, test.warns)
			}
			helped := test.helped
			if !test.open {
				helped *= 2
			}
			if len(e.made) != helped || helped > 0 && e.left {
				t.Errorf("%d helpers were made, want %d; one is left: %t", len(e.made), helped, e.left)
			}
			for _, s := range e.made {
				// In the image's own root, which nothing of the image's can hide.
				if len(s.Entrypoint) != 1 || filepath.Dir(s.Entrypoint[0]) != "/" || s.Workdir != "/" || s.Entrypoint[0] != s.Mounts[0].Target {
					t.Errorf("a helper runs %q in %q", s.Entrypoint, s.Workdir)
				}
				want := []string{BlockCommand, "192.0.2.0/24", "fd00::1/128"}
				if !slices.Equal(s.Command, want) || s.Network != "container:0123456789abcdef" || fmt.Sprint(s.CapAdd, s.CapDrop) != "[NET_ADMIN] [ALL]" {
					t.Errorf("a helper is %+v", s)
				}
				if _, announced := f.notes.Get(whatHelper, s.Name); !announced || s.Labels[engine.LabelRoot] != "r" {
					t.Errorf("helper %s was not announced, or is not labelled: %v", s.Name, s.Labels)
				}
			}
		})
	}
}

// A container without a gate is not started where commands have to wait for one.
func TestCheckGate(t *testing.T) {
	f := newFixture(t, tes.Task{Executors: []tes.Executor{{}}})
	s, tree := &Step{Containers: f.containers}, f.containers.Tree(2, f.notes)
	without := engine.Container{Binds: []engine.Mount{{Source: "/elsewhere"}}}
	with := engine.Container{Binds: append(without.Binds, engine.Mount{Source: filepath.Dir(tree.Gate(0))})}
	if err := errors.Join(s.checkGate(tree, 0, without), s.checkGate(tree, 0, with)); err != nil {
		t.Errorf("without addresses to close: %v", err)
	}
	f.containers.Hardening.Block = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	if err := s.checkGate(tree, 0, with); err != nil {
		t.Error(err)
	}
	if err := s.checkGate(tree, 0, without); !errors.Is(err, machine.ErrLost) {
		t.Errorf("without a gate: %v", err)
	}
}

// A command that is stopped while its gate is closed does not begin. Once it is
// open the command does, whatever signal came before, and is handed that.
func TestWaitIsStopped(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	signals := make(chan os.Signal, 2)
	signals <- unix.SIGCHLD
	signals <- unix.SIGQUIT // an image's own STOPSIGNAL
	if early, err := wait(gate, signals); !errors.Is(err, errStopped) || early != nil || len(signals) > 0 {
		t.Errorf("at the closed gate a signal gives %v and %v", early, err)
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	signals <- unix.SIGTERM
	if early, err := wait(gate, signals); err != nil || early != nil || len(signals) != 1 {
		t.Errorf("at the open gate a signal gives %v and %v, and %d are left", early, err, len(signals))
	}
}

// A helper that a dead process has left is stopped by the roll-back: Docker does
// not remove a container that runs.
func TestUndoStopsHelpers(t *testing.T) {
	f := newFixture(t, tes.Task{Executors: []tes.Executor{{}}})
	e := &gateEngine{}
	s := &Step{Engine: e, Containers: f.containers, Tree: f.containers.Tree, Log: slog.New(slog.DiscardHandler)}
	for name, done := range map[string]bool{"left": false, "ended": true} {
		fact := machine.Fact{What: whatHelper, Name: name}
		if err := f.notes.Intent(t.Context(), fact); err != nil {
			t.Fatal(err)
		}
		if done {
			if err := f.notes.Done(t.Context(), fact); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Undo(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(e.stopped, []string{"left"}) {
		t.Errorf("stopped are %q", e.stopped)
	}
}

// Nothing else than an address gets to the kernel.
func TestExecBlockRefusesNames(t *testing.T) {
	if err := ExecBlock([]string{"metadata"}); err == nil || errors.Is(err, os.ErrPermission) {
		t.Errorf("%v", err)
	}
}
