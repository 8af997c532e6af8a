package main

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/machine"
)

// sameRequest is how close a second signal may follow to count as the first
// one again: Slurm sends SIGTERM twice when it preempts a job.
const sameRequest = time.Second

// onSignals cancels the context of a run: SIGINT cancels the task, SIGTERM and
// SIGHUP hand it back to the engine. A second one leaves at once; the next
// start cleans up.
func (a *app) onSignals(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		var first time.Time
		for s := range signals {
			switch {
			case s == unix.SIGTERM && node.Successor(a.conf.Root):
				a.log.Warn("another process goes on with this task; leaving it everything")
				a.screen.show("")
				os.Exit(exitRetry)
			case first.IsZero():
				first = time.Now()
				a.log.Warn("stopping", "signal", s.String())
				if s == unix.SIGINT {
					cancel(machine.ErrCancel)
				} else {
					cancel(machine.ErrInterrupt)
				}
			case time.Since(first) > sameRequest:
				a.log.Warn("leaving at once; the next start cleans up", "signal", s.String())
				a.screen.show("")
				os.Exit(exitRetry)
			}
		}
	}()
	return ctx, cancel
}
