package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// A tree that links make endless is the task's error, and found out soon.
func TestEndlessOutputs(t *testing.T) {
	files := map[string]string{"/o/9/f": "1"}
	for i := range 9 {
		for j := range 10 {
			files[fmt.Sprintf("/o/%d/l%d", i, j)] = fmt.Sprintf("-> ../%d", i+1)
		}
	}
	f := newFixture(t, files, nil, tes.Output{Path: "/o", URL: "/u", Type: tes.Directory})
	for name, out := range map[string]tes.Output{
		"directory": {Path: "/o", URL: "/u", Type: tes.Directory},
		"pattern":   {Path: "/o/0/*/*/*/*/*/*/*/*/*/f", URL: "/u", PathPrefix: "/o"},
		"matches":   {Path: "/o/*", URL: "/u", PathPrefix: "/o"},
	} {
		f.step.Task.Outputs = []tes.Output{out}
		_, err := f.collect(t)
		if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "outputs.max_files allows 1000") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// So are more changes of a container, or longer names, than may be looked at;
// what a pattern does not match counts nothing.
func TestEndlessChanges(t *testing.T) {
	changed := func(n int, format string) map[string]string {
		made := map[string]string{}
		for i := range n {
			made[fmt.Sprintf(format, i)] = ""
		}
		return made
	}
	many, long := changed(1001, "/usr/out/%d"), changed(100, "/usr/out/"+strings.Repeat("n", 3000)+"%d")
	for name, ended := range map[string]containers{
		"one": {"0": many}, "both": {"0": changed(501, "/usr/out/a%d"), "1": changed(500, "/usr/out/b%d")}, "long": {"0": long}, "others": {"0": changed(1001, "/usr/%d")},
	} {
		f := newFixture(t, nil, ended, tes.Output{Path: "/usr/out/*", URL: "/u", PathPrefix: "/usr"})
		_, err := f.collect(t)
		if name == "others" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "output /usr/out/*: "+worktree.ErrTooMuch.Error()+"; outputs.max_files allows 1000") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A path that several executors have changed is one output, and counts once.
func TestChangesOfSeveralExecutors(t *testing.T) {
	made := map[string]string{}
	for i := range 600 {
		made[fmt.Sprintf("/usr/out/%d", i)] = ""
	}
	f := newFixture(t, nil, containers{"0": made, "1": made}, tes.Output{Path: "/usr/out/*", URL: "/u", PathPrefix: "/usr"})
	files, err := f.collect(t)
	if err != nil || len(files) != len(made) {
		t.Errorf("%d files, %v", len(files), err)
	}
}

// What no container can name by its path is left out, at any depth.
func TestDeepOutputs(t *testing.T) {
	f := newFixture(t, map[string]string{"/o/x": "1"}, nil, tes.Output{Path: "/o", URL: "/u", Type: tes.Directory})
	dir, err := f.tree.Where("/o").Open()
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("n", 250)
	for range 20 {
		if err := dir.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		inner, err := dir.OpenRoot(name)
		if err := errors.Join(err, dir.Close()); err != nil {
			t.Fatal(err)
		}
		dir = inner
		if err := dir.WriteFile("f", []byte("2"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := f.collect(t)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, _, err := f.tree.OpenFile(file.physical); err != nil || len(file.Path) > 4095 {
			t.Errorf("a path of %d bytes: %v", len(file.Path), err)
		}
	}
	if said := strings.Join(f.warnings(), "\n"); len(files) != 17 || !strings.Contains(said, "4095 are allowed") {
		t.Errorf("%d files, and the warnings are\n%s", len(files), said)
	}
}

// Names are bytes: what is no UTF-8 is published under its own name, not sent
// twice, and an unfinished transfer of it is taken back.
func TestNamesThatAreNoText(t *testing.T) {
	target := t.TempDir()
	names := []string{"\xff", "\xfe", "a\xf0\x9f\xffb"}
	files := map[string]string{}
	for _, name := range names {
		files["/o/"+name] = name
	}
	for _, url := range []string{target + "/bare", "file://" + target + "/url"} {
		f := newFixture(t, files, nil, tes.Output{Path: "/o", URL: url, Type: tes.Directory})
		for range 2 {
			if err := f.step.publish(t.Context(), f.task, f.notes); err != nil {
				t.Fatal(err)
			}
		}
		dir := filepath.Join(target, filepath.Base(url))
		for _, name := range names {
			if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(text) != name {
				t.Errorf("%q is %q, %v", name, text, err)
			}
			// As a process leaves it that is killed in the middle.
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		notes := 0
		for _, err := range f.notes.Each(WhatOutputs) {
			if err != nil {
				t.Fatal(err)
			}
			notes++
		}
		if notes != 2 {
			t.Errorf("%d notes, want an intent and a batch", notes)
		}
		aborted := &aborts{}
		f.step.Storage = aborted
		f.task.Outcome = machine.Interrupted
		if err := f.step.Undo(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if want := "file://" + dir + "/" + percent(name); !strings.Contains(strings.Join(aborted.urls, "\n"), want) {
				t.Errorf("taken back are %q, not %s", aborted.urls, want)
			}
		}
	}
}

func percent(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		if c < 0x80 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// aborts notes what is taken back.
type aborts struct {
	Storage
	urls []string
}

func (a *aborts) Abort(_ context.Context, url string, _ storage.Unfinished) error {
	a.urls = append(a.urls, url)
	return nil
}

// The zeros of a hole take no room, and a stream that ends too soon is an error.
func TestCopySparse(t *testing.T) {
	for name, test := range map[string]struct {
		content []byte
		blocks  int64 // at most, of 512 bytes
	}{
		"nothing": {nil, 0}, "text": {[]byte("text"), 128}, "zeros": {make([]byte, 10*hole+1), 0},
		"a hole": {append(append(bytes.Repeat([]byte("x"), hole), make([]byte, 20*hole)...), 'y'), 512},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := copySparse(f, bytes.NewReader(test.content), int64(len(test.content))); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(got, test.content) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(test.content))
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks > test.blocks {
			t.Errorf("%s takes %d blocks, %v", name, st.Blocks, err)
		}
		if err := copySparse(f, bytes.NewReader(test.content), int64(len(test.content)+1)); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s, cut: %v", name, err)
		}
	}
}

// What it costs to look through a tree grows with its entries alone, and each
// costs little: outputs.max_files bounds the memory.
func TestMemoryOfManyEntries(t *testing.T) {
	f := newFixture(t, map[string]string{"/o/d/first": "1"}, nil, tes.Output{Path: "/o", URL: "/u", Type: tes.Directory})
	f.step.MaxFiles = 1 << 20
	dir := filepath.Join(f.tree.Where("/o").Base, "d")
	cost := func(upTo int) (entries int, allocated uint64) {
		for i := range upTo {
			// Hard links are entries too, and cheap to make.
			if err := os.Link(filepath.Join(dir, "first"), fmt.Sprintf("%s/entry number %08d", dir, i)); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Fatal(err)
			}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		files, err := f.collect(t)
		runtime.ReadMemStats(&after)
		if err != nil || len(files) != upTo+1 {
			t.Fatalf("%d files of %d, %v", len(files), upTo+1, err)
		}
		return upTo, after.TotalAlloc - before.TotalAlloc
	}
	few, small := cost(5_000)
	many, large := cost(20_000)
	each := (large - small) / uint64(many-few)
	if each > 1024 {
		t.Errorf("each of %d entries costs %d bytes", many, each)
	}
}
