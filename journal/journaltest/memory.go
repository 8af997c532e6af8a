// Package journaltest has what tests need of a journal: one in memory, and the
// suite that every journal passes.
package journaltest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/machine"
)

// Memory is a machine.Journal without a disk. It behaves as the one in package
// journal does and shares no code with it.
type Memory struct {
	// BootID goes into every record.
	BootID string
	// Now gives the time of a record; time.Now when nil.
	Now func() time.Time
	// Fail, when it is set, is asked before each append. An error of its own
	// makes that append and all later ones fail. With written true the entry
	// is in the journal all the same: a write whose outcome is not known.
	Fail func(machine.Entry) (written bool, err error)

	mu     sync.Mutex
	failed error
	count  int
	node   machine.Node
	tasks  map[string]*history
	outbox []machine.Notice
	places map[string]uint64 // how far each sink has come
	states map[string]json.RawMessage
}

type history struct {
	head    machine.Head
	number  int // the count of all records when the newest was written
	records []machine.Record
}

// NewMemory returns an empty journal.
func NewMemory() *Memory {
	return &Memory{
		BootID: "memory",
		node:   machine.Node{RootID: "0123456789abcdef", Images: []machine.ImageRecord{}},
		tasks:  map[string]*history{},
		places: map[string]uint64{},
		states: map[string]json.RawMessage{},
	}
}

// Tell begins to tell others of records, as journal.Options.Sinks does.
func (m *Memory) Tell(sinks ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range sinks {
		if _, known := m.places[s]; !known {
			m.places[s] = uint64(m.count)
		}
	}
}

// Undelivered is that of journal.Journal.
func (m *Memory) Undelivered(sink string, most int) (notices []machine.Notice, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.outbox {
		if n.Number > m.places[sink] && len(notices) < most {
			n.Record = copyOf(n.Record)
			notices = append(notices, n)
		}
	}
	return notices, nil
}

// Keep is that of journal.Journal.
func (m *Memory) Keep(sink string, number uint64, state json.RawMessage) error {
	err := m.Delivered(sink, number)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.states[sink] = bytes.Clone(state)
	}
	return err
}

// Kept is that of journal.Journal.
func (m *Memory) Kept(sink string) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.states[sink]), nil
}

// SinkNames is that of journal.Journal.
func (m *Memory) SinkNames() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.places)), nil
}

// Delivered is that of journal.Journal.
func (m *Memory) Delivered(sink string, number uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	m.places[sink] = number
	return nil
}

// Reopen forgets a failed append, as a new process does.
func (m *Memory) Reopen() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed, m.Fail = nil, nil
}

// Forget removes a task, as a prune does.
func (m *Memory) Forget(task string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tasks, task)
}

// Append is that of machine.Journal.
func (m *Memory) Append(_ context.Context, e machine.Entry) (machine.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return machine.Head{}, m.failed
	}
	written := true
	if m.Fail != nil {
		written, m.failed = m.Fail(e)
	}
	if m.failed != nil && !written {
		return machine.Head{}, m.failed
	}
	head := m.write(e)
	if m.failed != nil {
		return machine.Head{}, m.failed
	}
	return head, nil
}

func (m *Memory) write(e machine.Entry) machine.Head {
	h := m.tasks[e.Record.Task]
	if h == nil {
		h = &history{}
		m.tasks[e.Record.Task] = h
	}
	now := m.Now
	if now == nil {
		now = time.Now
	}
	r := e.Record
	r.Seq = uint64(len(h.records)) + 1
	r.Prev = h.head.Hash
	r.Time = now().UTC().Round(0)
	r.BootID = m.BootID
	r.Reason = redact.Text(strings.ToValidUTF8(r.Reason, "\ufffd"))
	r.Detail = redact.JSON(r.Detail)
	if len(e.Record.Detail) == 0 {
		r.Detail = json.RawMessage("{}")
	}
	raw := mustMarshal(r)
	r.Detail = copyOf(r).Detail
	h.records = append(h.records, r)
	sum := sha256.Sum256(raw)
	m.count++
	h.number = m.count
	if r.Told() && len(m.places) > 0 {
		m.outbox = append(m.outbox, machine.Notice{Number: uint64(m.count), ID: hex.EncodeToString(sum[:]), Record: r})
	}
	h.head = copyOf(e.Head)
	h.head.Seq, h.head.Hash = r.Seq, hex.EncodeToString(sum[:])
	h.head.Reason = redact.Text(h.head.Reason)
	if h.head.Failed != nil {
		h.head.Failed.Reason = redact.Text(h.head.Failed.Reason)
	}
	h.head.Since, h.head.Accepted = h.head.Since.UTC(), h.head.Accepted.UTC()
	if e.Node != nil {
		id := m.node.RootID
		m.node = copyOf(*e.Node)
		m.node.RootID = id
		m.node.Images = append([]machine.ImageRecord{}, m.node.Images...)
	}
	return copyOf(h.head)
}

// Head is that of machine.Journal.
func (m *Memory) Head(task string) (machine.Head, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.tasks[task]
	if h == nil {
		return machine.Head{}, false, nil
	}
	return copyOf(h.head), true, nil
}

// Heads returns every head, the one with the newest record first.
func (m *Memory) Heads() ([]machine.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*history, 0, len(m.tasks))
	for _, h := range m.tasks {
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b *history) int { return cmp.Compare(b.number, a.number) })
	heads := make([]machine.Head, len(all))
	for i, h := range all {
		heads[i] = copyOf(h.head)
	}
	return heads, nil
}

// Node is that of machine.Journal.
func (m *Memory) Node() (machine.Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copyOf(m.node), nil
}

// Records is that of machine.Journal.
func (m *Memory) Records(task string) iter.Seq2[machine.Record, error] {
	return func(yield func(machine.Record, error) bool) {
		m.mu.Lock()
		var records []machine.Record
		if h := m.tasks[task]; h != nil {
			records = slices.Clone(h.records)
		}
		m.mu.Unlock()
		for _, r := range records {
			r.Detail = bytes.Clone(r.Detail)
			if !yield(r, nil) {
				return
			}
		}
	}
}

// copyOf returns v as it comes back from a journal: through JSON.
func copyOf[T any](v T) (c T) {
	if err := json.Unmarshal(mustMarshal(v), &c); err != nil {
		panic(err)
	}
	return c
}

func mustMarshal(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}
