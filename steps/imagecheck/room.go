package imagecheck

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/room"
	"github.com/deckhand/deckhand/machine"
)

// surplus are the images that the task does not use and that are not kept.
func (s *Step) surplus(ctx context.Context, n machine.Notes, wants []*want, keep ledger.Keep) ([]machine.ImageRecord, error) {
	var ids, names []string
	for _, w := range wants {
		names = append(names, w.ref)
		if w.local.ID != "" {
			ids = append(ids, w.local.ID)
		}
	}
	images := n.Images()
	chains := map[string][]string{}
	for _, r := range images {
		if keep.Bytes == 0 || !r.PulledByUs || r.ImageID == "" {
			continue
		}
		img, err := s.Engine.Image(ctx, r.ImageID)
		if err != nil && !errors.Is(err, engine.ErrNotFound) {
			return nil, err
		}
		chains[r.ImageID] = img.Layers
	}
	return ledger.Surplus(images, ids, names, keep, chains), nil
}

// evict deletes the images that this task does not use and that are not kept.
func (s *Step) evict(ctx context.Context, n machine.Notes, wants []*want) error {
	surplus, err := s.surplus(ctx, n, wants, s.Keep)
	if err != nil {
		return err
	}
	for _, r := range surplus {
		if err := s.remove(ctx, n, r); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes an image of ours, now or, where Docker refuses, in a later scrub.
func (s *Step) remove(ctx context.Context, n machine.Notes, r machine.ImageRecord) error {
	freed, err := ledger.Remove(ctx, n, s.Engine, r)
	switch {
	case errors.Is(err, engine.ErrInUse):
		s.Log.Info("image is in use; the next scrub tries again to delete it", "image", r.Reference, "id", r.ImageID)
	case err != nil:
		return err
	default:
		s.Log.Info("deleted the image", "image", r.Reference, "id", r.ImageID, "bytes", freed)
	}
	return nil
}

// toPull are the images that are to be pulled.
func toPull(wants []*want) (some []*want) {
	for _, w := range wants {
		if w.pull && !w.came {
			some = append(some, w)
		}
	}
	return some
}

// ask asks the registries for the manifests of the images that are to be pulled.
func (s *Step) ask(ctx context.Context, wants []*want) error {
	for _, w := range toPull(wants) {
		m, err := s.Engine.Manifest(ctx, w.ref)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case machine.FaultOf(err) == machine.EngineFault, errors.Is(err, engine.ErrPlatform):
			return err
		case err != nil:
			// Not for want of the image: the pull finds that out, and says it better.
			s.Log.Info("cannot tell how large the image is; pulling all the same", "image", w.ref, "error", err)
		default:
			w.manifest = m
		}
	}
	return nil
}

// need is what the images to pull take of Docker's disk; nothing where nobody could tell.
func (s *Step) need(ctx context.Context, wants []*want, old ...string) (need engine.PullNeed, claims []room.Claim, err error) {
	var refs []string
	var manifests []*engine.Manifest
	for _, w := range toPull(wants) {
		if w.manifest != nil {
			refs, manifests = append(refs, w.ref), append(manifests, w.manifest)
		}
	}
	if len(manifests) == 0 {
		return need, nil, nil
	}
	need, err = s.Engine.PullNeed(ctx, manifests, old...)
	return need, []room.Claim{{For: "image " + strings.Join(refs, ", "), Bytes: need.Peak}}, err
}

// pullsFirst says whether the images that are to go had better go when the others have
// come: they have layers for those, which would be fetched again, and there is room
// for all of them.
func (s *Step) pullsFirst(ctx context.Context, n machine.Notes, wants []*want) (bool, error) {
	surplus, err := s.surplus(ctx, n, wants, s.Keep)
	if err != nil {
		return false, err
	}
	var old []string
	for _, r := range surplus {
		old = append(old, r.ImageID)
	}
	unknown := func(w *want) bool { return w.manifest == nil }
	if len(old) == 0 || slices.ContainsFunc(toPull(wants), unknown) {
		return false, nil
	}
	need, claims, err := s.need(ctx, wants, old...)
	if err != nil || need.Saved == 0 {
		return false, err
	}
	if err := s.Room.Check(ctx, n, 0, claims...); err != nil {
		if machine.FaultOf(err) == machine.NodeFault {
			err = nil
		}
		return false, err
	}
	s.Log.Info("pulling before old images go, which have layers that would come again", "layers", need.Saved)
	return true, nil
}

// spare are the images that the task does not use. Where it does not fit beside
// them they go one by one, the one that was used longest ago first, and those at last
// whose tag is to be pulled because it names another image now.
type spare struct {
	wants []*want
	gone  []machine.ImageRecord // also those that Docker did not let go
}

// makeRoom deletes the next of the spare images; false when there is none.
func (s *Step) makeRoom(ctx context.Context, n machine.Notes, spare *spare) (bool, error) {
	surplus, err := s.surplus(ctx, n, spare.wants, ledger.Keep{Tasks: 1})
	if err != nil {
		return false, err
	}
	for _, r := range slices.Backward(surplus) {
		if slices.ContainsFunc(spare.gone, func(g machine.ImageRecord) bool { return ledger.Same(g, r) }) {
			continue
		}
		spare.gone = append(spare.gone, r)
		return true, s.remove(ctx, n, r)
	}
	for _, w := range toPull(spare.wants) {
		if w.local.ID != "" && !w.mayBe(w.local.ID) {
			w.local = engine.Image{}
			return s.makeRoom(ctx, n, spare)
		}
	}
	return false, nil
}

// fit checks that there is room for the images that are to be pulled and for the
// task's files, before any of it comes. As many spare images go as it takes.
func (s *Step) fit(ctx context.Context, n machine.Notes, spare *spare) error {
	for {
		need, claims, err := s.need(ctx, spare.wants)
		if err != nil {
			return err
		}
		if len(claims) > 0 {
			s.Log.Info("images to pull", "layers", need.Layers, "compressed", need.Compressed, "unpacked", need.Unpacked)
		}
		err = s.Room.Check(ctx, n, 0, claims...)
		if machine.FaultOf(err) != machine.NodeFault {
			return err
		}
		more, removal := s.makeRoom(ctx, n, spare)
		if !more || removal != nil {
			return cmp.Or(removal, err)
		}
		s.Log.Info("deleted an image that was kept, to make room", "error", err)
	}
}
