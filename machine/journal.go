package machine

import (
	"context"
	"errors"
	"iter"
)

// ErrRefused is wrapped by the error of an entry that a journal cannot take as
// it is, such as one that is too large. Nothing was written.
var ErrRefused = errors.New("entry refused")

// Journal is what the machine asks of the durable record.
type Journal interface {
	// Append writes e in one durable transaction and returns the head as
	// stored. After an error other than ErrRefused it is unknown whether e is in the journal: the
	// caller ends the process and does not append again.
	Append(ctx context.Context, e Entry) (Head, error)
	// Head returns the newest head of a task; false when the task is unknown.
	Head(task string) (Head, bool, error)
	// Node returns the node record.
	Node() (Node, error)
	// Records yields a task's records, oldest first.
	Records(task string) iter.Seq2[Record, error]
}
