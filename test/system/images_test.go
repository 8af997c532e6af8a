package system

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// images is a world with an image a and an image b, for tests of what becomes
// of them. They share no layers.
type images struct {
	*World
	a, b rig.Ref
	runs int
}

func newImages(t *testing.T) *images {
	t.Helper()
	t.Parallel()
	w := &images{World: NewWorld(t)}
	w.a = w.Image(t, "a:1", rig.Spec{Marker: "a", Apart: true})
	w.b = w.Image(t, "b:1", rig.Spec{Marker: "b", Apart: true})
	return w
}

// use is a task of its own with one executor for each image.
func (w *images) use(refs ...string) tes.Task {
	w.runs++
	task := tes.Task{ID: fmt.Sprint("t", w.runs)}
	for _, r := range refs {
		task.Executors = append(task.Executors, tes.Executor{Image: r, Command: []string{"true"}})
	}
	return task
}

// run runs a task with these images, which is to complete, and returns how
// they came.
func (w *images) run(t *testing.T, refs ...string) string {
	t.Helper()
	return w.MustRun(t, 0, w.use(refs...)).Log(t).Metadata["deckhand.image_pull"]
}

// account describes the ledger, sorted: name, phase, whose, last.
func (w *images) account(t *testing.T) []string {
	t.Helper()
	i := w.Images(t)
	lines := []string{}
	for _, r := range i.Ledger {
		line := strings.TrimPrefix(r.Reference, w.Registry.Addr()+"/") + " " + r.Phase
		if r.PulledByUs {
			line += " ours"
		}
		if slices.Contains(i.Last, r) {
			line += " last"
		}
		if (r.ImageID == "") != (r.Phase == "pulling") {
			t.Errorf("image ID %q in phase %s", r.ImageID, r.Phase)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// wants checks the ledger.
func (w *images) wants(t *testing.T, lines ...string) {
	t.Helper()
	if got := w.account(t); !slices.Equal(got, lines) {
		t.Errorf("ledger:\n %s\nwant:\n %s", strings.Join(got, "\n "), strings.Join(lines, "\n "))
	}
}

// on checks that the engine has these images, by ID, tag or digest; off that it
// has not.
func on(t *testing.T, refs ...string)  { t.Helper(); there(t, true, refs) }
func off(t *testing.T, refs ...string) { t.Helper(); there(t, false, refs) }

func there(t *testing.T, want bool, refs []string) {
	t.Helper()
	for _, ref := range refs {
		if HasImage(t, ref) != want {
			t.Errorf("image %s is on the node: %v, want %v", ref, !want, want)
		}
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// hold stops the registry's answers to requests whose path has match in it, but for
// those for the size of a layer.
// reached is closed at the first one; open lets them pass.
func (w *images) hold(t *testing.T, match string) (reached <-chan struct{}, open func()) {
	t.Helper()
	first, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.Registry.Intercept(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, match) && req.Header.Get("Range") == "" {
			once.Do(func() { close(first) })
			<-gate
		}
		return false
	})
	open = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	return first, open
}

// facts are what the image check of a task has written down, in order.
func (w *images) facts(t *testing.T, task string) (facts []string) {
	t.Helper()
	for _, r := range w.Records(t, task) {
		if r.From == "ImageCheck" && r.Kind != "transition" {
			facts = append(facts, fmt.Sprint(r.Kind, " ", r.Detail["what"]))
		}
	}
	return facts
}

// noLayers checks that no layer of image a was fetched. Asked what a tag names,
// Docker reads the image's configuration, whose digest is the image ID.
func (w *images) noLayers(t *testing.T) {
	t.Helper()
	for _, r := range w.Registry.Requests() {
		if strings.Contains(r.Path, "/blobs/") && !strings.HasSuffix(r.Path, w.a.ID) {
			t.Errorf("%s was fetched", r.Path)
		}
	}
}

// down makes the registry fail as one that is overloaded.
func (w *images) down() {
	w.Registry.Intercept(func(rw http.ResponseWriter, _ *http.Request) bool {
		http.Error(rw, "overloaded", http.StatusServiceUnavailable)
		return true
	})
}

func (w *images) set(key, value string) { w.Env = append(w.Env, key+"="+value) }

func TestSameImageIsNotPulled(t *testing.T) {
	w := newImages(t)
	equal(t, "first", w.run(t, w.a.Tag), "pulled")
	w.wants(t, "a:1 present ours last")
	w.Registry.Reset()
	equal(t, "second", w.run(t, w.a.Tag), "reused")
	var asked []string
	for _, r := range w.Registry.Requests() {
		asked = append(asked, r.Method+" "+r.Path)
	}
	equal(t, "asked about a tag that has not moved", strings.Join(asked, ", "), "GET /v2/, HEAD /v2/a/manifests/1")
	w.Registry.Reset()
	equal(t, "by digest", w.run(t, w.a.Digest), "reused")
	_, digest, _ := strings.Cut(w.a.Digest, "@")
	equal(t, "by tag and digest", w.run(t, w.a.Tag+"@"+digest), "reused")
	if asked := w.Registry.Requests(); len(asked) > 0 {
		t.Errorf("the registry was asked for a digest that is on disk: %v", asked)
	}
	equal(t, "another one", w.run(t, w.b.Tag), "pulled")
	off(t, w.a.ID)
	w.wants(t, "b:1 present ours last")
	w.Clean(t)
}

func TestDigestAlone(t *testing.T) {
	w := newImages(t)
	equal(t, "first", w.run(t, w.a.Digest), "pulled")
	w.Registry.Reset()
	equal(t, "second", w.run(t, w.a.Digest), "reused")
	if asked := w.Registry.Requests(); len(asked) > 0 {
		t.Errorf("the registry was asked: %v", asked)
	}
	w.run(t, w.b.Digest)
	off(t, w.a.ID)
	on(t, w.b.ID)
}

func TestOtherImageIsDeletedBeforeThePull(t *testing.T) {
	w := newImages(t)
	w.run(t, w.a.Tag)
	asked, open := w.hold(t, w.b.Layers[0])
	task := w.use(w.b.Tag)
	run := w.Start(t, task)
	<-asked
	off(t, w.a.ID)
	w.wants(t, "b:1 pulling last")
	open()
	if code, log := run.End(t); code != 0 {
		t.Fatalf("exit code %d\n%s", code, log)
	}
	w.wants(t, "b:1 present ours last")

	facts := w.facts(t, task.ID)
	want := []string{"intent images", "intent image-removal", "done image-removal", "intent images", "done image", "intent container"}
	if !slices.Equal(facts, want) {
		t.Errorf("facts of the image check: %q, want %q", facts, want)
	}
}

func TestForeignImage(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"tag", "digest"} {
		t.Run("by "+by, func(t *testing.T) {
			w := newImages(t)
			// The tag that our pull gives is ours, the image is not: it stays, and
			// the tag as long as the digest, which Docker takes along with it.
			used, left := "a:1 present last", []string{"b:1 present ours last"}
			if by == "digest" {
				used, left = "a:1 present ours last", []string{"a:1 removing ours", "b:1 present ours last"}
			}
			theirs := map[string]string{"tag": w.a.Tag, "digest": w.a.Digest}[by]
			rig.DockerCmd(t, "pull", "-q", theirs)
			w.Registry.Reset()
			// Wanted by its tag, which is a name that it may not have yet.
			equal(t, "came", w.run(t, w.a.Tag), "present")
			w.noLayers(t)
			w.wants(t, used)
			w.run(t, w.b.Tag)
			w.run(t, w.a.Tag)
			w.wants(t, used)
			off(t, w.b.ID)
			w.run(t, w.b.Tag)
			w.Deckhand(t, "scrub")
			on(t, w.a.ID, theirs)
			w.wants(t, left...)
		})
	}
}

func TestMovedTag(t *testing.T) {
	t.Parallel()
	t.Run("ours", func(t *testing.T) {
		w := newImages(t)
		w.run(t, w.a.Tag)
		second := w.Image(t, "a:1", rig.Spec{Marker: "second"})
		asked, open := w.hold(t, second.Layers[1])
		run := w.Start(t, w.use(w.a.Tag))
		<-asked
		on(t, w.a.ID)
		open()
		if code, log := run.End(t); code != 0 {
			t.Fatalf("exit code %d\n%s", code, log)
		}
		off(t, w.a.ID, w.a.Digest)
		on(t, second.ID)
		w.wants(t, "a:1 present ours last")
	})
	t.Run("another's", func(t *testing.T) {
		w := newImages(t)
		rig.DockerCmd(t, "pull", "-q", w.a.Tag)
		second := w.Image(t, "a:1", rig.Spec{Marker: "second"})
		equal(t, "came", w.run(t, w.a.Tag), "pulled")
		on(t, w.a.ID, second.ID)
		w.run(t, w.b.Tag)
		on(t, w.a.ID)
		off(t, second.ID)
	})
	t.Run("on the node, by somebody else", func(t *testing.T) {
		w := newImages(t)
		w.run(t, w.a.Tag)
		second := w.Image(t, "a:1", rig.Spec{Marker: "second"})
		rig.DockerCmd(t, "pull", "-q", w.a.Tag)
		equal(t, "came", w.run(t, w.a.Tag), "present")
		off(t, w.a.ID)
		w.run(t, w.b.Tag)
		on(t, second.ID)
	})
}

func TestSetsOfImages(t *testing.T) {
	w := newImages(t)
	equal(t, "both", w.run(t, w.a.Tag, w.b.Tag), "pulled")
	w.wants(t, "a:1 present ours last", "b:1 present ours last")
	equal(t, "one", w.run(t, w.a.Tag), "reused")
	on(t, w.a.ID)
	off(t, w.b.ID)
	w.wants(t, "a:1 present ours last")
	equal(t, "both again", w.run(t, w.b.Tag, w.a.Tag), "pulled")
	on(t, w.a.ID, w.b.ID)
}

func TestKeepTwoTasksImages(t *testing.T) {
	w := newImages(t)
	w.set("DECKHAND_IMAGE_KEEP", "2")
	c := w.Image(t, "c:1", rig.Spec{Marker: "c"})
	w.run(t, w.a.Tag)
	w.run(t, w.b.Tag)
	equal(t, "came", w.run(t, w.a.Tag), "reused")
	w.wants(t, "a:1 present ours last", "b:1 present ours")
	w.run(t, c.Tag)
	w.wants(t, "a:1 present ours", "c:1 present ours last")
	on(t, w.a.ID, c.ID)
	off(t, w.b.ID)
}

// Images of earlier tasks stay while they have room together, the last used first,
// and the ledger tells how much that is.
func TestKeepImagesWithinBytes(t *testing.T) {
	w := newImages(t)
	large := func(name string) rig.Ref { return w.Image(t, name, rig.Spec{Size: 4 * mib, Marker: name}) }
	c, d, e := large("c:1"), large("d:1"), large("e:1")
	w.set("DECKHAND_IMAGE_KEEP", "9")
	w.set("DECKHAND_IMAGE_KEEP_BYTES", "12MiB") // two of them, with one busybox
	w.run(t, c.Tag)
	w.run(t, d.Tag)
	equal(t, "came", w.run(t, c.Tag), "reused")
	w.wants(t, "c:1 present ours last", "d:1 present ours")
	w.run(t, e.Tag)
	w.wants(t, "c:1 present ours", "e:1 present ours last")
	on(t, c.ID, e.ID)
	off(t, d.ID)
	var kept, busybox int64
	for _, r := range w.Images(t).Ledger {
		size := rig.DockerCmd(t, "image", "inspect", "--format", "{{.Size}}", r.ImageID)
		equal(t, "bytes of "+r.Reference, fmt.Sprint(r.Bytes), size)
		kept += r.Bytes
		history := strings.Fields(rig.DockerCmd(t, "history", "--human=false", "--format", "{{.Size}}", r.ImageID))
		if n, err := fmt.Sscan(history[len(history)-1], &busybox); n != 1 || err != nil {
			t.Fatalf("history %q: %v", history, err)
		}
	}
	kept -= busybox // which both have, and which takes its space once
	t.Logf("bytes kept: %d, busybox has %d", kept, busybox)
	w.set("DECKHAND_IMAGE_KEEP_BYTES", fmt.Sprint(kept))
	w.run(t, e.Tag)
	w.wants(t, "c:1 present ours", "e:1 present ours last")
	w.set("DECKHAND_IMAGE_KEEP_BYTES", fmt.Sprint(kept-1))
	w.run(t, e.Tag)
	w.wants(t, "e:1 present ours last")
	off(t, c.ID)
	w.set("DECKHAND_IMAGE_KEEP_BYTES", "1")
	w.run(t, w.a.Tag)
	w.wants(t, "a:1 present ours last")
	off(t, e.ID)
}

// A layer that another image has stays when the old image goes, and is not
// fetched for the next one.
func TestSharedLayers(t *testing.T) {
	t.Parallel()
	for i, whose := range []string{"somebody else's image", "a kept image"} {
		t.Run(whose, func(t *testing.T) {
			w := &images{World: NewWorld(t)}
			// Of this test alone, or another's image would have it.
			size := 4*mib + int64(2*os.Getpid()+i)
			shared := func(name string) rig.Ref { return w.Image(t, name, rig.Spec{Shared: size, Marker: name}) }
			other, c, d := shared("other:1"), shared("c:1"), shared("d:1")
			if whose == "a kept image" {
				w.set("DECKHAND_IMAGE_KEEP", "2")
				w.run(t, other.Tag)
			} else {
				rig.DockerCmd(t, "pull", "-q", other.Tag)
			}
			w.run(t, c.Tag)
			w.Registry.Reset()
			if whose == "a kept image" {
				w.run(t, other.Tag)
			}
			w.run(t, d.Tag)
			off(t, c.ID)
			if got := w.blobs(other, c, d); !slices.Equal(got, d.Layers[2:]) {
				t.Errorf("fetched %q, want the layer of its own, %q", got, d.Layers[2:])
			}
			if got := rig.DockerCmd(t, "run", "--rm", "--network=none", other.Tag, "sh", "-c", "stat -c %s /filling"); got != fmt.Sprint(size) {
				t.Errorf("the shared file has %s bytes", got)
			}
		})
	}
}

// Layers that only the old image and the new one have are not fetched again: the old
// one goes when the new one has come. Until then it is what it was.
func TestOldImageSharesLayersWithTheNewOne(t *testing.T) {
	t.Parallel()
	w := &images{World: NewWorld(t)}
	size := 4*mib + int64(2*os.Getpid()+10) // of this test alone
	c := w.Image(t, "c:1", rig.Spec{Shared: size, Marker: "c"})
	d := w.Image(t, "d:1", rig.Spec{Shared: size, Marker: "d"})
	w.run(t, c.Tag)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		asked, open := w.hold(t, d.Layers[2])
		run := w.Start(t, w.use(d.Tag))
		<-asked
		on(t, c.ID)
		w.wants(t, "c:1 present ours", "d:1 pulling last")
		if err := run.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		run.End(t)
		open()
		if signal == syscall.SIGKILL {
			w.wants(t, "c:1 present ours", "d:1 pulling last")
			w.Deckhand(t, "recover")
		}
		w.wants(t, "c:1 present ours last")
		on(t, c.ID)
		off(t, d.ID)
		w.Registry.Intercept(nil)
	}
	w.Registry.Reset()
	task := w.use(d.Tag)
	w.MustRun(t, 0, task)
	if got := w.blobs(c, d); !slices.Equal(got, d.Layers[2:]) {
		t.Errorf("fetched %q, want the layer of its own, %q", got, d.Layers[2:])
	}
	off(t, c.ID)
	w.wants(t, "d:1 present ours last")
	facts := w.facts(t, task.ID)
	want := []string{"intent images", "intent images", "done image", "intent container", "intent image-removal", "done image-removal"}
	if !slices.Equal(facts, want) {
		t.Errorf("facts of the image check: %q, want %q", facts, want)
	}
	var requests []string
	for _, r := range w.Registry.Requests() {
		requests = append(requests, r.Method+" "+r.Path)
	}
	t.Logf("asked of the registry: %q", requests)
	w.Clean(t)
}

func TestImageThatSomebodyTagged(t *testing.T) {
	w := newImages(t)
	w.run(t, w.a.Tag)
	mine := w.Registry.Addr() + "/site/mine:1"
	rig.DockerCmd(t, "tag", w.a.Tag, mine)
	w.set("DECKHAND_IMAGE_PULL", "missing")
	equal(t, "under their name", w.run(t, mine), "reused")
	w.wants(t, "a:1 present ours", "site/mine:1 present last")
	w.run(t, w.b.Tag)
	on(t, w.a.ID, mine)
	off(t, w.a.Tag)
	w.wants(t, "b:1 present ours last")
}

func TestImageInUse(t *testing.T) {
	t.Parallel()
	for _, retry := range []string{"run", "scrub"} {
		t.Run("deleted by the next "+retry, func(t *testing.T) {
			w := newImages(t)
			w.run(t, w.a.Tag)
			container := rig.DockerCmd(t, "create", w.a.Tag, "true")
			w.run(t, w.b.Tag)
			on(t, w.a.ID, w.a.Tag)
			w.wants(t, "a:1 removing ours", "b:1 present ours last")
			if r := w.Deckhand(t, "scrub"); r.Code != 0 {
				t.Errorf("scrub: %+v", r)
			}
			w.wants(t, "a:1 removing ours", "b:1 present ours last")
			rig.DockerCmd(t, "rm", container)
			if retry == "run" {
				w.run(t, w.b.Tag)
			} else if r := w.Deckhand(t, "scrub"); r.Code != 0 || !strings.Contains(r.Stdout, "removed image "+w.a.Tag) {
				t.Errorf("scrub: %+v", r)
			}
			off(t, w.a.ID)
			w.wants(t, "b:1 present ours last")
		})
	}
}

func TestKilledInThePull(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"the same task", "another task"} {
		t.Run(next, func(t *testing.T) {
			w := newImages(t)
			asked, open := w.hold(t, w.a.Layers[0])
			task := w.use(w.a.Tag)
			run := w.Start(t, task)
			<-asked
			w.wants(t, "a:1 pulling last")
			if err := run.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			run.End(t)
			open()
			w.wants(t, "a:1 pulling last")
			if next == "the same task" {
				log := w.MustRun(t, 0, task).Log(t)
				equal(t, "came", log.Metadata["deckhand.image_pull"], "pulled")
				equal(t, "resumed", log.Metadata["deckhand.resumed"], "1")
				w.wants(t, "a:1 present ours last")
				equal(t, "path", w.Path(t, task.ID), "Accepted Scrub ImageCheck Download Run Upload Complete")
			} else {
				w.run(t, w.b.Tag)
				off(t, w.a.ID, w.a.Tag)
				w.wants(t, "b:1 present ours last")
				equal(t, "path of the first", w.Path(t, task.ID), "Accepted Scrub ImageCheck RollingBack Interrupted")
			}
			w.Clean(t)
		})
	}
}

// A task that is killed after its pull stays with the image that it has, and
// its result says that it was pulled.
func TestKilledAfterThePull(t *testing.T) {
	w := newImages(t)
	task := tes.Task{ID: "t", Executors: []tes.Executor{Sh(w.a.Tag, "cat /etc/marker; sleep 1")}}
	run := w.Start(t, task)
	run.Until(t, "executor started")
	if err := run.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	run.End(t)
	second := w.Image(t, "a:1", rig.Spec{Marker: "second"})
	w.Registry.Reset()
	log := w.MustRun(t, 0, task).Log(t)
	equal(t, "came", log.Metadata["deckhand.image_pull"], "pulled")
	if asked := w.Registry.Requests(); len(asked) > 0 {
		t.Errorf("the registry was asked again: %v", asked)
	}
	if out := log.Logs[0].Stdout; strings.Contains(out, "second") {
		t.Errorf("the task ran another image: %q", out)
	}
	off(t, second.ID)
}

func TestInterruptedInThePull(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		signal syscall.Signal
		code   int
	}{{syscall.SIGTERM, 75}, {syscall.SIGINT, 4}} {
		t.Run(test.signal.String(), func(t *testing.T) {
			w := newImages(t)
			w.run(t, w.b.Tag)
			asked, open := w.hold(t, w.a.Layers[0])
			run := w.Start(t, w.use(w.a.Tag))
			<-asked
			if err := run.Process.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			code, log := run.End(t)
			if code != test.code {
				t.Errorf("exit code %d, want %d\n%s", code, test.code, log)
			}
			open()
			off(t, w.a.ID, w.b.ID)
			w.wants(t)
			w.Clean(t)
		})
	}
}

func TestPullPolicies(t *testing.T) {
	w := newImages(t)
	policy := func(p string) { w.set("DECKHAND_IMAGE_PULL", p) }

	policy("never")
	o := w.MustRun(t, 3, w.use(w.a.Tag))
	if !strings.Contains(o.Stderr, w.a.Tag) || !strings.Contains(o.Stderr, "image.pull") {
		t.Errorf("no helpful message:\n%s", o.Stderr)
	}
	policy("missing")
	equal(t, "missing", w.run(t, w.a.Tag), "pulled")
	w.Registry.Reset()
	second := w.Image(t, "a:1", rig.Spec{Marker: "second"})
	equal(t, "missing, on disk", w.run(t, w.a.Tag), "reused")
	policy("never")
	equal(t, "never, on disk", w.run(t, w.a.Tag), "reused")
	if asked := w.Registry.Requests(); len(asked) > 0 {
		t.Errorf("the registry was asked: %v", asked)
	}
	policy("always")
	equal(t, "always, moved", w.run(t, w.a.Tag), "pulled")
	off(t, w.a.ID)
	equal(t, "always, nothing new", w.run(t, w.a.Tag), "reused")
	if manifests, _ := w.Pulls(); manifests < 2 {
		t.Errorf("the registry was asked %d times", manifests)
	}
	on(t, second.ID)
	w.wants(t, "a:1 present ours last")
}

func TestRegistryDown(t *testing.T) {
	w := newImages(t)
	// A port where nothing listens.
	gone := "127.0.0.1:1/" + strings.TrimPrefix(w.Registry.Addr(), "127.0.0.1:") + ":1"
	rig.DockerCmd(t, "pull", "-q", w.a.Tag)
	rig.DockerCmd(t, "tag", w.a.Tag, gone)
	log := w.MustRun(t, 0, w.use(gone)).Log(t)
	equal(t, "on disk", log.Metadata["deckhand.image_pull"], "present")
	if said := strings.Join(log.SystemLogs, "\n"); !strings.Contains(said, "warning") || !strings.Contains(said, gone) {
		t.Errorf("no warning in the result: %s", said)
	}

	w.run(t, w.b.Tag)
	w.down()
	log = w.MustRun(t, 0, w.use(w.b.Tag)).Log(t)
	equal(t, "overloaded, on disk", log.Metadata["deckhand.image_pull"], "reused")

	w.set("DECKHAND_IMAGE_RETRY_FOR", "2s")
	task := w.use(w.a.Tag + "-missing")
	o := w.MustRun(t, 75, task)
	if !strings.Contains(o.Stderr, "trying again") {
		t.Errorf("the pull was not tried again:\n%s", o.Stderr)
	}
	if len(o.Task.Logs) > 0 {
		t.Errorf("an interrupted task has a result: %+v", o.Task)
	}
	equal(t, "path", w.Path(t, task.ID), "Accepted Scrub ImageCheck RollingBack Interrupted")
	w.wants(t)
	w.Clean(t)
}

func TestUnknownImage(t *testing.T) {
	w := newImages(t)
	for ref, mend := range map[string]string{
		w.Registry.Addr() + "/nothing/such:1": "check the name",
		w.a.Tag + "-nosuch":                   "check the name",
		"Not A Name":                          "",
	} {
		o := w.Run(t, w.use(ref))
		if ref == "Not A Name" {
			if o.Code != 2 && o.Code != 3 {
				t.Errorf("%s: exit code %d", ref, o.Code)
			}
			continue
		}
		if o.Code != 3 || o.Task.State != tes.SystemError || !strings.Contains(o.Stderr, ref) || !strings.Contains(o.Stderr, mend) {
			t.Errorf("%s: exit code %d, state %s\n%s", ref, o.Code, o.Task.State, o.Stderr)
		}
	}
	w.wants(t)
	w.Clean(t)
}
