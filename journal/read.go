package journal

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/deckhand/deckhand/machine"
)

// reader has the reading half of a journal.
type reader struct {
	db *badger.DB
}

// Head returns the newest head of a task; false when the task is unknown.
func (r *reader) Head(task string) (machine.Head, bool, error) {
	var head storedHead
	var found bool
	err := r.db.View(func(tx *badger.Txn) (err error) {
		head, found, err = getHead(tx, task)
		return err
	})
	if err != nil {
		return machine.Head{}, false, readError("the head of task "+task, err)
	}
	return head.Head, found, nil
}

// Heads returns the newest head of every task, the one with the newest record first.
func (r *reader) Heads() ([]machine.Head, error) {
	var stored []storedHead
	err := r.db.View(func(tx *badger.Txn) error {
		for item := range items(tx, []byte(headPrefix)) {
			h, err := decode[storedHead](item)
			if err != nil {
				return err
			}
			stored = append(stored, h)
		}
		return nil
	})
	if err != nil {
		return nil, readError("the heads", err)
	}
	slices.SortFunc(stored, func(a, b storedHead) int { return cmp.Compare(b.Number, a.Number) })
	heads := make([]machine.Head, len(stored))
	for i, h := range stored {
		heads[i] = h.Head
	}
	return heads, nil
}

// Node returns the node record.
func (r *reader) Node() (machine.Node, error) {
	var node machine.Node
	err := r.db.View(func(tx *badger.Txn) error {
		item, err := tx.Get(nodeKey)
		if err != nil {
			return err
		}
		node, err = decode[machine.Node](item)
		return err
	})
	if err != nil {
		return machine.Node{}, readError("the node record", err)
	}
	return node, nil
}

// Records yields a task's records, oldest first, as they are when it is
// called. It ends after the first error.
func (r *reader) Records(task string) iter.Seq2[machine.Record, error] {
	return func(yield func(machine.Record, error) bool) {
		tx := r.db.NewTransaction(false)
		defer tx.Discard()
		for item := range items(tx, recordsPrefix(task)) {
			rec, err := decode[machine.Record](item)
			if err != nil {
				yield(machine.Record{}, readError("the records of task "+task, err))
				return
			}
			if !yield(rec, nil) {
				return
			}
		}
	}
}

func readError(what string, err error) error {
	return machine.Faultf(machine.NodeFault, "cannot read %s from the journal: %w", what, err)
}

func getHead(tx *badger.Txn, task string) (storedHead, bool, error) {
	item, err := tx.Get(headKey(task))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return storedHead{}, false, nil
	}
	if err != nil {
		return storedHead{}, false, err
	}
	h, err := decode[storedHead](item)
	return h, err == nil, err
}

func getTip(tx *badger.Txn) (tip, error) {
	item, err := tx.Get(tipKey)
	if err != nil {
		return tip{}, err
	}
	return decode[tip](item)
}

// items yields what is stored under a prefix, in the order of the keys. An item
// is valid until the next one.
func items(tx *badger.Txn, prefix []byte) iter.Seq[*badger.Item] {
	return func(yield func(*badger.Item) bool) {
		it := tx.NewIterator(badger.IteratorOptions{Prefix: prefix, PrefetchValues: false})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if !yield(it.Item()) {
				return
			}
		}
	}
}

func decode[T any](item *badger.Item) (v T, err error) {
	err = item.Value(func(raw []byte) error { return json.Unmarshal(raw, &v) })
	if err != nil {
		return v, fmt.Errorf("%w: %q: %w", ErrDamaged, item.Key(), err)
	}
	return v, nil
}
