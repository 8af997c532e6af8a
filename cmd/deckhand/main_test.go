package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/deckhand/deckhand/steps/run"
)

// The test binary is deckhand too, for scripts and for exec.Command("deckhand").
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == run.StdioCommand { // in a container
		os.Exit(deckhand(anyhow))
	}
	testscript.Main(m, map[string]func(){
		"deckhand": func() { os.Exit(deckhand(anyhow)) },
		"history":  func() { os.Exit(history()) },
		"holder":   func() { os.Exit(holder()) },
	})
}

// anyhow lets the binary of these tests be: no container runs it.
func anyhow() error { return nil }

func TestScripts(t *testing.T) {
	server := documentServer(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, append(settings(e.WorkDir), "SERVER="+server)...)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// settings are those of a node without Docker whose root is dir/root, and
// nothing of the tester's own.
func settings(dir string) []string {
	return []string{
		"HOME=" + dir, "XDG_CONFIG_HOME=" + dir + "/config", "TZ=UTC",
		"DECKHAND_ROOT=" + dir + "/root", "DECKHAND_DOCKER_HOST=unix://" + dir + "/no-docker.sock", "DECKHAND_ENGINE_WAIT=0",
	}
}

// exits CODE COMMAND... runs a command that is to end with that code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("it exits %d, want %d", got, want)
	}
}

// smallTask is a valid document.
const smallTask = `{"executors":[{"image":"alpine","command":["true"]}]}`

// documentServer serves task documents, well or badly, and returns its address.
func documentServer(t *testing.T) string {
	mux := http.NewServeMux()
	mux.HandleFunc("/task.json", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(smallTask)) // the client tells
	})
	mux.HandleFunc("/failing", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	})
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTooManyRequests)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}
