package system

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// On a terminal one line shows how far the task is, and goes when it has
// ended; elsewhere there are lines, for people or for machines.
func TestScreen(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	// Slow enough that each phase is drawn.
	w.Env = append(w.Env, "DECKHAND_TRANSFER_BANDWIDTH=2MiB")
	const size = 4 << 20
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPut {
			_, _ = io.Copy(io.Discard, req.Body) // the client tells
			return
		}
		rw.Header().Set("Content-Length", strconv.Itoa(size))
		_, _ = rw.Write(make([]byte, size))
	}))
	defer server.Close()
	task := func(id, tag string) tes.Task {
		return tes.Task{
			ID:        id,
			Inputs:    []tes.Input{{URL: server.URL + "/in", Path: "/data/in"}},
			Outputs:   []tes.Output{{URL: server.URL + "/out", Path: "/data/out"}},
			Executors: []tes.Executor{Sh(tag, "cp /data/in /data/out; sleep 1")},
		}
	}
	large := w.Image(t, "a", rig.Spec{Marker: "drawn", Size: 48 << 20}).Tag
	small := w.Image(t, "b", rig.Spec{Marker: "plain"}).Tag

	drawn, code := w.onTerminal(t, "run", w.Save(t, task("drawn", large)))
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, drawn)
	}
	const draw = `\r\x1b\[Kdrawn `
	for _, line := range []string{
		`ImageCheck pull ` + regexp.QuoteMeta(large) + `, [0-9.]+[KM]iB of [0-9.]+MiB, ([0-9.]+[KM]iB/s, )?[0-9]+s`,
		`Download inputs, 0 of 1 files, [0-9.]+[KM]iB of 4MiB, [0-9.]+[KM]iB/s, [0-9]+s`,
		`Run executor 1 of 1, [0-9]+s`,
		`Upload outputs, 0 of 1 files, [0-9.]+[KM]iB of 4MiB, [0-9.]+[KM]iB/s, [0-9]+s`,
	} {
		if !regexp.MustCompile(draw + line).MatchString(drawn) {
			t.Errorf("nothing on the terminal matches %q", line)
		}
	}
	if t.Failed() {
		t.Logf("%q", drawn)
	}
	rest := drawn[strings.LastIndex(drawn, "\x1b[K")+len("\x1b[K"):]
	if rest != "" && !strings.HasSuffix(rest, "\n") {
		t.Errorf("the status line is left on the terminal: %q", rest)
	}
	if lines := regexp.MustCompile(`(?m)^(?:.*\x1b\[K)?\d\d:\d\d:\d\d drawn Complete \(Upload took .*, .* in all\)\r?$`); !lines.MatchString(drawn) {
		t.Errorf("the end is not told:\n%q", drawn)
	}

	for i, env := range []string{"NO_COLOR=1", "TERM=dumb"} {
		id := []string{"colourless", "dumb"}[i]
		before := w.Env
		w.Env = slices.Concat(before, []string{env, "DECKHAND_TRANSFER_BANDWIDTH=none"})
		plain, code := w.onTerminal(t, "run", w.Save(t, task(id, small)))
		w.Env = before
		if code != 0 || strings.Contains(plain, "\x1b") || !strings.Contains(plain, id+" Upload (Run took ") {
			t.Errorf("%s: exit code %d\n%q", env, code, plain)
		}
	}

	w.Env = append(w.Env, "DECKHAND_TRANSFER_BANDWIDTH=none")
	piped := w.MustRun(t, 0, task("piped", small)).Stderr
	for _, state := range []string{"Accepted", "Scrub", `ImageCheck \(Scrub took .*\)`, `Run \(Download took .*\)`, `Complete \(Upload took .*\)`} {
		if !regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d piped ` + state + `$`).MatchString(piped) {
			t.Errorf("no line tells of %s:\n%s", state, piped)
		}
	}
	if strings.ContainsAny(piped, "\x1b\r") {
		t.Errorf("control characters without a terminal:\n%q", piped)
	}

	states := ""
	machines := w.MustRun(t, 0, task("machines", small), "--log-format", "json", "--progress", "plain").Stderr
	for _, line := range strings.Split(strings.TrimSpace(machines), "\n") {
		var record struct{ Time, Level, Msg, Task, State string }
		if err := json.Unmarshal([]byte(line), &record); err != nil || record.Time == "" || record.Level == "" {
			t.Errorf("%v: %s", err, line)
		}
		if record.Msg == "entered" && record.Task == "machines" {
			states += " " + record.State
		}
	}
	if states != " Accepted Scrub ImageCheck Download Run Upload Complete" {
		t.Errorf("states in JSON:%s", states)
	}
}

// onTerminal runs the program on a terminal of its own and returns what came
// there, and the exit code.
func (w *World) onTerminal(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := w.terminal(t, args...)
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// terminal is a command that runs the program on a terminal of its own, and says on
// standard output what comes there.
func (w *World) terminal(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	script, err := exec.LookPath("script")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("this machine has no script (apt-get install bsdutils)")
	}
	deckhand := w.Command(t, args...)
	cmd := exec.Command(script, "--quiet", "--return", "--flush", "--command",
		"stty cols 200; exec '"+strings.Join(deckhand.Args, "' '")+"'", "/dev/null")
	// The first of several wins in a shell.
	cmd.Env, cmd.Dir = append([]string{"TERM=xterm"}, deckhand.Env...), deckhand.Dir
	return cmd
}
