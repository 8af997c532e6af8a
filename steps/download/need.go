package download

import (
	"context"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// needLimit bounds the question how large the inputs are.
const needLimit = 20 * time.Second

// known are the objects that Need has found, by URL.
type known struct {
	mu      sync.Mutex
	objects map[string]storage.Object
}

// Need adds up what is known of the inputs before anything is fetched. A source
// that does not answer, or not in time, counts nothing: staging will say why. A file
// that is mounted takes an inode, which holds its place.
// What is found is not asked for again by Do.
func (s *Step) Need(ctx context.Context, n machine.Notes) (bytes, files int64) {
	ctx, cancel := context.WithTimeout(ctx, needLimit)
	defer cancel()
	var sum, count atomic.Int64
	dir := filepath.Dir(s.Tree(0, n).Dir) // which is there
	add := func(o storage.Object, url string) {
		count.Add(1)
		if !o.Mode.IsDir() {
			sum.Add(takes(url, dir, o.Size))
		}
	}
	ask, ctx := group.WithContext(ctx)
	ask.SetLimit(max(1, s.Parallel))
	binds := Binds(n)
	for _, in := range s.Task.Inputs {
		if slices.ContainsFunc(binds, func(b worktree.Bind) bool { return b.Target == path.Clean(in.Path) }) {
			add(storage.Object{}, "")
			continue
		}
		if in.Content != nil {
			add(storage.Object{Size: int64(len(*in.Content))}, "")
			continue
		}
		ask.Go(func() error {
			if in.Type != tes.Directory {
				if o, err := s.Storage.Stat(ctx, in.URL); err == nil {
					s.known.put(in.URL, o)
					add(o, in.URL)
				}
				return nil
			}
			for o, err := range s.Storage.List(ctx, in.URL) {
				if err != nil {
					break
				}
				add(o, o.URL)
			}
			return nil
		})
	}
	_ = ask.Wait() // nothing in it fails
	return sum.Load(), count.Load()
}

// leastAsked is the size of the smallest file of this node of which it is asked what its
// copy takes.
const leastAsked = 1 << 20

// takes is how many bytes of the disk a directory needs for an object of some size.
func takes(url, dir string, size int64) int64 {
	p, local := storage.LocalPath(url)
	if !local || size < leastAsked {
		return max(0, size)
	}
	return storage.CopyTakes(p, dir, size)
}

// stat describes an object, from what Need has found if it has.
func (s *Step) stat(ctx context.Context, url string) (storage.Object, error) {
	if o, ok := s.known.get(url); ok {
		return o, nil
	}
	return s.Storage.Stat(ctx, url)
}

func (k *known) put(url string, o storage.Object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.objects == nil {
		k.objects = map[string]storage.Object{}
	}
	k.objects[url] = o
}

func (k *known) get(url string) (storage.Object, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o, ok := k.objects[url]
	return o, ok
}
