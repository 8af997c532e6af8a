// Package ledger keeps the account of the images on the node: which of them
// deckhand pulled, which the last task used, and which are to go. The account
// itself is in the journal; deletions go through here so that only what is
// ours is ever deleted.
package ledger

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
)

// Engine is what the ledger asks of Docker.
type Engine interface {
	Image(ctx context.Context, ref string) (engine.Image, error)
	RemoveImage(ctx context.Context, ref string) error
}

// WhatRemoved is the kind of fact that Remove writes when an image is gone.
const WhatRemoved = "image-removal"

// Reconcile compares the ledger with what is on disk, after a crash or after
// people have worked on the node: a pull that had ended is taken as present, an
// image that is gone leaves the ledger. It changes nothing on the node.
func Reconcile(ctx context.Context, e Engine, images []machine.ImageRecord) ([]machine.ImageRecord, error) {
	kept := make([]machine.ImageRecord, 0, len(images))
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
			if img.ID == r.Before {
				continue // the pull brought nothing; that image has its own record if it is ours
			}
			r.ImageID, r.Digest, r.PulledByUs, r.Phase = img.ID, RepoDigest(img, r.Reference), true, machine.Present
		}
		kept = append(kept, r)
	}
	return kept, nil
}

// Remove deletes an image that is ours, first by the reference that we gave
// it, and forgets it. An image that Docker refuses to delete stays in the
// ledger as pending. It returns the bytes freed, and engine.ErrInUse when the
// deletion is pending.
func Remove(ctx context.Context, n machine.Notes, e Engine, r machine.ImageRecord) (int64, error) {
	img, err := e.Image(ctx, r.ImageID)
	if errors.Is(err, engine.ErrNotFound) {
		return 0, n.Done(ctx, machine.Fact{What: WhatRemoved, Name: r.ImageID, Images: Without(n.Images(), r)})
	}
	if err != nil {
		return 0, err
	}
	r.Phase, r.Last = machine.Removing, false
	if err := n.Intent(ctx, machine.Fact{What: WhatRemoved, Name: r.ImageID, Detail: r, Images: With(n.Images(), r)}); err != nil {
		return 0, err
	}
	freed, err := remove(ctx, e, r, img)
	if err != nil {
		return 0, err
	}
	return freed, n.Done(ctx, machine.Fact{
		What: WhatRemoved, Name: r.ImageID, Images: Without(n.Images(), r),
		Detail: map[string]any{"reference": r.Reference, "bytes": freed},
	})
}

func remove(ctx context.Context, e Engine, r machine.ImageRecord, img engine.Image) (int64, error) {
	// The name goes first, and only while it still names this image.
	if named, err := e.Image(ctx, r.Reference); err == nil && named.ID == r.ImageID {
		if err := e.RemoveImage(ctx, r.Reference); err != nil && !errors.Is(err, engine.ErrNotFound) {
			return 0, err
		}
	} else if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return 0, err
	}
	left, err := e.Image(ctx, r.ImageID)
	if errors.Is(err, engine.ErrNotFound) {
		return img.Size, nil
	}
	if err != nil {
		return 0, err
	}
	if len(left.Tags) > 0 {
		return 0, nil // somebody else named it: it is theirs now
	}
	// A moved tag left it without a name.
	if err := e.RemoveImage(ctx, r.ImageID); err != nil && !errors.Is(err, engine.ErrNotFound) {
		return 0, err
	}
	return left.Size, nil
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

// Ours says whether deckhand pulled the image with this ID, under any name.
func Ours(images []machine.ImageRecord, imageID string) bool {
	return slices.ContainsFunc(images, func(r machine.ImageRecord) bool {
		return r.ImageID == imageID && r.PulledByUs
	})
}

// Surplus returns the images of ours that are to go when a task with these
// references runs: all but the wanted ones and those of the keep-1 tasks that
// used images most recently. wanted holds the image IDs that the task will use
// and names the references that it asks for.
func Surplus(images []machine.ImageRecord, wanted, names []string, keep int) []machine.ImageRecord {
	recent := slices.Clone(images)
	slices.SortStableFunc(recent, func(a, b machine.ImageRecord) int { return b.Since.Compare(a.Since) })
	tasks := map[string]bool{}
	var surplus []machine.ImageRecord
	for _, r := range recent {
		if r.Phase == machine.Pulling || !r.PulledByUs || slices.Contains(wanted, r.ImageID) ||
			slices.Contains(names, r.Reference) {
			continue
		}
		if !tasks[r.Task] && len(tasks) < keep-1 {
			tasks[r.Task] = true
		}
		if !tasks[r.Task] || r.Phase == machine.Removing {
			surplus = append(surplus, r)
		}
	}
	return surplus
}

// RepoDigest returns the digest under which the image came from the registry
// that reference names, or "".
func RepoDigest(img engine.Image, reference string) string {
	name := repository(reference)
	for _, d := range img.Digests {
		if at := strings.IndexByte(d, '@'); at > 0 && repository(d) == name {
			return d
		}
	}
	return ""
}

// repository is a reference without tag and digest.
func repository(reference string) string {
	name, _, _ := strings.Cut(reference, "@")
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name = name[:colon]
	}
	return name
}
