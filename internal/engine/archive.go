package engine

import (
	"context"
	"errors"
	"io"

	"github.com/docker/docker/api/types/container"
)

// CopyFrom reads a file or a directory of a container, running or not, as a
// tar stream whose names begin with the last element of path. ErrNotFound when
// there is no such path or container. The caller closes the stream.
func (d *Docker) CopyFrom(ctx context.Context, id, path string) (io.ReadCloser, error) {
	var stream io.ReadCloser
	err := d.retry(ctx, func() error {
		watched, stop := d.watch(ctx)
		body, _, err := d.api.CopyFromContainer(watched, id, path)
		if err != nil {
			defer stop()
			return heard(watched, err)
		}
		stream = onClose{body, stop}
		return nil
	})
	return stream, explain(err, "read %s of container %s", path, id)
}

// Changes lists what a container has added to its image or changed in it, mounts
// left out, with the directories that lead there. ErrNotFound when there is no
// such container.
func (d *Docker) Changes(ctx context.Context, id string) ([]string, error) {
	var paths []string
	err := d.ask(ctx, func(ctx context.Context) error {
		changes, err := d.api.ContainerDiff(ctx, id)
		paths = nil
		for _, c := range changes {
			if c.Kind != container.ChangeDelete {
				paths = append(paths, c.Path)
			}
		}
		return err
	})
	return paths, explain(err, "list the changes of container %s", id)
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
	return explain(err, "write to %s of container %s", dir, id)
}
