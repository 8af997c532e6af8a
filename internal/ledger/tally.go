package ledger

import "github.com/deckhand/deckhand/machine"

// tally adds up what images take together: a layer that several have counts once.
// Where nobody knows how large the layers are that an image shares with those before
// it, it counts too much.
type tally struct {
	chains  map[string][]string // chain IDs of the layers of an image, the lowest first, by its ID
	reach   map[string]int64    // bytes of a layer and of all below it, by its chain ID, if known
	counted map[string]bool     // images and layers, by ID
	bytes   int64
}

func newTally(images []machine.ImageRecord, chains map[string][]string) *tally {
	t := &tally{chains: chains, reach: map[string]int64{}, counted: map[string]bool{}}
	for _, r := range images {
		layers := chains[r.ImageID]
		if len(layers) == 0 {
			continue
		}
		t.reach[layers[len(layers)-1]] = r.Bytes
		if len(r.Layers) != len(layers) {
			continue
		}
		sum := int64(0)
		for i, bytes := range r.Layers {
			sum += bytes
			t.reach[layers[i]] = sum
		}
	}
	return t
}

// adds is how many bytes an image takes beside those that are counted.
func (t *tally) adds(r machine.ImageRecord) int64 {
	if t.counted[r.ImageID] {
		return 0
	}
	shared := int64(0)
	for _, chain := range t.chains[r.ImageID] {
		if t.counted[chain] {
			shared = max(shared, t.reach[chain])
		}
	}
	return r.Bytes - shared
}

func (t *tally) count(r machine.ImageRecord) {
	t.bytes += t.adds(r)
	t.counted[r.ImageID] = true
	for _, chain := range t.chains[r.ImageID] {
		t.counted[chain] = true
	}
}
