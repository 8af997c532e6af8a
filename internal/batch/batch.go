// Package batch journals what happened to many small things in few records: a
// record for each would cost more than handling a small file does.
package batch

import (
	"context"
	"sync"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// limit is about how many bytes of items one record holds; a journal
// transaction takes several times as much.
const limit = 32 << 10

// together is about how many bytes of items are made durable at a time: to bring
// few to the disk takes nearly as long as to bring many.
const together = 8 * limit

// delay is how long an item waits for others before it is journaled all the
// same: a restart does again what was handled in that time.
const delay = time.Second

// Files is the detail of a record: the things it is about.
type Files[T any] struct {
	Files []T `json:"files"`
}

// Writer collects facts of one kind. Its methods may be called from several
// goroutines.
type Writer[T any] struct {
	// Durable, when set, makes durable what the items tell of. It is called before
	// the records of them are written.
	Durable func() error

	notes machine.Notes
	what  string
	size  func(T) int

	// writing is held by whoever makes durable and journals; others go on adding.
	writing sync.Mutex

	mu    sync.Mutex
	items []T
	bytes int
	timer *time.Timer // writes the items that wait; nil when there are none
	late  error       // of an earlier write
}

// NewWriter returns a writer of done-facts of a kind; size tells about how many
// bytes an item takes in a record.
func NewWriter[T any](n machine.Notes, what string, size func(T) int) *Writer[T] {
	return &Writer[T]{notes: n, what: what, size: size}
}

// Add takes an item, which is journaled with a later Add, with Flush or after a
// second, whichever comes first. Its error may be of earlier items.
func (w *Writer[T]) Add(ctx context.Context, item T) error {
	w.mu.Lock()
	w.items = append(w.items, item)
	w.bytes += w.size(item)
	waiting, late := w.bytes, w.late
	if w.timer == nil {
		w.timer = time.AfterFunc(delay, func() { _ = w.Flush(context.WithoutCancel(ctx)) }) // the next call tells
	}
	w.mu.Unlock()
	switch {
	case waiting >= 2*together: // the disk is slower than what comes
		return w.Flush(ctx)
	case waiting >= together && w.writing.TryLock():
		defer w.writing.Unlock()
		return w.write(ctx)
	}
	return late
}

// Flush journals what is left.
func (w *Writer[T]) Flush(ctx context.Context) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	return w.write(ctx)
}

// write journals the items that wait. The caller holds writing.
func (w *Writer[T]) write(ctx context.Context) error {
	w.mu.Lock()
	items, late := w.items, w.late
	w.items, w.bytes = nil, 0
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	w.mu.Unlock()
	if late != nil || len(items) == 0 {
		return late // what is in the journal after an error is not known
	}
	err := w.journal(ctx, items)
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.late = err
	}
	return err
}

// journal makes items durable and writes records of them.
func (w *Writer[T]) journal(ctx context.Context, items []T) error {
	if w.Durable != nil {
		if err := w.Durable(); err != nil {
			return err // nor are the next ones known to be durable then
		}
	}
	for len(items) > 0 {
		n := 0
		for bytes := 0; n < len(items) && bytes < limit; n++ {
			bytes += w.size(items[n])
		}
		if err := w.notes.Done(ctx, machine.Fact{What: w.what, Detail: Files[T]{items[:n]}}); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}
