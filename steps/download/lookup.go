package download

import (
	"context"
	"fmt"
	"path"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// lookedUp is how many inputs are looked up before the list takes them.
const lookedUp = 1000

// lookUp asks for what the list has to know of inputs, several at a time.
type lookUp struct {
	*Step
	tree *worktree.Tree
	// staged are the sizes of the inputs that the journal says are staged, by path.
	staged func() (map[string]int64, error)
}

// asks says whether an input is a file of which its source is asked.
func (l *lookUp) asks(i int) bool {
	in := l.Task.Inputs[i]
	_, bound := l.tree.Plan.Bound(path.Clean(in.Path))
	return !bound && in.Content == nil && in.Type != tes.Directory
}

// up returns what there is of inputs, which are given by index.
func (l *lookUp) up(ctx context.Context, inputs []int) ([]storage.Object, error) {
	objects := make([]storage.Object, len(inputs))
	ask, ctx := group.WithContext(ctx)
	ask.SetLimit(max(1, l.Parallel))
	for k, i := range inputs {
		if !l.asks(i) {
			continue
		}
		ask.Go(func() (err error) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p := path.Clean(l.Task.Inputs[i].Path)
			if objects[k], err = l.object(ctx, i, p); err != nil {
				return fmt.Errorf("input %s: %w", p, err)
			}
			return nil
		})
	}
	return objects, ask.Wait()
}

// object describes an input. Of what is in its place already nobody is asked: its source may
// be gone by now, or away, or signed for a time that is over.
func (l *lookUp) object(ctx context.Context, i int, p string) (storage.Object, error) {
	staged, err := l.staged()
	if err != nil {
		return storage.Object{}, err
	}
	if size, ok := staged[p]; ok && inPlace(l.tree, place{path: p, staged: size}) {
		return storage.Object{Size: size}, nil
	}
	return l.stat(ctx, l.Task.Inputs[i].URL)
}

// inputsStaged reads what the journal has of inputs that are files of their own and were copied.
// What directories hold is left out: it can be millions.
func (l *lookUp) inputsStaged(n machine.Notes) (map[string]int64, error) {
	asked := map[string]bool{}
	for i, in := range l.Task.Inputs {
		if l.asks(i) {
			asked[path.Clean(in.Path)] = true
		}
	}
	sizes := map[string]int64{}
	for f, err := range batch.Read[File](n, WhatInputs) {
		if err != nil {
			return nil, err
		}
		if !f.Mounted && asked[f.Path] {
			sizes[f.Path] = f.Bytes
		}
	}
	return sizes, nil
}
