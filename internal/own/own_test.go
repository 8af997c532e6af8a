package own

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
)

// bare is an engine with no image; nothing else of it may be called.
type bare struct{ Engine }

func (bare) Images(context.Context) ([]engine.Image, error) { return nil, nil }

func (bare) Image(context.Context, string) (engine.Image, error) {
	return engine.Image{}, engine.ErrNotFound
}

// Without any image nothing can be done, and the error says what can.
func TestNoImage(t *testing.T) {
	o := &Owner{bare{}, "root", t.TempDir()}
	err := o.run(t.Context(), nil, t.TempDir(), TakeCommand)
	if !errors.Is(err, ErrNoImage) || !strings.Contains(err.Error(), "pull any image") {
		t.Errorf("the error is %v", err)
	}
	// What belongs to this user already needs none.
	if err := o.Take(t.Context(), nil, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// What runs in the container finds the places that the document gave.
func TestExecLink(t *testing.T) {
	task := &tes.Task{Volumes: []string{"/data"}}
	tree := worktree.New(t.TempDir(), 1, task)
	if err := errors.Join(tree.Prepare(), os.WriteFile(tree.Log(0, "stdout"), []byte("said"), 0o600)); err != nil {
		t.Fatal(err)
	}
	plan, err := savePlan(tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := Exec(t.Context(), LinkCommand, []string{tree.Dir, plan, tree.Log(0, "stdout"), "/data/logs/said"}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(tree.Where("/data").Base, "logs/said")); err != nil || string(text) != "said" {
		t.Errorf("the stream is %q, %v", text, err)
	}
	place := tree.Where("/data/logs")
	for name, good := range map[string]bool{"logs": true, "logs/none": false, "link": false} {
		if err := os.Symlink("logs", filepath.Join(place.Base, "link")); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		if err := Exec(t.Context(), CheckCommand, []string{tree.Dir, filepath.Join(place.Base, name)}); (err == nil) != good {
			t.Errorf("%s may be mounted: %v", name, err)
		}
	}
	if err := Exec(t.Context(), TakeCommand, nil); err == nil {
		t.Error("a command without a directory was accepted")
	}
}
