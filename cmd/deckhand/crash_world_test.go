//go:build crash

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/crash/point"
	"github.com/deckhand/deckhand/test/crash/shape"
	"github.com/deckhand/deckhand/test/fakedocker"
	"github.com/deckhand/deckhand/test/funnel"
	"github.com/deckhand/deckhand/test/rig"
)

// bench has what all worlds share.
type bench struct {
	dir      string // in memory
	registry *fakedocker.Registry
	images   map[string]shape.Image
	server   *httptest.Server
	funnel   *funnel.Server
	present  atomic.Pointer[world]
}

func newBench(t *testing.T) *bench {
	dir, err := os.MkdirTemp("/dev/shm", "deckhand-crash")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{dir: dir, registry: fakedocker.NewRegistry(filepath.Join(dir, "images"), "registry.test"), images: map[string]shape.Image{}}
	for name, volumes := range shape.Images {
		b.images[name] = b.push(t, name+":1", rig.Spec{Marker: name, Volumes: volumes})
	}
	b.funnel = funnel.New(t)
	b.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, shape.BucketPath+"/") {
			b.present.Load().bucket.ServeHTTP(rw, r)
			return
		}
		text, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		w := b.present.Load()
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.URL.Path == shape.EventsPath {
			w.sent = append(w.sent, r.Header.Get("webhook-id"))
			return
		}
		w.puts[r.URL.Path] = string(text)
	}))
	t.Cleanup(b.server.Close)
	return b
}

func (b *bench) push(t *testing.T, name string, spec rig.Spec) shape.Image {
	t.Helper()
	ref := b.registry.Push(t, name, spec)
	return shape.Image{Tag: ref.Tag, Digest: ref.Digest}
}

// world is a node in this process. Its engine and its journal stay when a
// process of deckhand ends, which is a goroutine here.
type world struct {
	*bench
	dir     string
	engine  *fakedocker.Engine
	journal *journaltest.Memory
	bucket  shape.Bucket
	before  check.Node
	told    bool

	mu   sync.Mutex
	puts map[string]string
	sent []string // events
}

// world makes a world and brings it to where the run begins that is looked at.
func (b *bench) world(t *testing.T, s shape.Shape) *world {
	t.Helper()
	dir, err := os.MkdirTemp(b.dir, "world")
	for _, d := range []string{"root", "engine", "out"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, d), 0o700))
	}
	err = errors.Join(err, shape.MakeInputs(filepath.Join(dir, "in")))
	// One copy of this large program for the containers of all worlds.
	program, installed := helper.Install(filepath.Join(b.dir, "bin"))
	bin := filepath.Join(dir, "root", "bin")
	err = errors.Join(err, installed, os.Mkdir(bin, 0o700))
	if err == nil {
		err = os.Link(program, filepath.Join(bin, filepath.Base(program)))
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		bench: b, dir: dir, engine: fakedocker.New(filepath.Join(dir, "engine"), b.registry),
		journal: journaltest.NewMemory(), puts: map[string]string{}, told: s.Told,
	}
	b.present.Store(w)
	w.others(t, s.Present)
	w.before = w.look(t)
	b.push(t, "moving:1", rig.Spec{Marker: "moving"})
	if s.Run.Front {
		task := s.Run.Task(w.place())
		text, err := json.Marshal(task)
		if err != nil {
			t.Fatal(err)
		}
		b.funnel.Submit(t, task.ID, text)
	}
	for _, r := range s.Earlier {
		o := w.process(t, r, r.At)
		if r.At == "" && o.code != 0 || r.At != "" && !o.killed {
			t.Fatalf("an earlier run ended with %d (killed at %q: %t)\n%s", o.code, r.At, o.killed, o.log)
		}
		for r.Begins && !shape.HasBegun(filepath.Join(dir, "root")) {
			time.Sleep(time.Millisecond)
		}
	}
	if s.Run.Moved != "" {
		b.push(t, s.Run.Moved+":1", rig.Spec{Marker: s.Run.Moved + " moved"})
	}
	return w
}

// others puts things of others on the node: an image with a container, one that
// shares a repository with one of ours, and the images that a shape wants there.
func (w *world) others(t *testing.T, present []string) {
	t.Helper()
	theirs := w.push(t, "theirs:1", rig.Spec{Marker: "theirs"})
	site := w.push(t, "a:site", rig.Spec{Marker: "site"})
	ctx := t.Context()
	err := errors.Join(w.engine.Pull(ctx, theirs.Tag, nil), w.engine.Pull(ctx, site.Tag, nil), w.engine.CreateVolume(ctx, "theirs", nil))
	for _, name := range present {
		err = errors.Join(err, w.engine.Pull(ctx, w.images[name].Tag, nil))
	}
	_, made := w.engine.Create(ctx, engine.Spec{Name: "theirs", Image: theirs.Tag, Mounts: []engine.Mount{{Kind: engine.VolumeMount, Source: "theirs", Target: "/data"}}})
	if err := errors.Join(err, made); err != nil {
		t.Fatal(err)
	}
	w.engine.AddNetwork("theirs", nil)
}

// restart restarts the node.
func (w *world) restart(t *testing.T) {
	t.Helper()
	w.journal.BootID += ", and the next"
	if err := w.engine.Restart(); err != nil {
		t.Fatal(err)
	}
}

// end removes a world.
func (w *world) end(t *testing.T) {
	t.Helper()
	if err := errors.Join(w.engine.Close(), os.RemoveAll(w.dir)); err != nil {
		t.Fatal(err)
	}
}

func (w *world) place() shape.Place {
	return shape.Place{Images: w.images, In: filepath.Join(w.dir, "in"), Out: filepath.Join(w.dir, "out"), Server: w.server.URL, Moment: 1000}
}

// ending is how a process ended.
type ending struct {
	code   int
	killed bool
	trace  []string // occurrences of points
	log    string
}

// stuckAfter is how long a process may take.
const stuckAfter = 5 * time.Minute

// process runs one process of deckhand, which dies at a point when one is given.
func (w *world) process(t *testing.T, r shape.Run, at string) ending {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	p := &process{world: w, at: at, seen: map[string]int{}, cancel: cancel, stop: r.Cancel}
	point.Hook = p.pass
	w.journal.Reopen()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.code = p.work(ctx, t, r)
	}()
	select {
	case <-ended:
	case <-time.After(stuckAfter):
		stacks := make([]byte, 1<<20)
		t.Fatalf("a process does not end:\n%s\n%s", p.log.String(), stacks[:runtime.Stack(stacks, true)])
	}
	return p.end()
}

// process is a process of deckhand.
type process struct {
	*world
	at     string
	cancel context.CancelCauseFunc
	stop   bool // the user stops it when an executor runs

	mu    sync.Mutex
	seen  map[string]int
	trace []string
	dead  bool
	code  int
	log   strings.Builder
}

// pass passes a point. In a dead process nobody gets further than that, and who
// waits is woken up for it.
func (p *process) pass(name string) {
	p.mu.Lock()
	if !p.dead {
		p.seen[name]++
		here := point.Occurrence(name, p.seen[name])
		p.trace = append(p.trace, here)
		p.dead = here == p.at
	}
	dead := p.dead
	p.mu.Unlock()
	if dead {
		p.cancel(errors.New("the process is dead"))
		runtime.Goexit()
	}
}

// end says how the process ended. What is left of it passes no further point.
func (p *process) end() ending {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := ending{p.code, p.dead, p.trace, p.log.String()}
	p.dead = true
	return e
}

// Write is the log.
func (p *process) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stop && (strings.Contains(string(text), "executor started") || strings.Contains(string(text), "executor found again")) {
		p.stop = false
		go p.stopWhenBegun()
	}
	return p.log.Write(text)
}

// stopWhenBegun is the user, who stops the task once its command has begun: what is
// then to be removed does not depend on who came first.
func (p *process) stopWhenBegun() {
	for !shape.HasBegun(filepath.Join(p.dir, "root")) {
		if p.ended() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	p.cancel(machine.ErrCancel)
}

func (p *process) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// work is what the commands do once they hold the root.
func (p *process) work(ctx context.Context, t *testing.T, r shape.Run) int {
	a := p.app(t)
	d, o := (*document)(nil), runOptions{result: filepath.Join(p.dir, "out", "result.json")}
	if r.Task != nil {
		var err error
		if d, err = p.document(ctx, a, r); err != nil {
			return exitCode(err)
		}
		if over, err := p.over(ctx, a, d); over || err != nil {
			return exitCode(err)
		}
	}
	s := &session{app: a, journal: keptJournal{p.journal, p}, docker: keptEngine{p.engine}, boot: p.journal.BootID, meter: new(progress.Meter)}
	sinks, err := a.sinks()
	names := append(sinkNames(sinks), metricsSink)
	if a.front != nil {
		names = append(names, sinkOf(a.front.server))
	}
	p.journal.Tell(names...)
	if err := errors.Join(err, s.tell(sinks)); err != nil {
		t.Error(err)
		return -1
	}
	defer s.stopTelling()
	switch {
	case r.Task != nil:
		return exitCode(p.run(ctx, s, d, o))
	case r.Command[0] == "recover":
		done, err := s.recover(ctx, recovered{})
		if len(done.Problems) > 0 {
			err = errors.Join(err, errors.New(strings.Join(done.Problems, "; ")))
		}
		return exitCode(err)
	case r.Command[0] == "scrub":
		_, err := s.scrub(ctx)
		return exitCode(err)
	}
	t.Errorf("nobody knows how to run %q", r.Command)
	return -1
}

// document is the task of a run: of a file, or of the server.
func (p *process) document(ctx context.Context, a *app, r shape.Run) (*document, error) {
	task := r.Task(p.place())
	if r.Front {
		a.conf.Funnel.URL, a.conf.Funnel.RPC = p.funnel.URL, p.funnel.RPC
		return a.fetchTask(ctx, task.ID, runOptions{})
	}
	text, err := json.Marshal(task)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(p.dir, "task.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	return a.readDocument(ctx, file, "")
}

// over says, before a run takes the root, that the task has ended on the server and is
// nothing to this node; with the journal that is here in the place of a view of one.
func (p *process) over(ctx context.Context, a *app, d *document) (bool, error) {
	if a.front == nil || !finalOnServer(d.state) {
		return false, nil
	}
	head, known, err := p.journal.Head(d.id)
	if err != nil {
		return true, err
	}
	return a.overHere(ctx, d, head, known)
}

func (p *process) run(ctx context.Context, s *session, d *document, o runOptions) error {
	head, err := s.take(ctx, d, false)
	if err == nil {
		err = s.app.report(ctx, d, o, head, s.journal.Records(d.id))
	}
	if err == nil && s.app.front != nil {
		err = s.settle(ctx)
	}
	if err != nil {
		return s.app.unstarted(ctx, d, o, err)
	}
	return s.app.ended(head)
}

func (p *process) app(t *testing.T) *app {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	config.AddCommonFlags(flags)
	if err := flags.Set("root", filepath.Join(p.dir, "root")); err != nil {
		t.Error(err)
	}
	conf, err := config.Load(flags)
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	conf.Transfer.Parallel, conf.Run.StopGrace = 1, 0
	conf.Events.Drain = stuckAfter
	conf.Storage.S3 = config.S3{Endpoint: p.server.URL + shape.BucketPath, PathStyle: true, Anonymous: true}
	conf.Storage.File.Mount = filepath.Join(p.dir, "in", shape.References)
	if p.told {
		conf.Events.File, conf.Events.Webhook.URL = filepath.Join(p.dir, shape.EventsFile), p.server.URL+shape.EventsPath
	}
	// The engine's containers have no networks of their own.
	conf.Run.BlockAddresses = ""
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, conf: conf}
	a.screen = newScreen(io.Discard, conf)
	a.log = slog.New(slog.NewTextHandler(p, nil))
	return a
}

// keptJournal and keptEngine are not closed: they outlive a process.
type keptJournal struct {
	*journaltest.Memory
	process *process
}

func (keptJournal) Close() error { return nil }

// Undelivered ends whoever asks in a dead process. That is no point, since it changes
// nothing: without that a run would wait for the deliveries of a sink that has died.
func (j keptJournal) Undelivered(sink string, most int) ([]machine.Notice, error) {
	if j.process.ended() {
		runtime.Goexit()
	}
	return j.Memory.Undelivered(sink, most)
}

type keptEngine struct{ *fakedocker.Engine }

func (keptEngine) Close() error { return nil }
