package system

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// gate stands in the way of whoever passes it, until it is opened.
type gate struct {
	reached, opened chan struct{}
	reach, open     sync.Once
}

func newGate() *gate { return &gate{reached: make(chan struct{}), opened: make(chan struct{})} }

// pass waits for the gate to open; false when ctx ended first.
func (g *gate) pass(ctx context.Context) bool {
	g.reach.Do(func() { close(g.reached) })
	select {
	case <-g.opened:
		return true
	case <-ctx.Done():
		return false
	}
}

func (g *gate) unlock() { g.open.Do(func() { close(g.opened) }) }

// stuck is a task whose run stands still in one state until it is released.
// Whatever the state, it has one input, one executor that notes that it ran,
// and three outputs: two on the node, one on a server.
type stuck struct {
	*World
	state string
	task  tes.Task
	args  []string // of a run that is to get stuck
	gate  *gate    // of a state that waits for a server
	old   string   // a container that an earlier task left

	mu        sync.Mutex
	published []byte // what the server has of the third output
	puts      int    // how often it was sent whole
	gets      int    // how often the input was asked for
}

// stuckStates are those in which a run can be made to stand still.
var stuckStates = []string{"Scrub", "ImageCheck", "Download", "Run", "Upload"}

// payload is the input's content: many packets, so that it can come in part.
var payload = bytes.Repeat([]byte("0123456789abcde\n"), 1<<14)

// newStuck makes a world and the task that gets stuck in state. A trap is what
// the executor does first, such as a shell trap for SIGTERM, which is then given
// all the time that it takes: without one its shell ignores a SIGTERM.
func newStuck(t *testing.T, state, trap string) *stuck {
	t.Helper()
	return newStuckIn(t, NewWorld(t), state, trap)
}

func newStuckIn(t *testing.T, w *World, state, trap string) *stuck {
	t.Helper()
	s := &stuck{World: logged(w), state: state, gate: newGate()}
	if trap != "" {
		s.Env = append(s.Env, "DECKHAND_RUN_STOP_GRACE=10m")
	}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		s.gate.unlock()
		server.CloseClientConnections()
		server.Close()
	})
	image := s.Image(t, "stuck", rig.Spec{Volumes: []string{"/scratch"}})
	mode := "go"
	if state == "Run" {
		mode = "wait"
	}
	s.task = tes.Task{
		ID: "stuck-in-" + state,
		Inputs: []tes.Input{
			{URL: server.URL + "/input", Path: "/in/file"},
			{URL: s.Write(t, "mode", mode), Path: "/in/mode"},
		},
		Executors: []tes.Executor{Sh(image.Digest, cmp.Or(trap, "trap '' TERM")+`
			echo ran >> /data/ran
			until [ -e /data/go ] || grep -q go /in/mode; do sleep 0.1; done
			cp /in/file /data/copy`)},
		Outputs: []tes.Output{
			{Path: "/data/ran", URL: filepath.Join(s.Dir, "out/ran")},
			{Path: "/data/copy", URL: filepath.Join(s.Dir, "out/copy")},
			{Path: "/data/copy", URL: server.URL + "/output"},
		},
		Volumes: []string{"/data"},
	}
	switch state {
	case "Scrub":
		// A container that takes its time to stop, and a directory.
		s.args = []string{"--stop-grace", "10m"}
		if r := s.Deckhand(t, "scrub"); r.Code != 0 {
			t.Fatalf("scrub: %+v", r)
		}
		left := s.Image(t, "left", rig.Spec{Marker: "left"})
		s.old = s.Docker(t, "run", "--detach", "--label", "deckhand.root="+s.RootID(t), "--label", "deckhand.task=left",
			"--network=none", left.Digest, "sleep", "1h")
		if err := os.MkdirAll(filepath.Join(s.Root, "tasks/left/1/dirs/0/a/b/c"), 0o700); err != nil {
			t.Fatal(err)
		}
	case "ImageCheck":
		s.Registry.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
			return !s.gate.pass(r.Context())
		})
	}
	return s
}

// ServeHTTP serves the input and takes the output. A request that comes while
// the gate is closed and the state is its own comes to a half and never further.
func (s *stuck) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	half := len(payload) / 2
	if r.Method == http.MethodGet {
		s.mu.Lock()
		s.gets++
		s.mu.Unlock()
	}
	open := false
	select {
	case <-s.gate.opened:
		open = true
	default:
	}
	switch {
	case r.Method == http.MethodGet && s.state == "Download" && !open:
		w.Header().Set("Content-Length", fmt.Sprint(len(payload)))
		_, _ = w.Write(payload[:half]) // the client may be killed at any time
		w.(http.Flusher).Flush()
		s.gate.pass(r.Context())
		panic(http.ErrAbortHandler) // never the rest
	case r.Method == http.MethodGet:
		http.ServeContent(w, r, "input", time.Time{}, bytes.NewReader(payload))
	case r.Method == http.MethodPut && s.state == "Upload" && !open:
		_, _ = io.CopyN(io.Discard, r.Body, int64(half))
		s.gate.pass(r.Context())
		panic(http.ErrAbortHandler)
	case r.Method == http.MethodPut:
		var body bytes.Buffer
		if _, err := io.Copy(&body, r.Body); err != nil || int64(body.Len()) != r.ContentLength {
			panic(http.ErrAbortHandler)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.published = body.Bytes()
		s.puts++
	default:
		http.Error(w, "no", http.StatusMethodNotAllowed)
	}
}

// asked counts the requests for the input.
func (s *stuck) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gets
}

// begin starts a run and returns when it stands still.
func (s *stuck) begin(t *testing.T, args ...string) *Background {
	t.Helper()
	b := s.Start(t, s.task, append(args, s.args...)...)
	s.still(t, b)
	if s.state == "Run" {
		// The executor may be ahead of what Docker knows.
		eventually(t, "Docker to list the container", func() bool { return len(s.running(t)) > 0 })
	}
	return b
}

// still waits until a run stands still in the state.
func (s *stuck) still(t *testing.T, b *Background) {
	t.Helper()
	b.entered(t, s.state)
	switch s.state {
	case "Scrub": // the old container takes its time from the beginning
	case "Run":
		eventually(t, "the executor to note that it ran", func() bool { return s.noted() == "ran\n" })
	default:
		<-s.gate.reached
	}
}

// inTree returns the path on the node of a file of the task's volume, "" when
// it is not there.
func (s *stuck) inTree(name string) string {
	found, _ := filepath.Glob(filepath.Join(s.Root, "tasks/*/*/dirs/*", name)) // the pattern is well-formed
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

// noted is what the executor has written down, as far as that is on the node.
func (s *stuck) noted() string {
	text, err := os.ReadFile(s.inTree("ran"))
	if err != nil {
		return ""
	}
	return string(text)
}

// release lets every run go on.
func (s *stuck) release(t *testing.T) {
	t.Helper()
	s.gate.unlock()
	s.goOn(t)
	if ran := s.inTree("ran"); ran != "" {
		if err := os.WriteFile(filepath.Join(filepath.Dir(ran), "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if s.old != "" {
		s.Docker(t, "kill", s.old)
		s.old = ""
	}
}

// goOn has every attempt from here on not wait. Its file changes at once: a run may
// be copying it.
func (s *stuck) goOn(t *testing.T) {
	t.Helper()
	must(t, os.Rename(s.Write(t, "mode.new", "go"), filepath.Join(s.Dir, "mode")))
}

// whole checks all that a run which ended Complete leaves.
func (s *stuck) whole(t *testing.T) {
	t.Helper()
	if got := s.Read(t, "out/ran"); got != "ran\n" {
		t.Errorf("the executor ran %d times in the published attempt: %q", strings.Count(got, "ran"), got)
	}
	if s.Read(t, "out/copy") != string(payload) {
		t.Error("the published copy is not the input")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(s.published, payload) || s.puts != 1 {
		t.Errorf("the server has %d bytes, sent whole %d times, want %d bytes once", len(s.published), s.puts, len(payload))
	}
	s.tidy(t)
	s.Clean(t)
}

// tidy checks that nothing unfinished lies where outputs go.
func (w *World) tidy(t *testing.T) {
	t.Helper()
	hidden, _ := filepath.Glob(filepath.Join(w.Dir, "out/.*")) // the pattern is well-formed
	if len(hidden) > 0 {
		t.Errorf("unfinished outputs are left: %v", hidden)
	}
}

// logged has a world's runs log JSON, which entered reads.
func logged(w *World) *World {
	w.Env = append(w.Env, "DECKHAND_LOG_FORMAT=json")
	return w
}

// entered reads the log of a run until it has entered a state.
func (b *Background) entered(t *testing.T, state string) {
	t.Helper()
	b.Until(t, `"state":"`+state+`"`)
}

// passed reads the log of a run until a line holds text; false when the run
// ended without it.
func (b *Background) passed(text string) bool {
	for line := range b.lines {
		b.log.WriteString(line + "\n")
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// Kill ends a run as a crash does.
func (b *Background) Kill(t testing.TB) {
	t.Helper()
	b.signal(t, unix.SIGKILL)
	b.End(t)
}

func (b *Background) signal(t testing.TB, s unix.Signal) {
	t.Helper()
	if err := b.Process.Signal(s); err != nil {
		t.Fatalf("cannot send %v: %v\n%s", s, err, b.log.String())
	}
}

// ends waits for the end of a run, which is to have an exit code, and returns its log.
func (b *Background) ends(t *testing.T, code int) string {
	t.Helper()
	got, log := b.End(t)
	if got != code {
		t.Fatalf("exit code is %d, want %d\n%s", got, code, log)
	}
	return log
}

// eventually waits for a condition, and fails the test when it never comes.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// taskStatus is what status --json prints.
type taskStatus struct {
	Task    string `json:"task"`
	State   string `json:"state"`
	Attempt int    `json:"attempt"`
	Running bool   `json:"running"`
	Owner   *struct {
		PID    int    `json:"pid"`
		BootID string `json:"boot_id"`
	} `json:"owner"`
	Next        string `json:"next"`
	Reason      string `json:"reason"`
	ResultState string `json:"result_state"`
}

// Status asks for a task's status, which is to exit with a code.
func (w *World) Status(t *testing.T, code int, task string) (s taskStatus) {
	t.Helper()
	r := w.Deckhand(t, "status", task, "--json")
	if r.Code != code {
		t.Fatalf("status of %s: exit code is %d, want %d: %s%s", task, r.Code, code, r.Stdout, r.Stderr)
	}
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		t.Fatalf("status of %s: %v\n%s%s", task, err, r.Stdout, r.Stderr)
	}
	return s
}

// running lists the task's containers that run.
func (w *World) running(t testing.TB) []string {
	t.Helper()
	return w.objects(t, "ps", "--no-trunc", "--format", "{{.ID}}")
}

const (
	working  = "Accepted Scrub ImageCheck Download Run Upload"
	complete = working + " Complete"
)

// upTo is the path of an attempt that came as far as a state.
func upTo(state string) string {
	before, _, _ := strings.Cut(working+" ", state+" ")
	return before + state
}
