package journal

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/deckhand/deckhand/machine"
)

// reader has the reading half of a journal: the database of the generation and
// behind it the history. A task that began anew after it had gone into the
// history has its older records there and its newer ones in the generation.
type reader struct {
	db   *badger.DB
	past *history // nil when there is none
}

// Head returns the newest head of a task; false when the task is unknown.
func (r *reader) Head(task string) (machine.Head, bool, error) {
	tx := r.db.NewTransaction(false)
	defer tx.Discard()
	head, found, err := r.head(tx, task)
	if err != nil {
		return machine.Head{}, false, readError("the head of task "+task, err)
	}
	return head.Head, found, nil
}

func (r *reader) head(tx *badger.Txn, task string) (storedHead, bool, error) {
	item, err := tx.Get(headKey(task))
	if err == nil {
		h, err := decode[storedHead](item)
		return h, err == nil, err
	}
	if !errors.Is(err, badger.ErrKeyNotFound) {
		return storedHead{}, false, err
	}
	raw, err := r.past.pack(task)
	if err != nil || raw == nil {
		return storedHead{}, false, err
	}
	h, err := decodePackHead(raw)
	return h, err == nil, err
}

// Heads returns the newest head of every task, the one with the newest record first.
func (r *reader) Heads() ([]machine.Head, error) {
	newest := map[string]storedHead{}
	err := r.heads(newest)
	if err != nil {
		return nil, readError("the heads", err)
	}
	heads := make([]machine.Head, 0, len(newest))
	for _, h := range slices.SortedFunc(maps.Values(newest), func(a, b storedHead) int { return cmp.Compare(b.Number, a.Number) }) {
		heads = append(heads, h.Head)
	}
	return heads, nil
}

func (r *reader) heads(newest map[string]storedHead) error {
	for s, err := range r.past.all() {
		if err != nil {
			return err
		}
		h, err := decodePackHead(s.pack)
		if err != nil {
			return err
		}
		newest[h.Task] = h
	}
	tx := r.db.NewTransaction(false)
	defer tx.Discard()
	for item := range items(tx, []byte(headPrefix)) {
		h, err := decode[storedHead](item)
		if err != nil {
			return err
		}
		newest[h.Task] = h
	}
	return nil
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
		for s, err := range r.records(tx, task) {
			var rec machine.Record
			if err == nil {
				if err = json.Unmarshal(s.raw, &rec); err != nil {
					err = fmt.Errorf("%w: record %d: %w", ErrDamaged, s.seq, err)
				}
			}
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

// storedRecord is a record as stored.
type storedRecord struct {
	seq uint64
	raw []byte
}

// records yields the stored records of a task, oldest first.
func (r *reader) records(tx *badger.Txn, task string) iter.Seq2[storedRecord, error] {
	return func(yield func(storedRecord, error) bool) {
		raw, err := r.past.pack(task)
		if err == nil && raw != nil {
			var p pack
			p, err = decodePack(raw)
			for i, raw := range p.records {
				if !yield(storedRecord{uint64(i) + 1, raw}, nil) {
					return
				}
			}
		}
		if err != nil {
			yield(storedRecord{}, err)
			return
		}
		for item := range items(tx, recordsPrefix(task)) {
			_, seq, ok := parseRecordKey(item.Key())
			if !ok {
				err = fmt.Errorf("%w: no record has the key %q", ErrDamaged, item.Key())
			} else {
				raw, err = item.ValueCopy(nil)
			}
			if !yield(storedRecord{seq, raw}, err) || err != nil {
				return
			}
		}
	}
}

func readError(what string, err error) error {
	return machine.Faultf(machine.NodeFault, "cannot read %s from the journal: %w", what, err)
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
