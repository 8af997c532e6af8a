package download

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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

func TestMergeTellsLittle(t *testing.T) {
	m, _ := newMerge(nil)
	for i := range 500 {
		m.file(item{path: fmt.Sprintf("/a/%d", i)})
		m.file(item{path: fmt.Sprintf("/a/%d/x", i)})
	}
	if files, _, said := m.result(); len(files) != 500 || len(said) != told+1 || !strings.HasPrefix(said[told], "480 more") {
		t.Errorf("%d files, and the warnings are %q", len(files), said)
	}
}
