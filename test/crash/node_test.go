package crash

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/crash/point"
	"github.com/deckhand/deckhand/test/crash/shape"
	"github.com/deckhand/deckhand/test/funnel"
	"github.com/deckhand/deckhand/test/rig"
)

// node is a real node: an engine of its own, with things of others on it, where
// one world comes after the other.
type node struct {
	program  string // with crash points
	daemon   *rig.Daemon
	registry *registry
	docker   *engine.Docker
	watch    *check.Watch
	server   *httptest.Server
	funnel   *funnel.Server

	dir    string     // of the present world
	told   bool       // others are told of what happens in it
	before check.Node // what others have, before each world of the present shape

	mu   sync.Mutex
	puts map[string]string // what the server has been sent, by path
	sent []string          // the events among it

	bucket *shape.Bucket // of the present world
}

// registry has the images of all nodes.
type registry struct {
	*rig.Registry
	images map[string]shape.Image
	moved  map[string]shape.Image // where tags lead after they have moved
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{rig.NewRegistry(t), map[string]shape.Image{}, map[string]shape.Image{}}
	for name, volumes := range shape.Images {
		r.images[name] = r.push(t, name, rig.Spec{Marker: name, Volumes: volumes})
	}
	// Of others: one image shares a repository with one of ours, all share layers.
	r.push(t, "theirs", rig.Spec{Marker: "theirs"})
	r.pushAs(t, "a:site", rig.Spec{Marker: "site"})
	return r
}

func (r *registry) push(t *testing.T, name string, spec rig.Spec) shape.Image {
	t.Helper()
	return r.pushAs(t, name+":1", spec)
}

func (r *registry) pushAs(t *testing.T, name string, spec rig.Spec) shape.Image {
	t.Helper()
	ref := rig.Image(t, r.Registry, name, spec)
	return shape.Image{Tag: ref.Tag, Digest: ref.Digest}
}

// lead lets a tag name its first image, or the one after that.
func (r *registry) lead(t *testing.T, name string, moved bool) {
	t.Helper()
	spec := rig.Spec{Marker: name}
	if moved {
		spec.Marker += " moved"
	}
	r.push(t, name, spec)
}

func newNode(t *testing.T, program string, r *registry) *node {
	t.Helper()
	n := &node{program: program, daemon: rig.NewDaemon(t), registry: r, puts: map[string]string{}}
	docker, err := engine.Connect(t.Context(), engine.Options{Host: n.daemon.Host, Wait: time.Minute, PullRetryFor: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	n.docker = docker
	t.Cleanup(func() { docker.Close() })
	theirs, site := r.Addr()+"/theirs:1", r.Addr()+"/a:site"
	for _, args := range [][]string{
		{"pull", "--quiet", theirs}, {"pull", "--quiet", site}, {"tag", theirs, "theirs/tool:1"},
		{"volume", "create", "theirs"}, {"network", "create", "--internal", "theirs"},
		{"run", "--detach", "--name=theirs-running", "--network=none", "--volume=theirs:/data", theirs, "sh", "-c", "echo theirs > /data/file; exec sleep 100000"},
		{"create", "--name=theirs-created", "--network=none", site, "true"},
	} {
		n.daemon.Cmd(t, args...)
	}
	n.funnel = funnel.New(t)
	n.server = httptest.NewServer(http.HandlerFunc(n.take))
	t.Cleanup(n.server.Close)
	if n.watch, err = check.NewWatch(n.daemon.Host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.watch.Close)
	return n
}

// take is the server that outputs are sent to. It has what came whole.
func (n *node) take(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, shape.BucketPath+"/") {
		n.mu.Lock()
		bucket := n.bucket
		n.mu.Unlock()
		bucket.ServeHTTP(w, r)
		return
	}
	text, err := io.ReadAll(r.Body)
	if err == nil && r.Method == http.MethodPost && r.URL.Path == shape.EventsPath {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.sent = append(n.sent, r.Header.Get("webhook-id"))
		return
	}
	if err != nil || r.Method != http.MethodPut {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.puts[r.URL.Path] = string(text)
}

func (n *node) place() shape.Place {
	return shape.Place{Images: n.registry.images, In: filepath.Join(n.dir, "in"), Out: filepath.Join(n.dir, "out"), Server: n.server.URL, Streams: true, Moment: 20_000}
}

func (n *node) look(t *testing.T) check.Node {
	t.Helper()
	out := filepath.Join(n.dir, "out")
	found, err := check.Place{Root: filepath.Join(n.dir, "root"), Docker: n.daemon.Host, DataRoot: n.daemon.DataRoot(), Outputs: out}.Look()
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	for path, text := range n.puts {
		found.Outputs["server"+path] = text
	}
	n.mu.Unlock()
	if result, err := Summary(filepath.Join(out, "result.json")); err == nil {
		found.Outputs["result.json"] = result
	}
	// Copies of the journal that readers make.
	if left, _ := filepath.Glob(filepath.Join(n.memory(), "*")); len(left) > 0 {
		found.Root = append(found.Root, left...)
	}
	found.Replace(n.dir, "DIR", n.server.URL, "SERVER")
	return found
}

// memory is the directory in memory that this world's processes are given.
func (n *node) memory() string { return "/dev/shm/" + filepath.Base(n.dir) }

// prepare makes the node one where a shape begins.
func (n *node) prepare(t *testing.T, s shape.Shape) {
	t.Helper()
	n.clear(t, nil)
	for _, name := range s.Present {
		n.daemon.Cmd(t, "pull", "--quiet", n.registry.images[name].Tag)
	}
	n.dir = filepath.Join(t.TempDir(), "none")
	n.before = n.look(t)
}

// clear removes what the world before has left, but for what others keep.
func (n *node) clear(t *testing.T, keep []check.Image) {
	t.Helper()
	found, err := check.ReadEngine(n.daemon.Host, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range found.Containers {
		if !strings.HasPrefix(c.Name, "theirs") {
			n.daemon.Cmd(t, "rm", "--force", "--volumes", c.ID)
		}
	}
	for _, v := range found.Volumes {
		if v.Name != "theirs" {
			n.daemon.Cmd(t, "volume", "rm", v.Name)
		}
	}
	theirs := func(i check.Image) bool {
		return slices.ContainsFunc(i.Names, func(name string) bool { return strings.Contains(name, "theirs") || strings.HasSuffix(name, "a:site") }) ||
			slices.ContainsFunc(keep, func(k check.Image) bool { return k.ID == i.ID })
	}
	for _, i := range found.Images {
		if theirs(i) {
			continue
		}
		for _, name := range append(i.Names, i.ID) {
			if err := n.docker.RemoveImage(t.Context(), name); err != nil && !errors.Is(err, engine.ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
}

// begin makes a new world and brings it to where the run begins that is looked at.
func (n *node) begin(t *testing.T, s shape.Shape) {
	t.Helper()
	n.clear(t, n.before.Images)
	n.watch.Forget()
	n.mu.Lock()
	clear(n.puts)
	n.sent, n.told, n.bucket = nil, s.Told, new(shape.Bucket)
	n.mu.Unlock()
	dir, err := os.MkdirTemp(t.TempDir(), "world")
	if err != nil {
		t.Fatal(err)
	}
	n.dir = dir
	for _, d := range []string{"in", "out", "home"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(n.memory(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := shape.MakeInputs(filepath.Join(dir, "in")); err != nil {
		t.Fatal(err)
	}
	if s.Run.Moved != "" {
		n.registry.lead(t, s.Run.Moved, false)
	}
	if s.Run.Front {
		task := s.Run.Task(n.place())
		text, err := json.Marshal(task)
		if err != nil {
			t.Fatal(err)
		}
		n.funnel.Submit(t, task.ID, text)
	}
	for _, r := range s.Earlier {
		o := n.run(t, r, r.At)
		if r.At == "" && o.code != 0 || r.At != "" && !o.killed {
			t.Fatalf("%s: an earlier run ended with %d (killed at %q: %t)\n%s", s.Name, o.code, r.At, o.killed, o.log)
		}
	}
	if s.Run.Moved != "" {
		n.registry.lead(t, s.Run.Moved, true)
	}
}

// end removes the files of a world.
func (n *node) end() {
	os.RemoveAll(n.memory())
	os.RemoveAll(n.dir)
}

// outcome is how a process ended.
type outcome struct {
	code   int
	killed bool     // by itself, at a point
	trace  []string // occurrences of points
	log    string
}

// runDeadline is how long a process may take.
const runDeadline = 3 * time.Minute

// run runs one process, which ends at a point when one is given.
func (n *node) run(t *testing.T, r shape.Run, at string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runDeadline)
	defer cancel()
	args := []string{"--root", filepath.Join(n.dir, "root"), "--docker-host", n.daemon.Host}
	result := []string{"--result", filepath.Join(n.dir, "out", "result.json")}
	switch {
	case r.Front:
		args = append(args, "run", "--funnel", n.funnel.URL, "--funnel-rpc", n.funnel.RPC, "--task-id", r.Task(n.place()).ID)
		args = append(args, result...)
	case r.Task != nil:
		document := filepath.Join(n.dir, "task.json")
		text, err := json.Marshal(r.Task(n.place()))
		if err := errors.Join(err, os.WriteFile(document, text, 0o644)); err != nil {
			t.Fatal(err)
		}
		args = append(append(args, "run", document), result...)
	default:
		args = append(args, r.Command...)
	}
	cmd := exec.CommandContext(ctx, n.program, append(args, "--stop-grace", "0s")...)
	home, trace := filepath.Join(n.dir, "home"), filepath.Join(n.dir, "trace")
	os.Remove(trace)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "TMPDIR=" + n.dir, "HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_RUNTIME_DIR=" + n.memory(),
		// One at a time, so that the order of points does not change.
		"DECKHAND_TRANSFER_PARALLEL=1",
		"DECKHAND_STORAGE_S3_ENDPOINT=" + n.server.URL + shape.BucketPath, "DECKHAND_STORAGE_S3_PATH_STYLE=true", "DECKHAND_STORAGE_S3_ANONYMOUS=true",
		"DECKHAND_STORAGE_FILE_MOUNT=" + filepath.Join(n.dir, "in", shape.References),
		point.AtVariable + "=" + at, point.TraceVariable + "=" + trace,
	}
	if n.told {
		cmd.Env = append(cmd.Env, "DECKHAND_EVENTS_FILE="+filepath.Join(n.dir, shape.EventsFile),
			"DECKHAND_EVENTS_WEBHOOK_URL="+n.server.URL+shape.EventsPath, "DECKHAND_EVENTS_DRAIN="+runDeadline.String())
	}
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	asked := !r.Cancel
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		log.WriteString(lines.Text() + "\n")
		if !asked && (strings.Contains(lines.Text(), "executor started") || strings.Contains(lines.Text(), "executor found again")) {
			asked = true
			go func() {
				for !shape.HasBegun(filepath.Join(n.dir, "root")) && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				_ = cmd.Process.Signal(syscall.SIGINT) // it may be gone
			}()
		}
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		t.Fatalf("a process did not end: %v\n%s", err, log.String())
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	passed, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	return outcome{
		cmd.ProcessState.ExitCode(), status.Signaled() && status.Signal() == syscall.SIGKILL,
		strings.Split(strings.TrimSpace(string(passed)), "\n"), log.String(),
	}
}

// problems are those of the present world.
func (n *node) problems(t *testing.T, s shape.Shape, after check.Node, twin *check.Node) []string {
	t.Helper()
	events, err := n.watch.Events(after.Journal.RootID)
	if err != nil {
		t.Fatal(err)
	}
	c := check.Case{Before: n.before, After: after, Twin: twin, Events: events}
	if s.Run.Task != nil {
		c.Task = s.Run.Task(n.place()).ID
	}
	return slices.Concat(c.Problems(), n.bucket.Problems(), n.toldProblems(t), n.frontProblems(t, s))
}

// toldProblems are those with what others were told.
func (n *node) toldProblems(t *testing.T) []string {
	t.Helper()
	if !n.told {
		return nil
	}
	file, err := os.ReadFile(filepath.Join(n.dir, shape.EventsFile))
	if err != nil {
		t.Fatal(err)
	}
	view, err := journal.OpenView(filepath.Join(n.dir, "root", "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	return check.Told(view, string(file), n.sent)
}

// frontProblems are those with what the server of Funnel has of its task.
func (n *node) frontProblems(t *testing.T, s shape.Shape) []string {
	t.Helper()
	if !s.Run.Front {
		return nil
	}
	view, err := journal.OpenView(filepath.Join(n.dir, "root", "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	var result tes.Task
	text, err := os.ReadFile(filepath.Join(n.dir, "out", "result.json"))
	if err == nil {
		err = json.Unmarshal(text, &result)
	}
	if err != nil {
		return []string{err.Error()}
	}
	return check.Front(view, n.funnel, s.Run.Task(n.place()).ID, result)
}
