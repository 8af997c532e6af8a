package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
)

func TestHoldingsAreSorted(t *testing.T) {
	ours := map[string]string{engine.LabelRoot: "r"}
	theirs := map[string]string{engine.LabelRoot: "other"}
	n := machine.Node{RootID: "r", Images: []machine.ImageRecord{
		{ImageID: "pulled", PulledByUs: true}, {ImageID: "pulled"}, {ImageID: "foreign"},
	}}
	u := engine.Usage{
		LayersBytes: 1000, CacheBytes: 7,
		Images:     []engine.ImageUsage{{ID: "pulled", Bytes: 300, Shared: 100}, {ID: "foreign", Bytes: 500, Shared: 100}, {ID: "unknown", Bytes: 300}},
		Containers: []engine.ContainerUsage{{Labels: ours, Bytes: 1}, {Labels: theirs, Bytes: 2}, {Bytes: 4}, {Name: "deckhand-r-t-1-0", Bytes: 8}, {Name: "deckhand-r-t-1-0", Labels: theirs, Bytes: 16}},
		Volumes:    []engine.Volume{{Labels: ours, Bytes: 10}, {Labels: theirs, Bytes: 20}, {Name: "deckhand-r-t-1-0-v1", Bytes: 40}, {Name: "deckhand-r0-t", Bytes: 80}},
	}
	var h holdings
	h.add(u, n)
	if want := (ownHoldings{Images: 300, Containers: 9, Volumes: 50}); h.Deckhand != want {
		t.Errorf("deckhand holds %+v, want %+v", h.Deckhand, want)
	}
	if want := (foreignHoldings{Images: 800, Containers: 22, Volumes: 100, Cache: 7}); h.Others != want {
		t.Errorf("others hold %+v, want %+v", h.Others, want)
	}
}

// A Docker that was not asked is not said to hold nothing.
func TestHoldingsInWords(t *testing.T) {
	for words, h := range map[string]holdings{
		"nothing in Docker":                              {},
		"unknown; not counted in full: Docker: silent":   {Unknown: []string{"Docker: silent"}},
		"nothing in Docker; not counted in full: x: why": {Unknown: []string{"x: why"}},
	} {
		if _, others := h.inWords(); others != words {
			t.Errorf("others have %q, want %q", others, words)
		}
	}
}

func TestTreeBytes(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "tree"), 0o700), os.Symlink("/", filepath.Join(dir, "tree", "link"))); err != nil {
		t.Fatal(err)
	}
	count := func() int64 {
		t.Helper()
		bytes, err := treeBytes(t.Context(), filepath.Join(dir, "tree"))
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	empty := count()
	write("tree/file", 1<<20)
	write("outside", 1<<20)
	if got := count() - empty; got != 1<<20 {
		t.Errorf("a file of 1 MiB counts %d", got)
	}
	if err := errors.Join(os.Link(filepath.Join(dir, "tree/file"), filepath.Join(dir, "tree/again")),
		os.Link(filepath.Join(dir, "outside"), filepath.Join(dir, "tree/shared"))); err != nil {
		t.Fatal(err)
	}
	if got := count() - empty; got != 1<<20+1<<19 {
		t.Errorf("with two names, and one of two names of another, it counts %d", got)
	}
	if bytes, err := treeBytes(t.Context(), filepath.Join(dir, "none")); bytes != 0 || err != nil {
		t.Errorf("what is not there counts %d, %v", bytes, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := treeBytes(ctx, filepath.Join(dir, "tree")); !errors.Is(err, context.Canceled) {
		t.Errorf("a count that is given up ends with %v", err)
	}
}
