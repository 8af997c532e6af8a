package engine

import (
	"context"
	"errors"
	"io"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/deckhand/deckhand/machine"
)

// Attached is a connection to the output of a container.
type Attached struct {
	stream types.HijackedResponse
	forget func() bool
}

// Attach connects to what a container writes from now on: of one that is
// started after that, to all of it, byte for byte. While nobody reads, the
// container waits. ErrNotFound when there is no such container.
func (d *Docker) Attach(ctx context.Context, id string) (*Attached, error) {
	var a *Attached
	err := d.ask(ctx, func(asking context.Context) error {
		stream, err := d.attach(asking, id)
		if err == nil {
			a = &Attached{stream, context.AfterFunc(ctx, stream.Close)}
		}
		return err
	})
	if err != nil && ctx.Err() == nil && !errors.As(err, new(*machine.Error)) {
		// The client drops what Docker said with the refusal.
		if _, said := d.Container(ctx, id); said != nil {
			return nil, said
		}
	}
	return a, explain(err, "attach to container %s", id)
}

// attach returns when its context ends, which the client's call does not.
func (d *Docker) attach(ctx context.Context, id string) (types.HijackedResponse, error) {
	type answer struct {
		stream types.HijackedResponse
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		stream, err := d.api.ContainerAttach(ctx, id, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
		answers <- answer{stream, err}
	}()
	select {
	case a := <-answers:
		return a.stream, a.err
	case <-ctx.Done():
		go func() {
			if a := <-answers; a.err == nil {
				a.stream.Close()
			}
		}()
		return types.HijackedResponse{}, ctx.Err()
	}
}

// Copy copies the output to its end, which is that of the container, of the
// daemon or of the connection. They look the same here: Exit.Unbroken tells.
func (a *Attached) Copy(stdout, stderr io.Writer) error {
	defer a.Close()
	_, err := stdcopy.StdCopy(stdout, stderr, a.stream.Reader)
	return err
}

// Close ends the connection. It may be called again, and while Copy runs.
func (a *Attached) Close() {
	a.forget()
	a.stream.Close()
}
