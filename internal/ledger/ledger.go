// Package ledger keeps the account of the images on the node: which of them
// deckhand pulled, which the last task used, and which are to go. The account
// itself is in the journal; deletions go through here so that only what is
// ours is ever deleted.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
)

// Engine is what the ledger asks of Docker.
type Engine interface {
	Image(ctx context.Context, ref string) (engine.Image, error)
	RemoveImage(ctx context.Context, ref string) error
	// Sync makes what has been removed stay so when the power goes.
	Sync(ctx context.Context) error
}

// WhatRemoved is the kind of fact that Remove writes when an image is gone.
const WhatRemoved = "image-removal"

// Reconcile compares the ledger with what is on disk, after a crash or after
// people have worked on the node: a pull that had ended is taken as present, an
// image that is gone leaves the ledger. It changes nothing on the node.
func Reconcile(ctx context.Context, e Engine, images []machine.ImageRecord) ([]machine.ImageRecord, error) {
	kept := make([]machine.ImageRecord, 0, len(images))
	var left []string // images whose name a pull has given to another
	for _, r := range images {
		name := r.ImageID
		if r.Phase == machine.Pulling {
			name = r.Reference
		}
		img, err := e.Image(ctx, name)
		if errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r.Phase == machine.Pulling {
			if !Cut(r, img.ID) {
				continue // the pull changed nothing; it has its own record if it is ours
			}
			if r.Had != img.ID {
				left = append(left, r.Had)
			}
			r = Ended(r, img)
		}
		kept = With(kept, r)
	}
	for _, id := range left {
		kept = Left(kept, id)
	}
	return kept, nil
}

// Settle is Reconcile for a ledger that is to be journaled. What it forgets nobody
// would know again, so that has to be gone for good.
func Settle(ctx context.Context, e Engine, images []machine.ImageRecord) ([]machine.ImageRecord, error) {
	kept, err := Reconcile(ctx, e, images)
	if err == nil && len(kept) < len(images) {
		err = e.Sync(ctx)
	}
	return kept, err
}

// Distrust removes what pulls of another boot of the node have brought and nobody has
// journaled: what Docker had unpacked may not have been on the disk when the power went, and
// Docker takes it for whole (ADR 16). What somebody uses stays.
func Distrust(ctx context.Context, e Engine, images []machine.ImageRecord, boot string) error {
	for _, r := range images {
		if !Doubtful(r, boot) {
			continue
		}
		img, err := e.Image(ctx, r.Reference)
		if err == nil && !slices.Contains(r.Before, img.ID) {
			err = e.RemoveImage(ctx, r.Reference)
		}
		if err != nil && !errors.Is(err, engine.ErrNotFound) && !errors.Is(err, engine.ErrInUse) {
			return err
		}
	}
	return nil
}

// Doubtful says whether a record is of a pull that the node's power may have cut off.
func Doubtful(r machine.ImageRecord, boot string) bool {
	return r.Phase == machine.Pulling && r.Begun && r.Boot != boot
}

// Cut says whether a pull that was announced with r has given its reference to
// the image, in a process that died before it could journal that.
func Cut(r machine.ImageRecord, imageID string) bool {
	return r.Phase == machine.Pulling && r.Begun && (r.Had != imageID || !slices.Contains(r.Before, imageID))
}

// Ended returns the record of a pull that is over and has given its reference to
// img. An image that was there before has got a name from us and no more: it
// stays as long as others, another root perhaps, name it as well.
func Ended(r machine.ImageRecord, img engine.Image) machine.ImageRecord {
	r.ImageID, r.Digest, r.Bytes, r.PulledByUs, r.Phase = img.ID, RepoDigest(img, r.Reference), img.Size, true, machine.Present
	r.Shared, r.Lone = slices.Contains(r.Before, img.ID), slices.Contains(r.Alone, img.ID)
	r.Begun, r.Boot, r.Before, r.Alone, r.Had = false, "", nil, nil, ""
	return r
}

// Left returns the ledger when a pull of ours has taken its reference from the
// image with this ID: that may have been the last name by which somebody else had it.
func Left(images []machine.ImageRecord, imageID string) []machine.ImageRecord {
	images = slices.Clone(images)
	for i := range images {
		if images[i].ImageID == imageID && images[i].Shared {
			images[i].Lone = true
		}
	}
	return images
}

// Held says whether a name that is to go has to stay, whatever containers say: the
// image was there before our pull, and the digest of that repository, which comes
// with a pull and goes with the last tag, may be what somebody else has it by. Another
// tag does not change that: it may be a root's, which knows nothing of that digest.
func Held(images []machine.ImageRecord, r machine.ImageRecord, img engine.Image) bool {
	if strings.Contains(r.Reference, "@") {
		return r.Lone && nameless(images, r.Reference, img)
	}
	return r.Lone && slices.Contains(img.Digests, r.Digest)
}

// nameless says whether an image has no name but reference, those that images say
// are ours and, perhaps, digests of their repositories.
func nameless(images []machine.ImageRecord, reference string, img engine.Image) bool {
	names, repositories := []string{normal(reference)}, []string{repository(reference)}
	for _, r := range images {
		if r.ImageID == img.ID && r.PulledByUs {
			names, repositories = append(names, normal(r.Reference)), append(repositories, repository(r.Reference))
		}
	}
	other := func(tag string) bool { return !slices.Contains(names, normal(tag)) }
	foreign := func(digest string) bool { return !slices.Contains(repositories, repository(digest)) }
	return !slices.ContainsFunc(img.Tags, other) && !slices.ContainsFunc(img.Digests, foreign)
}

// Lone says whether an image that is there before a pull of reference may be
// somebody's by the digest of that repository alone, or without a name. With a name
// of ours in that repository it is as lone as it was; with one in another, it needs a
// digest to be somebody's.
func Lone(images []machine.ImageRecord, reference string, img engine.Image) bool {
	known, near := false, false
	for _, r := range images {
		if r.ImageID != img.ID || !r.PulledByUs {
			continue
		}
		known = true
		if repository(r.Reference) == repository(reference) {
			if r.Lone {
				return true
			}
			near = near || named(img, r.Reference) // somebody may have taken it
		}
	}
	switch digest := RepoDigest(img, reference); {
	case near || known && digest == "":
		return false
	case digest == "":
		return nameless(images, reference, img)
	}
	// A tag of ours that is still on the image is near.
	return !slices.ContainsFunc(img.Tags, func(tag string) bool { return repository(tag) == repository(reference) })
}

// named says whether an image has that name.
func named(img engine.Image, name string) bool {
	is := func(other string) bool { return normal(other) == normal(name) }
	return slices.ContainsFunc(img.Tags, is) || slices.ContainsFunc(img.Digests, is)
}

// Remove deletes an image that is ours, first by the reference that we gave
// it, and forgets it. An image that Docker refuses to delete stays in the
// ledger as pending. It returns the bytes freed, and engine.ErrInUse when the
// deletion is pending.
func Remove(ctx context.Context, n machine.Notes, e Engine, r machine.ImageRecord) (int64, error) {
	img, err := e.Image(ctx, r.ImageID)
	if errors.Is(err, engine.ErrNotFound) {
		if err := e.Sync(ctx); err != nil {
			return 0, err
		}
		return 0, n.Done(ctx, machine.Fact{What: WhatRemoved, Name: r.ImageID, Images: Without(n.Images(), r)})
	}
	if err != nil {
		return 0, err
	}
	r.Phase, r.Last = machine.Removing, false
	if Held(n.Images(), r, img) {
		images := With(n.Images(), r)
		if err := n.Done(ctx, machine.Fact{What: WhatRemoved, Name: r.ImageID, Images: images}); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("image %s may be somebody else's by its digest: %w", r.Reference, engine.ErrInUse)
	}
	if err := n.Intent(ctx, machine.Fact{What: WhatRemoved, Name: r.ImageID, Detail: r, Images: With(n.Images(), r)}); err != nil {
		return 0, err
	}
	freed, err := remove(ctx, e, r, img)
	if err == nil {
		err = e.Sync(ctx)
	}
	if err != nil {
		return 0, err
	}
	return freed, n.Done(ctx, machine.Fact{
		What: WhatRemoved, Name: r.ImageID, Images: Without(n.Images(), r),
		Detail: map[string]any{"reference": r.Reference, "bytes": freed},
	})
}

func remove(ctx context.Context, e Engine, r machine.ImageRecord, img engine.Image) (int64, error) {
	// The names that our pull gave it go one by one, and only while they still
	// name this image. A name of somebody else's keeps it.
	if err := untag(ctx, e, r.Reference, r.ImageID); err != nil {
		return 0, err
	}
	left, err := e.Image(ctx, r.ImageID)
	near := func(tag string) bool { return repository(tag) == repository(r.Reference) }
	if err == nil && r.Digest != "" && !slices.ContainsFunc(left.Tags, near) {
		// A tag that moved away has left the digest behind.
		if err := untag(ctx, e, r.Digest, r.ImageID); err != nil {
			return 0, err
		}
		left, err = e.Image(ctx, r.ImageID)
	}
	if err == nil && len(left.Tags)+len(left.Digests) > 0 {
		return 0, nil
	}
	if err == nil {
		err = e.RemoveImage(ctx, r.ImageID)
	}
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return 0, err
	}
	return img.Size, nil
}

// Frees is how many bytes Remove says that it freed when it removes an image: none
// when others have a name of it. Layers that other images share stay all the same.
func Frees(r machine.ImageRecord, img engine.Image) int64 {
	for _, tag := range img.Tags {
		if tag != r.Reference {
			return 0
		}
	}
	for _, digest := range img.Digests {
		if repository(digest) != repository(r.Reference) {
			return 0
		}
	}
	return img.Size
}

// untag removes a name, if it names that image.
func untag(ctx context.Context, e Engine, name, imageID string) error {
	named, err := e.Image(ctx, name)
	if err == nil && named.ID == imageID {
		err = e.RemoveImage(ctx, name)
	}
	if errors.Is(err, engine.ErrNotFound) {
		return nil
	}
	return err
}

// Same says whether two records are about one image under one name.
func Same(a, b machine.ImageRecord) bool {
	return a.Reference == b.Reference && a.ImageID == b.ImageID
}

// With returns the ledger with r in it, in the place of the same record.
func With(images []machine.ImageRecord, r machine.ImageRecord) []machine.ImageRecord {
	return append(Without(images, r), r)
}

// Without returns the ledger without r; it is never nil.
func Without(images []machine.ImageRecord, r machine.ImageRecord) []machine.ImageRecord {
	kept := make([]machine.ImageRecord, 0, len(images)+1)
	for _, i := range images {
		if !Same(i, r) {
			kept = append(kept, i)
		}
	}
	return kept
}

// WithLast returns the ledger when the images of a task have gone again before it had
// them all: the last ones are those of the task before it.
func WithLast(images []machine.ImageRecord) []machine.ImageRecord {
	images = slices.Clone(images)
	last := machine.ImageRecord{}
	for _, r := range images {
		switch {
		case r.Last:
			return images
		case r.Phase == machine.Present && r.Since.After(last.Since):
			last = r
		}
	}
	for i := range images {
		images[i].Last = images[i].Phase == machine.Present && images[i].Task == last.Task
	}
	return images
}

// Pulled says whether deckhand brought the image with this ID, under any name.
func Pulled(images []machine.ImageRecord, imageID string) bool {
	return slices.ContainsFunc(images, func(r machine.ImageRecord) bool {
		return r.ImageID == imageID && r.PulledByUs && !r.Shared
	})
}

// Ours finds the record of the pull of ours that this name of the image came
// with: the name that was pulled, or the digest that came with it. Another name
// was given by somebody else, and is not ours to remove.
func Ours(images []machine.ImageRecord, name, digest, imageID string) (machine.ImageRecord, bool) {
	i := slices.IndexFunc(images, func(r machine.ImageRecord) bool {
		return r.ImageID == imageID && r.PulledByUs &&
			(r.Reference == name || !r.Shared && strings.Contains(name, "@") && r.Digest == digest)
	})
	if i < 0 {
		return machine.ImageRecord{}, false
	}
	return images[i], true
}

// Keep says how much of what deckhand pulled stays on the node.
type Keep struct {
	Tasks int   // whose images stay, the one that runs included
	Bytes int64 // of all images that stay; 0 for no limit
}

// Surplus returns the images of ours that are to go when a task with these
// references runs: all but the wanted ones and those of the other tasks that
// used images most recently, as many as keep has room for. wanted holds the
// image IDs that the task uses and names the references that it asks for: what
// such a reference named before goes whatever keep is, because no task finds it
// again. chains are the layers of images, by ID: what several of those that stay
// have in common takes its bytes once.
func Surplus(images []machine.ImageRecord, wanted, names []string, keep Keep, chains map[string][]string) []machine.ImageRecord {
	stay := newTally(images, chains)
	var recent []machine.ImageRecord // that may go
	for _, r := range images {
		switch {
		case r.Phase == machine.Pulling || !r.PulledByUs:
		case slices.Contains(wanted, r.ImageID):
			stay.count(r)
		default:
			recent = append(recent, r)
		}
	}
	slices.SortStableFunc(recent, func(a, b machine.ImageRecord) int { return b.Since.Compare(a.Since) })
	kept, full := map[string]bool{}, false // tasks; that no further image stays
	var surplus []machine.ImageRecord
	for _, r := range recent {
		if r.Phase == machine.Removing || slices.Contains(names, r.Reference) {
			surplus = append(surplus, r)
			continue
		}
		if len(kept) < keep.Tasks-1 {
			kept[r.Task] = true
		}
		full = full || !kept[r.Task] || keep.Bytes > 0 && stay.adds(r) > max(0, keep.Bytes-stay.bytes)
		if full {
			surplus = append(surplus, r)
		} else {
			stay.count(r)
		}
	}
	return surplus
}

// RepoDigest returns the digest under which the image came from the registry
// that reference names, or "".
func RepoDigest(img engine.Image, name string) string {
	for _, d := range img.Digests {
		if r := repository(d); r != "" && r == repository(name) {
			return d
		}
	}
	return ""
}

// normal is a reference as it is in full, the tag that it means included.
func normal(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.TagNameOnly(named).String()
}

// repository is a reference without tag and digest, in full; "" for none.
func repository(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return ""
	}
	return named.Name()
}
