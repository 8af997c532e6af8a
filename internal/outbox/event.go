package outbox

import (
	"encoding/json"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// Event is a record of the journal in the form of CloudEvents 1.0. Its JSON form
// is public: docs/events.schema.json.
type Event struct {
	SpecVersion string `json:"specversion"`
	// ID is the same whenever the event is delivered, and no other event has it.
	ID string `json:"id"`
	// Source names the root.
	Source string `json:"source"`
	Type   string `json:"type"`
	// Subject is the task.
	Subject         string         `json:"subject"`
	Time            time.Time      `json:"time"`
	DataContentType string         `json:"datacontenttype"`
	Data            machine.Record `json:"data"`
}

// contentType is that of an event as JSON.
const contentType = "application/cloudevents+json"

func source(rootID string) string { return "deckhand:" + rootID }

func newEvent(source string, n machine.Notice) Event {
	what := string(n.Record.Event)
	if n.Record.Kind == machine.KindResume {
		what = "resumed"
	}
	return Event{
		SpecVersion: "1.0", ID: n.ID, Source: source, Type: "deckhand.task." + what, Subject: n.Record.Task,
		Time: n.Record.Time, DataContentType: "application/json", Data: n.Record,
	}
}

// encode returns the event as JSON in one line, without its end.
func (e Event) encode() ([]byte, error) { return json.Marshal(e) }
