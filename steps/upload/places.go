package upload

import (
	"context"
	"sync"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/storage"
)

// places are where files are being sent to. Several outputs may lead to one place: what is
// not whole there, or is journaled of it, has one name, so that only one file at a time may go.
type places struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when the place is free
}

// take waits until nobody else sends to the place of a URL. The caller frees it.
func (p *places) take(ctx context.Context, url string) (free func(), err error) {
	at := url
	if path, local := storage.LocalPath(url); local {
		at = node.RealPath(path)
	}
	for {
		p.mu.Lock()
		other := p.taken[at]
		if other == nil {
			mine := make(chan struct{})
			if p.taken == nil {
				p.taken = map[string]chan struct{}{}
			}
			p.taken[at] = mine
			p.mu.Unlock()
			return func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				delete(p.taken, at)
				close(mine)
			}, nil
		}
		p.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
