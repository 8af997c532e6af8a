package journaltest

import (
	"context"
	"iter"

	"github.com/deckhand/deckhand/machine"
)

// Sieve is a journal that keeps nothing of what is appended but the head, so that
// tests can measure what memory others take.
type Sieve struct {
	// Past makes the records that an attempt has, as they are read; none when it is nil.
	Past func(attempt int) iter.Seq2[machine.Record, error]

	head machine.Head
}

// Append implements machine.Journal.
func (j *Sieve) Append(_ context.Context, e machine.Entry) (machine.Head, error) {
	seq := j.head.Seq
	j.head = e.Head
	j.head.Seq = seq + 1
	return j.head, nil
}

// Head implements machine.Journal.
func (j *Sieve) Head(string) (machine.Head, bool, error) { return j.head, j.head.Task != "", nil }

// Node implements machine.Journal.
func (j *Sieve) Node() (machine.Node, error) { return machine.Node{}, nil }

// Records implements machine.Journal.
func (j *Sieve) Records(string) iter.Seq2[machine.Record, error] {
	if j.Past == nil {
		return func(func(machine.Record, error) bool) {}
	}
	return j.Past(j.head.Attempt)
}
