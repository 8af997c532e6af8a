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
	// the record of them is written.
	Durable func() error

	notes machine.Notes
	what  string
	size  func(T) int

	mu    sync.Mutex
	items []T
	bytes int
	timer *time.Timer // writes the items that wait; nil when there are none
	late  error       // of the timer's last write
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
	defer w.mu.Unlock()
	w.items = append(w.items, item)
	w.bytes += w.size(item)
	if w.bytes >= limit {
		return w.write(ctx)
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(delay, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.late = w.write(context.WithoutCancel(ctx))
		})
	}
	return w.late
}

// Flush journals what is left.
func (w *Writer[T]) Flush(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(ctx)
}

func (w *Writer[T]) write(ctx context.Context) error {
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	if w.late != nil || len(w.items) == 0 {
		return w.late // what is in the journal after an error is not known
	}
	if w.Durable != nil {
		if err := w.Durable(); err != nil {
			w.late = err // nor are the next ones known to be durable then
			return err
		}
	}
	err := w.notes.Done(ctx, machine.Fact{What: w.what, Detail: Files[T]{w.items}})
	w.items, w.bytes = nil, 0
	return err
}
