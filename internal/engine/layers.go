package engine

import (
	"context"
	"slices"
)

// LayerBytes returns the bytes of the layers of an image on this node, the lowest
// first; none when they cannot be told. Docker tells the bytes of each step of the
// image's history, also of those that made no layer, but not which these are. The
// manifest that the image was pulled by does; it may be nil.
func (d *Docker) LayerBytes(ctx context.Context, img Image, m *Manifest) ([]int64, error) {
	var history []int64
	err := d.ask(ctx, func(ctx context.Context) error {
		steps, err := d.api.ImageHistory(ctx, img.ID)
		history = nil
		for _, s := range slices.Backward(steps) { // the newest comes first
			history = append(history, s.Size)
		}
		return err
	})
	if err != nil {
		return nil, explain(err, "ask for the history of image %s", img.ID)
	}
	var empty []bool
	if m != nil && slices.Contains(m.IDs, img.ID) {
		empty = m.empty
	}
	return layerBytes(history, empty, len(img.Layers), img.Size), nil
}

// layerBytes takes the layers out of the steps of a history. Where nobody says which
// step made none, it is those without a byte, if as many others are left as there are layers.
func layerBytes(history []int64, empty []bool, layers int, size int64) []int64 {
	var bytes []int64
	for i, b := range history {
		if len(empty) == len(history) && !empty[i] || len(empty) != len(history) && b > 0 {
			bytes = append(bytes, b)
			size -= b
		}
	}
	if len(bytes) != layers || size != 0 {
		return nil
	}
	return bytes
}
