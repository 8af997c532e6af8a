package engine

import (
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"

	"github.com/deckhand/deckhand/machine"
)

// Image is an image on the node.
type Image struct {
	ID      string
	Tags    []string // name:tag
	Digests []string // name@sha256:…, of the registries that it came from
	Size    int64    // bytes on disk, layers shared with other images included
	Layers  []string // chain IDs of its layers (OCI image spec, config.md), the lowest first
	OS      string
	Arch    string

	// What a container has unless it is told otherwise.
	Entrypoint []string
	Cmd        []string
	Env        []string
	Workdir    string
	User       string
	Volumes    []string // paths, sorted
}

// halfGone is how Docker words a question about an image that it is just deleting,
// and about one whose layers were lost.
var halfGone = regexp.MustCompile(`(?i)layer does not exist`)

const (
	// goneTries is how often Docker is asked about an image that is half gone.
	goneTries = 10
	gonePause = 200 * time.Millisecond
)

// Image returns the image that a reference or an ID names on this node, or
// ErrNotFound. One that is just being deleted is waited for.
func (d *Docker) Image(ctx context.Context, ref string) (Image, error) {
	for try := 1; ; try++ {
		found, err := d.image(ctx, ref)
		if err == nil || errors.Is(err, ErrNotFound) || !halfGone.MatchString(err.Error()) || try == goneTries {
			return found, err
		}
		if err := sleep(ctx, gonePause); err != nil {
			return found, err
		}
	}
}

func (d *Docker) image(ctx context.Context, ref string) (Image, error) {
	if err := check(ref); err != nil {
		return Image{}, err
	}
	var found Image
	err := d.ask(ctx, func(ctx context.Context) error {
		i, err := d.api.ImageInspect(ctx, ref)
		if err != nil {
			return err
		}
		found = Image{ID: i.ID, Tags: i.RepoTags, Digests: i.RepoDigests, Size: i.Size, OS: i.Os, Arch: i.Architecture}
		for _, chain := range chainIDs(i.RootFS.Layers) {
			found.Layers = append(found.Layers, chain.String())
		}
		if c := i.Config; c != nil {
			found.Entrypoint, found.Cmd, found.Env = c.Entrypoint, c.Cmd, c.Env
			found.Workdir, found.User = c.WorkingDir, c.User
			found.Volumes = slices.Sorted(maps.Keys(c.Volumes))
		}
		return nil
	})
	return found, explain(err, "inspect image %s", ref)
}

// Images returns the images on this node with their IDs and names, and nothing
// else of them; those that serve as layers of others alone are left out.
func (d *Docker) Images(ctx context.Context) ([]Image, error) {
	var images []Image
	// An image without a name is listed as <none>:<none>, see ImageSummary.
	nameless := func(name string) bool { return strings.HasPrefix(name, "<none>") }
	err := d.ask(ctx, func(ctx context.Context) error {
		list, err := d.api.ImageList(ctx, image.ListOptions{})
		images = nil
		for _, i := range list {
			images = append(images, Image{
				ID: i.ID, Tags: slices.DeleteFunc(i.RepoTags, nameless), Digests: slices.DeleteFunc(i.RepoDigests, nameless),
			})
		}
		return err
	})
	return images, explain(err, "list images")
}

// RemoveImage removes one name of an image and, with its last name, the image;
// by ID it removes an image that has no more than one name. It touches no other
// image and forces nothing: ErrInUse when a container or another name needs
// the image, ErrNotFound when it is not there.
func (d *Docker) RemoveImage(ctx context.Context, refOrID string) error {
	if err := check(refOrID); err != nil {
		return err
	}
	remove := func(name string) error {
		return d.ask(ctx, func(ctx context.Context) error {
			_, err := d.api.ImageRemove(ctx, name, image.RemoveOptions{})
			return err
		})
	}
	digest, err := d.podmanDigestName(ctx, refOrID)
	if err != nil {
		return err
	}
	err = remove(refOrID)
	if err == nil && digest != "" {
		if err = remove(digest); cerrdefs.IsNotFound(err) {
			return nil
		}
	}
	if cerrdefs.IsInternal(err) {
		// Docker goes on with the removal of a client that died; a second one
		// beside it fails in its own words when it comes too late.
		if _, gone := d.Image(ctx, refOrID); errors.Is(gone, ErrNotFound) {
			return gone
		}
	}
	return explain(err, "remove image %s", refOrID)
}

// check refuses what is no image reference, before it becomes part of an
// address of Docker's API.
func check(ref string) error {
	if _, err := reference.ParseAnyReference(ref); err != nil {
		return badReference(ref, err)
	}
	return nil
}

// parse returns the reference to an image in a registry, with the tag latest
// when it has neither tag nor digest.
func parse(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, badReference(ref, err)
	}
	return reference.TagNameOnly(named), nil
}

func badReference(ref string, err error) error {
	return machine.Faultf(machine.TaskFault, "cannot use image %q: %w; write it as registry/name:tag or registry/name@sha256:…", ref, err)
}
