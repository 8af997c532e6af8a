package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// watch ends a request on which nothing has moved for a while. There is no
// limit on the whole: a large file may take a day.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   time.Duration
	timer  *time.Timer
}

// newWatch returns the context for a request, and its watch, running.
func newWatch(ctx context.Context, idle time.Duration) (context.Context, *watch) {
	w := &watch{idle: idle}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(idle, func() {
		w.cancel(passing(fmt.Errorf("nothing came or went for %s", idle)))
	})
	return w.ctx, w
}

// expect begins the time in which something has to move; rest ends it.
func (w *watch) expect() { w.timer.Reset(w.idle) }
func (w *watch) rest()   { w.timer.Stop() }

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
// bandwidth limit, does not count, time until more of it is wanted does.
func (w *watch) around(r io.ReadSeeker) io.ReadSeeker { return &watchedBody{w, r} }

type watchedBody struct {
	watch *watch
	io.ReadSeeker
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.rest()
	defer b.watch.expect()
	return b.ReadSeeker.Read(p)
}
