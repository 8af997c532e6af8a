package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/test/fakedocker"
)

// leftEngine has one container of a task, which may be impossible to remove.
type leftEngine struct {
	*fakedocker.Engine
	stuck, removed bool
}

func (e *leftEngine) Containers(context.Context, map[string]string) ([]engine.Container, error) {
	if e.removed {
		return nil, nil
	}
	return []engine.Container{{ID: "left", Name: "left", Labels: map[string]string{engine.LabelTask: "t", engine.LabelAttempt: "1"}}}, nil
}

func (e *leftEngine) Stop(context.Context, string, time.Duration) error {
	if e.stuck {
		return errors.New("it does not stop")
	}
	return nil
}

func (e *leftEngine) Remove(context.Context, string) error {
	e.removed = true
	return nil
}

// On a full disk other versions of the binary go, unless a container may have one.
func TestFreeSpacePrunes(t *testing.T) {
	for _, test := range []struct {
		end, task string
		stuck     bool
		want      []string
	}{
		{"complete", "", false, nil},
		{"complete", "", true, []string{"deckhand-1-2"}},
		{"dead", "t", false, []string{"deckhand-1-2"}},
		{"dead", "", false, nil},
	} {
		dir := t.TempDir()
		conf := &config.Loaded{Config: config.Config{Root: filepath.Join(dir, "root")}}
		a := &app{stderr: io.Discard, conf: conf, log: slog.New(slog.DiscardHandler)}
		err := errors.Join(os.MkdirAll(a.binDir(), 0o700), os.WriteFile(filepath.Join(a.binDir(), "deckhand-1-2"), nil, 0o755), remember(conf.Root, "t", test.end))
		if err != nil {
			t.Fatal(err)
		}
		registry := fakedocker.NewRegistry(filepath.Join(dir, "images"), "registry.test")
		docker := &leftEngine{Engine: fakedocker.New(filepath.Join(dir, "engine"), registry), stuck: test.stuck}
		if err := a.freeSpace(t.Context(), docker, test.task); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(a.binDir())
		var left []string
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if err != nil || !slices.Equal(left, test.want) {
			t.Errorf("%+v: %q is left, %v", test, left, err)
		}
	}
}
