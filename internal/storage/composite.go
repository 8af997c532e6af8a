package storage

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"slices"

	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/machine"
)

// compositeHash computes the checksum of the checksums of an object's parts.
type compositeHash struct {
	hash.Hash // of what follows
	part      hash.Hash
	// left are the sizes of the parts that are not whole, the first one's without what has come.
	left []int64
}

func newCompositeHash(h func() hash.Hash, sizes []int64) hash.Hash {
	c := &compositeHash{h(), h(), slices.Clone(sizes)}
	_, _ = c.Write(nil) // the first part may be empty
	return c
}

func (c *compositeHash) Write(b []byte) (int, error) {
	written := len(b)
	for len(c.left) > 0 {
		n := min(int64(len(b)), c.left[0])
		c.part.Write(b[:n])
		b, c.left[0] = b[n:], c.left[0]-n
		if c.left[0] > 0 {
			break
		}
		c.Hash.Write(c.part.Sum(nil))
		c.part.Reset()
		c.left = c.left[1:]
	}
	return written, nil
}

// partTeller is a Store that tells the parts in which an object was uploaded.
type partTeller interface {
	// PartSize returns the size of a part, from 1, and how many parts there are: none
	// where the storage does not tell.
	PartSize(ctx context.Context, url, version string, part int) (size int64, parts int, err error)
}

// layout are the sizes of an object's parts; nil when they are not known.
type layout struct {
	sizes []int64
	// guessed says that only the first one was asked for.
	guessed bool
}

// mostParts is the largest number of parts that one of the checksums is made of.
func mostParts(list []Checksum) (n int) {
	for _, c := range list {
		n = max(n, c.Parts)
	}
	return n
}

// errUntold says that checksums of parts cannot be compared.
var errUntold = errors.New("its storage does not tell its parts")

// findLayout finds the parts that the object's checksums are made of. One that has no such
// checksum, or one part, is not asked for. all is to ask for every part.
func (f *fetch) findLayout(ctx context.Context, all bool) (layout, error) {
	n, size := mostParts(f.object.Checksums), f.object.Size
	if n <= 1 || size < 0 {
		return layout{sizes: slices.Repeat([]int64{size}, n)}, nil
	}
	parts, err := layout{}, error(nil)
	if !all {
		parts, err = f.guessLayout(ctx, n)
	}
	if err == nil && parts.sizes == nil {
		parts, err = f.askLayout(ctx, n)
	}
	if errors.Is(err, errUntold) {
		f.s.opts.Log.Info("the checksum that an object's storage made of those of its parts is not compared",
			"url", redact.URL(f.req.URL), "because", err)
		return layout{}, nil
	}
	return parts, err
}

// guessLayout asks for the first part alone, when all others but the last one can be as
// large, as uploaders make them.
func (f *fetch) guessLayout(ctx context.Context, n int) (layout, error) {
	first, err := f.askPart(ctx, 1, n)
	if err != nil {
		return layout{}, err
	}
	last := f.object.Size - first*int64(n-1)
	if n > 2 && last <= 0 {
		return layout{}, nil
	}
	sizes := slices.Repeat([]int64{first}, n)
	sizes[n-1] = last
	return layout{sizes, n > 2}, nil
}

// askLayout asks for every part.
func (f *fetch) askLayout(ctx context.Context, n int) (layout, error) {
	sizes := make([]int64, n)
	asked, ctx := group.WithContext(ctx)
	asked.SetLimit(f.s.opts.Parallel)
	for i := range sizes {
		asked.Go(func() (err error) {
			sizes[i], err = f.askPart(ctx, i+1, n)
			return err
		})
	}
	if err := asked.Wait(); err != nil {
		return layout{}, err
	}
	left := f.object.Size
	for _, size := range sizes {
		left -= size
	}
	if left != 0 {
		return layout{}, fmt.Errorf("%w: they are not as long as the whole", errUntold)
	}
	return layout{sizes: sizes}, nil
}

// askPart asks for the size of one of n parts.
func (f *fetch) askPart(ctx context.Context, part, n int) (size int64, err error) {
	store, ok := f.store.(partTeller)
	if !ok {
		return 0, errUntold
	}
	var told int
	err = f.s.retry(ctx, "look up", f.req.URL, nil, func(ctx context.Context) (err error) {
		size, told, err = store.PartSize(ctx, f.req.URL, f.object.Version, part)
		return err
	})
	switch {
	case err == nil && (told != n || size > f.object.Size):
		err = errUntold
	case err != nil && ctx.Err() == nil && machine.FaultOf(err) == machine.TaskFault && !errors.Is(err, ErrChanged):
		err = fmt.Errorf("%w: %w", errUntold, err)
	}
	return size, err
}
