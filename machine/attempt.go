package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/looplab/fsm"
)

// attempt is the journaled truth about one attempt while this process works on
// it: nothing changes here before it is in the journal.
type attempt struct {
	journal Journal
	fsm     *fsm.FSM

	mu    sync.Mutex // steps write notes from several goroutines
	head  Head
	node  Node
	notes map[noteKey]Note // of the facts that have a name
	order []noteKey
	// since is the newest record that is older than the attempt.
	since uint64
	// boot is the boot in which the head's state was entered by another
	// process; empty once this one has entered a state.
	boot string
	// broken is the first journal error. Nothing is written after it, because
	// it is unknown what the journal holds.
	broken error
}

type noteKey struct {
	step       State
	what, name string
}

// JournalError says that the journal could not be written: the process ends,
// and the next start goes on from what the journal holds.
type JournalError struct{ Err error }

func (e *JournalError) Error() string { return "cannot write the journal: " + e.Err.Error() }
func (e *JournalError) Unwrap() error { return e.Err }

// begin journals the first record of a new attempt at task, with opening as its
// detail.
func begin(ctx context.Context, j Journal, task, document string, opening any) (*attempt, error) {
	previous, known, err := j.Head(task)
	if err != nil {
		return nil, err
	}
	node, err := j.Node()
	if err != nil {
		return nil, err
	}
	a := &attempt{journal: j, node: node, notes: map[noteKey]Note{}}
	now := time.Now().UTC()
	head := Head{Task: task, Attempt: 1, State: Accepted, Since: now, Accepted: now, Document: document}
	if known {
		head.Attempt = previous.Attempt + 1
		if previous.Fault == Lost {
			head.Lost = previous.Lost
		}
	}
	node.Active = &TaskRef{Task: task, Attempt: head.Attempt}
	r := Record{Kind: KindTransition, Event: AcceptedTask, To: Accepted}
	if opening != nil {
		if r.Detail, err = json.Marshal(opening); err != nil {
			return nil, fmt.Errorf("cannot encode what attempt %d of task %s begins with: %w", head.Attempt, task, err)
		}
	}
	if err := a.append(ctx, r, head, &node); err != nil {
		return nil, err
	}
	a.fsm = newFSM(Accepted, a.leave)
	return a, nil
}

// resume loads the attempt that the journal holds as unfinished.
func resume(ctx context.Context, j Journal, task string) (*attempt, error) {
	head, known, err := j.Head(task)
	if err != nil {
		return nil, err
	}
	if !known || head.State.Final() {
		return nil, fmt.Errorf("task %s has no unfinished attempt to resume", task)
	}
	node, err := j.Node()
	if err != nil {
		return nil, err
	}
	a := &attempt{journal: j, head: head, node: node, notes: map[noteKey]Note{}}
	for r, err := range j.Records(task) {
		if err != nil {
			return nil, err
		}
		if r.Kind == KindTransition {
			a.boot = r.BootID
		}
		if a.has(r, head.Attempt) {
			if err := a.remember(r); err != nil {
				return nil, err
			}
		}
	}
	a.fsm = newFSM(head.State, a.leave)
	return a, nil
}

// newFSM builds the machine in a state; leave journals each transition and is
// the last that can stop it.
func newFSM(initial State, leave fsm.Callback) *fsm.FSM {
	events := make([]fsm.EventDesc, 0, len(Table))
	for _, t := range Table {
		events = append(events, fsm.EventDesc{
			Name: fsmName(t.Event, t.To), Src: []string{string(t.From)}, Dst: string(t.To),
		})
	}
	return fsm.NewFSM(string(initial), events, fsm.Callbacks{"leave_state": leave})
}

// fsmName is an event's name inside the library, which knows one destination
// for an event and a source: the destination is part of the name.
func fsmName(e Event, to State) string { return string(e) + " to " + string(to) }

// move is what a transition carries into the callback that journals it.
type move struct {
	event  Event
	reason string
	detail any
	change func(*Head)
}

// fire takes the attempt to another state. A journal that cannot be written
// leaves the state as it was.
func (a *attempt) fire(ctx context.Context, to State, m move) error {
	// A cancelled context would leave the library's machine in transition for ever.
	err := a.fsm.Event(context.WithoutCancel(ctx), fsmName(m.event, to), m)
	var canceled fsm.CanceledError
	if errors.As(err, &canceled) && canceled.Err != nil {
		return canceled.Err
	}
	return err
}

// leave is the callback in which a transition becomes durable.
func (a *attempt) leave(ctx context.Context, e *fsm.Event) {
	m := e.Args[0].(move)
	a.mu.Lock()
	defer a.mu.Unlock()
	detail, err := encode(m.detail)
	if err != nil {
		e.Cancel(err)
		return
	}
	from, to := State(e.Src), State(e.Dst)
	head, node := a.head, (*Node)(nil)
	head.State, head.Since = to, time.Now().UTC()
	if m.change != nil {
		m.change(&head)
	}
	if to.Final() {
		n := a.node
		n.Active = nil
		node = &n
	}
	r := Record{Kind: KindTransition, From: from, Event: m.event, To: to, Reason: m.reason, Detail: detail}
	if err := a.append(ctx, r, head, node); err != nil {
		e.Cancel(err)
		return
	}
	a.boot = ""
}

// append writes one entry. The caller holds mu, or is alone.
func (a *attempt) append(ctx context.Context, r Record, head Head, node *Node) error {
	if a.broken != nil {
		return a.broken
	}
	r.Task, r.Attempt = head.Task, head.Attempt
	if r.Detail == nil {
		r.Detail = json.RawMessage("{}")
	}
	r.Reason, head.Reason = clip(r.Reason), clip(head.Reason)
	stored, err := a.journal.Append(context.WithoutCancel(ctx), Entry{Record: r, Head: head, Node: node})
	if errors.Is(err, ErrRefused) {
		return Faultf(TaskFault, "cannot journal this task: %w", err) // nothing was written
	}
	if err != nil {
		a.broken = &JournalError{err}
		return a.broken
	}
	a.head = stored
	if node != nil {
		a.node = *node
	}
	return nil
}

// has says whether a record is a note of the attempt, whose number is given.
func (a *attempt) has(r Record, number int) bool {
	return r.Attempt == number && r.Seq > a.since && (r.Kind == KindIntent || r.Kind == KindDone)
}

// remember keeps a note of a record for Get and All, if it has a name.
func (a *attempt) remember(r Record) error {
	k, note, err := noteOf(r)
	if err != nil || k.name == "" {
		return err
	}
	if _, seen := a.notes[k]; !seen {
		a.order = append(a.order, k)
	}
	a.notes[k] = note
	return nil
}

// noteOf reads the note in a record.
func noteOf(r Record) (noteKey, Note, error) {
	var d struct {
		Step State  `json:"step"`
		What string `json:"what"`
		Name string `json:"name"`
	}
	if err := json.Unmarshal(r.Detail, &d); err != nil {
		return noteKey{}, Note{}, fmt.Errorf("record %d of task %s has no readable detail: %w", r.Seq, r.Task, err)
	}
	return noteKey{d.Step, d.What, d.Name}, Note{Kind: r.Kind, What: d.What, Name: d.Name, Detail: r.Detail, Time: r.Time}, nil
}

// clip bounds a sentence that holds somebody else's words: a record has a
// largest size.
func clip(s string) string {
	const most = 4096
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// encode turns a detail into a JSON object; nil is the empty one.
func encode(detail any) (json.RawMessage, error) {
	if detail == nil {
		return json.RawMessage("{}"), nil
	}
	b, err := json.Marshal(detail)
	if err != nil {
		return nil, fmt.Errorf("cannot encode a journal detail: %w", err)
	}
	return b, nil
}
