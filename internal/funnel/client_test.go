package funnel_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/funnel"
	"github.com/deckhand/deckhand/internal/tes"
	server "github.com/deckhand/deckhand/test/funnel"
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

const document = `{"name": "n", "executors": [{"image": "i", "command": ["true"], "stdout": "/o"}]}`

// one starts a server with task t and returns a client of it.
func one(t *testing.T) (*server.Server, *funnel.Client) {
	t.Helper()
	s := server.New(t)
	s.Submit(t, "t", []byte(document))
	return s, funnel.New(funnel.Server{URL: s.URL, RPC: s.RPC}, funnel.Credentials{}, "test")
}

// Each kind of event arrives at a server that is made of gRPC's and protobuf's own
// libraries, and is found in what it shows.
func TestEvents(t *testing.T) {
	s, c := one(t)
	events := []funnel.Event{
		funnel.State(at, tes.Initializing), funnel.State(at, tes.Running), funnel.Start(at), funnel.End(at.Add(time.Second)),
		funnel.Metadata(at, map[string]string{"a": "1", "b": "x\xff"}), funnel.Metadata(at, map[string]string{"a": "2"}),
		funnel.Outputs(at, []tes.OutputFileLog{{Path: "/o", URL: "file:///p\xfe", SizeBytes: 1 << 40}, {Path: "/q", URL: "s3://b/q"}}),
		funnel.SystemLog(at, "info", "it's", map[string]string{"k": "v"}),
	}
	events = append(events, funnel.Executor(1, tes.ExecutorLog{StartTime: at, EndTime: at, Stdout: "out\xc3", Stderr: strings.Repeat("e", 120_000), ExitCode: 137})...)
	events = append(events, funnel.Executor(0, tes.ExecutorLog{StartTime: at, EndTime: at, ExitCode: -1})...)
	events = append(events, funnel.State(at, tes.ExecutorError))
	for _, e := range events {
		if err := c.Write(t.Context(), "t", e); err != nil {
			t.Fatal(err)
		}
	}
	l := s.Log("t")
	const clock = "2026-01-02T03:04:05.0000006Z"
	if l.StartTime != clock || l.EndTime != "2026-01-02T03:04:06.0000006Z" {
		t.Errorf("the attempt was from %s to %s", l.StartTime, l.EndTime)
	}
	if l.Metadata["a"] != "2" || l.Metadata["b"] != "x\uFFFD" {
		t.Errorf("metadata are %q", l.Metadata)
	}
	if want := []server.OutputLog{{Path: "/o", SizeBytes: "1099511627776", URL: "file:///p\uFFFD"}, {Path: "/q", SizeBytes: "0", URL: "s3://b/q"}}; !slices.Equal(l.Outputs, want) {
		t.Errorf("outputs are %v", l.Outputs)
	}
	if want := []server.ExecutorLog{
		{StartTime: clock, EndTime: clock, ExitCode: -1},
		{StartTime: clock, EndTime: clock, ExitCode: 137, Stdout: "out\uFFFD", Stderr: strings.Repeat("e", 120_000)},
	}; !slices.Equal(l.Logs, want) {
		t.Errorf("executors are %.200v", l.Logs)
	}
	if want := []string{`level='info' msg='it\'s' timestamp='` + clock + `' task_attempt='0' executor_index='0' k='v'`}; !slices.Equal(l.SystemLogs, want) {
		t.Errorf("system logs are %q", l.SystemLogs)
	}
	if want := []string{"QUEUED", "INITIALIZING", "RUNNING", "EXECUTOR_ERROR"}; !slices.Equal(s.States("t"), want) {
		t.Errorf("states were %v", s.States("t"))
	}

	task, err := c.Task(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	if task.State != tes.ExecutorError || task.Metadata["a"] != "2" || !slices.Equal(task.SystemLogs, l.SystemLogs) {
		t.Errorf("the task is %+v", task)
	}
	if d, err := tes.Decode(strings.NewReader(string(task.Document))); err != nil || d.Name != "n" || d.Executors[0].Stdout != "/o" {
		t.Errorf("the document is %+v, %v", d, err)
	}
	if state, err := c.State(t.Context(), "t"); state != tes.ExecutorError || err != nil {
		t.Errorf("the state is %s, %v", state, err)
	}
}

// What a server refuses for good is told apart from what may mend.
func TestErrors(t *testing.T) {
	s, c := one(t)
	s.User, s.Password = "u", "p"
	at := funnel.Server{URL: s.URL, RPC: s.RPC}
	right := funnel.New(at, funnel.Credentials{User: "u", Password: "p"}, "test")
	ask := func(c *funnel.Client, task string, state tes.State) (rest, rpc error) {
		_, rest = c.State(t.Context(), task)
		return rest, c.Write(t.Context(), task, funnel.State(time.Now(), state))
	}
	check := func(what string, rest, rpc, wantRest, wantRPC error) {
		t.Helper()
		if !errors.Is(rest, wantRest) || !errors.Is(rpc, wantRPC) {
			t.Errorf("%s: %v; %v", what, rest, rpc)
		}
	}
	rest, rpc := ask(right, "t", tes.Running)
	check("right password", rest, rpc, nil, nil)
	rest, rpc = ask(right, "t", tes.Initializing)
	check("a state that is refused", rest, rpc, nil, funnel.ErrTransition)
	rest, rpc = ask(right, "other", tes.Running)
	check("unknown task", rest, rpc, funnel.ErrNotFound, funnel.ErrNotFound)
	rest, rpc = ask(c, "t", tes.Running)
	check("no password", rest, rpc, funnel.ErrDenied, funnel.ErrDenied)
	rest, rpc = ask(funnel.New(at, funnel.Credentials{User: "u", Password: "q"}, "test"), "t", tes.Running)
	check("wrong password", rest, rpc, funnel.ErrDenied, funnel.ErrDenied)
	rest, rpc = ask(funnel.New(at, funnel.Credentials{Token: "x"}, "test"), "t", tes.Running)
	check("a token for a password", rest, rpc, funnel.ErrDenied, funnel.ErrDenied)

	passing := func(what string, c *funnel.Client) {
		t.Helper()
		rest, rpc := ask(c, "t", tes.Running)
		for _, err := range []error{rest, rpc} {
			if err == nil || errors.Is(err, funnel.ErrNotFound) || errors.Is(err, funnel.ErrDenied) || errors.Is(err, funnel.ErrTransition) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	passing("ports changed round", funnel.New(funnel.Server{URL: "http://" + s.RPC, RPC: strings.TrimPrefix(s.URL, "http://")}, funnel.Credentials{User: "u", Password: "p"}, "test"))
	s.Lose(1)
	if err := right.Write(t.Context(), "t", funnel.SystemLog(time.Now(), "info", "l", nil)); err == nil || errors.Is(err, funnel.ErrTransition) {
		t.Errorf("an answer that is lost: %v", err)
	}
	s.Leave()
	passing("a server that is away", right)
	s.Return(t)
	rest, rpc = ask(right, "t", tes.Running)
	check("a server that is back", rest, rpc, nil, nil)

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := right.Write(canceled, "t", funnel.Start(time.Now())); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// Every state that is sent is one that the server takes, and the last is the one that
// was wanted, but where nothing leads there.
func TestWay(t *testing.T) {
	all := []tes.State{tes.Queued, tes.Initializing, tes.Running, tes.Complete, tes.ExecutorError, tes.SystemError, tes.Canceled, tes.Canceling, tes.Preempted, tes.Paused}
	for _, from := range all {
		for _, to := range []tes.State{tes.Initializing, tes.Running, tes.Complete, tes.ExecutorError, tes.SystemError, tes.Canceled} {
			state := from
			for _, next := range funnel.Way(from, to) {
				if !server.Accepted(string(state), string(next)) {
					t.Errorf("from %s to %s: %s is refused in %s", from, to, next, state)
				}
				state = next
			}
			ends := slices.Contains([]tes.State{tes.Complete, tes.Canceled, tes.Canceling, tes.Preempted, tes.Paused}, from)
			stays := from == tes.Running && to == tes.Initializing
			if (state == to) == (from != to && (ends || stays)) {
				t.Errorf("from %s to %s: ends in %s", from, to, state)
			}
		}
	}
}
