// Package batch journals what happened to many small things in few records: a
// record for each would cost more than handling a small file does.
package batch

import (
	"context"
	"fmt"
	"sync"

	"github.com/deckhand/deckhand/machine"
)

// limit is about how many bytes of items one record holds; a journal
// transaction takes several times as much.
const limit = 32 << 10

// Files is the detail of a record: the things it is about.
type Files[T any] struct {
	Files []T `json:"files"`
}

// Writer collects facts of one kind. Its methods may be called from several
// goroutines.
type Writer[T any] struct {
	notes machine.Notes
	what  string
	size  func(T) int

	mu    sync.Mutex
	next  int // number of the last record
	items []T
	bytes int
}

// NewWriter returns a writer of done-facts of a kind; size tells about how many
// bytes an item takes in a record.
func NewWriter[T any](n machine.Notes, what string, size func(T) int) *Writer[T] {
	w := &Writer[T]{notes: n, what: what, size: size}
	for _, note := range n.All(what) {
		if note.Kind == machine.KindDone {
			w.next++
		}
	}
	return w
}

// Add takes an item, which is journaled with a later Add or with Flush.
func (w *Writer[T]) Add(ctx context.Context, item T) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.items = append(w.items, item)
	w.bytes += w.size(item)
	if w.bytes < limit {
		return nil
	}
	return w.write(ctx)
}

// Flush journals what is left.
func (w *Writer[T]) Flush(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(ctx)
}

func (w *Writer[T]) write(ctx context.Context) error {
	if len(w.items) == 0 {
		return nil
	}
	w.next++
	err := w.notes.Done(ctx, machine.Fact{What: w.what, Name: fmt.Sprintf("batch %d", w.next), Detail: Files[T]{w.items}})
	w.items, w.bytes = nil, 0
	return err
}
