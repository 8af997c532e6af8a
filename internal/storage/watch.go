package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// watch ends a request on which nothing has moved for a while. There is no
// limit on the whole: a large file may take a day.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   time.Duration
	// answer is how long the other side may take to answer when it has the whole body.
	answer time.Duration
	limit  atomic.Int64 // which of the two holds at the moment
	timer  *time.Timer
}

// newWatch returns the context for a request, and its watch, running.
func newWatch(ctx context.Context, idle time.Duration) (context.Context, *watch) {
	w := &watch{idle: idle, answer: idle}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.limit.Store(int64(idle))
	w.timer = time.AfterFunc(idle, func() {
		w.cancel(passing(fmt.Errorf("nothing came or went for %s", time.Duration(w.limit.Load()))))
	})
	return w.ctx, w
}

// expect begins the time in which something has to move; rest ends it.
func (w *watch) expect() { w.wait(w.idle) }
func (w *watch) rest()   { w.timer.Stop() }

func (w *watch) wait(limit time.Duration) {
	w.limit.Store(int64(limit))
	w.timer.Reset(limit)
}

// end ends the request.
func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// cause is why the request ended, when that was the watch, and err otherwise.
func (w *watch) cause(err error) error {
	if err == nil {
		return nil
	}
	if c := context.Cause(w.ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}

// around watches a request's body: time spent in reading it, as under a
// bandwidth limit, does not count, time until more of it is wanted does, and from
// its end until the answer.
func (w *watch) around(r io.ReadSeeker) io.ReadSeeker { return &watchedBody{w, r} }

type watchedBody struct {
	watch *watch
	io.ReadSeeker
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.rest()
	n, err := b.ReadSeeker.Read(p)
	if errors.Is(err, io.EOF) {
		b.watch.wait(b.watch.answer)
	} else {
		b.watch.expect()
	}
	return n, err
}
