package storage

import (
	"context"
	"errors"
	"hash"
	"slices"

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

// findLayout asks for the first part alone where the others can be as large as it, the last
// one at most, as uploaders make them. An object that has no checksum made of its
// parts', or one part, is not asked for.
func (f *fetch) findLayout(ctx context.Context) (layout, error) {
	n, size := 0, f.object.Size
	for _, c := range f.object.Checksums {
		n = max(n, c.Parts)
	}
	if n <= 1 || size < 0 {
		return layout{sizes: slices.Repeat([]int64{size}, n)}, nil
	}
	first, err := f.askPart(ctx, 1, n)
	if err != nil || first < 0 || first > size {
		return layout{}, err
	}
	equal := slices.Repeat([]int64{first}, n)
	last := size - first*int64(n-1)
	equal[n-1] = last
	switch {
	case n == 2:
		return layout{sizes: equal}, nil
	case last > 0 && last <= first:
		return layout{equal, true}, nil
	}
	return f.askLayout(ctx, n)
}

// askLayout asks for every part.
func (f *fetch) askLayout(ctx context.Context, n int) (layout, error) {
	sizes, left := make([]int64, n), f.object.Size
	for i := range sizes {
		size, err := f.askPart(ctx, i+1, n)
		if err != nil || size < 0 || size > left {
			return layout{}, err
		}
		sizes[i] = size
		left -= size
	}
	if left > 0 {
		return layout{}, nil
	}
	return layout{sizes: sizes}, nil
}

// askPart asks for the size of a part. It is -1 where the storage does not tell, or tells of another number of parts
// than the checksum.
func (f *fetch) askPart(ctx context.Context, part, parts int) (size int64, err error) {
	store, ok := f.store.(partTeller)
	if !ok {
		return -1, nil
	}
	var n int
	err = f.s.retry(ctx, "look up", f.req.URL, nil, func(ctx context.Context) (err error) {
		size, n, err = store.PartSize(ctx, f.req.URL, f.object.Version, part)
		return err
	})
	switch {
	case err == nil && n == parts:
		return size, nil
	case err == nil, ctx.Err() == nil && machine.FaultOf(err) == machine.TaskFault && !errors.Is(err, ErrChanged):
		f.s.opts.Log.Info("the storage does not tell the parts that checksums are made of; they are not compared",
			"url", redact.URL(f.req.URL), "part", part, "error", err)
		return -1, nil
	}
	return 0, err
}
