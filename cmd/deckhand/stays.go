package main

import (
	"time"

	"github.com/deckhand/deckhand/machine"
)

// stay is the time that an attempt spent in one state. The end of the one that goes on
// is zero.
type stay struct {
	State      machine.State
	Start, End time.Time
}

// Took is how long it was.
func (s stay) Took() time.Duration { return s.End.Sub(s.Start) }

// addStay takes a transition down. A final state is no stay: nothing goes on in it.
func addStay(stays []stay, r machine.Record) []stay {
	if r.Kind != machine.KindTransition {
		return stays
	}
	if n := len(stays); n > 0 {
		stays[n-1].End = r.Time
	}
	if r.To.Final() {
		return stays
	}
	return append(stays, stay{State: r.To, Start: r.Time})
}
