package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/funnel"
	"github.com/deckhand/deckhand/internal/tes"
)

// teller tells a server of Funnel of a task, one event after the other, until an error.
type teller struct {
	ctx    context.Context
	client *funnel.Client
	id     string
	task   funnel.Task // as the server has it
	err    error
}

// event tells of events that may be told again: what is told later takes the place of
// what was told before.
func (t *teller) event(events ...funnel.Event) {
	for _, e := range events {
		if t.err == nil {
			t.err = t.client.Write(t.ctx, t.id, e)
		}
	}
}

// metadata adds to what the server has.
func (t *teller) metadata(at time.Time, m map[string]string, owner ownership) {
	all := maps.Clone(m)
	if all == nil {
		all = map[string]string{}
	}
	all[ownerKey] = owner.String()
	t.event(funnel.Metadata(at, all))
}

// lineKey is the field of a system log with its id.
const lineKey = "deckhand_id"

// line adds to the system logs what is not there yet: the server adds a line as often
// as it is told of it.
func (t *teller) line(id string, at time.Time, text string) {
	if slices.ContainsFunc(t.task.SystemLogs, func(s string) bool { return strings.Contains(s, lineKey+"='"+id+"'") }) {
		return
	}
	level := "info"
	if when, rest, ok := strings.Cut(text, " "); ok {
		if said, err := time.Parse(time.RFC3339, when); err == nil {
			at, text = said, rest // the server writes it in its own way
		}
	}
	if strings.HasPrefix(text, "warning: ") {
		level, text = "warning", strings.TrimPrefix(text, "warning: ")
	}
	t.event(funnel.SystemLog(at, level, text, map[string]string{lineKey: id}))
}

// state takes the task to a state, if the server lets it. Its user may have canceled
// it meanwhile.
func (t *teller) state(at time.Time, to tes.State) {
	for _, s := range funnel.Way(t.task.State, to) {
		t.event(funnel.State(at, s))
	}
	if errors.Is(t.err, funnel.ErrTransition) {
		t.err = nil
	}
}

// told is nil when the server has all of it.
func (t *teller) told() error { return t.err }
