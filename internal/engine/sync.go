package engine

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/machine"
)

// Sync brings to the disk what Docker has done to its images. Docker renames and removes
// files without waiting until that outlives a power cut: an image that it has removed
// may be there again after the next boot (moby, image/fs.go and reference/store.go). Of
// an engine on another host, or one whose data this user may not open, nothing is synced.
func (d *Docker) Sync(ctx context.Context) error {
	info, err := d.Info(ctx)
	if err != nil {
		return err
	}
	err = node.SyncFilesystem(ctx, info.DataRoot)
	switch {
	case err == nil || ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, fs.ErrPermission):
		d.log.Debug("cannot sync what Docker does", "error", err)
		return nil
	}
	return machine.Faultf(machine.NodeFault, "%w; look at that disk", err)
}
