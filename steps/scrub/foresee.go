package scrub

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/node"
)

// Foresee says what becomes of what Find lists as going, changing nothing: the
// bytes that come back, and what cannot go, with the reason that Remove would give.
func (c *Cleaner) Foresee(ctx context.Context, found []Item) (gone, failed []Item, err error) {
	var trees node.Foresight
	for _, i := range found {
		switch i.Kind {
		case Directory:
			base, name := filepath.Join(c.TasksDir, filepath.Dir(i.id)), filepath.Base(i.id)
			would, err := trees.Tree(ctx, base, name)
			if ctx.Err() != nil {
				return nil, nil, err
			}
			if err != nil {
				i.Why += "; its bytes are not counted: " + err.Error() // Remove may have the rights
			} else if err := left(would, base, name); err != nil {
				i.Why = err.Error()
				failed = append(failed, i)
				continue
			}
			i.Bytes = would.Bytes
		case Image:
			img, err := c.Engine.Image(ctx, i.image.ImageID)
			if err != nil && !errors.Is(err, engine.ErrNotFound) {
				return nil, nil, err
			}
			if err == nil {
				i.Bytes = ledger.Frees(i.image, img)
			}
		}
		gone = append(gone, i)
	}
	return gone, failed, nil
}
