package check

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/machine"
)

// Told says what is wrong with what others were told of a journal's records: the
// text of events.file, and the ids that a server was sent. The file has each
// event once and in order, the server has each at least once.
func Told(j Reader, file string, sent []string) []string {
	var p problems
	want, err := toldOf(j)
	if err != nil {
		return []string{err.Error()}
	}
	var got, ids []string
	for line := range strings.Lines(file) {
		var e struct {
			ID   string
			Data machine.Record
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || !strings.HasSuffix(line, "\n") {
			p.add("the file of events has the line %q: %v", line, err)
		}
		p.when(slices.Contains(ids, e.ID), "the file of events has %s twice", e.ID)
		got, ids = append(got, eventOf(e.Data)), append(ids, e.ID)
	}
	p.when(len(want) == 0, "there is nothing to tell of")
	p.when(!slices.Equal(got, want), "the file of events has\n    %s\n  want\n    %s", strings.Join(got, "\n    "), strings.Join(want, "\n    "))
	for _, id := range ids {
		p.when(!slices.Contains(sent, id), "the server was not sent %s", id)
	}
	for _, id := range sent {
		p.when(!slices.Contains(ids, id), "the server was sent %s, which is no event", id)
	}
	return p
}

// Ended is how many attempts have ended.
func Ended(j Reader) (n int, err error) {
	records, err := toldRecords(j)
	for _, r := range records {
		if r.To.Final() {
			n++
		}
	}
	return n, err
}

// toldOf lists the events of a journal. One process writes after the other.
func toldOf(j Reader) (list []string, err error) {
	records, err := toldRecords(j)
	slices.SortStableFunc(records, func(a, b machine.Record) int { return a.Time.Compare(b.Time) })
	for _, r := range records {
		list = append(list, eventOf(r))
	}
	return list, err
}

// toldRecords are the records of a journal of which others are told.
func toldRecords(j Reader) (records []machine.Record, err error) {
	heads, err := j.Heads()
	if err != nil {
		return nil, err
	}
	for _, h := range heads {
		for r, err := range j.Records(h.Task) {
			if err != nil {
				return nil, err
			}
			if r.Kind == machine.KindTransition || r.Kind == machine.KindResume {
				records = append(records, r)
			}
		}
	}
	return records, nil
}

func eventOf(r machine.Record) string {
	return fmt.Sprintf("task %s, attempt %d, record %d: %s %s in %s", r.Task, r.Attempt, r.Seq, r.Kind, r.Event, r.To)
}
