package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// filler is the file with which the test itself fills a filesystem.
const filler = "filled-by-the-test"

// newSmallWorld is a world whose root is on a small filesystem of its own.
func newSmallWorld(t *testing.T, kind string) *World {
	t.Helper()
	w := NewWorld(t)
	const size = 320 << 20 // the least that mkfs.xfs takes is 300 MiB
	at := rig.Filesystem(t, kind, size)
	w.Root = filepath.Join(at, "root")
	w.Env = append(w.Env, "DECKHAND_DISK_FLOOR=1MiB", "DECKHAND_RUN_STOP_GRACE=1s")
	// On a full disk there may not even be an inode for it.
	if err := os.WriteFile(filepath.Join(at, filler), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// fillAndSay is a script that takes every byte of the filesystem that the task
// is on, and says so. XFS refuses a MiB while it has nearly another; hence the
// blocks before the bytes, which would take half a million appends.
const fillAndSay = `dd if=/dev/zero of=/work/fill bs=1M 2>/dev/null; dd if=/dev/zero bs=4k 2>/dev/null >> /work/fill; ` +
	`while echo x 2>/dev/null >> /work/rest; do :; done; echo full`

func freeAt(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bavail * uint64(st.Bsize)
}

// A task with a hundred inputs that fills the disk is journaled to its end, its
// outputs go where there is space, and the next one finds a clean node.
func TestTaskFillsTheDisk(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newSmallWorld(t, kind)
			image := w.Image(t, "fill", rig.Spec{Marker: "fill"})
			task := tes.Task{
				ID: "filler", Volumes: []string{"/work"},
				Outputs:   []tes.Output{{URL: filepath.Join(w.Dir, "out"), Path: "/out/result"}},
				Executors: []tes.Executor{Sh(image.Tag, "echo result > /out/result; "+fillAndSay), Sh(image.Tag, "cat /in/99; echo second")},
			}
			for i := range 100 {
				task.Inputs = append(task.Inputs, tes.Input{URL: w.Write(t, fmt.Sprint("shared/", i), fmt.Sprintln("input", i)), Path: fmt.Sprint("/in/", i)})
			}
			o := w.MustRun(t, 0, task)
			if got := o.Log(t).Logs; len(got) != 2 || got[0].Stdout != "full\n" || got[1].Stdout != "input 99\nsecond\n" {
				t.Errorf("executor logs: %+v", got)
			}
			if got := w.Read(t, "out"); got != "result\n" {
				t.Errorf("the output is %q", got)
			}
			w.MustRun(t, 0, tes.Task{ID: "next", Executors: []tes.Executor{Sh(image.Tag, "true")}})
			if s := reserveOf(t, w); s.Ballast < s.Wanted {
				t.Errorf("the reserve was not filled again: %+v", s)
			}
			w.Clean(t)
		})
	}
}

// An input whose size shows only when it is opened, or never, and one during which
// others fill the disk, end the task at once: in numbers, as the node's fault, and
// with nothing left.
func TestInputFillsTheDisk(t *testing.T) {
	t.Parallel()
	w := newSmallWorld(t, "ext4")
	image := w.Image(t, "fits", rig.Spec{Marker: "fits"})
	const large = 1 << 30
	var gets atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.(http.Flusher).Flush() // without a length
		if r.Method == http.MethodHead {
			return
		}
		gets.Add(1)
		block := make([]byte, 1<<20)
		for i := range large / len(block) {
			if r.URL.Path == "/meanwhile" && i == 8 {
				fill(t, filepath.Dir(w.Root))
			}
			if _, err := rw.Write(block); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	opened := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			rw.(http.Flusher).Flush()
			return
		}
		gets.Add(1)
		rw.Header().Set("Content-Length", fmt.Sprint(large))
	}))
	defer opened.Close()
	for _, row := range []struct{ name, url, says string }{
		{"told when it is opened", opened.URL + "/x", fmt.Sprint("the disk is full: ", large, " bytes are needed, ")},
		{"never told", server.URL + "/x", "the disk is full: more than the "},
		{"others fill it meanwhile", server.URL + "/meanwhile", "the disk is full: more than the "},
	} {
		t.Run(row.name, func(t *testing.T) {
			gets.Store(0)
			o := w.MustRun(t, 78, tes.Task{
				ID: strings.ReplaceAll(row.name, " ", "-"), Inputs: []tes.Input{{URL: row.url, Path: "/in/x"}},
				Executors: []tes.Executor{Sh(image.Tag, "true")},
			})
			if o.Task.State != tes.SystemError || !strings.Contains(o.Stderr, row.says) || gets.Load() != 1 {
				t.Errorf("state %s after %d requests\n%s", o.Task.State, gets.Load(), o.Stderr)
			}
			if err := os.Truncate(filepath.Join(filepath.Dir(w.Root), filler), 0); err != nil {
				t.Fatal(err)
			}
			if free := freeAt(t, w.Root); free < 100<<20 {
				t.Errorf("only %d bytes are free afterwards", free)
			}
			w.Clean(t)
		})
	}
}

// reserve is what status says of it.
type reserve struct {
	Ballast int64 `json:"ballast"`
	Wanted  int64 `json:"ballast_wanted"`
}

func reserveOf(t *testing.T, w *World) reserve {
	t.Helper()
	var s struct{ Reserve reserve }
	if err := json.Unmarshal([]byte(w.Deckhand(t, "status", "--json").Stdout), &s); err != nil {
		t.Fatal(err)
	}
	return s.Reserve
}

// killedOnFullDisk leaves a node whose disk a dead run's container has filled.
func killedOnFullDisk(t *testing.T, kind string) (w *World, image rig.Ref) {
	t.Helper()
	w = newSmallWorld(t, kind)
	image = w.Image(t, "fill", rig.Spec{Marker: "fill"})
	b := w.Start(t, tes.Task{
		ID: "filler", Volumes: []string{"/work"}, Inputs: []tes.Input{{URL: w.Write(t, "shared/first", ""), Path: "/in/first"}},
		Executors: []tes.Executor{Sh(image.Tag, fillAndSay+"; sleep 600")},
	})
	b.Until(t, "executor started")
	eventually(t, "a full disk", func() bool { return strings.Contains(w.Deckhand(t, "logs", "filler").Stdout, "full") })
	if err := b.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.End(t)
	// Not even what the container could not use.
	fill(t, filepath.Dir(w.Root))
	return w, image
}

// A process that dies on a full disk leaves a journal that the next start can
// read, a disk that it can free, and a task that it rolls back or runs again.
func TestKilledOnFullDisk(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ext4", "xfs"} {
		for _, next := range []string{"filler", "other"} {
			t.Run(fmt.Sprint(kind, " then ", next), func(t *testing.T) {
				t.Parallel()
				w, image := killedOnFullDisk(t, kind)
				task := tes.Task{ID: next, Executors: []tes.Executor{Sh(image.Tag, "true")}}
				args := []string{}
				if next == "filler" {
					args = append(args, "--fresh") // with another document
				}
				o := w.Run(t, task, args...)
				if o.Code != 0 {
					t.Fatalf("exit code is %d\n%s", o.Code, o.Stderr)
				}
				// What the dead task left goes before the journal is opened, and what is
				// set aside stays; what may be resumed is kept instead.
				freed := strings.Contains(o.Stderr, "removed kind=directory")
				if s := reserveOf(t, w); freed != (next == "other") || s.Ballast < s.Wanted {
					t.Errorf("freed before: %v; %+v\n%s", freed, s, o.Stderr)
				}
				// XFS gives back what was removed a little later.
				eventually(t, "the space of the dead task", func() bool { return freeAt(t, w.Root) >= 100<<20 })
				w.Clean(t)
			})
		}
	}
}

// With somebody else who takes every byte as soon as it is free, a start goes
// on or says that the node is unfit; it does not die and does not hang, and
// nothing is lost when the other one stops.
func TestKilledOnFullDiskOthersWant(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w, image := killedOnFullDisk(t, kind)
			task := tes.Task{ID: "other", Executors: []tes.Executor{Sh(image.Tag, "true")}}
			stop := grab(t, filepath.Dir(w.Root))
			for range 3 {
				o := w.Run(t, task)
				if o.Code != 0 && o.Code != 78 {
					t.Errorf("exit code is %d\n%s", o.Code, o.Stderr)
				}
				if r := w.Deckhand(t, "journal", "verify"); r.Code != 0 {
					t.Errorf("journal verify: %s%s", r.Stdout, r.Stderr)
				}
			}
			stop()
			w.MustRun(t, 0, task)
			if got := w.Path(t, "filler"); got != upTo("Run")+" RollingBack Interrupted" {
				t.Errorf("the dead task went through %s", got)
			}
			w.Clean(t)
		})
	}
}

// fill takes every byte that is left on the filesystem of dir.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, filler), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for size := len(block); size > 0; {
		n, err := f.Write(block[:size])
		if err != nil || n < size {
			size /= 2
		}
	}
}

// grab takes every byte that is freed on the filesystem of dir, until it is
// stopped and gives them back.
func grab(t *testing.T, dir string) (stop func()) {
	t.Helper()
	name := filepath.Join(dir, filler)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		at := info.Size()
		for size := int64(64 << 20); ; size /= 2 {
			select {
			case <-end:
				return
			default:
			}
			if size < 4096 {
				size = 64 << 20
			}
			for unix.Fallocate(int(f.Fd()), 0, at, size) == nil {
				at += size
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		if err := errors.Join(f.Close(), os.Remove(name)); err != nil {
			t.Fatal(err)
		}
	}
}

// What a killed process had brought of an input is not asked for a second time of a disk
// that has no room for both.
func TestResumeWhereItFitsOnce(t *testing.T) {
	t.Parallel()
	w := newSmallWorld(t, "ext4")
	image := w.Image(t, "once", rig.Spec{Marker: "once"})
	size := int64(freeAt(t, filepath.Dir(w.Root))) * 6 / 10
	content := io.NewSectionReader(zeros{}, 0, size)
	held, killed := make(chan struct{}), make(chan struct{})
	hold := sync.OnceFunc(func() { close(held) })
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("ETag", `"zeros"`)
		if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && !strings.HasPrefix(from, "0-") {
			hold()
			<-killed
		}
		http.ServeContent(rw, r, "", time.Time{}, io.NewSectionReader(content, 0, size))
	}))
	defer server.Close()
	end := sync.OnceFunc(func() { close(killed) })
	defer end()
	task := tes.Task{
		ID: "once", Inputs: []tes.Input{{URL: server.URL + "/x", Path: "/in/x"}},
		Executors: []tes.Executor{Sh(image.Tag, "wc -c < /in/x")},
	}
	run := w.Start(t, task)
	<-held
	run.Kill(t)
	end()
	if free := int64(freeAt(t, filepath.Dir(w.Root))); free >= size {
		t.Fatalf("of %d bytes nothing has come: %d are free", size, free)
	}
	o := w.MustRun(t, 0, task)
	if got := o.Log(t).Logs; len(got) != 1 || got[0].Stdout != fmt.Sprintln(size) {
		t.Errorf("executor logs: %+v, want %d bytes", got, size)
	}
	if got := w.Path(t, task.ID); got != complete {
		t.Errorf("the task went through %s, want %s", got, complete)
	}
	w.Clean(t)
}

// zeros reads as zeros.
type zeros struct{}

func (zeros) ReadAt(b []byte, _ int64) (int, error) {
	clear(b)
	return len(b), nil
}
