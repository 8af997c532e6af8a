package engine

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/machine"
)

// Manifest is what a registry says of an image that is to be pulled.
type Manifest struct {
	Reference string
	// IDs are what the image may have for its ID: Docker names images by their
	// configuration or, in a store of containerd, by what the registry gave.
	IDs    []string
	layers []layerOf // the lowest first
	// empty says for each step of the image's history, the oldest first, whether it
	// made no layer.
	empty []bool
	from  *remoteImage
}

// layerOf is a layer of an image in its registry. Its chain ID (OCI image spec,
// config.md) stands for what lies below it as well: with the same layers below it, a
// layer is not loaded again.
type layerOf struct {
	chain    digest.Digest
	blob     v1.Descriptor
	unpacked int64 // 0 until it is asked for
}

// PullNeed is what pulling images takes of the disk on which Docker keeps them.
// It is a lower bound: what the registry does not tell is counted too small
// rather than too large.
type PullNeed struct {
	// Layers that are not on the node yet, of Compressed bytes as they come from
	// the registry and Unpacked bytes as they stay.
	Layers               int
	Compressed, Unpacked int64
	// Peak is the most that is taken at a time. Docker loads a layer whole
	// before it unpacks it.
	Peak int64
	// Saved is how many layers more it were without the images that are to go.
	Saved int
}

const (
	// endsAsked is the size from which the end of a layer is worth a request.
	endsAsked = 1 << 20
	// endsAtATime bounds these requests.
	endsAtATime = 4
	// wrapsFrom is the size from which a layer may well unpack to more than the
	// 4 GiB that a gzip file can say.
	wrapsFrom = 1 << 30
)

// Manifest asks a registry what it has to say of an image, and loads no layer.
// ErrPlatform means that the image is of no use here, any other error that it cannot
// be told.
func (d *Docker) Manifest(ctx context.Context, ref string) (*Manifest, error) {
	ctx, cancel := context.WithTimeout(ctx, digestLimit)
	defer cancel()
	m, err := d.manifest(ctx, ref)
	var ours *machine.Error
	switch {
	case err == nil, errors.Is(err, ErrPlatform):
		return m, err
	case errors.As(err, &ours):
		return nil, fmt.Errorf("cannot tell the size of image %s: %w", ref, err)
	}
	return nil, fmt.Errorf("cannot tell the size of image %s: %s", ref, message(err)) // with URLs in it
}

func (d *Docker) manifest(ctx context.Context, ref string) (*Manifest, error) {
	named, err := parse(ref)
	if err != nil {
		return nil, err
	}
	from, err := d.remote(ctx, named)
	if err != nil {
		return nil, err
	}
	descriptor, err := from.puller.Get(ctx, from.ref)
	if err != nil {
		return nil, err
	}
	// Of an image for several platforms, the one for this node.
	content, err := descriptor.Image()
	if err != nil {
		return nil, err
	}
	manifest, err := content.Manifest()
	if err != nil {
		return nil, err
	}
	config, err := content.ConfigFile()
	if err != nil {
		return nil, err
	}
	if err := checkFor(ref, cmp.Or(config.OS, from.platform.OS), config.Architecture, from.platform.OS, from.platform.Architecture); err != nil {
		return nil, err
	}
	configID, err := content.ConfigName()
	if err != nil {
		return nil, err
	}
	manifestID, err := content.Digest()
	if err != nil {
		return nil, err
	}
	m := &Manifest{Reference: ref, IDs: []string{configID.String(), manifestID.String(), descriptor.Digest.String()}, from: from}
	for _, step := range config.History {
		m.empty = append(m.empty, step.EmptyLayer)
	}
	var diffs []string
	for _, diff := range config.RootFS.DiffIDs {
		diffs = append(diffs, diff.String())
	}
	for i, chain := range chainIDs(diffs) {
		if i < len(manifest.Layers) {
			m.layers = append(m.layers, layerOf{chain: chain, blob: manifest.Layers[i]})
		}
	}
	return m, nil
}

func chainIDs(layers []string) []digest.Digest {
	diffs := make([]digest.Digest, 0, len(layers))
	for _, l := range layers {
		diffs = append(diffs, digest.Digest(l))
	}
	return identity.ChainIDs(diffs)
}

// PullNeed tells what pulling these images, one after the other, would take: nothing
// for the layers that are there already. old are the IDs of images that are to go;
// their layers are there as well. Of a layer that is not there the registry is asked
// for the size, once.
func (d *Docker) PullNeed(ctx context.Context, of []*Manifest, old ...string) (PullNeed, error) {
	there, stays, err := d.layers(ctx, old)
	if err != nil {
		return PullNeed{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, digestLimit)
	defer cancel()
	var need PullNeed
	var missing []*layerOf
	ask, inner := group.WithContext(ctx)
	ask.SetLimit(endsAtATime)
	for _, m := range of {
		for i := range m.layers {
			l := &m.layers[i]
			switch {
			case !there[l.chain]:
				missing = append(missing, l)
				if l.unpacked == 0 {
					ask.Go(func() error {
						l.unpacked = m.from.unpacked(inner, l.blob)
						return nil
					})
				}
			case !stays[l.chain]:
				need.Saved++
			}
			there[l.chain], stays[l.chain] = true, true // an image after this one shares it
		}
	}
	if err := ask.Wait(); err != nil {
		return PullNeed{}, err
	}
	for _, l := range missing {
		need.Layers++
		need.Compressed += l.blob.Size
		need.Unpacked += l.unpacked
		need.Peak = max(need.Peak, need.Unpacked+l.blob.Size)
	}
	return need, nil
}

// layers returns the chain IDs of all layers on the node, and of those that stay when
// the old images go.
func (d *Docker) layers(ctx context.Context, old []string) (there, stays map[digest.Digest]bool, err error) {
	images, err := d.Images(ctx)
	if err != nil {
		return nil, nil, err
	}
	there, stays = map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, img := range images {
		var chains []digest.Digest
		err := d.ask(ctx, func(ctx context.Context) error {
			i, err := d.api.ImageInspect(ctx, img.ID)
			chains = chainIDs(i.RootFS.Layers)
			return err
		})
		if err != nil {
			continue // it went meanwhile, or is of no use to a pull
		}
		for _, chain := range chains {
			there[chain] = true
			stays[chain] = stays[chain] || !slices.Contains(old, img.ID)
		}
	}
	return there, stays, ctx.Err()
}

// unpacked is how large a layer is when it is unpacked, or smaller. A gzip file
// ends with that size, of which it keeps the lower 32 bits (RFC 1952, 2.3.1); one
// made of several ends with the size of the last.
func (i *remoteImage) unpacked(ctx context.Context, layer v1.Descriptor) int64 {
	if !strings.HasSuffix(string(layer.MediaType), "gzip") || layer.Size < endsAsked {
		return layer.Size
	}
	var end [4]byte
	if err := i.end(ctx, layer.Digest, layer.Size, end[:]); err != nil {
		return layer.Size
	}
	size := int64(binary.LittleEndian.Uint32(end[:]))
	const lost = 1 << 32
	// What does not compress is a little larger in a gzip file than outside.
	for size < layer.Size-layer.Size/100 {
		if layer.Size < wrapsFrom {
			return layer.Size
		}
		size += lost
	}
	return size
}

// digestOf asks a registry once, with HEAD, which digest a tag names.
func (d *Docker) digestOf(ctx context.Context, named reference.Named) (string, error) {
	from, err := d.remote(ctx, named)
	if err != nil {
		return "", err
	}
	descriptor, err := from.puller.Head(ctx, from.ref)
	if err != nil {
		return "", err
	}
	return descriptor.Digest.String(), nil
}
