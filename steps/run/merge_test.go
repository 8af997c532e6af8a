package run

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

func (d *docker) Image(_ context.Context, ref string) (engine.Image, error) {
	if d.files[ref] == nil {
		return engine.Image{}, engine.ErrNotFound
	}
	return engine.Image{ID: ref, Volumes: d.declared}, nil
}

// CopyFrom archives what the container's image has.
func (d *docker) CopyFrom(_ context.Context, name, p string, read func(io.Reader) error) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	found := false
	for _, file := range d.files[d.specs[name].Image] {
		dir := strings.HasSuffix(file, "/")
		if file = path.Clean(file); file != p && !strings.HasPrefix(file, p+"/") {
			continue
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Base(p) + strings.TrimPrefix(file, p)}
		if dir {
			h.Typeflag = tar.TypeDir
		}
		found = true
		if err := w.WriteHeader(h); err != nil {
			return err
		}
	}
	if !found {
		return engine.ErrNotFound
	}
	if err := w.Close(); err != nil {
		return err
	}
	return read(&b)
}

// Input directories in which no image has anything are mounted, into containers
// that are made anew for it; a process that dies meanwhile leaves nothing undone.
func TestSettle(t *testing.T) {
	dir := func(p string) tes.Input { return tes.Input{Path: p, Type: tes.Directory} }
	f := newFixture(t, tes.Task{
		Inputs:    []tes.Input{dir("/opt/a"), dir("/opt/b"), dir("/opt/c"), dir("/opt/d"), dir("/data")},
		Executors: []tes.Executor{{}, {}},
	})
	f.notes = f.notes.Of(machine.ImageCheck)
	f.docker.files = map[string][]string{
		"one": {"/opt/", "/opt/a/", "/opt/a/file", "/opt/b/"}, "two": {"/opt/b/", "/opt/d"},
	}
	mounts := func() (all [][]string) {
		for i := range 2 {
			var targets []string
			for _, m := range f.docker.specs[f.containers.Name(f.task, i)].Mounts {
				if !strings.HasPrefix(m.Target, "/.deckhand/") {
					targets = append(targets, m.Target)
				}
			}
			all = append(all, targets)
		}
		return all
	}
	same := func(when string, want ...string) {
		t.Helper()
		for i, got := range mounts() {
			if !slices.Equal(got, want) {
				t.Errorf("%s executor %d has mounts %q, want %q", when, i, got, want)
			}
		}
	}
	for i, image := range []string{"one", "two"} {
		f.create(t, i, engine.Image{ID: image})
	}
	same("before", "/data")
	settle := func() {
		t.Helper()
		if err := f.containers.Settle(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
	}
	settle()
	same("settled,", "/data", "/opt/b", "/opt/c")
	if got := OwnDirs(f.notes.Of(machine.Upload)); !slices.Equal(got, []string{"/opt/b", "/opt/c"}) {
		t.Errorf("later steps read %q", got)
	}
	made := f.docker.made
	if settle(); f.docker.made != made {
		t.Error("what is settled was settled again")
	}
	// A process that died between the decision and its end.
	note, _ := f.notes.Get(whatMounts, "own")
	if err := f.notes.Intent(t.Context(), machine.Fact{What: whatMounts, Name: "own", Detail: note.Detail}); err != nil {
		t.Fatal(err)
	}
	// The power went, and with it the directories that are mounted.
	dirs := filepath.Join(f.dir, "dirs")
	before := entries(t, dirs)
	if err := errors.Join(os.RemoveAll(dirs), os.Mkdir(dirs, 0o700)); err != nil {
		t.Fatal(err)
	}
	if settle(); f.docker.made != made+2 {
		t.Errorf("%d containers were made anew, not 2", f.docker.made-made)
	}
	if got := entries(t, dirs); len(before) != 3 || !slices.Equal(got, before) {
		t.Errorf("directories to mount were %q and now are %q", before, got)
	}
	same("settled again,", "/data", "/opt/b", "/opt/c")
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// A container that is made anew keeps each volume that its image declares: Docker
// has filled them, each with what the image has in its place.
func TestSettleKeepsVolumes(t *testing.T) {
	f := newFixture(t, tes.Task{Inputs: []tes.Input{{Path: "/opt/own", Type: tes.Directory}}, Executors: []tes.Executor{{}}})
	f.notes = f.notes.Of(machine.ImageCheck)
	img := engine.Image{ID: "one", Volumes: []string{"/v1", "/v2"}}
	f.docker.files = map[string][]string{"one": {"/v1/", "/v2/"}}
	f.docker.declared = img.Volumes
	volumes := func(s engine.Spec) map[string]string {
		of := map[string]string{}
		for _, m := range s.Mounts {
			if m.Kind == engine.VolumeMount {
				of[m.Target] = m.Source
			}
		}
		return of
	}
	before := volumes(f.create(t, 0, img))
	if err := f.containers.Settle(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	after := f.docker.specs[f.containers.Name(f.task, 0)]
	if f.docker.made != 2 || len(before) != 2 || !maps.Equal(before, volumes(after)) {
		t.Errorf("made %d times, with %v and then %v", f.docker.made, before, volumes(after))
	}
}

// A container that somebody removes while it is looked at is not taken for one
// whose image has nothing.
func TestSettleMissesAContainer(t *testing.T) {
	f := newFixture(t, tes.Task{Inputs: []tes.Input{{Path: "/opt/own", Type: tes.Directory}}, Executors: []tes.Executor{{}}})
	f.notes = f.notes.Of(machine.ImageCheck)
	f.docker.files = map[string][]string{"one": {"/opt/own/", "/opt/own/file"}}
	f.create(t, 0, engine.Image{ID: "one"})
	delete(f.docker.specs, f.containers.Name(f.task, 0))
	if err := f.containers.Settle(t.Context(), f.task, f.notes); !errors.Is(err, machine.ErrLost) {
		t.Errorf("settled with %v, want ErrLost", err)
	}
	if _, decided := f.notes.Get(whatMounts, "own"); decided {
		t.Error("it was decided what the image has")
	}
}
