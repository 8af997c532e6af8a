package system

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// newDrill is a world whose root and whose Docker are each on a small filesystem
// of its own. Docker's holds one image of 20 MiB while it is loaded, but not two.
func newDrill(t *testing.T) (w *World, docker, root string, images [2]rig.Ref) {
	t.Helper()
	docker = rig.Filesystem(t, "ext4", 80*mib)
	w = NewWorldOn(t, rig.NewDaemon(t, docker))
	root = rig.Filesystem(t, "ext4", 320*mib)
	w.Root = filepath.Join(root, "root")
	w.Env = append(w.Env, "DECKHAND_DISK_FLOOR=2MiB", "DECKHAND_DISK_INODE_FLOOR=100", "DECKHAND_RUN_STOP_GRACE=1s", "DECKHAND_ENGINE_WAIT=20s")
	// The file with which the test fills Docker's disk.
	if err := os.WriteFile(filepath.Join(docker, filler), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range images {
		images[i] = w.Image(t, fmt.Sprint("drill:", i), rig.Spec{Size: 20 * mib, Marker: fmt.Sprint(i)})
	}
	return w, docker, root, images
}

// A disk that fills up while an image, a task or an output writes to it ends that task with the state, the code and
// the words that it has to, and the next task on the node succeeds.
func TestDiskFullDrill(t *testing.T) {
	t.Parallel()
	w, docker, _, images := newDrill(t)
	published := rig.Filesystem(t, "tmpfs", mib)
	runs := 0
	run := func(t *testing.T, code int, image rig.Ref, script string, more func(*tes.Task)) Outcome {
		t.Helper()
		runs++
		task := tes.Task{ID: fmt.Sprint("t", runs), Executors: []tes.Executor{Sh(image.Tag, script)}}
		if more != nil {
			more(&task)
		}
		return w.MustRun(t, code, task)
	}
	next := func(t *testing.T) {
		t.Helper()
		run(t, 0, images[0], "true", nil)
		w.Clean(t)
	}
	run(t, 0, images[0], "true", nil)

	t.Run("pull", func(t *testing.T) {
		var once sync.Once
		w.Registry.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, images[1].ID) && r.Header.Get("Range") == "" {
				once.Do(func() { fill(t, docker) }) // by others, when the layers come
			}
			return false
		})
		o := run(t, 78, images[1], "true", nil)
		w.Registry.Intercept(nil)
		equal(t, "state", o.Task.State, tes.SystemError)
		if !strings.Contains(o.Stderr, "no space left on device") || !strings.Contains(o.Stderr, images[1].Tag) {
			t.Errorf("it does not say what is full:\n%s", o.Stderr)
		}
		if err := os.Remove(filepath.Join(docker, filler)); err != nil {
			t.Fatal(err)
		}
		next(t)
	})
	t.Run("run", func(t *testing.T) {
		o := run(t, 1, images[0], "dd if=/dev/zero of=/fill bs=1M", nil)
		equal(t, "state", o.Task.State, tes.ExecutorError)
		if got := o.Log(t).Logs[0]; !strings.Contains(got.Stderr, "No space left on device") {
			t.Errorf("executor log: %+v", got)
		}
		next(t)
	})
	t.Run("logs without a file", func(t *testing.T) {
		// Beside its streams, what the container's first process writes goes to Docker.
		o := run(t, 0, images[0], "echo problem >&2; yes | head -c 200000000; head -c 30000000 /dev/zero >/proc/1/fd/1", func(task *tes.Task) {
			// Its container is there while the next one takes Docker's space.
			task.Executors = append(task.Executors, Sh(images[0].Tag, "head -c 20000000 /dev/zero >/file"))
		})
		got := o.Log(t).Logs[0]
		if len(got.Stdout) != 10_000 || !strings.HasSuffix(got.Stdout, "y\n") || got.Stderr != "problem\n" {
			t.Errorf("executor log: %d bytes, and %q", len(got.Stdout), got.Stderr)
		}
		next(t)
	})
	t.Run("endless logs without a file", func(t *testing.T) {
		o := run(t, 1, images[0], "echo problem >&2; yes", func(task *tes.Task) {
			task.Resources.BackendParameters = map[string]string{"time_limit": "5s"}
		})
		equal(t, "state", o.Task.State, tes.ExecutorError)
		got := o.Log(t).Logs[0]
		if got.Stdout != strings.Repeat("y\n", 5_000) || got.Stderr != "problem\n" {
			t.Errorf("executor log: %d bytes, and %q", len(got.Stdout), got.Stderr)
		}
		if said := strings.Join(o.Log(t).SystemLogs, "\n"); !strings.Contains(said, "time limit") {
			t.Errorf("it does not say why it ended: %s", said)
		}
		next(t)
	})
	t.Run("endless logs in a file", func(t *testing.T) {
		o := run(t, 1, images[0], "", func(task *tes.Task) {
			// A command that minds no write error.
			task.Executors[0] = Sh(images[0].Tag, "trap '' PIPE; while :; do head -c 1000000 /dev/zero; done 2>/dev/null")
			task.Executors[0].Stdout = "/out/log"
		})
		equal(t, "state", o.Task.State, tes.ExecutorError)
		got, said := o.Log(t).Logs[0], strings.Join(o.Log(t).SystemLogs, "\n")
		const want = "cannot keep the output of \"sh\": no space left on device"
		equal(t, "exit code", got.ExitCode, 74)
		if !strings.Contains(got.Stderr, want) || !strings.Contains(said, want) || !strings.Contains(said, "the disk of "+w.Root) {
			t.Errorf("it does not say what is full: %q\n%s", got.Stderr, said)
		}
		next(t)
	})
	t.Run("upload", func(t *testing.T) {
		o := run(t, 78, images[0], "dd if=/dev/zero of=/out/large bs=1M count=3", func(task *tes.Task) {
			task.Outputs = []tes.Output{{URL: filepath.Join(published, "large"), Path: "/out/large"}}
		})
		equal(t, "state", o.Task.State, tes.SystemError)
		if !strings.Contains(o.Stderr, "no space left on device") {
			t.Errorf("it does not say what is full:\n%s", o.Stderr)
		}
		if left, err := os.ReadDir(published); err != nil || len(left) > 0 {
			t.Errorf("%v is left where outputs go (%v)", left, err)
		}
		next(t)
	})
}

// A disk that fills up while an image is pulled gets the room of the images that were kept: the one used longest ago
// first, and no more than it takes.
func TestFullDiskInThePullCostsKeptImages(t *testing.T) {
	t.Parallel()
	w, docker, _, _ := newDrill(t)
	w.Env = append(w.Env, "DECKHAND_IMAGE_KEEP=9")
	image := func(name string, size int64) rig.Ref {
		return w.Image(t, name+":1", rig.Spec{Size: size * mib, Marker: name})
	}
	// The last one takes twice its size while it comes: more than the first gives back.
	first, second, third, last := image("first", 12), image("second", 12), image("third", 4), image("last", 9)
	runs := 0
	use := func(i rig.Ref, code int) Outcome {
		runs++
		return w.MustRun(t, code, tes.Task{ID: fmt.Sprint("t", runs), Executors: []tes.Executor{{Image: i.Tag, Command: []string{"true"}}}})
	}
	there := func(i rig.Ref) bool { return strings.Contains(w.Docker(t, "images", "--no-trunc", "-q"), i.ID) }
	for _, i := range []rig.Ref{second, first, third, second, third} {
		use(i, 0)
	}
	var once sync.Once
	w.Registry.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, last.Layers[1]) && r.Header.Get("Range") == "" {
			once.Do(func() { fill(t, docker) }) // by others, when the layer comes
		}
		return false
	})
	o := use(last, 0)
	if n := strings.Count(o.Stderr, "the disk was full in the pull"); n != 1 {
		t.Errorf("it was tried again %d times, want once, with room by the numbers:\n%s", n, o.Stderr)
	}
	for i, want := range map[*rig.Ref]bool{&first: false, &second: false, &third: true, &last: true} {
		if there(*i) != want {
			t.Errorf("image %s is there: %v", i.Tag, !want)
		}
	}
	w.Clean(t)
	if err := os.Remove(filepath.Join(docker, filler)); err != nil {
		t.Fatal(err)
	}
	use(first, 0)
	w.Clean(t)
}

// The same task fifty times on a nearly full node, with one image and then the
// other, never fails, and the node never grows.
func TestFiftyTasksOnANearlyFullNode(t *testing.T) {
	t.Parallel()
	const runs = 50
	w, docker, root, images := newDrill(t)
	input := w.Write(t, "in", strings.Repeat("x", 8*mib))
	used := func(dir string) int64 {
		t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	var dockerUsed, rootUsed int64 // after the first round, in which the journal sets its reserve aside
	manifests, blobs := 0, 0
	for i := range runs {
		w.Registry.Reset()
		image := images[i/2%2]
		o := w.MustRun(t, 0, tes.Task{
			ID: fmt.Sprint("t", i), Volumes: []string{"/work"},
			Inputs:    []tes.Input{{URL: input, Path: "/in/file"}},
			Outputs:   []tes.Output{{URL: filepath.Join(w.Dir, "out"), Path: "/work/out"}},
			Executors: []tes.Executor{Sh(image.Tag, "cp /in/file /work/out; cp /in/file /of-its-own")},
		})
		if got, want := o.Log(t).Metadata["deckhand.image_pull"], [2]string{"pulled", "reused"}[i%2]; got != want {
			t.Errorf("run %d: the image was %s, want %s", i, got, want)
		}
		m, b := w.Pulls()
		manifests, blobs = manifests+m, blobs+b
		if i == 3 {
			dockerUsed = used(docker)
			// Others take what the node has beyond what a task needs.
			leave := int64(48 * mib)
			if err := unix.Fallocate(open(t, filepath.Join(root, filler)), 0, 0, int64(freeAt(t, root))-leave); err != nil {
				t.Fatal(err)
			}
			rootUsed = used(root)
		}
	}
	const slack = 2 * mib
	if grown := used(docker) - dockerUsed; grown > slack {
		t.Errorf("Docker's disk has %d bytes more than after four tasks", grown)
	}
	if grown := used(root) - rootUsed; grown > slack {
		t.Errorf("the root's disk has %d bytes more than after four tasks", grown)
	}
	w.Clean(t)
	t.Logf("%d tasks: %.1f questions about manifests and %.1f blobs each; %d MiB stay in Docker, %d MiB in the root with the reserve",
		runs, float64(manifests)/runs, float64(blobs)/runs, used(docker)/mib, rootUsed/mib)
}

// open opens a new file for writing, until the test ends.
func open(t *testing.T, name string) int {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}
