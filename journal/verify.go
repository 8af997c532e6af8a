package journal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/deckhand/deckhand/machine"
)

// TransitionCheck says whether the state machine has this transition; an empty
// from is the beginning of an attempt.
type TransitionCheck func(from machine.State, event machine.Event, to machine.State) bool

// Report is what Verify found.
type Report struct {
	Tasks    int       `json:"tasks"`
	Records  int       `json:"records"`
	Problems []Problem `json:"problems"`
}

// Problem is one thing that is wrong with a journal.
type Problem struct {
	Task string `json:"task"` // empty when it concerns the journal as a whole
	Seq  uint64 `json:"seq"`  // 0 when it concerns no single record
	What string `json:"what"`
}

// Verify reads the journal in dir, compares it with its witness and replays
// every task. What is wrong is in the report; an error means that the journal
// could not be examined, as fs.ErrNotExist when there is none.
func Verify(dir string, legal TransitionCheck) (Report, error) {
	report := Report{Problems: []Problem{}}
	// Before the records: a writer only adds to what the witness says.
	said, err := testimonyIn(dir)
	if err == nil {
		var v *View
		if v, err = openView(dir, said); err == nil {
			report.replay(&v.reader, said, legal)
			report.identity(dir, &v.reader)
			report.idle(dir)
			return report, v.Close()
		}
	} else if !exists(filepath.Join(dir, currentFile)) {
		err = cmp.Or(damagedWithoutCurrent(dir), errNoJournal)
	}
	if errors.Is(err, ErrDamaged) {
		report.problem("", 0, "%v", err)
		err = report.salvage(dir, said, legal)
	}
	if err != nil {
		return report, machine.Faultf(machine.NodeFault, "cannot verify the journal %s: %w", dir, err)
	}
	return report, nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func (r *Report) problem(task string, seq uint64, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{Task: task, Seq: seq, What: fmt.Sprintf(format, args...)})
}

// replay checks all that the databases hold.
func (r *Report) replay(db *reader, said testimony, legal TransitionCheck) {
	if found, err := db.tip(); err != nil {
		r.problem("", 0, "%v", err)
	} else if err := said.contradicts(found); err != nil {
		r.problem(said.Task, said.Seq, "%v", err)
	}
	if _, err := db.node(); err != nil {
		r.problem("", 0, "%v", err)
	}
	r.outbox(db)
	for task := range r.tasks(db) {
		r.Tasks++
		p := &replay{report: r, task: task, legal: legal}
		for s, err := range db.records(task) {
			if err != nil {
				p.problem(p.seq+1, "it cannot be read: %v", err)
				break
			}
			p.record(s.seq, s.raw)
		}
		switch head, found, err := db.head(task); {
		case err != nil:
			p.problem(0, "the head cannot be read: %v", err)
		case !found:
			p.problem(0, "there are %d records and no head", p.seq)
		default:
			p.head(head.Head)
		}
	}
}

// tasks lists every task that has a record or a head, in order.
func (r *Report) tasks(db *reader) iter.Seq[string] {
	set := map[string]bool{}
	for s, err := range db.past.all() {
		if err != nil {
			r.problem("", 0, "%v", err)
			break
		}
		set[s.task] = true
	}
	for e, err := range db.scan(nil) {
		if err != nil {
			r.problem("", 0, "%v", err)
			break
		}
		if task, ok := taskOf(e.key); ok {
			set[task] = true
		} else if !bytes.Equal(e.key, nodeKey) && !bytes.Equal(e.key, tipKey) && !isOutbox(e.key) {
			r.problem("", 0, "nothing has the key %q", e.key)
		}
	}
	return slices.Values(slices.Sorted(maps.Keys(set)))
}

// outbox checks that each record of which others are to be told is there.
func (r *Report) outbox(db *reader) {
	for entry, err := range db.scan([]byte(eventPrefix)) {
		var e event
		if err == nil {
			e, err = decode[event](entry.key, entry.value)
		}
		if err == nil {
			_, err = db.record(e)
		}
		if err != nil {
			r.problem(e.Task, e.Seq, "the outbox: %v", err)
		}
	}
}

// identity compares the places where the root id is written down.
func (r *Report) identity(dir string, db *reader) {
	node, err := db.node()
	if err != nil {
		return // told already
	}
	if id, ok := readRootID(dir); !ok || id != node.RootID {
		r.problem("", 0, "altered: %s does not name root %s; the next run writes it anew", rootIDFile, node.RootID)
	}
	if c, _, err := readCurrent(dir); err == nil && c.Root != node.RootID {
		r.problem("", 0, "altered: %s does not name root %s", currentFile, node.RootID)
	}
}

// replay follows one task through its records.
type replay struct {
	report *Report
	task   string
	legal  TransitionCheck

	seq     uint64
	hash    string
	attempt int
	state   machine.State
}

func (p *replay) problem(seq uint64, format string, args ...any) {
	p.report.problem(p.task, seq, format, args...)
}

func (p *replay) record(seq uint64, raw []byte) {
	if seq != p.seq+1 {
		p.problem(p.seq+1, "missing: record %d is followed by %d", p.seq, seq)
	}
	var rec machine.Record
	if err := json.Unmarshal(raw, &rec); err != nil {
		p.problem(seq, "altered: it is no record: %v", err)
	} else {
		if rec.Task != p.task || rec.Seq != seq {
			p.problem(seq, "altered: it says that it is record %d of task %q", rec.Seq, rec.Task)
		}
		if seq == p.seq+1 && rec.Prev != p.hash {
			p.problem(seq, "altered: the hash of the record before it does not match")
		}
		p.follow(seq, rec)
	}
	p.report.Records++
	p.seq, p.hash = seq, hashOf(raw)
}

// follow checks the record against the state machine.
func (p *replay) follow(seq uint64, rec machine.Record) {
	begins := rec.Kind == machine.KindTransition && rec.From == ""
	switch {
	case rec.Kind == machine.KindTransition && !p.legal(rec.From, rec.Event, rec.To):
		p.problem(seq, "illegal: no transition leads from %q by %q to %q", rec.From, rec.Event, rec.To)
	case begins && p.state != "" && !p.state.Final():
		p.problem(seq, "illegal: attempt %d begins while attempt %d is in %s", rec.Attempt, p.attempt, p.state)
	case begins && rec.Attempt <= p.attempt:
		p.problem(seq, "illegal: attempt %d begins after attempt %d", rec.Attempt, p.attempt)
	case !begins && rec.Attempt != p.attempt:
		p.problem(seq, "illegal: it belongs to attempt %d and follows one of attempt %d", rec.Attempt, p.attempt)
	case !begins && rec.From != p.state:
		p.problem(seq, "illegal: it was written in %q and the task was in %q", rec.From, p.state)
	case rec.Kind != machine.KindTransition && rec.To != rec.From:
		p.problem(seq, "illegal: a record of kind %q leads from %q to %q", rec.Kind, rec.From, rec.To)
	}
	p.attempt, p.state = rec.Attempt, rec.To
}

func (p *replay) head(h machine.Head) {
	if h.Seq != p.seq {
		p.problem(h.Seq, "missing: the head tells of %d records and the last one is %d", h.Seq, p.seq)
		return
	}
	if h.Hash != p.hash {
		p.problem(h.Seq, "altered: the head has another hash of it")
	}
	if h.State != p.state || h.Attempt != p.attempt {
		p.problem(h.Seq, "altered: the head says attempt %d in %s, the record attempt %d in %s", h.Attempt, h.State, p.attempt, p.state)
	}
}
