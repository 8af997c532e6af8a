package run

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// created has one container that was never started, as it says.
type created struct {
	Engine    // what is not here is not to be called
	restarted bool
	started   int
}

func (c *created) Container(context.Context, string) (engine.Container, error) {
	return engine.Container{ID: "id", State: engine.Created}, nil
}

func (c *created) Restarted(context.Context, string, time.Time) (bool, error) {
	return c.restarted, nil
}

func (c *created) WaitNext(context.Context, string) (<-chan engine.Exit, error) { return nil, nil }

func (c *created) Start(context.Context, string) error {
	c.started++
	return errStarted
}

var errStarted = errors.New("started")

// A container that a dead process was about to start is started, unless the
// daemon that was to start it is dead too: nobody knows then whether it ran.
func TestStartOfAnEarlierProcess(t *testing.T) {
	for _, test := range []struct {
		name             string
		begun, restarted bool
		want             error
	}{
		{"the first process", false, false, errStarted},
		{"the first process, Docker restarted", false, true, errStarted},
		{"a later process", true, false, errStarted},
		{"a later process, Docker restarted", true, true, machine.ErrLost},
	} {
		doc := tes.Task{ID: "a/b", Executors: []tes.Executor{{Image: "x", Command: []string{"x"}}}}
		f := newFixture(t, doc)
		e := &created{restarted: test.restarted}
		s := &Step{
			Task: &doc, Engine: e, Containers: f.containers, Tree: f.containers.Tree,
			Meter: new(progress.Meter), Log: slog.New(slog.DiscardHandler),
		}
		if test.begun {
			if err := f.notes.Intent(t.Context(), machine.Fact{What: WhatExecutor, Name: "0"}); err != nil {
				t.Fatal(err)
			}
		}
		err := s.Do(t.Context(), f.task, f.notes)
		started := 0
		if errors.Is(test.want, errStarted) {
			started = 1
		}
		if !errors.Is(err, test.want) || e.started != started {
			t.Errorf("%s: %v after %d starts, want %v", test.name, err, e.started, test.want)
		}
	}
}

// What ran out of memory is told as that, and what was killed as that.
func TestReasons(t *testing.T) {
	for _, test := range []struct {
		ram    float64
		code   int
		oom    bool
		failed string
		want   string
	}{
		{1, 0, false, "", ""},
		{1, 126, false, "cannot start x", "cannot start x"},
		{1, 74, false, "cannot keep the output of x: no space", "cannot keep the output of x: no space; it is kept on the disk of /dir"},
		{1, 1, false, "what a task has put there", "its command failed"},
		{1, 0, false, "cannot start what ran", ""},
		{1, 1, false, "", "its command failed"},
		{1, 137, true, "", "out of memory: it used more than resources.ram_gb allows"},
		{0, 1, true, "", "out of memory: it used more than this node gives it; ask for more with resources.ram_gb"},
		{1, 0, true, "", "out of memory: one of its processes was killed, because they used more than resources.ram_gb allows"},
		{1, 137, false, "", "its command was killed (SIGKILL), most likely because it ran out of memory: it may use no more than resources.ram_gb allows"},
		{0, 137, false, "", "its command was killed (SIGKILL), as the kernel does when the node's memory runs out, or by somebody else"},
	} {
		s := &Step{Task: &tes.Task{Resources: tes.Resources{RAMGB: test.ram}}}
		if got := s.reason(engine.Container{OOMKilled: test.oom, ExitCode: test.code}, test.failed, "/dir"); got != test.want {
			t.Errorf("%+v gives %q", test, got)
		}
	}
	// Below the group of a job it may be the job's limit.
	job := engine.Container{OOMKilled: true, ExitCode: 137, Labels: map[string]string{engine.LabelCgroup: "/job"}, CgroupParent: "/job"}
	for ram, want := range map[float64]string{
		0: "out of memory: it used more than its job or this node allows", 1: "out of memory: it used more than resources.ram_gb or its job allows",
	} {
		s := &Step{Task: &tes.Task{Resources: tes.Resources{RAMGB: ram}}}
		if got := s.reason(job, "", "/dir"); got != want {
			t.Errorf("with %v GB and a job: %q", ram, got)
		}
	}
}
