package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/docker/docker/api/types/container"

	"github.com/deckhand/deckhand/machine"
)

// CopyFrom reads a file or a directory of a container, running or not, as a
// tar stream whose names begin with the last element of path. When the stream
// breaks off, read is called again, with another one. ErrNotFound when there is
// no such path or container.
func (d *Docker) CopyFrom(ctx context.Context, id, path string, read func(io.Reader) error) error {
	var failed error // of read alone
	err := d.ask(ctx, func(ctx context.Context) error {
		body, _, err := d.api.CopyFromContainer(ctx, id, path)
		if err != nil {
			return err
		}
		defer body.Close()
		stream := &source{from: body}
		failed = read(stream)
		if stream.err != nil {
			failed = nil
			return broken{stream.err}
		}
		return nil
	})
	if failed != nil {
		return failed
	}
	if err != nil && noPath.MatchString(err.Error()) {
		return fmt.Errorf("read %s of container %s: %s: %w", path, id, message(err), ErrNotFound)
	}
	return explain(err, "read %s of container %s", path, id)
}

// noPath is how Docker words a path on which a file or a loop of links is in the
// way: it does not say "not found" of those.
var noPath = regexp.MustCompile(`(?i)not a directory|too many (?:links in|levels of symbolic links)`)

// source is a reader that keeps the error which ended it before its end.
type source struct {
	from io.Reader
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// CopyTo unpacks a tar stream into a directory of a container. ErrNotFound when
// there is no such directory or container. It is not tried again once it has
// begun, because the stream cannot be read twice.
func (d *Docker) CopyTo(ctx context.Context, id, dir string, tar io.Reader) error {
	watched, stop := d.watch(ctx)
	defer stop()
	err := heard(watched, d.api.CopyToContainer(watched, id, dir, tar, container.CopyToContainerOptions{}))
	if err != nil && ctx.Err() == nil && (errors.Is(err, errSilent) || unanswered(err)) {
		err = d.unreachable(err)
	}
	if err != nil && misused.MatchString(err.Error()) {
		return machine.Faultf(machine.TaskFault, "cannot write to %s of container %s: %s", dir, id, message(err))
	}
	return explain(err, "write to %s of container %s", dir, id)
}
