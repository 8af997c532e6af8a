package machine

import (
	"encoding/json"
	"time"
)

// Kind says what a journal record is about.
type Kind string

const (
	KindTransition Kind = "transition" // the task moved from one state to another
	KindIntent     Kind = "intent"     // a step is about to have an effect outside the journal
	KindDone       Kind = "done"       // what came of it
	KindResume     Kind = "resume"     // a new process took the task up again
)

// Record is one line of a task's history. Its JSON form is public.
type Record struct {
	Task    string `json:"task"`
	Attempt int    `json:"attempt"`
	// Seq counts the records of a task from 1, over all its attempts, without gaps.
	Seq  uint64 `json:"seq"`
	Kind Kind   `json:"kind"`
	// From and To differ in a transition only; in other records both are the
	// state in which the record was written. From is empty in the first record
	// of an attempt.
	From   State     `json:"from"`
	Event  Event     `json:"event"`
	To     State     `json:"to"`
	Time   time.Time `json:"time"`
	BootID string    `json:"boot_id"`
	Reason string    `json:"reason"`
	// Detail of an intent or done names what it concerns: "what" and "name". That
	// of an attempt's first record is what the attempt was opened with.
	Detail json.RawMessage `json:"detail"`
	// Prev is the hash of the record before this one, empty for the first.
	Prev string `json:"prev"`
}

// Told says whether others are told of the record: of what a task went through,
// not of each thing that it made on the way.
func (r Record) Told() bool { return r.Kind == KindTransition || r.Kind == KindResume }

// Notice is a record as others are told of it.
type Notice struct {
	// Number orders the notices of a journal; that of a later one is higher.
	Number uint64
	// ID is the hash of the record as stored: no other record of any journal has
	// it, and this one always does.
	ID     string
	Record Record
}

// Head is what the journal knows about a task without reading its history.
type Head struct {
	Task    string `json:"task"`
	Attempt int    `json:"attempt"`
	State   State  `json:"state"`
	// Since is when State was entered, Accepted when the attempt began.
	Since    time.Time `json:"since"`
	Accepted time.Time `json:"accepted"`
	// Seq and Hash are those of the newest record.
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	// Document identifies the task document without revealing it (a keyed hash).
	Document string `json:"document"`
	// Outcome is the final state that RollingBack leads to; empty before.
	Outcome State `json:"outcome,omitempty"`
	// Fault and Reason say why, when the outcome is not success.
	Fault  Fault  `json:"fault,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Failed is the executor that failed, nil when none did.
	Failed *ExecutorFailure `json:"failed,omitempty"`
	// Lost counts the attempts in a row, this one included, whose container was
	// lost with the node.
	Lost int `json:"lost,omitempty"`
	// Resumed counts the processes that took this attempt up again.
	Resumed int `json:"resumed"`
}

// TaskRef names one attempt at a task.
type TaskRef struct {
	Task    string `json:"task"`
	Attempt int    `json:"attempt"`
}

// Phase is where an image stands in the ledger.
type Phase string

const (
	Pulling  Phase = "pulling"  // a pull may have begun
	Present  Phase = "present"  // on disk
	Removing Phase = "removing" // a deletion may have begun, or was refused and is pending
)

// ImageRecord is an entry of the image ledger.
type ImageRecord struct {
	Reference string `json:"reference"`
	// ImageID is empty while the pull is under way.
	ImageID string `json:"image_id"`
	// Digest is the repository digest (name@sha256:…), empty for an image that
	// never came from a registry.
	Digest string `json:"digest"`
	// PulledByUs is false for an image that was on the node before under this
	// name: it is never deleted.
	PulledByUs bool `json:"pulled_by_us"`
	// Shared says that the image was on the node before our pull named it.
	Shared bool `json:"shared,omitempty"`
	// Lone says that it was one of Alone then.
	Lone  bool  `json:"lone,omitempty"`
	Phase Phase `json:"phase"`
	// Task used the image last.
	Task  string    `json:"task"`
	Since time.Time `json:"since"`
	// Bytes is the image's size on disk, layers that it shares with others
	// included; 0 while it is not known.
	Bytes int64 `json:"bytes"`
	// Layers are the bytes of its layers, the lowest first, which make up Bytes; none
	// when they are not known.
	Layers []int64 `json:"layers,omitempty"`
	// Begun says that a pull may be under way; it was only announced before.
	Begun bool `json:"begun,omitempty"`
	// Boot is the boot of the node in which the pull began.
	Boot string `json:"boot_id,omitempty"`
	// Before are the IDs of the images that were on the node when a pull began:
	// the one that Reference named, and all that are not deckhand's. When the
	// reference names one of them after the pull, the pull did not bring it.
	Before []string `json:"before,omitempty"`
	// Alone are those of Before that had no name then but, perhaps, a digest of
	// Reference's repository, for longer than Docker takes to name or to delete one.
	Alone []string `json:"alone,omitempty"`
	// Had is the ID of the image that Reference named when a pull began, empty
	// for none.
	Had string `json:"had,omitempty"`
	// Last marks the images of the last task: the last-image record.
	Last bool `json:"last"`
}

// Node is the journal's one record about the node itself.
type Node struct {
	// RootID names this root in Docker labels.
	RootID string `json:"root_id"`
	// Active is the attempt that is not finished, nil when there is none.
	Active *TaskRef `json:"active,omitempty"`
	// Images is the image ledger.
	Images []ImageRecord `json:"images"`
	// Debts are what roll-backs could not remove because it is not on this node.
	Debts []Debt `json:"debts,omitempty"`
}

// Debt is what an attempt has left somewhere else.
type Debt struct {
	Task    string    `json:"task"`
	Attempt int       `json:"attempt"`
	Since   time.Time `json:"since"`
	// Detail is for the step that owes it.
	Detail json.RawMessage `json:"detail"`
}

// Entry is what one journal transaction writes: a record, the task's head
// after it and, when Node is not nil, the node record after it.
// The journal fills in Record.Seq, Time, BootID and Prev, and Head.Seq and Hash.
type Entry struct {
	Record Record
	Head   Head
	Node   *Node
}
