package upload

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// containers are the changed files of ended containers, by their names: path to
// content, a link to its target after "-> ", a directory as "/".
type containers map[string]map[string]string

func (c containers) Name(_ *machine.Task, executor int) string { return fmt.Sprint(executor) }

func (c containers) Container(_ context.Context, id string) (engine.Container, error) {
	if c[id] == nil {
		return engine.Container{}, engine.ErrNotFound
	}
	return engine.Container{Name: id}, nil
}

func (c containers) Changes(_ context.Context, id string, read func(iter.Seq[string]) error) error {
	if c[id] == nil {
		return engine.ErrNotFound
	}
	return read(maps.Keys(c[id]))
}

// CopyFrom archives as Docker does: names begin with the last element of path.
func (c containers) CopyFrom(_ context.Context, id, p string, read func(io.Reader) error) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var names []string
	for name := range c[id] {
		if name == p || strings.HasPrefix(name, p+"/") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return engine.ErrNotFound
	}
	slices.Sort(names)
	for _, name := range names {
		content := c[id][name]
		h := &tar.Header{Name: path.Join(path.Base(p), strings.TrimPrefix(name, p)), Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(content))}
		switch {
		case content == "/":
			h.Typeflag, h.Size = tar.TypeDir, 0
		case content == "fifo":
			h.Typeflag, h.Size = tar.TypeFifo, 0
		case strings.HasPrefix(content, "-> "):
			h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, content[3:]
		case strings.HasPrefix(content, "=> "):
			h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, content[3:]
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, content); err != nil {
				return err
			}
		}
	}
	return errors.Join(w.Close(), read(&b))
}

// collect returns the files of all outputs.
func (f *fixture) collect(t *testing.T) (files []File, err error) {
	t.Helper()
	err = f.step.collect(t.Context(), f.task, f.notes, f.tree, func(file File) error {
		files = append(files, file)
		return nil
	})
	return files, err
}

type fixture struct {
	step  *Step
	tree  *worktree.Tree
	notes machine.Notes
	task  *machine.Task
}

// newFixture has a work tree with files in it: path to content, as for containers.
func newFixture(t *testing.T, files map[string]string, ended containers, outputs ...tes.Output) *fixture {
	t.Helper()
	doc := &tes.Task{Outputs: outputs, Volumes: []string{"/vol", "/srv/vol"}, Executors: []tes.Executor{
		{Image: "x", Command: []string{"x"}}, {Image: "x", Command: []string{"x"}},
	}}
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
	for name, content := range files {
		place := tree.Where(name)
		p := filepath.Join(place.Base, place.Name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		switch {
		case content == "/":
			err = errors.Join(err, os.MkdirAll(p, 0o755))
		case content == "fifo":
			err = errors.Join(err, unix.Mkfifo(p, 0o644))
		case content == "socket":
			err = errors.Join(err, unix.Mknod(p, unix.S_IFSOCK|0o644, 0))
		case strings.HasPrefix(content, "-> "):
			err = errors.Join(err, os.Symlink(content[3:], p))
		default:
			err = errors.Join(err, os.WriteFile(p, []byte(content), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	meter, log := new(progress.Meter), slog.New(slog.DiscardHandler)
	return &fixture{
		tree: tree, notes: notes, task: &machine.Task{ID: "t", Attempt: 1},
		step: &Step{
			Task: doc, Tree: func(int, machine.Notes) *worktree.Tree { return tree }, Engine: ended, Containers: ended,
			Missing: MissingWarn, MaxFiles: 1000, Parallel: 2, Meter: meter, Log: log,
			Storage: storage.New(storage.Options{Parallel: 2, Memory: 1 << 20, Meter: meter, Log: log}),
		},
	}
}

func (f *fixture) warnings() (said []string) {
	for _, w := range f.notes.All(machine.WhatWarning) {
		said = append(said, string(w.Detail))
	}
	return said
}

func TestCollect(t *testing.T) {
	dir := func(p, url string) tes.Output { return tes.Output{Path: p, URL: url, Type: tes.Directory} }
	file := func(p, url string) tes.Output { return tes.Output{Path: p, URL: url} }
	pattern := func(p, prefix string) tes.Output { return tes.Output{Path: p, URL: "file:///u", PathPrefix: prefix} }
	for name, test := range map[string]struct {
		output tes.Output
		files  map[string]string
		ended  containers
		want   []string // path=URL:size
		warns  []string // a part of each warning
	}{
		"file":          {output: file("/o/x", "/u/x"), files: map[string]string{"/o/x": "12"}, want: []string{"/o/x=/u/x:2"}},
		"file URL":      {output: file("/o/x", "file:///u%20/x"), files: map[string]string{"/o/x": "12"}, want: []string{"/o/x=file:///u%20/x:2"}},
		"missing":       {output: file("/o/x", "/u/x"), warns: []string{"/o/x was not made"}},
		"not a file":    {output: file("/o/x", "/u/x"), files: map[string]string{"/o/x/y": "1"}, warns: []string{"/o/x is not a file"}},
		"a FIFO":        {output: file("/o/x", "/u/x"), files: map[string]string{"/o/x": "fifo"}, warns: []string{"/o/x is not a file"}},
		"a socket":      {output: file("/o/x", "/u/x"), files: map[string]string{"/o/x": "socket"}, warns: []string{"/o/x is not a file"}},
		"links":         {output: file("/o/x", "/u/x"), files: map[string]string{"/o/x": "-> y", "/o/y": "-> /vol/z", "/vol/z": "123"}, want: []string{"/o/x=/u/x:3"}},
		"link outwards": {output: file("/o/x", "/u/x"), files: map[string]string{"/o/x": "-> /etc/passwd"}, warns: []string{"/o/x is a link that leads to none"}},
		"loop":          {output: file("/o/x", "/u/x"), files: map[string]string{"/o/x": "-> x"}, warns: []string{"/o/x cannot be read"}},
		"directory": {
			output: dir("/o", "file:///u/"), files: map[string]string{"/o/a": "1", "/o/b c/d": "22", "/o/b c/.e": "", "/o/empty": "/"},
			want: []string{"/o/a=file:///u/a:1", "/o/b c/.e=file:///u/b%20c/.e:0", "/o/b c/d=file:///u/b%20c/d:2"},
		},
		"bare directory":   {output: dir("/o", "/u"), files: map[string]string{"/o/b c%": "1"}, want: []string{"/o/b c%=/u/b c%:1"}},
		"empty directory":  {output: dir("/o", "/u"), files: map[string]string{"/o": "/"}},
		"links to parents": {output: dir("/o", "/u"), files: map[string]string{"/o/a/up": "-> ..", "/o/a/f": "1", "/o/self": "-> .", "/o/top": "-> /"}, want: []string{"/o/a/f=/u/a/f:1"}, warns: []string{"/o/a/up is a link to a directory above", "/o/self is a link to a directory above"}},
		"link above the output": {
			output: dir("/vol/d", "/u"), files: map[string]string{"/vol/d/up": "-> ..", "/vol/d/f": "1", "/vol/other": "2"},
			want: []string{"/vol/d/f=/u/f:1"}, warns: []string{"/vol/d/up is a link to a directory above"},
		},
		"captured around a mount": {
			output: dir("/srv", "/u"), files: map[string]string{"/srv/vol/f": "of the volume"},
			ended: containers{"1": {"/srv": "/", "/srv/vol": "/", "/srv/vol/f": "not to be taken", "/srv/g": "1"}},
			want:  []string{"/srv/g=/u/g:1", "/srv/vol/f=/u/vol/f:13"},
		},
		"links in a ring": {
			output: dir("/o", "/u"), files: map[string]string{"/o/a/b": "-> ../b", "/o/b/a": "-> ../a", "/o/a/f": "1"},
			want: []string{"/o/a/f=/u/a/f:1", "/o/b/a/f=/u/b/a/f:1"}, warns: []string{"/o/a/b/a is a link", "/o/b/a/b is a link"},
		},
		"twice": {
			output: dir("/o", "/u"), files: map[string]string{"/o/a/f": "1", "/o/b": "-> a"}, want: []string{"/o/a/f=/u/a/f:1", "/o/b/f=/u/b/f:1"},
		},
		"pattern": {
			output: pattern("/o/*/[!a]?.x", "/o"), files: map[string]string{"/o/d/b1.x": "1", "/o/d/a1.x": "no", "/o/.d/b1.x": "no", "/o/e/b2.x/f": "22"},
			want:  []string{"/o/d/b1.x=file:///u/d/b1.x:1", "/o/e/b2.x/f=file:///u/e/b2.x/f:2"},
			warns: []string{"output /o/*/[!a]?.x is of type FILE and matches directories, such as /o/e/b2.x"},
		},
		"pattern of directories": {
			output: tes.Output{Path: "/o/*", URL: "file:///u", PathPrefix: "/o", Type: tes.Directory},
			files:  map[string]string{"/o/d/f": "1", "/o/f": "1"}, want: []string{"/o/d/f=file:///u/d/f:1", "/o/f=file:///u/f:1"},
		},
		"pattern of none":   {output: pattern("/o/*", "/o"), warns: []string{"/o/* was not made"}},
		"pattern of a FIFO": {output: pattern("/o/*", "/o"), files: map[string]string{"/o/f": "fifo"}, warns: []string{"/o/f is not a file or a directory"}},
		"quoted":            {output: file(`/o/\*`, "/u/x"), files: map[string]string{"/o/*": "1", "/o/y": "no"}, want: []string{"/o/*=/u/x:1"}},
		"captured": {
			output: file("/root/x", "/u/x"), ended: containers{"0": {"/root/x": "1"}, "1": {"/root/x": "22", "/root/y": "no"}},
			want: []string{"/root/x=/u/x:2"},
		},
		"captured from the first": {output: file("/root/x", "/u/x"), ended: containers{"0": {"/root/x": "1"}, "1": {"/root/y": "no"}}, want: []string{"/root/x=/u/x:1"}},
		"captured directory": {
			output: dir("/root/d", "/u"),
			ended:  containers{"1": {"/root/d": "/", "/root/d/f": "1", "/root/d/g": "=> d/f", "/root/d/l": "-> f", "/root/d/p": "fifo", "/root/d/out": "-> /etc/passwd"}},
			want:   []string{"/root/d/f=/u/f:1", "/root/d/g=/u/g:1", "/root/d/l=/u/l:1"}, warns: []string{"/root/d/out is a link"},
		},
		"captured pattern": {
			output: pattern("/root/*.x", "/root"),
			ended:  containers{"0": {"/root/a.x": "1", "/root/b.x": "1", "/root/c.y": "no"}, "1": {"/root": "/", "/root/b.x": "22", "/root/d.x": "/", "/root/d.x/f": "333"}},
			want:   []string{"/root/a.x=file:///u/a.x:1", "/root/b.x=file:///u/b.x:2", "/root/d.x/f=file:///u/d.x/f:3"}, warns: []string{"such as /root/d.x"},
		},
		"captured over a mount": {
			output: pattern("/*/f", "/"), files: map[string]string{"/vol/f": "of the volume"},
			ended: containers{"1": {"/vol": "/", "/vol/f": "not to be taken", "/new/f": "1"}},
			want:  []string{"/new/f=file:///u/new/f:1", "/vol/f=file:///u/vol/f:13"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, test.files, test.ended, test.output)
			files, err := f.collect(t)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, x := range files {
				got = append(got, fmt.Sprintf("%s=%s:%d", x.Path, f.step.url(x), x.Size))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("collected\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			said := strings.Join(f.warnings(), "\n")
			for _, w := range test.warns {
				if !strings.Contains(said, w) {
					t.Errorf("the warnings do not say %q:\n%s", w, said)
				}
			}
			if test.warns == nil && test.want != nil && said != "" {
				t.Errorf("the warnings say\n%s", said)
			}
			if len(test.want) > 0 || test.output.Type == tes.Directory {
				return
			}
			f.step.Missing = MissingError
			if _, err := f.collect(t); machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), test.output.Path) && !strings.Contains(err.Error(), "/o/") {
				t.Errorf("as an error it is %v", err)
			}
		})
	}
}

// A million links are no million records.
func TestWarningsAreBounded(t *testing.T) {
	files := map[string]string{}
	for i := range 500 {
		files[fmt.Sprintf("/o/%d", i)] = "-> /nowhere"
	}
	f := newFixture(t, files, nil, tes.Output{Path: "/o", URL: "/u", Type: tes.Directory})
	if _, err := f.collect(t); err != nil {
		t.Fatal(err)
	}
	said := f.warnings()
	if len(said) != told+1 || !strings.Contains(said[told], "480 more of output /o") {
		t.Errorf("%d warnings, the last %q", len(said), said[len(said)-1])
	}
}

// Nothing of the node gets into a file through a link that the task left.
func TestNothingLeaks(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	target := t.TempDir()
	f := newFixture(t, map[string]string{
		"/o/absolute": "-> " + secret, "/o/relative": "-> " + up + secret, "/o/dir": "-> " + filepath.Dir(secret), "/o/slash": "-> /..", "/o/proc": "-> /proc/1/root",
	}, containers{"1": {"/root/d": "/", "/root/d/l": "-> " + secret, "/root/d/z": "=> d/l", "/root/d/up": "-> " + up + filepath.Dir(secret)}},
		tes.Output{Path: "/o", URL: target + "/o", Type: tes.Directory}, tes.Output{Path: "/root/d", URL: target + "/d", Type: tes.Directory},
		tes.Output{Path: "/o/dir/*", PathPrefix: "/o", URL: target + "/p"}, tes.Output{Path: "/o/*/*/secret", PathPrefix: "/o", URL: target + "/q"})
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(target, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			t.Errorf("%s was published", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What is published is not sent again; what was announced only is.
func TestPublishAgain(t *testing.T) {
	target := t.TempDir()
	f := newFixture(t, map[string]string{"/o/a": "A", "/o/b": "B"}, nil, tes.Output{Path: "/o", URL: "file://" + target + "/u", Type: tes.Directory})
	for range 2 {
		if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"a": "A", "b": "B"} {
			if got, err := os.ReadFile(filepath.Join(target, "u", name)); err != nil || string(got) != want {
				t.Errorf("%s is %q, %v", name, got, err)
			}
			// A change at the target shows whether it is sent once more.
			if err := os.WriteFile(filepath.Join(target, "u", name), []byte(want), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	info, err := os.Stat(filepath.Join(target, "u/a"))
	if err != nil {
		t.Fatal(err)
	}
	before := info.ModTime()
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if info, err = os.Stat(filepath.Join(target, "u/a")); err != nil || !info.ModTime().Equal(before) {
		t.Errorf("the file was sent again: %v, %v", info, err)
	}
}

// After an executor's failure everything that can be published is, whatever
// happens to the other outputs.
func TestFailureKeepsNoOutput(t *testing.T) {
	for _, failed := range []bool{true, false} {
		target := t.TempDir()
		if err := os.MkdirAll(filepath.Join(target, "a/there"), 0o755); err != nil {
			t.Fatal(err)
		}
		f := newFixture(t, map[string]string{"/o/a": "A", "/o/b": "B", "/o/c": "C"}, nil,
			tes.Output{Path: "/o/missing", URL: target + "/missing"}, tes.Output{Path: "/o/a", URL: target + "/a"},
			tes.Output{Path: "/o/b", URL: target + "/b"}, tes.Output{Path: "/o/c", URL: target + "/c"})
		f.step.Missing, f.step.Parallel, f.task.Failed = MissingError, 1, failed
		err := f.step.Do(t.Context(), f.task, f.notes)
		if !failed {
			if machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "/o/missing was not made") {
				t.Errorf("without a failure: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"b": "B", "c": "C"} {
			if got, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(got) != want {
				t.Errorf("%s is %q, %v", name, got, err)
			}
		}
		said := strings.Join(f.warnings(), "\n")
		for _, w := range []string{"/o/missing was not made", "output /o/a: cannot upload to " + target + "/a: there is a directory"} {
			if !strings.Contains(said, w) {
				t.Errorf("the warnings do not say %q:\n%s", w, said)
			}
		}
		if !finished(f.notes) {
			t.Error("the upload is not done")
		}
	}
}

// A store that has been asked for long enough is not asked for every file.
func TestFailureDoesNotWaitForEveryOutput(t *testing.T) {
	files := map[string]string{}
	for i := range 50 {
		files[fmt.Sprintf("/o/%d", i)] = "x"
	}
	for fault, most := range map[machine.Fault]int{machine.RetryLater: 1, machine.TaskFault: told + 1} {
		f := newFixture(t, files, nil, tes.Output{Path: "/o", URL: "/u", Type: tes.Directory})
		down := &refusing{fault: fault, Storage: f.step.Storage}
		f.step.Storage, f.step.Parallel, f.task.Failed = down, 1, true
		if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
		if said := f.warnings(); down.asked != most || len(said) != most {
			t.Errorf("%s: asked %d times, and the warnings are\n%s", fault, down.asked, strings.Join(said, "\n"))
		}
	}
}

// refusing takes nothing.
type refusing struct {
	Storage
	fault machine.Fault
	asked int
}

func (r *refusing) Put(context.Context, storage.PutRequest) error {
	r.asked++
	return machine.Faultf(r.fault, "no")
}
