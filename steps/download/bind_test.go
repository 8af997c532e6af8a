package download

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// elsewhere is a directory whose files no copy shares blocks with.
func elsewhere(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "deckhand-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// sparse makes a file of the least size that is mounted.
func sparse(t *testing.T, name string, mode fs.FileMode) string {
	t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, nil, 0o644), os.Truncate(name, leastBound), os.Chmod(name, mode))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// choose is what Scrub does with the inputs.
func (f *fixture) choose(t *testing.T) {
	t.Helper()
	if err := f.step.Choose(t.Context(), f.tree, f.notes.Of(machine.Scrub)); err != nil {
		t.Fatal(err)
	}
	f.tree.Plan.Binds = Binds(f.notes)
	if err := f.tree.Prepare(); err != nil {
		t.Fatal(err)
	}
}

func TestChoose(t *testing.T) {
	dir := elsewhere(t)
	ref, linked := filepath.Join(dir, "ref"), filepath.Join(dir, "linked")
	a := sparse(t, ref+"/a", 0o644)
	outside := sparse(t, dir+"/reference", 0o644)
	if err := errors.Join(os.Symlink("ref", linked), os.Symlink(outside, ref+"/out"), os.Symlink("a", ref+"/in"), os.Symlink(a, dir+"/into"),
		os.WriteFile(ref+"/small", make([]byte, leastBound-1), 0o644), os.Mkdir(ref+"/directory", 0o755), unix.Mkfifo(ref+"/fifo", 0o644)); err != nil {
		t.Fatal(err)
	}
	file := func(p, url string) tes.Input { return tes.Input{Path: p, URL: url, Type: tes.File} }
	one := func(url string) tes.Task { return tes.Task{Inputs: []tes.Input{file("/data/x", url)}} }
	with := func(change func(*tes.Task)) tes.Task {
		doc := one(a)
		change(&doc)
		return doc
	}
	output := func(p string, kind tes.FileType) tes.Task {
		return with(func(d *tes.Task) { d.Outputs = []tes.Output{{Path: p, PathPrefix: "/", URL: "/out", Type: kind}} })
	}
	text := strings.Repeat("x", leastBound)
	for name, test := range map[string]struct {
		doc   tes.Task
		mount []string
		want  string // the sources that are mounted
	}{
		"declared":                  {one(a), []string{"/nowhere", ref}, a},
		"not declared":              {one(a), nil, ""},
		"another directory":         {one(a), []string{ref + "/directory", dir + "/re"}, ""},
		"declared by a link":        {one(a), []string{linked + "/"}, a},
		"named by a link":           {one("file://" + linked + "/a"), []string{ref}, a},
		"a link inside":             {one(ref + "/in"), []string{ref}, a},
		"a link to it from outside": {one(dir + "/into"), []string{ref}, a},
		"a link out":                {one(ref + "/out"), []string{ref}, ""},
		"up and out":                {one(ref + "/../reference"), []string{ref}, ""},
		"a common beginning":        {one(outside), []string{ref}, ""},
		"a directory":               {tes.Task{Inputs: []tes.Input{{Path: "/data", URL: ref, Type: tes.Directory}}}, []string{dir}, ""},
		"a directory, not said":     {one(ref + "/directory"), []string{ref}, ""},
		"a FIFO":                    {one(ref + "/fifo"), []string{ref}, ""},
		"not there":                 {one(ref + "/none"), []string{ref}, ""},
		"small":                     {one(ref + "/small"), []string{ref}, ""},
		"content":                   {tes.Task{Inputs: []tes.Input{{Path: "/data/x", Content: &text}}}, []string{ref}, ""},
		"private":                   {one(sparse(t, ref+"/private", 0o640)), []string{ref}, ""},
		"program":                   {one(sparse(t, ref+"/program", 0o755)), []string{ref}, ref + "/program"},
		"private program":           {one(sparse(t, ref+"/private-program", 0o744)), []string{ref}, ""},
		"set-uid program":           {one(sparse(t, ref+"/set-uid", 0o755|fs.ModeSetuid)), []string{ref}, ""},
		"output":                    {output("/data/x", tes.File), []string{ref}, ""},
		"quoted output":             {output(`/data/\x`, tes.File), []string{ref}, ""},
		"output above":              {output("/data", tes.Directory), []string{ref}, ""},
		"output below":              {output("/data/x/y", tes.File), []string{ref}, ""},
		"output beside":             {output("/data/y", tes.File), []string{ref}, a},
		"pattern":                   {output("/data/[w-y]", tes.File), []string{ref}, ""},
		"pattern above":             {output("/d*", tes.File), []string{ref}, ""},
		"pattern beside":            {output("/data/*.bam", tes.File), []string{ref}, a},
		"written by an executor":    {with(func(d *tes.Task) { d.Executors = []tes.Executor{{Stderr: "/data/x"}} }), []string{ref}, ""},
		"read by an executor":       {with(func(d *tes.Task) { d.Executors = []tes.Executor{{Stdin: "/data/x", Stdout: "/data/y"}} }), []string{ref}, a},
		"volume there":              {with(func(d *tes.Task) { d.Volumes = []string{"/data/x"} }), []string{ref}, ""},
		"volume below":              {with(func(d *tes.Task) { d.Volumes = []string{"/data/x/y"} }), []string{ref}, ""},
		"volume above":              {with(func(d *tes.Task) { d.Volumes = []string{"/data"} }), []string{ref}, a},
		"twice the same":            {with(func(d *tes.Task) { d.Inputs = append(d.Inputs, d.Inputs[0]) }), []string{ref}, ""},
		"input below":               {with(func(d *tes.Task) { d.Inputs = append(d.Inputs, file("/data/x/y", ref+"/small")) }), []string{ref}, ""},
		"input directory above": {with(func(d *tes.Task) {
			d.Inputs = append(d.Inputs, tes.Input{Path: "/data", URL: ref + "/directory", Type: tes.Directory})
		}), []string{ref}, a},
		"over the image": {tes.Task{Inputs: []tes.Input{file("/opt/tool/x", a), {Path: "/opt/tool", URL: ref + "/directory", Type: tes.Directory}}}, []string{ref}, ""},
		"in the image":   {tes.Task{Inputs: []tes.Input{file("/etc/x", a)}}, []string{ref}, a},
		"several": {with(func(d *tes.Task) {
			for i := range mostBound + 1 {
				d.Inputs = append(d.Inputs, file("/many/"+strings.Repeat("m", i+1), a))
			}
		}), []string{ref}, strings.TrimSuffix(strings.Repeat(a+" ", mostBound), " ")},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.step.Task, f.step.Mount = &test.doc, test.mount
			f.tree = worktree.New(t.TempDir(), 1, &test.doc)
			if err := f.tree.Prepare(); err != nil {
				t.Fatal(err)
			}
			f.choose(t)
			var got []string
			for _, b := range f.tree.Plan.Binds {
				got = append(got, b.Source)
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("mounted are %q, want %q", got, test.want)
			}
		})
	}
}

// A file whose copy would share its blocks is not mounted: it costs nothing and the
// task may write to it.
func TestChooseWhereBlocksAreShared(t *testing.T) {
	f := newFixture(t, tes.Input{Path: "/data/x", URL: sparse(t, t.TempDir()+"/ref/a", 0o644)})
	src, err := os.Open(f.step.Task.Inputs[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	f.step.Mount = []string{"/"}
	f.choose(t)
	if shares := storage.Clones(src, f.tree.Dir); shares == (len(f.tree.Plan.Binds) == 1) {
		t.Errorf("blocks are shared: %t, mounted: %v", shares, f.tree.Plan.Binds)
	}
}

// An input that is mounted is journaled, not copied, and takes no room.
func TestStageMounted(t *testing.T) {
	dir := elsewhere(t)
	a := sparse(t, dir+"/ref/a", 0o644)
	if err := os.WriteFile(sparse(t, dir+"/other/x", 0o644), make([]byte, leastBound), 0o644); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, tes.Input{Path: "/data/sub/x", URL: a}, content("/data/sub/y", "Y"),
		tes.Input{Path: "/data/sub", URL: dir + "/other", Type: tes.Directory}) // which has x too
	f.step.Mount = []string{dir + "/ref"}
	f.choose(t)
	if bytes, files := f.step.Need(t.Context(), f.notes); bytes != leastBound+1 || files != 3 {
		t.Errorf("%d bytes in %d files are needed", bytes, files) // x of the directory, and Y
	}
	for range 2 {
		if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
		var files []File
		for n, err := range batch.Read[File](f.notes, WhatInputs) {
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, n)
		}
		slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
		if want := []File{{"/data/sub/x", leastBound, true}, {"/data/sub/y", 1, false}}; !slices.Equal(files, want) {
			t.Errorf("journaled are %v, want %v", files, want)
		}
		if got := f.step.Meter.Snapshot(); got.BytesDone != 1 || got.BytesTotal != 1 || got.FilesTotal != 1 {
			t.Errorf("counted as copied: %+v", got)
		}
		if !f.tree.Holds(f.tree.Plan.Binds[0]) {
			t.Error("its place is not held")
		}
	}
	// As a power cut may leave it.
	place := f.tree.Where("/data/sub/x")
	if err := os.Remove(filepath.Join(place.Base, place.Name)); err != nil {
		t.Fatal(err)
	}
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil || !f.tree.Holds(f.tree.Plan.Binds[0]) {
		t.Errorf("its place is not held again (%v)", err)
	}
}

// What was chosen may have gone when a process goes on.
func TestStageMountedThatChanged(t *testing.T) {
	a := sparse(t, elsewhere(t)+"/a", 0o644)
	f := newFixture(t, tes.Input{Path: "/data/x", URL: a})
	f.step.Mount = []string{filepath.Dir(a)}
	f.choose(t)
	if err := os.Chtimes(a, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	err := f.step.Do(t.Context(), f.task, f.notes)
	if machine.FaultOf(err) != machine.TaskFault || !errors.Is(err, worktree.ErrReplaced) || !strings.Contains(err.Error(), a) {
		t.Errorf("%v", err)
	}
	// Chosen anew, as by a Scrub that begins again, it is another file; or none.
	f.choose(t)
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Error(err)
	}
	if err := os.Truncate(a, 1); err != nil {
		t.Fatal(err)
	}
	f.choose(t)
	if len(f.tree.Plan.Binds) != 0 {
		t.Errorf("mounted is %v", f.tree.Plan.Binds)
	}
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil || f.read(t, "/data/x") != "\x00" {
		t.Errorf("%v, %.10q", err, f.read(t, "/data/x"))
	}
}
