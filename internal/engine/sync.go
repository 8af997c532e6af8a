package engine

import (
	"context"
	"errors"

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
	disk, err := node.OpenFilesystem(info.DataRoot)
	if err != nil {
		d.log.Debug("cannot sync what Docker has removed", "error", err)
		return nil
	}
	// Nothing interrupts syncfs(2), and a slow disk may have much to write.
	synced := make(chan error, 1)
	go func() { synced <- errors.Join(disk.Sync(), disk.Close()) }()
	select {
	case err = <-synced:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return machine.Faultf(machine.NodeFault, "%w; look at that disk", err)
	}
	return nil
}
