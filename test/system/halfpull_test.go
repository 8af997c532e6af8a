package system

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/test/rig"
)

// store lists the images, layers and parts of layers that Docker keeps, and the
// bytes of all of them.
func store(t *testing.T, d *rig.Daemon) []string {
	t.Helper()
	var names []string
	for _, kind := range []string{"tmp", "overlay2", "image/overlay2/layerdb/tmp", "image/overlay2/layerdb/sha256", "image/overlay2/layerdb/mounts", "image/overlay2/imagedb/content/sha256"} {
		found, err := filepath.Glob(filepath.Join(d.DataRoot(), kind, "*"))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	var bytes int64
	for _, name := range names {
		// What goes meanwhile has no size.
		_ = filepath.WalkDir(name, func(_ string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			if i, err := e.Info(); err == nil && i.Mode().IsRegular() {
				bytes += i.Size()
			}
			return nil
		})
	}
	return append(names, fmt.Sprint(bytes, " bytes"))
}

// until waits for something that Docker does by itself.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("after a minute it is not so: %s", what)
			return
		}
	}
}

// What has come of a pull when its run is killed goes, to the last file, and a
// pull of somebody else's that waits for the same layer gets it. When Docker is
// killed, the layers that it had unpacked serve the run that goes on, and go
// with its image.
func TestHalfPulledLayers(t *testing.T) {
	t.Parallel()
	d := rig.NewDaemon(t)
	w := &images{World: NewWorldOn(t, d)}
	w.set("DECKHAND_DISK_FLOOR", "1MiB")
	theirs := w.Image(t, "theirs:1", rig.Spec{Marker: "theirs"})
	d.Cmd(t, "pull", "-q", theirs.Tag)
	image := w.Image(t, "half:1", rig.Spec{Shared: 4 * mib, Size: 4 * mib})
	also := w.Image(t, "also:1", rig.Spec{Shared: 4 * mib, Size: mib, Marker: "also"})
	before := store(t, d)
	unchanged := func(what string) {
		t.Helper()
		until(t, what+": Docker's files are those of before", func() bool { return slices.Equal(store(t, d), before) })
		if t.Failed() {
			t.Fatalf("before:\n%s\nnow:\n%s", strings.Join(before, "\n"), strings.Join(store(t, d), "\n"))
		}
	}

	// hold lets the uppermost layer of both images come half-way; the others come.
	hold := func() (reached <-chan string, open func()) {
		asked, gate := make(chan string, 10), make(chan struct{})
		w.Registry.Intercept(func(rw http.ResponseWriter, r *http.Request) bool {
			_, blob, _ := strings.Cut(r.URL.Path, "/blobs/")
			if r.Method != http.MethodGet || r.Header.Get("Range") != "" || blob != image.Layers[2] && blob != also.Layers[2] {
				return false
			}
			select {
			case <-gate:
				return false
			default:
			}
			rw.Header().Set("Content-Length", fmt.Sprint(8*mib))
			_, _ = rw.Write(make([]byte, mib/2))
			_ = http.NewResponseController(rw).Flush()
			asked <- blob
			select {
			case <-gate:
				panic(http.ErrAbortHandler) // Docker asks again
			case <-r.Context().Done():
				return true
			}
		})
		open = sync.OnceFunc(func() { close(gate) })
		t.Cleanup(open)
		return asked, open
	}
	unpacked := func() bool {
		chains, err := filepath.Glob(filepath.Join(d.DataRoot(), "image/overlay2/layerdb/sha256/*"))
		return err == nil && len(chains) == 3 // two of theirs, and the shared layer
	}
	kill := func(run *Background) {
		t.Helper()
		if err := run.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		run.End(t)
	}

	// deckhand dies, alone.
	reached, open := hold()
	run := w.Start(t, w.use(image.Tag))
	<-reached
	until(t, "the shared layer is unpacked", unpacked)
	kill(run)
	unchanged("a run was killed in its pull")
	if r := w.Deckhand(t, "recover"); r.Code != 0 {
		t.Errorf("recover: %+v", r)
	}
	w.wants(t)

	// deckhand dies beside somebody's pull.
	run = w.Start(t, w.use(image.Tag))
	<-reached
	pull := exec.Command("docker", "--host", d.Host, "pull", "-q", also.Tag)
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	for blob := ""; blob != also.Layers[2]; {
		blob = <-reached
	}
	kill(run)
	open()
	if err := pull.Wait(); err != nil {
		t.Errorf("somebody's pull: %v", err)
	}
	if r := w.Deckhand(t, "recover"); r.Code != 0 {
		t.Errorf("recover: %+v", r)
	}
	d.Cmd(t, "run", "--rm", "--network=none", also.Tag, "test", "-s", "/filling")
	d.Cmd(t, "rmi", also.Tag)
	unchanged("a run was killed beside somebody's pull")

	// Docker dies.
	reached, open = hold()
	task := w.use(image.Tag)
	run = w.Start(t, task)
	<-reached
	until(t, "the shared layer is unpacked", unpacked)
	d.Kill(t)
	kill(run)
	open()
	d.Start(t)
	w.Registry.Reset()
	w.MustRun(t, 0, task)
	if got, want := w.blobs(image), image.Layers[2:]; !slices.Equal(got, want) {
		t.Errorf("fetched %q, want the layer that had not come, %q", got, want)
	}
	w.run(t, theirs.Tag)
	unchanged("Docker was killed in the pull")
	w.Clean(t)
}

// Docker that is killed while it loads an image, or while it unpacks a layer, does not
// keep the next task from its image; what stays in its data is what ADR 16 says.
func TestDockerKilledInThePullOfAnotherTask(t *testing.T) {
	t.Parallel()
	d := rig.NewDaemon(t)
	w := &images{World: NewWorldOn(t, d)}
	w.set("DECKHAND_DISK_FLOOR", "1MiB")
	next := w.Image(t, "next:1", rig.Spec{Marker: "next", Apart: true})
	loaded := w.Image(t, "loaded:1", rig.Spec{Shared: 4 * mib, Size: 4 * mib})
	unpacked := w.Image(t, "unpacked:1", rig.Spec{Zeros: 512 * mib, Apart: true})
	w.run(t, next.Tag)
	// The names of directories in overlay2 are random, and next is pulled anew.
	count := func() map[string]int {
		t.Helper()
		names, kinds := store(t, d), map[string]int{}
		for _, name := range names[:len(names)-1] {
			kinds[strings.TrimPrefix(filepath.Dir(name), d.DataRoot()+"/")]++
		}
		return kinds
	}
	before := count()
	left := func() string {
		t.Helper()
		var more []string
		for kind, n := range count() {
			if n != before[kind] {
				more = append(more, fmt.Sprint(n-before[kind], " in ", kind))
			}
		}
		slices.Sort(more)
		return strings.Join(more, ", ")
	}
	const layers = "image/overlay2/layerdb/sha256"
	// killed runs a task until something is so, kills Docker and the run, and starts
	// Docker again.
	killed := func(image rig.Ref, when func()) {
		t.Helper()
		run := w.Start(t, w.use(image.Tag))
		when()
		d.Kill(t)
		if err := run.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		run.End(t)
		d.Start(t)
		w.run(t, next.Tag)
		w.wants(t, "next:1 present ours last")
	}
	const part = "1 in image/overlay2/layerdb/tmp, 1 in overlay2"
	atMost := func(what string, or ...string) {
		t.Helper()
		got := left()
		t.Logf("%s: %s", what, got)
		if got != "" && got != part && !slices.Contains(or, got) {
			t.Errorf("%s: %s, want %s at most", what, got, part)
		}
	}
	// The uppermost layer is half there, and those below it are unpacked, the last of
	// them perhaps not to its end.
	asked, open := w.hold(t, loaded.Layers[2])
	killed(loaded, func() {
		<-asked
		// next has gone meanwhile.
		until(t, "the layers below are unpacked", func() bool { return count()[layers] == before[layers]+1 })
	})
	open()
	atMost("left of a pull that loaded a layer", "2 in "+layers+", 2 in overlay2", "1 in "+layers+", 1 in image/overlay2/layerdb/tmp, 2 in overlay2")
	w.run(t, loaded.Tag)
	w.run(t, next.Tag)
	atMost("left when its image has gone")
	before = count()

	// A layer is being unpacked, by a process of Docker's.
	killed(unpacked, func() {
		until(t, "a process unpacks the layer", func() bool { return unpacks(t, d) })
	})
	// The process may have come to its end before Docker came to its own.
	atMost("left of a pull that unpacked a layer", "1 in "+layers+", 1 in overlay2")
	w.run(t, unpacked.Tag)
	w.run(t, next.Tag)
	atMost("left when its image has gone")
}

// unpacks says whether Docker is unpacking a layer, which it leaves to a process.
func unpacks(t *testing.T, d *rig.Daemon) bool {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(processes, func(dir string) bool {
		// A process that has ended meanwhile has neither.
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		return (strings.HasPrefix(string(line), "docker-untar") || strings.HasPrefix(string(line), "docker-applyLayer")) &&
			strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", d.Pid()))
	})
}
