package batch

import (
	"encoding/json"
	"fmt"

	"github.com/deckhand/deckhand/machine"
)

// Read returns the items that earlier writers of that kind have journaled.
func Read[T any](n machine.Notes, what string) ([]T, error) {
	var items []T
	for _, note := range n.All(what) {
		if note.Kind != machine.KindDone {
			continue
		}
		var b Files[T]
		if err := json.Unmarshal(note.Detail, &b); err != nil {
			return nil, fmt.Errorf("the journaled %s cannot be read: %w", what, err)
		}
		items = append(items, b.Files...)
	}
	return items, nil
}
