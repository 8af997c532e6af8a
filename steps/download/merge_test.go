package download

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/sorted"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// found is everything in the work tree: path in the container to content, with
// a slash for a directory that is empty.
func (f *fixture) found(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, m := range f.tree.Plan.Mounts {
		top := f.tree.Source(m)
		err := filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := strings.Replace(p, top, m.Target, 1)
			if e.IsDir() {
				entries, err := os.ReadDir(p)
				if len(entries) == 0 {
					all[name+"/"] = ""
				}
				return err
			}
			content, err := os.ReadFile(p)
			all[name] = string(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// permutations calls f with every order of some inputs.
func permutations(inputs []tes.Input, f func([]tes.Input)) {
	if len(inputs) < 2 {
		f(inputs)
		return
	}
	for i := range inputs {
		rest := slices.Concat(inputs[:i], inputs[i+1:])
		permutations(rest, func(order []tes.Input) { f(append([]tes.Input{inputs[i]}, order...)) })
	}
}

// Inputs that overlap give the same tree in every order, and what says more
// about a place wins it.
func TestMerge(t *testing.T) {
	// Directories of files: source name to names in it, which are their contents
	// too; a slash at the end makes a directory.
	dir := func(p, source string) tes.Input { return tes.Input{Path: p, URL: source, Type: tes.Directory} }
	for name, test := range map[string]struct {
		sources map[string][]string
		inputs  []tes.Input
		want    map[string]string
		warns   []string // a part of each
	}{
		"apart": {
			map[string][]string{"A": {"x"}, "B": {"y"}}, []tes.Input{dir("/a", "A"), dir("/b", "B"), content("/a/c", "C")},
			map[string]string{"/a/x": "A/x", "/b/y": "B/y", "/a/c": "C"}, nil,
		},
		"nested": {
			map[string][]string{"A": {"x", "in/y", "in/deep/z", "empty/"}, "B": {"w", "deep/v"}, "C": {"u"}},
			[]tes.Input{dir("/a", "A"), dir("/a/in", "B"), dir("/a/in/deep", "C"), content("/a/in/deep/t", "T")},
			map[string]string{
				"/a/x": "A/x", "/a/in/y": "A/in/y", "/a/in/deep/z": "A/in/deep/z", "/a/empty/": "", "/a/in/w": "B/w",
				"/a/in/deep/v": "B/deep/v", "/a/in/deep/u": "C/u", "/a/in/deep/t": "T",
			}, nil,
		},
		"one file of several": {
			map[string][]string{"A": {"in/x", "in/y", "in/deep/x"}, "B": {"x", "deep/x"}},
			[]tes.Input{dir("/a", "A"), dir("/a/in", "B"), content("/a/in/deep/x", "T")},
			map[string]string{"/a/in/x": "B/x", "/a/in/y": "A/in/y", "/a/in/deep/x": "T"}, nil,
		},
		"a file where a directory is": {
			map[string][]string{"A": {"x", "in/y", "in/deep/z"}}, []tes.Input{dir("/a", "A"), content("/a/in", "T"), content("/a/b", "B")},
			map[string]string{"/a/x": "A/x", "/a/in": "T", "/a/b": "B"}, []string{"/a/in of an input directory is left out"},
		},
		"a directory where a file is": {
			map[string][]string{"A": {"x", "in"}, "B": {"y"}}, []tes.Input{dir("/a", "A"), dir("/a/in", "B"), content("/a/x/more", "T")},
			map[string]string{"/a/in/y": "B/y", "/a/x/more": "T"}, []string{"/a/in of an input directory", "/a/x of an input directory"},
		},
		"three that disagree": {
			map[string][]string{"A": {"in/deep/x"}, "B": {"deep"}}, []tes.Input{dir("/a", "A"), dir("/a/in", "B"), content("/a/in/deep/y", "T")},
			map[string]string{"/a/in/deep/y": "T"}, []string{"/a/in/deep of an input directory"},
		},
		"empty ones": {
			map[string][]string{"A": {}, "B": {"b/"}}, []tes.Input{dir("/a", "A"), dir("/a/in", "B"), dir("/a/in/b/c", "A")},
			map[string]string{"/a/in/b/c/": ""}, nil,
		},
		"common beginnings": {
			map[string][]string{"A": {"x", "in-1", "in.d/x"}, "B": {"y"}}, []tes.Input{dir("/a", "A"), dir("/a/in", "B"), dir("/a-in", "B")},
			map[string]string{"/a/x": "A/x", "/a/in-1": "A/in-1", "/a/in.d/x": "A/in.d/x", "/a/in/y": "B/y", "/a-in/y": "B/y"}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			for source, names := range test.sources {
				err := os.Mkdir(filepath.Join(top, source), 0o755)
				for _, n := range names {
					p := filepath.Join(top, source, n)
					if strings.HasSuffix(n, "/") {
						err = errors.Join(err, os.MkdirAll(p, 0o755))
						continue
					}
					err = errors.Join(err, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(source+"/"+n), 0o644))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			for i, in := range test.inputs {
				if in.Type == tes.Directory {
					test.inputs[i].URL = filepath.Join(top, in.URL)
				}
			}
			permutations(test.inputs, func(order []tes.Input) {
				f := newFixture(t, order...)
				if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
					t.Fatalf("%+v: %v", order, err)
				}
				if got := f.found(t); !maps.Equal(got, test.want) {
					t.Errorf("%+v\ngives %q\nwant  %q", order, got, test.want)
				}
				var said []string
				for _, w := range f.notes.All(machine.WhatWarning) {
					said = append(said, string(w.Detail))
				}
				all := strings.Join(said, "\n")
				for _, w := range test.warns {
					if !strings.Contains(all, w) {
						t.Errorf("%+v: the warnings do not say %q:\n%s", order, w, all)
					}
				}
				if len(said) != len(test.warns) {
					t.Errorf("%+v: %d warnings, want %d:\n%s", order, len(said), len(test.warns), all)
				}
			})
		})
	}
}

// A bucket can hold what no directory can: an object and others below its name. Nothing is
// left out of it unless another input says what is to be there.
func TestObjectAboveObjects(t *testing.T) {
	s := storagetest.FakeGCS(t)
	s.Store(t, "file/a", []byte("above"))
	s.Store(t, "file/a-b", []byte("beside"))
	s.Store(t, "file/a/b", []byte("below"))
	s.Store(t, "marker/a", []byte("above"))
	s.Store(t, "marker/a/", nil)
	for _, name := range []string{"file", "marker"} {
		in := tes.Input{Path: "/in", URL: s.URL + "/" + name, Type: tes.Directory}
		f := newFixture(t, in)
		f.step.Storage = storage.New(s.Options)
		err := f.step.Do(t.Context(), f.task, f.notes)
		if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "input /in/a: its directory has an object of this name and others below it") {
			t.Errorf("%s: %v", name, err)
		}
		if got := f.found(t); len(got) != 1 { // the empty directory
			t.Errorf("%s: it leaves %q", name, got)
		}
		f = newFixture(t, in, content("/in/a", "chosen"))
		f.step.Storage = storage.New(s.Options)
		if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := f.read(t, "/in/a"); got != "chosen" {
			t.Errorf("%s: it is %q", name, got)
		}
	}
}

// listedIn yields entries as a list has them that were listed in this order.
func listedIn(t *rapid.T, entries []entry) iter.Seq2[sorted.Entry, error] {
	l := sorted.New("/nowhere", inTree)
	for i, x := range entries {
		x.turn, x.input = uint64(i)+1, i+1
		e, err := x.encode()
		if err == nil {
			err = l.Add(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return l.All()
}

// inMemory lays entries into one tree as they come, each over what was there. It is
// what merged has to be equal to: the URLs of files by their paths, and the directories.
func inMemory(entries []entry) (files map[string]string, dirs map[string]bool) {
	files, dirs = map[string]string{}, map[string]bool{}
	for _, x := range entries {
		for d := path.Dir(x.path); d != "/"; d = path.Dir(d) {
			delete(files, d)
		}
		if x.kind == dirEntry {
			delete(files, x.path)
			dirs[x.path] = true
			continue
		}
		below := func(p string) bool { return strings.HasPrefix(p, x.path+"/") }
		maps.DeleteFunc(files, func(p, _ string) bool { return below(p) })
		maps.DeleteFunc(dirs, func(p string, _ bool) bool { return p == x.path || below(p) })
		files[x.path] = x.url
	}
	return files, dirs
}

// Any entries in any order give the tree that they would give one after another, and files
// come in the order of their paths.
func TestMergeAsInMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var entries []entry
		for i := range rapid.IntRange(0, 12).Draw(t, "entries") {
			names := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "a-", "a.b", "\x01"}), 1, 4).Draw(t, "names")
			kind := rapid.SampledFrom([]entryKind{fileEntry, fileEntry, dirEntry}).Draw(t, "kind")
			x := entry{path: "/" + strings.Join(names, "/"), kind: kind}
			if kind == fileEntry {
				x.url = fmt.Sprint(i)
			}
			entries = append(entries, x)
		}
		wantFiles, wantDirs := inMemory(entries)
		files, dirs, left := map[string]string{}, map[string]bool{}, map[string]bool{}
		var order []string
		for p, err := range merged(listedIn(t, entries)) {
			if err != nil {
				t.Fatal(err)
			}
			switch p.kind {
			case aFile:
				order = append(order, p.path)
				files[p.path] = p.url
			case aDir:
				dirs[p.path] = true
			case leftOut:
				if left[p.path] {
					t.Errorf("%s is told twice", p.path)
				}
				left[p.path] = true
			}
		}
		if !maps.Equal(files, wantFiles) || !maps.Equal(dirs, wantDirs) || len(order) != len(files) {
			t.Errorf("%+v\ngives %v and %v\nwant  %v and %v", entries, files, dirs, wantFiles, wantDirs)
		}
		if !slices.IsSortedFunc(order, inTree) {
			t.Errorf("the files come as %q", order)
		}
		// What has gone without another file at its place is told of, at it or above.
		for _, x := range entries {
			if _, there := files[x.path]; there && x.kind == fileEntry || dirs[x.path] && x.kind == dirEntry {
				continue
			}
			said := false
			for d := x.path; d != "/"; d = path.Dir(d) {
				said = said || left[d]
			}
			if !said {
				t.Errorf("%+v: nothing is said of %s", entries, x.path)
			}
		}
	})
}

func TestMergeTellsLittle(t *testing.T) {
	inputs := []tes.Input{{Path: "/in", URL: "s3://b/in", Type: tes.Directory}}
	var objects []storage.Object
	for i := range 500 {
		objects = append(objects, storage.Object{Name: fmt.Sprint(i), URL: "s3://b/" + fmt.Sprint(i)})
		inputs = append(inputs, content(fmt.Sprintf("/in/%d/x", i), "x"))
	}
	f := newFixture(t, inputs...)
	f.step.Storage = &given{Storage: f.step.Storage, objects: objects}
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	said := f.notes.All(machine.WhatWarning)
	if len(said) != told+1 || !strings.Contains(string(said[told].Detail), "480 more") {
		t.Errorf("the warnings are %q", said)
	}
	noted := 0
	for _, err := range batch.Read[File](f.notes, WhatInputs) {
		if err != nil {
			t.Fatal(err)
		}
		noted++
	}
	if noted != 500 {
		t.Errorf("%d files were staged, want 500", noted)
	}
}

// given is a storage of one directory with these objects.
type given struct {
	Storage
	objects []storage.Object
}

func (g *given) List(context.Context, string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		for _, o := range g.objects {
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (g *given) Fetch(context.Context, storage.FetchRequest) (storage.Fetched, error) {
	return storage.Fetched{}, nil
}
