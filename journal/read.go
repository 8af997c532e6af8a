package journal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/deckhand/deckhand/machine"
)

// reader has the reading half of a journal: the generation and behind it the
// history. A task that began anew after it had gone into the history has its
// older records there and its newer ones in the generation.
type reader struct {
	source
	past *history // nil when there is none
}

// Head returns the newest head of a task; false when the task is unknown.
func (r *reader) Head(task string) (machine.Head, bool, error) {
	head, found, err := r.head(task)
	if err != nil {
		return machine.Head{}, false, readError("the head of task "+task, err)
	}
	return head.Head, found, nil
}

func (r *reader) head(task string) (storedHead, bool, error) {
	raw, err := r.get(headKey(task))
	if err != nil {
		return storedHead{}, false, err
	}
	if raw != nil {
		h, err := decode[storedHead](headKey(task), raw)
		return h, err == nil, err
	}
	p, err := r.past.pack(task)
	if err != nil || p == nil {
		return storedHead{}, false, err
	}
	h, err := p.head()
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
		h, err := s.pack.head()
		if err != nil {
			return err
		}
		newest[h.Task] = h
	}
	for e, err := range r.scan([]byte(headPrefix)) {
		if err != nil {
			return err
		}
		h, err := decode[storedHead](e.key, e.value)
		if err != nil {
			return err
		}
		newest[h.Task] = h
	}
	return nil
}

// Node returns the node record.
func (r *reader) Node() (machine.Node, error) {
	node, err := r.node()
	if err != nil {
		return machine.Node{}, readError("the node record", err)
	}
	return node, nil
}

func (r *reader) node() (machine.Node, error) { return get[machine.Node](r.source, nodeKey) }

// tip returns what the newest record of the whole journal is.
func (r *reader) tip() (tip, error) { return get[tip](r.source, tipKey) }

// Records yields a task's records, oldest first, as they are when it is
// called. It ends after the first error.
func (r *reader) Records(task string) iter.Seq2[machine.Record, error] {
	return func(yield func(machine.Record, error) bool) {
		for s, err := range r.records(task) {
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
func (r *reader) records(task string) iter.Seq2[storedRecord, error] {
	return func(yield func(storedRecord, error) bool) {
		p, err := r.past.pack(task)
		if err == nil && p != nil {
			for s, err := range p.records() {
				if !yield(s, err) || err != nil {
					return
				}
			}
		}
		if err != nil {
			yield(storedRecord{}, err)
			return
		}
		for e, err := range r.scan(recordsPrefix(task)) {
			_, seq, ok := parseRecordKey(e.key)
			if err == nil && !ok {
				err = fmt.Errorf("%w: no record has the key %q", ErrDamaged, e.key)
			}
			if !yield(storedRecord{seq, e.value}, err) || err != nil {
				return
			}
		}
	}
}

func readError(what string, err error) error {
	return machine.Faultf(machine.NodeFault, "cannot read %s from the journal: %w", what, err)
}

// get reads what has to be there.
func get[T any](s source, key []byte) (v T, err error) {
	raw, err := s.get(key)
	if err != nil {
		return v, err
	}
	if raw == nil {
		return v, fmt.Errorf("%w: it has no %s", ErrDamaged, key)
	}
	return decode[T](key, raw)
}

func decode[T any](key, raw []byte) (v T, err error) {
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("%w: %q: %w", ErrDamaged, key, err)
	}
	return v, nil
}
