package engine

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"github.com/deckhand/deckhand/machine"
)

const (
	// pingEvery is how often Docker is asked for a sign of life during a long call.
	pingEvery = 10 * time.Second
	// pingLeast is what even the impatient grant a busy Docker for it.
	pingLeast = 2 * time.Second
)

// errSilent: Docker holds a connection but does not answer on any.
var errSilent = errors.New("it does not answer")

// broken is a connection that ended after Docker had answered on it.
type broken struct{ error }

func (b broken) Unwrap() error { return b.error }

// ask makes a call that may be made again when its connection fails.
func (d *Docker) ask(ctx context.Context, call func(context.Context) error) error {
	return d.retry(ctx, func() error {
		watched, stop := d.watch(ctx)
		defer stop()
		return heard(watched, call(watched))
	})
}

// retry makes a call until Docker answers it, one way or the other, or has been
// silent for Options.Wait.
func (d *Docker) retry(ctx context.Context, call func() error) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, 2*time.Second
	var since time.Time
	for {
		began := time.Now()
		err := call()
		switch {
		case err == nil:
			d.answered()
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errSilent), errors.Is(err, fs.ErrPermission):
			return d.unreachable(err)
		case !unanswered(err):
			d.answered()
			return err
		}
		// A connection that had served for a while is no part of an old silence.
		served := errors.As(err, new(broken)) && time.Since(began) > pingEvery
		if since.IsZero() || served {
			since = time.Now()
		}
		if time.Since(since) >= d.options.Wait {
			return d.unreachable(err)
		}
		if d.silent.CompareAndSwap(false, true) {
			d.log.Warn("Docker does not answer; waiting for it", "host", d.api.DaemonHost(), "wait", d.options.Wait, "error", err)
		}
		if err := sleep(ctx, pause.NextBackOff()); err != nil {
			return err
		}
	}
}

func (d *Docker) answered() {
	if d.silent.CompareAndSwap(true, false) {
		d.log.Info("Docker answers again", "host", d.api.DaemonHost())
	}
}

func (d *Docker) unreachable(err error) error {
	mend := "start it, or name it with --docker-host"
	if errors.Is(err, fs.ErrPermission) {
		mend = "run as root or as a member of the group docker"
	}
	return machine.Faultf(machine.EngineFault, "cannot reach Docker at %s: %s; %s", d.api.DaemonHost(), message(err), mend)
}

// watch cancels the context of a call when Docker stops answering anything.
// Calls may take long without a byte (a container runs, a layer is unpacked),
// so the call's own silence says nothing.
func (d *Docker) watch(ctx context.Context) (context.Context, func()) {
	watched, cancel := context.WithCancelCause(ctx)
	go func() {
		patience := max(d.options.Wait, pingLeast)
		for sleep(watched, min(patience, pingEvery)) == nil {
			ping, stop := context.WithTimeout(watched, patience)
			_, err := d.api.Ping(ping)
			late := errors.Is(ping.Err(), context.DeadlineExceeded)
			stop()
			if err != nil && late {
				cancel(errSilent)
			}
		}
	}()
	return watched, func() { cancel(nil) }
}

// heard returns the error of a watched call, or errSilent when that ended it.
func heard(watched context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(watched), errSilent) {
		return errSilent
	}
	return err
}

// unanswered says whether the error is one of the connection, not Docker's.
func unanswered(err error) bool {
	var network net.Error
	return errors.As(err, new(broken)) || client.IsErrConnectionFailed(err) || cerrdefs.IsUnavailable(err) ||
		brokeOff(err) || !isContext(err) && errors.As(err, &network)
}

// brokeOff says whether a connection ended that had been made: Docker may have
// had the request.
func brokeOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
