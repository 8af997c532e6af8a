package engine

import (
	"context"
	"fmt"

	"github.com/docker/docker/api/types/container"

	"github.com/deckhand/deckhand/machine"
)

// Exit is how a container ended.
type Exit struct {
	Code int
	// Err, when not nil, says why no exit code is known: ErrNotFound when the
	// container was removed, machine.ErrLost when the daemon went away and took
	// the container with it, machine.EngineFault when Docker does not answer.
	Err error
}

// waiting is a registered wait.
type waiting struct {
	watched context.Context
	result  <-chan container.WaitResponse
	errs    <-chan error
	stop    func()
}

// WaitNext registers a wait for the next end of a container and returns when
// Docker knows of it: the end of a container that is started after that is not
// missed, however short it is. One Exit comes through the channel.
func (d *Docker) WaitNext(ctx context.Context, id string) (<-chan Exit, error) {
	w, err := d.register(ctx, id)
	if err != nil {
		return nil, err
	}
	exits := make(chan Exit, 1)
	go func() { exits <- d.await(ctx, id, w) }()
	return exits, nil
}

// Wait waits for the end of a container that was started, now or earlier. An
// end that lies in the past is returned at once; a container that was created
// and not started is waited for.
func (d *Docker) Wait(ctx context.Context, id string) (Exit, error) {
	w, ended, err := d.reattach(ctx, id)
	if err != nil {
		return Exit{}, err
	}
	if ended != nil {
		return Exit{Code: ended.ExitCode}, nil
	}
	exit := d.await(ctx, id, w)
	return exit, exit.Err
}

// register opens a wait for the next exit.
func (d *Docker) register(ctx context.Context, id string) (waiting, error) {
	var w waiting
	err := d.retry(ctx, func() error {
		watched, stop := d.watch(ctx)
		result, errs := d.api.ContainerWait(watched, id, container.WaitConditionNextExit)
		select {
		case err := <-errs:
			defer stop()
			return heard(watched, err)
		default:
			w = waiting{watched, result, errs, stop}
			return nil
		}
	})
	return w, explain(err, "wait for container %s", id)
}

// await follows a wait to the end of the container, over connections that break.
func (d *Docker) await(ctx context.Context, id string, w waiting) Exit {
	for {
		var err error
		select {
		case r := <-w.result:
			if r.Error == nil && r.StatusCode >= 0 {
				w.stop()
				return Exit{Code: int(r.StatusCode)}
			}
		case err = <-w.errs:
		}
		err = heard(w.watched, err)
		w.stop()
		if ctx.Err() != nil {
			return Exit{Err: ctx.Err()}
		}
		if err == errSilent {
			return Exit{Err: explain(d.unreachable(err), "wait for container %s", id)}
		}
		d.log.Warn("the wait for a container broke off; waiting again", "container", id, "error", err)
		next, ended, err := d.reattach(ctx, id)
		if err != nil {
			return Exit{Err: err}
		}
		if ended != nil {
			return d.unwatched(ctx, *ended)
		}
		w = next
	}
}

// reattach registers a wait and then looks: an end is either seen or waited
// for. The container is nil when it has not ended.
func (d *Docker) reattach(ctx context.Context, id string) (waiting, *Container, error) {
	w, err := d.register(ctx, id)
	if err != nil {
		return waiting{}, nil, err
	}
	c, err := d.Container(ctx, id)
	if err != nil || c.State.Ended() {
		w.stop()
		return waiting{}, &c, err
	}
	return w, nil, nil
}

// unwatched judges a container that ended while Docker was away. A daemon that
// goes ends its containers, unless live-restore is on: what looks like an exit
// code is then its signal, or what the command made of it.
func (d *Docker) unwatched(ctx context.Context, c Container) Exit {
	info, err := d.Info(ctx)
	switch {
	case err != nil:
		return Exit{Err: err}
	case info.LiveRestore:
		return Exit{Code: c.ExitCode}
	}
	return Exit{Err: fmt.Errorf("container %s ended with the Docker daemon, which went away (exit code %d): %w", c.Name, c.ExitCode, machine.ErrLost)}
}
