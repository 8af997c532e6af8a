package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/machine"
)

// ErrChanged says that an object is no longer the version that was asked for.
var ErrChanged = errors.New("it changed while it was being read")

// passingError is a failure that another attempt may mend.
type passingError struct {
	err   error
	after time.Duration // the server's wish (Retry-After); 0 for none
}

func (e *passingError) Error() string { return e.err.Error() }
func (e *passingError) Unwrap() error { return e.err }

// passing marks an error as one that another attempt may mend.
func passing(err error) error { return &passingError{err: err} }

// pause is how retries wait and how long a silent peer is waited for.
type pause struct {
	first, longest time.Duration
	// idle is how long a connection may carry nothing before it is given up.
	idle time.Duration
}

var defaultPause = pause{first: 500 * time.Millisecond, longest: 30 * time.Second, idle: time.Minute}

// minAttempts are made even when one of them takes longer than retries go on.
const minAttempts = 3

// retry calls do until it succeeds, fails for good, or has failed for RetryFor
// without moving on. moved reports how far the work has come; nil when it
// cannot come part of the way.
//
// Errors that come out carry their fault and name the operation, the redacted
// URL, the attempts and the cause.
func (s *Storage) retry(ctx context.Context, operation, url string, moved func() int64, do func(context.Context) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.RandomizationFactor = s.pause.first, s.pause.longest, 0.5
	var failing time.Time // since when nothing has moved; zero while it works
	var seen int64
	for attempt := 1; ; attempt++ {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var pass *passingError
		if !errors.As(err, &pass) {
			return describe(err, operation, url, attempt)
		}
		if moved != nil {
			if now := moved(); now > seen {
				seen, failing = now, time.Time{}
				wait.Reset()
			}
		}
		if failing.IsZero() {
			failing = time.Now()
		}
		// Whoever else was told the same does not come back at the same moment.
		delay := pass.after + wait.NextBackOff()
		if pass.after > s.opts.RetryFor {
			err := fmt.Errorf("%w; the server asks to wait %s, and retries go on for %s", pass.err, pass.after, s.opts.RetryFor)
			return describe(machine.Faultf(machine.RetryLater, "%w", err), operation, url, attempt)
		}
		// The last attempt comes after RetryFor: what lasts no longer is outlasted.
		if time.Since(failing) >= s.opts.RetryFor && attempt >= minAttempts {
			return describe(machine.Faultf(machine.RetryLater, "%w", pass.err), operation, url, attempt)
		}
		s.opts.Log.Warn("a transfer failed and is tried again", "operation", operation, "url", redact.URL(url),
			"attempt", attempt, "after", delay.Round(time.Millisecond), "error", redact.Text(err.Error()))
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// describedError is a failure whose message is complete and free of secrets.
type describedError struct {
	text string
	err  error
}

func (e *describedError) Error() string { return e.text }
func (e *describedError) Unwrap() error { return e.err }

func describe(err error, operation, url string, attempt int) error {
	text := fmt.Sprintf("cannot %s %s: %s", operation, redact.URL(url), redact.Text(err.Error()))
	if attempt > 1 {
		text += fmt.Sprintf(" (attempt %d)", attempt)
	}
	return &describedError{text, err}
}

// ioFault gives an error of the node's own filesystem its fault. free is asked
// for when the disk is full; need is in bytes, -1 when unknown.
func ioFault(err error, need int64, free func() int64) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		if need < 0 {
			return machine.Faultf(machine.NodeFault, "the disk is full: more than the %d bytes that are free are needed, and the source does not tell how many: %w", free(), err)
		}
		return machine.Faultf(machine.NodeFault, "the disk is full: %d bytes are needed, %d are free: %w", need, free(), err)
	case errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ETIMEDOUT): // so does a share fail that is away for a moment
		return passing(err)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
		errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EFBIG):
		return machine.Faultf(machine.NodeFault, "%w", err)
	}
	return err
}

// readFault tells failures of a source that may pass from those that will not.
func readFault(err error) error {
	var network *net.OpError
	var timeout net.Error // which each of the kernel's errors is, too
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case !errors.As(err, &network) && (errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOTCONN)):
		return machine.Faultf(machine.NodeFault, "%w", err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ESTALE),
		errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout):
		return passing(err)
	}
	return err
}
