// Package imagecheck makes the task's images present on the node, keeping the
// last task's where they are the same and deleting them where they are not.
package imagecheck

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/room"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// Engine is what this step asks of Docker.
type Engine interface {
	ledger.Engine
	Images(ctx context.Context) ([]engine.Image, error)
	RemoteDigest(ctx context.Context, ref string) (string, error)
	Pull(ctx context.Context, ref string, report func(engine.PullProgress)) error
	Manifest(ctx context.Context, ref string) (*engine.Manifest, error)
	PullNeed(ctx context.Context, of []*engine.Manifest, old ...string) (engine.PullNeed, error)
	LayerBytes(ctx context.Context, img engine.Image, m *engine.Manifest) ([]int64, error)
}

// Containers makes and removes the task's containers. They are made here,
// before the inputs come, because Docker does not delete an image that a
// container refers to, not even for another root on the same node.
type Containers interface {
	Create(ctx context.Context, t *machine.Task, n machine.Notes, executor int, img engine.Image) error
	// Settle is called when all of them are there.
	Settle(ctx context.Context, t *machine.Task, n machine.Notes) error
	Remove(ctx context.Context, t *machine.Task, n machine.Notes) error
}

// Policy says when a registry is asked for an image.
type Policy string

const (
	// Auto pulls a missing image, and one whose tag has moved in the registry;
	// it never asks about a digest that is on disk.
	Auto    Policy = "auto"
	Always  Policy = "always"
	Missing Policy = "missing"
	Never   Policy = "never"
)

// How an image came to be there: the task log's deckhand.image_pull.
const (
	Pulled  = "pulled"  // from the registry, for this task
	Reused  = "reused"  // an earlier task had pulled it
	Present = "present" // it was on the node before deckhand
)

// WhatImage is the kind of fact that says which image an executor runs.
const WhatImage = "image"

// WhatImages is the kind of fact that says what the task is about to pull, or
// how its pulls were settled; the image ledger changes with it.
const WhatImages = "images"

// Image is the detail of a WhatImage.
type Image struct {
	Reference string `json:"reference"`
	ImageID   string `json:"image_id"`
	Digest    string `json:"digest"`
	Pull      string `json:"pull"`
}

// Step is the ImageCheck state.
type Step struct {
	Task       *tes.Task
	Engine     Engine
	Containers Containers
	Policy     Policy
	Keep       ledger.Keep
	Room       *room.Room
	BootID     string
	Meter      *progress.Meter
	Log        *slog.Logger
	// Wait passes time, by the clock when it is nil.
	Wait func(context.Context, time.Duration) error
}

var _ machine.Step = (*Step)(nil)

// State implements machine.Step.
func (s *Step) State() machine.State { return machine.ImageCheck }

// Probe says how many of the task's images had been made ready.
func (s *Step) Probe(_ context.Context, _ *machine.Task, n machine.Notes) (machine.Progress, error) {
	switch ready := len(n.All(WhatImage)); {
	case ready == 0:
		return machine.None, nil
	case ready < len(s.Task.Images()):
		return machine.Partial, nil
	default:
		return machine.Done, nil
	}
}

// want is one image of the task and what is to be done about it.
type want struct {
	ref   string
	local engine.Image // ID is empty when it is not on disk
	pull  bool
	// pulling is the ledger's record of the pull, of an image that is to be pulled.
	pulling machine.ImageRecord
	// came says that the pull has ended already: a process before this one died
	// before it could journal that.
	came bool
	// manifest is of an image that is to be pulled, nil when nobody could tell.
	manifest *engine.Manifest
}

// mayBe says whether a pull may bring the image with this ID.
func (w *want) mayBe(imageID string) bool {
	return w.manifest == nil || slices.Contains(w.manifest.IDs, imageID)
}

// Do implements machine.Step.
func (s *Step) Do(ctx context.Context, t *machine.Task, n machine.Notes) error {
	if err := ledger.Distrust(ctx, s.Engine, n.Images(), s.BootID); err != nil {
		return err
	}
	images, err := ledger.Settle(ctx, s.Engine, n.Images())
	if err != nil {
		return err
	}
	wants := make([]*want, 0, len(s.Task.Images()))
	for _, ref := range s.Task.Images() {
		w, err := s.decide(ctx, n, ref)
		if err != nil {
			return err
		}
		wants = append(wants, w)
	}
	if err := s.announce(ctx, t, n, images, wants); err != nil {
		return err
	}
	if err := s.ask(ctx, wants); err != nil {
		return err
	}
	if err := s.distrustNameless(ctx, wants); err != nil {
		return err
	}
	late, err := s.pullsFirst(ctx, n, wants)
	if err != nil {
		return err
	}
	if !late {
		if err := s.evict(ctx, n, wants); err != nil {
			return err
		}
	}
	spare := &spare{wants: wants}
	if err := s.fit(ctx, n, spare); err != nil {
		return err
	}
	for _, w := range wants {
		before := w.local.ID
		if err := s.provide(ctx, t, n, w, spare); err != nil {
			return err
		}
		late = late || before != "" && before != w.local.ID
	}
	if late || s.Keep.Bytes > 0 {
		// What a tag named before goes now, when no image of the task is that one,
		// what had layers for those that came, and what has no room any more beside them.
		if err := s.evict(ctx, n, wants); err != nil {
			return err
		}
	}
	return s.Containers.Settle(ctx, t, n)
}

// distrustNameless is ledger.Distrust for images that Docker had made, and not named yet.
func (s *Step) distrustNameless(ctx context.Context, wants []*want) error {
	for _, w := range toPull(wants) {
		if w.manifest == nil || !ledger.Doubtful(w.pulling, s.BootID) {
			continue
		}
		for _, id := range w.manifest.IDs {
			img, err := s.Engine.Image(ctx, id)
			if err == nil && len(img.Tags)+len(img.Digests) == 0 && !slices.Contains(w.pulling.Before, id) {
				err = s.Engine.RemoveImage(ctx, id)
			}
			if err != nil && !errors.Is(err, engine.ErrNotFound) && !errors.Is(err, engine.ErrInUse) {
				return err
			}
		}
	}
	return nil
}

// wait passes time.
func (s *Step) wait(ctx context.Context, d time.Duration) error {
	if s.Wait != nil {
		return s.Wait(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// decide looks for one image on disk and, where the policy says so, in the registry.
func (s *Step) decide(ctx context.Context, n machine.Notes, ref string) (*want, error) {
	if w, err := s.settled(ctx, n, ref); w != nil || err != nil {
		return w, err
	}
	w := &want{ref: ref}
	local, err := s.Engine.Image(ctx, ref)
	switch {
	case err == nil:
		w.local = local
	case !errors.Is(err, engine.ErrNotFound):
		return nil, err
	}
	missing := w.local.ID == ""
	switch {
	case s.Policy == Never && missing:
		return nil, absent(ref)
	case !missing && cutOff(n.Images(), ref, w.local.ID):
		w.pull, w.came = true, true
	case s.Policy == Never:
	case missing || s.Policy == Always:
		w.pull = true
	case s.Policy == Missing || strings.Contains(ref, "@"):
	default:
		moved, err := s.moved(ctx, n, ref, w.local)
		if err != nil {
			return nil, err
		}
		w.pull = moved
	}
	return w, nil
}

func absent(ref string) error {
	return machine.Faultf(machine.TaskFault,
		"cannot use image %s: it is not on this node, and image.pull is \"never\"; load it first or set image.pull to \"missing\"", ref)
}

// settled returns the image that this attempt has made ready already, nil when
// it has none or the image has gone since. Its container may exist: the attempt
// stays with it, also when the tag names another image by now.
func (s *Step) settled(ctx context.Context, n machine.Notes, ref string) (*want, error) {
	note, ok := n.Get(WhatImage, ref)
	if !ok || note.Kind != machine.KindDone {
		return nil, nil
	}
	var had Image
	if err := json.Unmarshal(note.Detail, &had); err != nil {
		return nil, fmt.Errorf("the journaled image %s cannot be read: %w", ref, err)
	}
	local, err := s.Engine.Image(ctx, had.ImageID)
	if errors.Is(err, engine.ErrNotFound) {
		return nil, nil
	}
	return &want{ref: ref, local: local}, err
}

// cutOff says whether this attempt had begun the pull that brought the image,
// in a process that died before it could journal the end.
func cutOff(images []machine.ImageRecord, ref, imageID string) bool {
	return slices.ContainsFunc(images, func(r machine.ImageRecord) bool {
		return r.Reference == ref && ledger.Cut(r, imageID)
	})
}

// moved asks the registry whether a tag names another image than the one on disk.
func (s *Step) moved(ctx context.Context, n machine.Notes, ref string, local engine.Image) (bool, error) {
	remote, err := s.Engine.RemoteDigest(ctx, ref)
	if err != nil {
		if ctx.Err() != nil || machine.FaultOf(err) == machine.EngineFault {
			return false, err
		}
		return false, n.Warn(ctx, fmt.Sprintf("image %s: the registry does not say what the tag names now (%v); using the image on this node", ref, err))
	}
	return !slices.ContainsFunc(local.Digests, func(d string) bool { return strings.HasSuffix(d, "@"+remote) }), nil
}

// announce journals in one transaction, before anything is pulled or deleted,
// what the ledger becomes: these images are the last ones from now on.
func (s *Step) announce(ctx context.Context, t *machine.Task, n machine.Notes, images []machine.ImageRecord, wants []*want) error {
	now := time.Now().UTC()
	// What others brought is of no more concern than while a task uses it.
	images = slices.DeleteFunc(images, func(r machine.ImageRecord) bool { return !r.PulledByUs })
	for i := range images {
		images[i].Last = false
	}
	pulled := slices.Clone(images)
	var refs []string
	for _, w := range wants {
		refs = append(refs, w.ref)
		var r machine.ImageRecord
		if w.pull {
			r = pulling(n.Images(), w.ref)
		} else {
			r = present(pulled, w.ref, w.local)
		}
		r.Task, r.Since, r.Last = t.ID, now, true
		w.pulling = r
		images = ledger.With(images, r)
	}
	return n.Intent(ctx, machine.Fact{What: WhatImages, Name: strings.Join(refs, " "), Images: images})
}

// present is the record of an image that is on the node under that name already.
func present(images []machine.ImageRecord, ref string, img engine.Image) machine.ImageRecord {
	digest := ledger.RepoDigest(img, ref)
	had, ours := ledger.Ours(images, ref, digest, img.ID)
	return machine.ImageRecord{
		Reference: ref, ImageID: img.ID, Digest: digest, Bytes: img.Size, Layers: had.Layers,
		PulledByUs: ours, Shared: had.Shared, Lone: had.Lone, Phase: machine.Present,
	}
}

// pulling is the record of a pull that is to begin. One that a dead process began
// may end at any time, also while this one looks: what counts is what was there
// before that pull.
func pulling(images []machine.ImageRecord, ref string) machine.ImageRecord {
	for _, r := range images {
		if r.Phase == machine.Pulling && r.Reference == ref && r.Begun {
			return machine.ImageRecord{Reference: ref, Phase: machine.Pulling, Begun: true, Boot: r.Boot, Before: r.Before, Alone: r.Alone, Had: r.Had}
		}
	}
	return machine.ImageRecord{Reference: ref, Phase: machine.Pulling}
}

// Docker makes an image before it names it, and takes its names before the image.
// In between it removes the layers of others, which takes it half a second on a busy
// node. So an image without a name is somebody's when it is still so after looks.
const (
	looks    = 20
	lookWait = 250 * time.Millisecond
)

// survey is the record of a pull that begins, with what is on the node.
func (s *Step) survey(ctx context.Context, images []machine.ImageRecord, w *want) (machine.ImageRecord, error) {
	for look := 1; ; look++ {
		r, sure, err := s.look(ctx, images, w)
		if err != nil || sure || look == looks {
			return r, err
		}
		if err := s.wait(ctx, lookWait); err != nil {
			return r, err
		}
	}
}

// look surveys the node once. It is sure of what it saw when the reference named the
// same before and after it, and no image that it may name has lost its names.
func (s *Step) look(ctx context.Context, images []machine.ImageRecord, w *want) (r machine.ImageRecord, sure bool, err error) {
	r = machine.ImageRecord{Reference: w.ref, Phase: machine.Pulling, Begun: true}
	was, err := s.named(ctx, w.ref)
	if err != nil {
		return r, false, err
	}
	there, err := s.Engine.Images(ctx)
	if err != nil {
		return r, false, err
	}
	if r.Had, err = s.named(ctx, w.ref); err != nil {
		return r, false, err
	}
	sure = was == r.Had
	for _, img := range there {
		if img.ID == r.Had {
			continue
		}
		if !ledger.Pulled(images, img.ID) {
			r.Before = append(r.Before, img.ID)
		}
		if ledger.Lone(images, w.ref, img) {
			r.Alone = append(r.Alone, img.ID)
			sure = sure && !w.mayBe(img.ID)
		}
	}
	if r.Had != "" {
		r.Before = append(r.Before, r.Had)
	}
	return r, sure, nil
}

// named is the ID of the image that a reference names, "" for none.
func (s *Step) named(ctx context.Context, ref string) (string, error) {
	img, err := s.Engine.Image(ctx, ref)
	if errors.Is(err, engine.ErrNotFound) {
		return "", nil
	}
	return img.ID, err
}

// begin journals that a pull begins now. Since it was announced another root may
// have deleted what was there, which is brought by us then, and somebody may have
// brought the image.
func (s *Step) begin(ctx context.Context, n machine.Notes, w *want) error {
	now, err := s.survey(ctx, n.Images(), w)
	if err != nil {
		return err
	}
	if w.pulling.Begun {
		// What has come since may have come by the pull of the dead process.
		gone := func(id string) bool { return !slices.Contains(now.Before, id) && !slices.Contains(now.Alone, id) }
		now.Before, now.Alone = slices.DeleteFunc(slices.Clone(w.pulling.Before), gone), slices.DeleteFunc(slices.Clone(w.pulling.Alone), gone)
		if now.Had != "" {
			now.Had = w.pulling.Had
		}
	}
	w.pulling.Begun, w.pulling.Before, w.pulling.Alone, w.pulling.Had = true, now.Before, now.Alone, now.Had
	return n.Intent(ctx, machine.Fact{What: WhatImages, Name: w.ref, Images: ledger.With(n.Images(), w.pulling)})
}

// provide brings one image and makes the containers that use it.
func (s *Step) provide(ctx context.Context, t *machine.Task, n machine.Notes, w *want, spare *spare) error {
	// Somebody else, another root perhaps, may delete the image until Docker knows
	// of the container.
	const tries = 3
	for try := 1; ; try++ {
		err := s.bring(ctx, t, n, w, spare)
		brought := err == nil
		if brought {
			err = s.create(ctx, t, n, w.ref, w.local)
		}
		if err == nil && s.Policy != Never {
			// Docker deletes an image whose container it is making, if it looked for
			// containers just before it knew of this one (ADR 17). The container has
			// its layers all the same.
			_, err = s.Engine.Image(ctx, w.local.ID)
		}
		switch {
		case !errors.Is(err, engine.ErrNotFound), try == tries:
			return err
		case s.Policy == Never:
			return absent(w.ref)
		}
		if brought {
			// Docker may not have found something else.
			if _, there := s.Engine.Image(ctx, w.local.ID); !errors.Is(there, engine.ErrNotFound) {
				return errors.Join(err, there)
			}
		}
		s.Log.Warn("the image went away while its container was made; pulling again", "image", w.ref)
		images := n.Images()
		if brought { // or it is what a tag named before
			images = ledger.Without(images, machine.ImageRecord{Reference: w.ref, ImageID: w.local.ID})
		}
		w.local, w.pull, w.came = engine.Image{}, true, false
		w.pulling = pulling(n.Images(), w.ref)
		w.pulling.Task, w.pulling.Since, w.pulling.Last = t.ID, time.Now().UTC(), true
		if err := n.Intent(ctx, machine.Fact{What: WhatImages, Name: w.ref, Images: ledger.With(images, w.pulling)}); err != nil {
			return err
		}
	}
}

func (s *Step) create(ctx context.Context, t *machine.Task, n machine.Notes, ref string, img engine.Image) error {
	for i, e := range s.Task.Executors {
		if e.Image != ref {
			continue
		}
		if err := s.Containers.Create(ctx, t, n, i, img); err != nil {
			return err
		}
	}
	return nil
}

// bring pulls an image when that was decided, and journals what is there now.
func (s *Step) bring(ctx context.Context, t *machine.Task, n machine.Notes, w *want, spare *spare) error {
	if !w.pull {
		if note, ok := n.Get(WhatImage, w.ref); ok && note.Kind == machine.KindDone {
			return nil // how it came was journaled then
		}
		pull := origin(n.Images(), w.local.ID)
		s.Log.Info("image is on the node", "image", w.ref, "pull", pull)
		return s.ready(ctx, n, w, pull, nil)
	}
	named := false
	if !w.came {
		var err error
		if named, err = s.pullWhole(ctx, n, w, spare); err != nil {
			return err
		}
	}
	img, err := s.Engine.Image(ctx, w.ref)
	if err != nil {
		return err
	}
	images := n.Images()
	r, pull := ledger.Ended(w.pulling, img), Pulled
	r.Since = time.Now().UTC()
	if slices.Contains(w.pulling.Before, img.ID) { // nothing came: it was there, under whatever name
		pull = origin(images, img.ID)
		// Somebody may have removed the name since, and our pull given it again.
		if w.pulling.Had == img.ID && !named {
			r = present(images, w.ref, img)
			r.Task, r.Since, r.Last = t.ID, time.Now().UTC(), true
		}
	}
	if r.Layers, err = s.Engine.LayerBytes(ctx, img, w.manifest); err != nil {
		s.Log.Info("cannot tell how large the layers are; the image counts whole for image.keep_bytes", "image", w.ref, "error", err)
	}
	w.local, w.pull = img, false
	images = ledger.Without(images, machine.ImageRecord{Reference: w.ref}) // the pulling record has no ID
	if had := w.pulling.Had; had != img.ID {
		images = ledger.Left(images, had)
	}
	return s.ready(ctx, n, w, pull, ledger.With(images, r))
}

// origin says how an image that is on disk had come there.
func origin(images []machine.ImageRecord, imageID string) string {
	if ledger.Pulled(images, imageID) {
		return Reused
	}
	return Present
}

// pullWhole journals that a pull begins, and pulls, as pull does. Of a pull that the node's power
// has cut off Docker may have layers that no image has, and takes them for whole. Nothing but an
// image removes layers: so one is pulled that has them, goes again, and all of it comes anew.
func (s *Step) pullWhole(ctx context.Context, n machine.Notes, w *want, spare *spare) (named bool, err error) {
	if ledger.Doubtful(w.pulling, s.BootID) {
		// Until it has gone the record is one of that boot, so that whoever goes on doubts too.
		if err := s.begin(ctx, n, w); err != nil {
			return false, err
		}
		s.Log.Info("pulling twice, because the node went down in the pull: layers may not be whole", "image", w.ref)
		if _, err := s.pull(ctx, n, w.ref, spare); err != nil {
			return false, err
		}
		if err := ledger.Distrust(ctx, s.Engine, []machine.ImageRecord{w.pulling}, s.BootID); err != nil {
			return false, err
		}
	}
	w.pulling.Boot = s.BootID
	if err := s.begin(ctx, n, w); err != nil {
		return false, err
	}
	return s.pull(ctx, n, w.ref, spare)
}

// pull brings an image, and says whether that gave it the reference. Where the disk
// is full before it has come, as many spare images go as it takes.
func (s *Step) pull(ctx context.Context, n machine.Notes, ref string, spare *spare) (named bool, err error) {
	for {
		named, err = s.pullOnce(ctx, ref)
		if !errors.Is(err, engine.ErrNoSpace) {
			return named, err
		}
		more, removal := s.makeRoom(ctx, n, spare)
		if !more || removal != nil {
			return false, cmp.Or(removal, err)
		}
		if no := s.fit(ctx, n, spare); no != nil && machine.FaultOf(no) != machine.NodeFault {
			return false, no
		}
		s.Log.Warn("the disk was full in the pull; trying again without an image that was kept", "image", ref, "error", err)
	}
}

func (s *Step) pullOnce(ctx context.Context, ref string) (named bool, err error) {
	s.Log.Info("pulling", "image", ref)
	s.Meter.Reset("pull " + ref)
	var done, total int64
	err = s.Engine.Pull(ctx, ref, func(p engine.PullProgress) {
		s.Meter.AddTotal(0, p.Total-total)
		s.Meter.AddBytes(p.Done - done)
		done, total, named = p.Done, p.Total, p.Named
	})
	return named, err
}

func (s *Step) ready(ctx context.Context, n machine.Notes, w *want, pull string, images []machine.ImageRecord) error {
	return n.Done(ctx, machine.Fact{What: WhatImage, Name: w.ref, Images: images, Detail: Image{
		Reference: w.ref, ImageID: w.local.ID, Digest: ledger.RepoDigest(w.local, w.ref), Pull: pull,
	}})
}

// Undo removes the task's containers and settles a pull or a deletion that was
// cut off: an image that has gone leaves the ledger now, or it would be taken for
// ours when somebody else brings it back. The images stay: the next task may
// want them.
func (s *Step) Undo(ctx context.Context, t *machine.Task, n machine.Notes) error {
	if err := s.Containers.Remove(ctx, t, n); err != nil {
		return err
	}
	images := n.Images()
	if !slices.ContainsFunc(images, func(r machine.ImageRecord) bool { return r.Phase != machine.Present }) {
		return nil
	}
	if err := ledger.Distrust(ctx, s.Engine, images, s.BootID); err != nil {
		return err
	}
	settled, err := ledger.Settle(ctx, s.Engine, images)
	if err != nil {
		return err
	}
	settled = ledger.WithLast(settled)
	return n.Done(ctx, machine.Fact{What: WhatImages, Name: "settled", Images: settled})
}
