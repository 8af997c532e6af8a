package main

import (
	"context"
	"errors"
	"testing"

	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// probed is a step that is as far as it says.
type probed struct {
	machine.Step
	progress machine.Progress
}

func (s probed) Probe(context.Context, *machine.Task, machine.Notes) (machine.Progress, error) {
	return s.progress, nil
}

// An attempt whose tree was laid out by other rules is not gone on with, unless
// nothing is left to do in it.
func TestLaidOut(t *testing.T) {
	for name, test := range map[string]struct {
		detail   any
		progress machine.Progress
		lost     bool
	}{
		"ours":           {map[string]int{"layout": worktree.Layout}, machine.Partial, false},
		"newer":          {map[string]int{"layout": worktree.Layout + 1}, machine.Partial, true},
		"before numbers": {map[string]int{}, machine.None, true},
		"done":           {map[string]int{"layout": worktree.Layout + 1}, machine.Done, false},
	} {
		notes, err := machine.NodeNotes(journaltest.NewMemory())
		if err != nil {
			t.Fatal(err)
		}
		if err := notes.Of(machine.Scrub).Intent(t.Context(), machine.Fact{What: "directory", Name: "t", Detail: test.detail}); err != nil {
			t.Fatal(err)
		}
		_, err = laidOut{probed{progress: test.progress}}.Probe(t.Context(), nil, notes)
		if errors.Is(err, machine.ErrLost) != test.lost || !test.lost && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
