package main

import (
	"context"
	"fmt"

	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/scrub"
)

// laidOut is a step that works in the tree which Scrub has laid out. Where another
// version of the program did that by other rules, files would be looked for in the
// wrong places: the attempt is lost, and the next one begins in a tree of its own.
type laidOut struct{ machine.Step }

// Probe implements machine.Step.
func (s laidOut) Probe(ctx context.Context, t *machine.Task, n machine.Notes) (machine.Progress, error) {
	progress, err := s.Step.Probe(ctx, t, n)
	if err == nil && progress != machine.Done && !scrub.LaidOut(n) {
		err = fmt.Errorf("the task's directory was laid out by another version of deckhand: %w", machine.ErrLost)
	}
	return progress, err
}
