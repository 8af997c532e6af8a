package system

import (
	"bufio"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/tes/conformance"
	"github.com/deckhand/deckhand/test/rig"
)

// World is a node with a real engine and a registry of its own.
type World struct {
	*Node
	Registry *rig.Registry
	Dir      string // for inputs and outputs
	// Docker runs the docker command line against the node's engine.
	Docker func(tb rig.TB, args ...string) string
}

// NewWorld makes an empty node on the shared engine. When the test ends, it
// fails if the engine holds anything that this node has left.
func NewWorld(t testing.TB) *World {
	t.Helper()
	return newWorld(t, rig.Docker(t), rig.DockerCmd)
}

// NewWorldOn makes an empty node on an engine of the test's own.
func NewWorldOn(t testing.TB, d *rig.Daemon) *World {
	t.Helper()
	return newWorld(t, d.Host, d.Cmd)
}

func newWorld(t testing.TB, host string, docker func(rig.TB, ...string) string) *World {
	t.Helper()
	w := &World{Node: NewNode(t, host), Registry: rig.NewRegistry(t), Dir: t.TempDir(), Docker: docker}
	t.Cleanup(func() {
		// The last image stays by design; the registry's end removes it.
		w.Deckhand(t, "recover")
		w.Deckhand(t, "scrub")
	})
	return w
}

// Image pushes an image and returns its tag; see rig.Image.
func (w *World) Image(t testing.TB, name string, spec rig.Spec) rig.Ref {
	t.Helper()
	return rig.Image(t, w.Registry, name, spec)
}

// Write makes a file below the world's directory and returns its path.
func (w *World) Write(t testing.TB, name, content string) string {
	t.Helper()
	p := filepath.Join(w.Dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// Read returns the content of a file below the world's directory.
func (w *World) Read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Save writes a task document and returns its path.
func (w *World) Save(t testing.TB, task tes.Task) string {
	t.Helper()
	b, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	// Whole at once: a run may be reading it.
	name := w.Write(t, "documents/"+tes.EncodeID(task.ID)+".new", string(b))
	document := strings.TrimSuffix(name, "new") + "json"
	if err := os.Rename(name, document); err != nil {
		t.Fatal(err)
	}
	return document
}

// Sh is an executor that runs a shell script.
func Sh(image, script string) tes.Executor {
	return tes.Executor{Image: image, Command: []string{"sh", "-c", script}}
}

// Outcome is how a run of a task ended.
type Outcome struct {
	Result
	Task tes.Task // the result document; empty when none was written
}

// Log is the account of the newest attempt.
func (o Outcome) Log(t testing.TB) tes.TaskLog {
	t.Helper()
	if len(o.Task.Logs) == 0 {
		t.Fatalf("the result has no task log:\n%s", o.Stderr)
	}
	return o.Task.Logs[len(o.Task.Logs)-1]
}

// Run runs a task to its end and reads its result.
func (w *World) Run(t testing.TB, task tes.Task, args ...string) Outcome {
	t.Helper()
	result := filepath.Join(t.TempDir(), "result.json")
	o := Outcome{Result: w.Deckhand(t, append([]string{"run", w.Save(t, task), "--result", result}, args...)...)}
	if b, err := os.ReadFile(result); err == nil {
		if err := json.Unmarshal(b, &o.Task); err != nil {
			t.Fatalf("result: %v\n%s", err, b)
		}
		// TES 1.1 has whole cores; clients that send others get them back.
		if cores := task.Resources.CPUCores; cores == math.Trunc(cores) {
			if err := conformance.Check(b); err != nil {
				t.Errorf("the result is not what TES says: %v\n%s", err, b)
			}
		}
	}
	return o
}

// MustRun is Run for a task that is to end with an exit code.
func (w *World) MustRun(t testing.TB, code int, task tes.Task, args ...string) Outcome {
	t.Helper()
	o := w.Run(t, task, args...)
	if o.Code != code {
		t.Fatalf("exit code is %d, want %d\n%s", o.Code, code, o.Stderr)
	}
	return o
}

// Background is a run of the program that a test watches and stops.
type Background struct {
	*exec.Cmd
	lines chan string
	log   strings.Builder
}

// Start begins a run of a task in the background.
func (w *World) Start(t testing.TB, task tes.Task, args ...string) *Background {
	t.Helper()
	b := w.prepare(t, task, args...)
	b.start(t)
	return b
}

// prepare is Start without the start.
func (w *World) prepare(t testing.TB, task tes.Task, args ...string) *Background {
	t.Helper()
	return &Background{Cmd: w.Command(t, append([]string{"run", w.Save(t, task)}, args...)...), lines: make(chan string, 10_000)}
}

func (b *Background) start(t testing.TB) {
	t.Helper()
	stderr, err := b.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(b.lines)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			b.lines <- s.Text()
		}
	}()
	t.Cleanup(func() { _ = b.Process.Kill() }) // gone already, in a test that passes
}

// Until reads the log of a run until a line holds text.
func (b *Background) Until(t testing.TB, text string) {
	t.Helper()
	for line := range b.lines {
		b.log.WriteString(line + "\n")
		if strings.Contains(line, text) {
			return
		}
	}
	t.Fatalf("the run ended without %q:\n%s", text, b.log.String())
}

// hang is how long a run may take to end before it counts as one that never does.
const hang = 5 * time.Minute

// End waits for the end of a run and returns its exit code and log. A run that
// hangs is made to tell what it does, and ends with exit code 2.
func (b *Background) End(t testing.TB) (int, string) {
	t.Helper()
	hung := time.AfterFunc(hang, func() { _ = b.Process.Signal(unix.SIGQUIT) }) // it may just have ended
	defer hung.Stop()
	for line := range b.lines {
		b.log.WriteString(line + "\n")
	}
	err := b.Wait()
	if b.ProcessState == nil {
		t.Fatal(err)
	}
	return b.ProcessState.ExitCode(), b.log.String()
}

// Records are the journal's records of a task.
func (w *World) Records(t *testing.T, task string) []Record {
	t.Helper()
	r := w.Deckhand(t, "journal", "inspect", task, "--json")
	if r.Code != 0 {
		t.Fatalf("journal inspect: %+v", r)
	}
	var records []Record
	for _, line := range strings.Split(strings.TrimSpace(r.Stdout), "\n") {
		var rec Record
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatalf("journal inspect: %v: %s", err, line)
		}
		records = append(records, rec)
	}
	return records
}

// Record is a line of journal inspect --json, as the outside may rely on it.
type Record struct {
	Task    string         `json:"task"`
	Attempt int            `json:"attempt"`
	Seq     int            `json:"seq"`
	Kind    string         `json:"kind"`
	From    string         `json:"from"`
	Event   string         `json:"event"`
	To      string         `json:"to"`
	Time    time.Time      `json:"time"`
	BootID  string         `json:"boot_id"`
	Reason  string         `json:"reason"`
	Detail  map[string]any `json:"detail"`
}

// Path is the states that a task went through.
func (w *World) Path(t *testing.T, task string) string {
	t.Helper()
	var states []string
	for _, r := range w.Records(t, task) {
		if r.Kind == "transition" {
			states = append(states, r.To)
		}
	}
	return strings.Join(states, " ")
}

// Containers lists the containers of this node's root, running or not.
func (w *World) Containers(t *testing.T) []string {
	t.Helper()
	return w.objects(t, "ps", "-a", "--format", "{{.Names}}")
}

// Volumes lists the Docker volumes of this node's root.
func (w *World) Volumes(t *testing.T) []string {
	t.Helper()
	return w.objects(t, "volume", "ls", "--format", "{{.Name}}")
}

func (w *World) objects(t testing.TB, args ...string) []string {
	t.Helper()
	id := w.RootID(t)
	if id == "" {
		return nil
	}
	return strings.Fields(w.Docker(t, append(args, "--filter", "label=deckhand.root="+id)...))
}

// RootID is the value of this root's label; empty when nothing ever ran there.
func (w *World) RootID(t testing.TB) string {
	t.Helper()
	id, err := os.ReadFile(filepath.Join(w.Root, "journal", "ROOT_ID"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(id))
}

// TaskDirs lists what is in the tasks directory.
func (w *World) TaskDirs(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.Root, "tasks"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Clean fails the test when anything but the kept image is left of the root's tasks.
func (w *World) Clean(t *testing.T) {
	t.Helper()
	if left := w.Containers(t); len(left) > 0 {
		t.Errorf("containers are left: %v", left)
	}
	if left := w.Volumes(t); len(left) > 0 {
		t.Errorf("volumes are left: %v", left)
	}
	if left := w.TaskDirs(t); len(left) > 0 {
		t.Errorf("task directories are left: %v", left)
	}
	if r := w.Deckhand(t, "journal", "verify"); r.Code != 0 {
		t.Errorf("journal verify: %s%s", r.Stdout, r.Stderr)
	}
}

// HasImage says whether the engine has an image, by tag, digest or ID.
func HasImage(t *testing.T, ref string) bool {
	t.Helper()
	return slices.Contains(strings.Fields(rig.DockerCmd(t, "images", "-a", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}} {{.Repository}}@{{.Digest}}", "--digests")), ref)
}

// Images is what journal images --json prints.
type Images struct {
	Last, Ledger []struct {
		Reference  string `json:"reference"`
		ImageID    string `json:"image_id"`
		Digest     string `json:"digest"`
		Bytes      int64  `json:"bytes"`
		PulledByUs bool   `json:"pulled_by_us"`
		Phase      string `json:"phase"`
		Task       string `json:"task"`
	}
}

// Images reads the image ledger.
func (w *World) Images(t *testing.T) (i Images) {
	t.Helper()
	r := w.Deckhand(t, "journal", "images", "--json")
	if err := json.Unmarshal([]byte(r.Stdout), &i); err != nil {
		t.Fatalf("journal images: %v\n%s%s", err, r.Stdout, r.Stderr)
	}
	return i
}

// Pulls counts what was asked of the registry since the last Reset: questions
// about manifests, and blobs that were fetched.
func (w *World) Pulls() (manifests, blobs int) {
	for _, r := range w.Registry.Requests() {
		switch {
		case strings.Contains(r.Path, "/manifests/"):
			manifests++
		case strings.Contains(r.Path, "/blobs/"):
			blobs++
		}
	}
	return manifests, blobs
}
