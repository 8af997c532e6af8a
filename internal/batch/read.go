package batch

import (
	"encoding/json"
	"fmt"
	"iter"

	"github.com/deckhand/deckhand/machine"
)

// Read yields the items that earlier writers of that kind have journaled, as they
// are read from the journal: there may be more than fit into memory. It ends after
// the first error.
func Read[T any](n machine.Notes, what string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		for note, err := range n.Each(what) {
			if err != nil {
				yield(none, fmt.Errorf("the journaled %s cannot be read: %w", what, err))
				return
			}
			if note.Kind != machine.KindDone {
				continue
			}
			var b Files[T]
			if err := json.Unmarshal(note.Detail, &b); err != nil {
				yield(none, fmt.Errorf("the journaled %s cannot be read: %w", what, err))
				return
			}
			for _, item := range b.Files {
				if !yield(item, nil) {
					return
				}
			}
		}
	}
}
