package run

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// ended is a Docker whose containers have all ended as one did.
type ended struct {
	Engine // what is not here is not to be called
	how    engine.Container
}

func (e ended) Container(context.Context, string) (engine.Container, error) { return e.how, nil }
func (e ended) Wait(context.Context, string) (engine.Exit, error) {
	return engine.Exit{Code: e.how.ExitCode}, nil
}
func (e ended) Log(context.Context, string, io.Writer, io.Writer) error { return nil }
func (e ended) Stop(context.Context, string, time.Duration) error       { return nil }

// Whether an executor overran the task's time is told by when it ended, not by
// when a process looks.
func TestTimeIsOverForTheNextProcess(t *testing.T) {
	began := time.Now().Add(-time.Hour)
	for name, test := range map[string]struct {
		after  time.Duration
		code   int
		failed string // a part of the failure, although errors are ignored
	}{
		"stopped":           {10 * time.Minute, 143, "time limit of 10m0s"},
		"stopped by force":  {11 * time.Minute, 137, "time limit of 10m0s"},
		"ended well after":  {11 * time.Minute, 0, "exit code 143: the time limit of 10m0s"},
		"ended well before": {9 * time.Minute, 0, ""},
		"failed before":     {9 * time.Minute, 143, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, tes.Task{
				Executors: []tes.Executor{{Command: []string{"x"}, IgnoreError: true}},
				Resources: tes.Resources{BackendParameters: map[string]string{"time_limit": "10m"}},
			})
			how := engine.Container{State: engine.Exited, Started: began, Finished: began.Add(test.after), ExitCode: test.code}
			s := &Step{
				Task: f.containers.Task, Engine: ended{how: how}, Containers: f.containers, Tree: f.containers.Tree,
				Meter: new(progress.Meter), Log: slog.New(slog.DiscardHandler),
			}
			err := s.Do(t.Context(), f.task, f.notes)
			var failure *machine.ExecutorFailure
			switch {
			case test.failed == "" && err != nil:
				t.Errorf("it has failed: %v", err)
			case test.failed != "" && (!errors.As(err, &failure) || !strings.Contains(failure.Error(), test.failed)):
				t.Errorf("got %v, want a failure for the %s", err, test.failed)
			}
		})
	}
}
