package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

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
	var exit Exit
	if ended != nil {
		exit = d.past(ctx, *ended)
	} else {
		exit = d.await(ctx, id, w)
	}
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
	look := backoff.NewExponentialBackOff()
	look.InitialInterval, look.Multiplier, look.MaxInterval = time.Second, 2, pingEvery
	for {
		var err error
		select {
		case <-time.After(look.NextBackOff()):
			// Podman misses an end that comes before it has begun to listen for it. What
			// goes wrong with the question goes wrong with the wait as well.
			if c, err := d.inspect(w.watched, id); err == nil && c.State.Ended() {
				w.stop()
				return d.past(ctx, c)
			}
			continue
		case r := <-w.result:
			if r.Error == nil && r.StatusCode >= 0 {
				w.stop()
				return d.confirm(ctx, id, int(r.StatusCode))
			}
		case err = <-w.errs:
		}
		err = heard(w.watched, err)
		w.stop()
		if ctx.Err() != nil {
			return Exit{Err: ctx.Err()}
		}
		if errors.Is(err, errSilent) {
			return Exit{Err: explain(d.unreachable(err), "wait for container %s", id)}
		}
		d.log.Warn("the wait for a container broke off; waiting again", "container", id, "error", err)
		if err := sleep(ctx, 100*time.Millisecond); err != nil { // no tight loop on a Docker that keeps breaking off
			return Exit{Err: err}
		}
		next, ended, err := d.reattach(ctx, id)
		if err != nil {
			return Exit{Err: err}
		}
		if ended != nil {
			return d.past(ctx, *ended)
		}
		w = next
	}
}

// confirm judges an exit code that Docker has just reported. A daemon that is
// told to stop ends its containers first and reports their ends on the
// connections that are open, as if they had come by themselves.
func (d *Docker) confirm(ctx context.Context, id string, code int) Exit {
	c, err := d.Container(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return Exit{Code: code} // it ended, and somebody else removed it
	case err != nil:
		return Exit{Err: err}
	}
	return d.past(ctx, c)
}

// fresh is a client with connections of its own.
func (d *Docker) fresh() (*client.Client, error) {
	return client.NewClientWithOpts(append(slices.Clone(d.opts), client.WithVersion(d.api.ClientVersion()))...)
}

// remembers says whether the daemon knows of one of these events of a container.
// It keeps the latest 256 of all since it has started (Docker API, GET /events).
func remembers(ctx context.Context, api *client.Client, id string, actions ...events.Action) (bool, error) {
	wanted := filters.NewArgs(filters.Arg("type", string(events.ContainerEventType)), filters.Arg("container", id))
	for _, a := range actions {
		wanted.Add("event", string(a))
	}
	now := time.Now()
	found, errs := api.Events(ctx, events.ListOptions{
		Since: "0", Until: fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond()), Filters: wanted,
	})
	select {
	case <-found:
		return true, nil
	case err := <-errs:
		if errors.Is(err, io.EOF) {
			err = nil // these were all
		}
		return false, err
	}
}

// Restarted says whether the daemon was started anew, or is about to end, since a
// time when it had made or started a container: one that is about to end takes no
// new connection, and the next one answers. When it cannot be told, it was.
func (d *Docker) Restarted(ctx context.Context, id string, since time.Time) (bool, error) {
	restarted := true
	err := d.ask(ctx, func(ctx context.Context) error {
		fresh, err := d.fresh()
		if err != nil {
			return err
		}
		defer fresh.Close()
		if knows, err := remembers(ctx, fresh, id, events.ActionCreate, events.ActionStart); knows || err != nil {
			restarted = !knows
			return err
		}
		// It may have forgotten, as it has had more to do. Each start of a daemon
		// makes its default network anew, unless it was told to have none.
		n, err := fresh.NetworkInspect(ctx, network.NetworkBridge, network.InspectOptions{})
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		restarted = n.Created.After(since)
		return err
	})
	return restarted, explain(err, "find out since when Docker runs")
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

// past judges the end of a container that was found ended. A daemon that has run
// since before the start has seen it; another one may be the reason for it.
func (d *Docker) past(ctx context.Context, c Container) Exit {
	restarted, err := d.Restarted(ctx, c.ID, c.Started)
	switch {
	case err != nil:
		return Exit{Err: err}
	case restarted:
		return d.unwatched(ctx, c)
	}
	return Exit{Code: c.ExitCode}
}

// unwatched judges a container that ended while Docker was away. A daemon that
// goes ends its containers, unless live-restore is on: what looks like an exit
// code is then its signal, or what the command made of it.
func (d *Docker) unwatched(ctx context.Context, c Container) Exit {
	info, err := d.Info(ctx)
	if err != nil {
		return Exit{Err: err}
	}
	podman, err := d.IsPodman(ctx) // whose containers are no children of its service
	switch {
	case err != nil:
		return Exit{Err: err}
	case info.LiveRestore || podman:
		return Exit{Code: c.ExitCode}
	}
	return Exit{Err: fmt.Errorf("container %s ended with the Docker daemon, which went away (exit code %d): %w", c.Name, c.ExitCode, machine.ErrLost)}
}
