package download

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

type fixture struct {
	step  *Step
	tree  *worktree.Tree
	notes machine.Notes
	task  *machine.Task
}

func newFixture(t testing.TB, inputs ...tes.Input) *fixture {
	t.Helper()
	doc := &tes.Task{Inputs: inputs, Executors: []tes.Executor{{Image: "x", Command: []string{"x"}}}}
	if _, err := doc.Validate(); err != nil {
		t.Fatal(err)
	}
	notes, err := machine.NodeNotes(journaltest.NewMemory())
	if err != nil {
		t.Fatal(err)
	}
	tree := worktree.New(t.TempDir(), 1, doc)
	if err := tree.Prepare(); err != nil {
		t.Fatal(err)
	}
	meter, log := new(progress.Meter), slog.New(slog.DiscardHandler)
	return &fixture{
		tree: tree, notes: notes, task: &machine.Task{ID: "t", Attempt: 1},
		step: &Step{
			Task: doc, Tree: func(int, machine.Notes) *worktree.Tree { return tree }, Parallel: 2, Meter: meter, Log: log,
			Storage: storage.New(storage.Options{Parallel: 2, Memory: 1 << 20, Meter: meter, Log: log}),
		},
	}
}

func (f *fixture) read(t *testing.T, path string) string {
	t.Helper()
	file, _, err := f.tree.OpenFile(path)
	if err != nil {
		return "!" + err.Error()
	}
	defer file.Close()
	content, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// want runs the step and compares what is then staged, in files and in the journal.
func (f *fixture) want(t *testing.T, files map[string]string) {
	t.Helper()
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	f.staged(t, files)
}

func (f *fixture) staged(t *testing.T, files map[string]string) {
	t.Helper()
	sizes := map[string]int64{}
	for n, err := range batch.Read[File](f.notes, WhatInputs) {
		if err != nil {
			t.Fatal(err)
		}
		sizes[n.Path] = n.Bytes
	}
	for path, want := range files {
		if got := f.read(t, path); got != want || sizes[path] != int64(len(want)) {
			t.Errorf("%s is %.100q, noted with %d bytes; want %.100q", path, got, sizes[path], want)
		}
	}
	if len(sizes) != len(files) {
		t.Errorf("noted are %v, want %d", sizes, len(files))
	}
}

func content(path, text string) tes.Input { return tes.Input{Path: path, Content: &text} }

func TestStage(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "A", "sub/deep/b": "B", "sub/.c": "C"} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(dir+"/sub/empty", 0o755), os.Chmod(dir+"/a", 0o755)); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("n", 255)
	f := newFixture(t,
		content("/data/x", "X"), content("/data/empty", ""), content("/data/"+long, "long name"),
		content("/data/.x.part", "a name like one of ours"),
		tes.Input{Path: "/data/a", URL: dir + "/a"}, tes.Input{Path: "/data/again", URL: "file://" + dir + "/a"},
		// Single files, one named as its place in the tree is.
		content("/etc/2", "in the image"), content("/etc/3", "and another"),
		tes.Input{Path: "/dir", URL: dir, Type: tes.Directory}, content("/dir/sub/deep/b", "given by itself"), content("/dir/new", "merged"),
	)
	want := map[string]string{
		"/data/x": "X", "/data/empty": "", "/data/" + long: "long name", "/data/.x.part": "a name like one of ours", "/data/a": "A", "/data/again": "A",
		"/etc/2": "in the image", "/etc/3": "and another", "/dir/a": "A", "/dir/sub/deep/b": "given by itself", "/dir/sub/.c": "C", "/dir/new": "merged",
	}
	f.want(t, want)
	if _, info, err := f.tree.Resolve("/dir/sub/empty"); err != nil || !info.IsDir() {
		t.Errorf("the empty directory is not there: %v", err)
	}
	for path, executable := range map[string]bool{"/dir/a": true, "/dir/sub/.c": false} {
		_, info, err := f.tree.Resolve(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode()&0o100 != 0; got != executable {
			t.Errorf("%s has the mode %v", path, info.Mode())
		}
	}
	err := filepath.WalkDir(f.tree.Dir, func(p string, _ os.DirEntry, err error) error {
		if strings.Contains(p, "deckhand") {
			t.Errorf("%s is left", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f.want(t, want) // again
}

// What is journaled and in place is not fetched again; anything else is.
func TestStageAgain(t *testing.T) {
	var fetched atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fetched.Add(1)
		}
		w.Header().Set("Content-Length", "4")
		fmt.Fprint(w, r.URL.Path[1:])
	}))
	defer server.Close()
	f := newFixture(t, tes.Input{Path: "/data/one", URL: server.URL + "/file"}, tes.Input{Path: "/data/two", URL: server.URL + "/text"})
	want := map[string]string{"/data/one": "file", "/data/two": "text"}
	if p, err := f.step.Probe(t.Context(), f.task, f.notes); p != machine.None || err != nil {
		t.Errorf("before: %v, %v", p, err)
	}
	f.want(t, want)
	first := fetched.Swap(0)
	f.want(t, want)
	if n := fetched.Load(); n != 0 {
		t.Errorf("%d files were fetched again", n)
	}
	if p, err := f.step.Probe(t.Context(), f.task, f.notes); p != machine.Partial || err != nil {
		t.Errorf("after: %v, %v", p, err)
	}
	dir, name, err := f.tree.Parent("/data/one")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := os.WriteFile(filepath.Join(dir.Name(), name), []byte("fi"), 0o666); err != nil { // as a power cut may leave it
		t.Fatal(err)
	}
	f.want(t, want)
	if n := fetched.Load(); n == 0 || n >= first {
		t.Errorf("%d requests for one file of two, %d for both", n, first)
	}
}

// What a process of this boot had staged when it died is not fetched again, journaled or
// not; after another boot, what is not journaled is.
func TestStageUnjournaled(t *testing.T) {
	var fetched atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fetched.Add(1)
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(r.URL.Path)-1))
		fmt.Fprint(w, r.URL.Path[1:])
	}))
	defer server.Close()
	for name, test := range map[string]struct {
		enteredIn string // the boot of the state
		left      string // in the place of the first input
		again     int64  // files that are fetched again
		need      int64
	}{
		"this boot":               {"this", "file", 1, 0},
		"another boot":            {"another", "file", 3, 8},
		"entered by this process": {"", "file", 3, 8},
		"not whole":               {"this", "fi", 2, 4},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, tes.Input{Path: "/data/one", URL: server.URL + "/file"}, tes.Input{Path: "/data/two", URL: server.URL + "/text"},
				tes.Input{Path: "/etc/empty", URL: server.URL + "/"}) // whose mount has a place that is empty
			want := map[string]string{"/data/one": "file", "/data/two": "text", "/etc/empty": ""}
			f.want(t, want)
			dir, one, err := f.tree.Parent("/data/one")
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if err := os.WriteFile(filepath.Join(dir.Name(), one), []byte(test.left), 0o666); err != nil {
				t.Fatal(err)
			}
			// Nothing of it was journaled.
			if f.notes, err = machine.NodeNotes(journaltest.NewMemory()); err != nil {
				t.Fatal(err)
			}
			fetched.Store(0)
			f.step.BootID, f.task.Boot = "this", test.enteredIn
			f.want(t, want)
			if n := fetched.Load(); n != test.again {
				t.Errorf("%d files were fetched again, want %d", n, test.again)
			}
			var announced struct{ Bytes int64 }
			if note, ok := f.notes.Get(WhatInputs, "all"); !ok || json.Unmarshal(note.Detail, &announced) != nil || announced.Bytes != test.need {
				t.Errorf("announced are %d bytes, want %d", announced.Bytes, test.need)
			}
			if got := f.step.Meter.Snapshot(); got.BytesDone != 8 || got.BytesTotal != 8 || got.FilesDone != 3 || got.FilesTotal != 3 {
				t.Errorf("counted are %+v", got)
			}
		})
	}
}

// What is in its place does not need its source any more, and does not ask it.
func TestStageWithoutSource(t *testing.T) {
	for status, fault := range map[int64]machine.Fault{http.StatusForbidden: machine.TaskFault, http.StatusServiceUnavailable: machine.RetryLater} {
		var gone, asked atomic.Int64
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if status := gone.Load(); status != 0 {
				w.WriteHeader(int(status))
				return
			}
			fmt.Fprint(w, r.URL.Path[1:])
		}))
		defer server.Close()
		f := newFixture(t, tes.Input{Path: "/data/one", URL: server.URL + "/file"}, tes.Input{Path: "/data/two", URL: server.URL + "/text"})
		f.step.Storage = storage.New(storage.Options{RetryFor: time.Nanosecond, Meter: f.step.Meter})
		want := map[string]string{"/data/one": "file", "/data/two": "text"}
		f.want(t, want)
		gone.Store(status)
		asked.Store(0)
		f.want(t, want)
		if n := asked.Load(); n != 0 {
			t.Errorf("%d: what is in its place was asked for %d times", status, n)
		}
		dir, name, err := f.tree.Parent("/data/one")
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := os.Truncate(filepath.Join(dir.Name(), name), 2); err != nil { // as a power cut may leave it
			t.Fatal(err)
		}
		if err := f.step.Do(t.Context(), f.task, f.notes); machine.FaultOf(err) != fault || err == nil || !strings.Contains(err.Error(), "input /data/one: ") {
			t.Errorf("%d: a file that is not in its place: %v", status, err)
		}
	}
}

// What could be staged stays staged when something else fails.
func TestStageFails(t *testing.T) {
	f := newFixture(t, content("/data/in", "X"), tes.Input{Path: "/data/none", URL: "/no/such/file"})
	err := f.step.Do(t.Context(), f.task, f.notes)
	if machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "input /data/none") {
		t.Errorf("got %v", err)
	}
	f = newFixture(t, content("/data/in", "X"))
	f.step.Parallel = 1 // in the order of the document
	outside, parent := t.TempDir(), f.tree.Where("/data").Base
	if err := os.Symlink(outside, filepath.Join(parent, "out")); err != nil {
		t.Fatal(err)
	}
	f.step.Task.Inputs = append(f.step.Task.Inputs, content("/data/out/y", "must not leave the tree"))
	if err := f.step.Do(t.Context(), f.task, f.notes); err == nil || !strings.Contains(err.Error(), "/data/out") {
		t.Errorf("a link out of the tree gives %v", err)
	}
	f.staged(t, map[string]string{"/data/in": "X"})
	if _, err := os.Stat(outside + "/y"); err == nil {
		t.Error("a file was written outside of the tree")
	}
}
