package machine

import (
	"context"
	"encoding/json"
	"iter"
	"time"
)

// Task is the attempt that a step works on.
type Task struct {
	ID      string
	Attempt int
	// Outcome is the final state that the attempt is heading for. It is empty
	// while the attempt works and set when Undo is called.
	Outcome State
	// Failed says that an executor failed before the present state.
	Failed bool
	// Boot is the boot of the node in which the present state was entered; empty
	// when this process entered it. What was not synced before another boot is gone.
	Boot string
}

// Progress is how far a step had come when it was last interrupted.
type Progress int

const (
	None Progress = iota
	Partial
	Done
)

func (p Progress) String() string {
	return [...]string{"none", "partial", "done"}[p]
}

// Step does the work of one state. Implementations hold the task document and
// whatever they drive; the machine gives them the attempt and their notes.
type Step interface {
	State() State
	// Probe is read-only: it compares what the notes promise with what the
	// world holds. An error means that the world could not be asked, or, as
	// ErrLost, that what the notes promise cannot be had any more.
	Probe(ctx context.Context, t *Task, n Notes) (Progress, error)
	// Do brings the step to Done from any Progress; calling it again is harmless.
	Do(ctx context.Context, t *Task, n Notes) error
	// Undo removes what Do made on this node; "not found" is success; its
	// context is not the cancelled one. It never withdraws what was published.
	Undo(ctx context.Context, t *Task, n Notes) error
}

// Fact is what a step writes down: what it concerns (a kind of thing, such as
// "container"), the deterministic name of that thing, and anything more as a
// value that encodes to a JSON object. A fact without a name is one of many of its
// kind: it is not kept in memory, and only Each returns it.
type Fact struct {
	What   string
	Name   string
	Detail any
	// Images replaces the node's image ledger in the same transaction, when not nil.
	Images []ImageRecord
	// Debts replaces the node's debts in the same transaction, when not nil.
	Debts []Debt
}

// Note is a fact read back.
type Note struct {
	Kind   Kind // KindIntent or KindDone
	What   string
	Name   string
	Detail json.RawMessage // the whole detail object of the record
	Time   time.Time
}

// Notes are a step's own journaled facts about one attempt. Its methods may be
// called from several goroutines. A write that returns an error ends the
// process: whether it is in the journal is not known.
type Notes interface {
	// Intent is journaled before the effect that it announces.
	Intent(ctx context.Context, f Fact) error
	// Done is journaled after the effect, when it is durable.
	Done(ctx context.Context, f Fact) error
	// Warn journals a sentence for the task's system logs.
	Warn(ctx context.Context, message string) error
	// Get returns the newest note on that thing.
	Get(what, name string) (Note, bool)
	// All returns the newest note on each thing of that kind, oldest first.
	All(what string) []Note
	// Each reads every note of that kind from the journal, oldest first. It ends
	// after the first error.
	Each(what string) iter.Seq2[Note, error]
	// Images returns the node's image ledger as it is now.
	Images() []ImageRecord
	// Debts returns what the node owes as it is now.
	Debts() []Debt
	// Of returns the notes of another step of the attempt. They are that step's to
	// write.
	Of(step State) Notes
}
