package engine

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/machine"
)

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
	// IDs are what each reference's image may have for its ID: Docker names images by
	// their configuration or, in a store of containerd, by what the registry gave.
	IDs map[string][]string
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

// PullNeed tells what pulling these images, one after the other, would take:
// nothing for the layers that are there already. It asks their registries and
// loads no layer. ErrPlatform means that one of them is of no use here, any other
// error that it cannot be told.
func (d *Docker) PullNeed(ctx context.Context, refs []string) (PullNeed, error) {
	ctx, cancel := context.WithTimeout(ctx, digestLimit)
	defer cancel()
	there, err := d.layers(ctx)
	if err != nil {
		return PullNeed{}, err
	}
	need := PullNeed{IDs: map[string][]string{}}
	for _, ref := range refs {
		layers, ids, err := d.missing(ctx, ref, there)
		var ours *machine.Error
		switch {
		case err == nil:
		case errors.Is(err, ErrPlatform):
			return PullNeed{}, err
		case errors.As(err, &ours):
			return PullNeed{}, fmt.Errorf("cannot tell the size of image %s: %w", ref, err)
		default: // with URLs in it
			return PullNeed{}, fmt.Errorf("cannot tell the size of image %s: %s", ref, message(err))
		}
		for _, l := range layers {
			need.add(l)
		}
		need.IDs[ref] = ids
	}
	return need, nil
}

// layerSize is the size of a layer, as it comes and as it stays.
type layerSize struct{ compressed, unpacked int64 }

func (n *PullNeed) add(l layerSize) {
	n.Layers++
	n.Compressed += l.compressed
	n.Unpacked += l.unpacked
	n.Peak = max(n.Peak, n.Unpacked+l.compressed)
}

// layers returns the chain IDs (OCI image spec, config.md) of all layers on the
// node: with the same layers below it, a layer is not loaded again.
func (d *Docker) layers(ctx context.Context) (map[digest.Digest]bool, error) {
	images, err := d.Images(ctx)
	if err != nil {
		return nil, err
	}
	there := map[digest.Digest]bool{}
	for _, img := range images {
		var diffs []digest.Digest
		err := d.ask(ctx, func(ctx context.Context) error {
			i, err := d.api.ImageInspect(ctx, img.ID)
			diffs = nil
			for _, l := range i.RootFS.Layers {
				diffs = append(diffs, digest.Digest(l))
			}
			return err
		})
		if err != nil {
			continue // it went meanwhile, or is of no use to a pull
		}
		for _, chain := range identity.ChainIDs(diffs) {
			there[chain] = true
		}
	}
	return there, ctx.Err()
}

// missing returns the layers of an image that are not there, and adds them to
// what is there: an image after it shares them. It returns the IDs that the image
// may have, too.
func (d *Docker) missing(ctx context.Context, ref string, there map[digest.Digest]bool) (sizes []layerSize, ids []string, err error) {
	named, err := parse(ref)
	if err != nil {
		return nil, nil, err
	}
	from, err := d.remote(ctx, named)
	if err != nil {
		return nil, nil, err
	}
	descriptor, err := from.puller.Get(ctx, from.ref)
	if err != nil {
		return nil, nil, err
	}
	// Of an image for several platforms, the one for this node.
	content, err := descriptor.Image()
	if err != nil {
		return nil, nil, err
	}
	manifest, err := content.Manifest()
	if err != nil {
		return nil, nil, err
	}
	config, err := content.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	if err := checkFor(ref, cmp.Or(config.OS, from.platform.OS), config.Architecture, from.platform.OS, from.platform.Architecture); err != nil {
		return nil, nil, err
	}
	var diffs []digest.Digest
	for _, diff := range config.RootFS.DiffIDs {
		diffs = append(diffs, digest.Digest(diff.String()))
	}
	var wanted []v1.Descriptor
	for i, chain := range identity.ChainIDs(diffs) {
		if !there[chain] && i < len(manifest.Layers) {
			wanted = append(wanted, manifest.Layers[i])
			there[chain] = true
		}
	}
	sizes = make([]layerSize, len(wanted))
	ask, inner := group.WithContext(ctx)
	ask.SetLimit(endsAtATime)
	for i, layer := range wanted {
		ask.Go(func() error {
			sizes[i] = layerSize{layer.Size, from.unpacked(inner, layer)}
			return nil
		})
	}
	configID, err := content.ConfigName()
	if err != nil {
		return nil, nil, err
	}
	manifestID, err := content.Digest()
	if err != nil {
		return nil, nil, err
	}
	ids = []string{configID.String(), manifestID.String(), descriptor.Digest.String()}
	return sizes, ids, ask.Wait()
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
