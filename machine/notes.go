package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"strconv"
	"time"
)

// WhatWarning is the kind of fact that Warn writes; its detail holds "message".
const WhatWarning = "warning"

// stepNotes are the notes of one step of one attempt.
type stepNotes struct {
	a    *attempt
	step State
}

func (n *stepNotes) Intent(ctx context.Context, f Fact) error { return n.write(ctx, KindIntent, f) }
func (n *stepNotes) Done(ctx context.Context, f Fact) error   { return n.write(ctx, KindDone, f) }

func (n *stepNotes) Warn(ctx context.Context, message string) error {
	message = clip(message)
	for _, w := range n.All(WhatWarning) {
		var d struct{ Message string }
		if json.Unmarshal(w.Detail, &d) == nil && d.Message == message {
			return nil // a resumed step meets the same thing again
		}
	}
	name := strconv.Itoa(len(n.All(WhatWarning)) + 1)
	return n.Done(ctx, Fact{What: WhatWarning, Name: name, Detail: map[string]string{"message": message}})
}

func (n *stepNotes) write(ctx context.Context, kind Kind, f Fact) error {
	detail, err := factDetail(n.step, f)
	if err != nil {
		return err
	}
	a := n.a
	a.mu.Lock()
	defer a.mu.Unlock()
	var node *Node
	if f.Images != nil || f.Debts != nil {
		changed := a.node
		if f.Images != nil {
			changed.Images = f.Images
		}
		if f.Debts != nil {
			changed.Debts = f.Debts
		}
		node = &changed
	}
	r := Record{Kind: kind, From: a.head.State, To: a.head.State, Detail: detail, Time: time.Now()}
	if err := a.append(ctx, r, a.head, node); err != nil {
		return err
	}
	return a.remember(r)
}

// factDetail merges what names the fact into its detail.
func factDetail(step State, f Fact) (json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if f.Detail != nil {
		b, err := json.Marshal(f.Detail)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the detail of %s %s: %w", f.What, f.Name, err)
		}
		if err := json.Unmarshal(b, &fields); err != nil {
			return nil, fmt.Errorf("the detail of %s %s is no JSON object: %w", f.What, f.Name, err)
		}
	}
	for k, v := range map[string]string{"step": string(step), "what": f.What, "name": f.Name} {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		fields[k] = b
	}
	return json.Marshal(fields)
}

func (n *stepNotes) Get(what, name string) (Note, bool) {
	n.a.mu.Lock()
	defer n.a.mu.Unlock()
	note, ok := n.a.notes[noteKey{n.step, what, name}]
	return note, ok
}

func (n *stepNotes) All(what string) []Note {
	n.a.mu.Lock()
	defer n.a.mu.Unlock()
	var found []Note
	for _, k := range n.a.order {
		if k.step == n.step && k.what == what {
			found = append(found, n.a.notes[k])
		}
	}
	return found
}

func (n *stepNotes) Each(what string) iter.Seq2[Note, error] {
	n.a.mu.Lock()
	head := n.a.head
	n.a.mu.Unlock()
	return func(yield func(Note, error) bool) {
		for r, err := range n.a.journal.Records(head.Task) {
			if err != nil {
				yield(Note{}, err)
				return
			}
			if !n.a.has(r, head.Attempt) {
				continue
			}
			k, note, err := noteOf(r)
			if err != nil {
				yield(Note{}, err)
				return
			}
			if k.step == n.step && k.what == what && !yield(note, nil) {
				return
			}
		}
	}
}

func (n *stepNotes) Images() []ImageRecord {
	n.a.mu.Lock()
	defer n.a.mu.Unlock()
	return append([]ImageRecord(nil), n.a.node.Images...)
}

func (n *stepNotes) Debts() []Debt {
	n.a.mu.Lock()
	defer n.a.mu.Unlock()
	return append([]Debt(nil), n.a.node.Debts...)
}

func (n *stepNotes) Of(step State) Notes { return &stepNotes{n.a, step} }
