// Package outbox tells others what the journal holds: each sink is told of each
// event once it is journaled, in order, at least once. It never holds up the
// task, and what it cannot deliver waits in the journal for the next process.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/machine"
)

// Sink is somebody who is told of events.
type Sink interface {
	// Name is that of its place in the journal.
	Name() string
	// Deliver tells of one event. An error that is ErrRefused will not mend; after
	// any other one the same event is delivered again.
	Deliver(ctx context.Context, e Event) error
}

// ErrRefused is wrapped by the error of a sink that will never take this event.
var ErrRefused = errors.New("the event is refused")

// Later is wrapped by the error of a sink that asks to be left alone for a while.
type Later struct {
	Err   error
	After time.Duration
}

func (l *Later) Error() string { return fmt.Sprintf("%v, and asks for %s", l.Err, l.After) }
func (l *Later) Unwrap() error { return l.Err }

// Journal is what the outbox asks of the journal.
type Journal interface {
	Node() (machine.Node, error)
	// Undelivered returns the first notices, most at most, that a sink does not
	// have, oldest first.
	Undelivered(sink string, most int) ([]machine.Notice, error)
	// Delivered says, durably, that a sink has all notices up to that number.
	Delivered(sink string, number uint64) error
}

// batch is how many notices are read at a time.
const batch = 100

// pause is how long a sink that fails is left alone.
var pause = struct{ first, longest time.Duration }{500 * time.Millisecond, time.Minute}

// stopTime is how long a sink may take to stop.
const stopTime = time.Second

// Outbox delivers while it is open.
type Outbox struct {
	workers []*worker
	running sync.WaitGroup
	stop    context.CancelFunc
	log     *slog.Logger
}

// Open begins to deliver to the sinks, with what earlier processes could not.
func Open(j Journal, sinks []Sink, log *slog.Logger) (*Outbox, error) {
	node, err := j.Node()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	o := &Outbox{stop: stop, log: log}
	for _, s := range sinks {
		w := &worker{sink: s, journal: j, source: source(node.RootID), log: log.With("sink", s.Name()), wake: make(chan struct{}, 1), closing: make(chan struct{})}
		o.workers = append(o.workers, w)
		o.running.Go(func() { w.work(ctx) })
	}
	return o, nil
}

// Wake says that there is something new in the journal.
func (o *Outbox) Wake() {
	for _, w := range o.workers {
		select {
		case w.wake <- struct{}{}:
		default: // it has not even seen the one before
		}
	}
}

// Close delivers what is left, for at most the given time. The rest stays in the
// journal.
func (o *Outbox) Close(patience time.Duration) {
	defer o.stop()
	for _, w := range o.workers {
		close(w.closing)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		o.running.Wait()
	}()
	select {
	case <-ended:
		return
	case <-time.After(patience):
		o.stop()
	}
	select {
	case <-ended:
	case <-time.After(stopTime):
		o.log.Warn("a sink of events hangs; leaving it") // such as a file of a server that is away
	}
}

// worker delivers to one sink.
type worker struct {
	sink    Sink
	journal Journal
	source  string
	log     *slog.Logger
	wake    chan struct{}
	closing chan struct{} // is closed when nothing comes any more
}

func (w *worker) work(ctx context.Context) {
	// The task goes on without it.
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("this is a defect in deckhand; events are not delivered", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	for last := false; !last; {
		w.deliverAll(ctx)
		select {
		case <-w.wake:
		case <-w.closing:
			last = true
		}
	}
	w.deliverAll(ctx)
	switch left, err := w.journal.Undelivered(w.sink.Name(), 1); {
	case err != nil:
		w.log.Warn("cannot tell whether all events are delivered; the next start goes on with the others", "error", err)
	case len(left) > 0:
		w.log.Warn("not all events are delivered; the next start goes on with them")
	}
}

// deliverAll delivers all that the journal has for the sink, as far as it comes.
func (w *worker) deliverAll(ctx context.Context) {
	for {
		notices, err := w.journal.Undelivered(w.sink.Name(), batch)
		if err != nil {
			w.log.Error("cannot tell what is to be delivered", "error", err)
			return
		}
		if len(notices) == 0 {
			return
		}
		for _, n := range notices {
			if !w.deliver(ctx, n) {
				return
			}
			if err := w.journal.Delivered(w.sink.Name(), n.Number); err != nil {
				w.log.Warn("an event is delivered and will be again", "id", n.ID, "error", err)
				return
			}
		}
	}
}

// deliver tells the sink of one event until it has it, or refuses it; false when
// that has no end before the outbox is closed.
func (w *worker) deliver(ctx context.Context, n machine.Notice) bool {
	e := newEvent(w.source, n)
	again := backoff.NewExponentialBackOff()
	again.InitialInterval, again.MaxInterval, again.RandomizationFactor = pause.first, pause.longest, 0.5
	closing := w.closing
	for attempt := 1; ctx.Err() == nil; attempt++ {
		err := w.sink.Deliver(ctx, e)
		switch {
		case err == nil:
			w.log.Debug("event delivered", "id", e.ID, "type", e.Type, "task", e.Subject, "attempt", attempt)
			return true
		case errors.Is(err, ErrRefused):
			w.log.Error("event dropped", "id", e.ID, "type", e.Type, "task", e.Subject, "error", redact.Text(err.Error()))
			return true
		}
		wait := again.NextBackOff()
		var later *Later
		if errors.As(err, &later) {
			wait = max(wait, later.After)
		}
		w.log.Warn("cannot deliver an event; trying again", "id", e.ID, "attempt", attempt, "error", redact.Text(err.Error()))
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case <-closing:
			closing = nil // there is little time left: at once, and then in short pauses
			again.Reset()
		}
	}
	return false
}
