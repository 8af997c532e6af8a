package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/funnel"
	"github.com/deckhand/deckhand/internal/outbox"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// funnelSink tells a server of Funnel of the tasks that came from it. It reads what
// the server has before it tells, so that telling again changes nothing.
type funnelSink struct {
	server  funnel.Server
	client  *funnel.Client
	journal interface {
		tallied
		Delivered(sink string, number uint64) error
	}
	root string // its id
	log  *slog.Logger
}

// Name is that of its place in the journal.
func (f *funnelSink) Name() string { return sinkOf(f.server) }

// Deliver tells the server what a record, and those before it that nobody is told of, say.
func (f *funnelSink) Deliver(ctx context.Context, e outbox.Event) error {
	r := e.Data
	p, err := pastOf(f.journal, r)
	if err != nil {
		return err
	}
	if p.Funnel == nil || *p.Funnel != f.server {
		return nil
	}
	t, err := f.client.Task(ctx, r.Task)
	if errors.Is(err, funnel.ErrNotFound) {
		return fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	}
	if err != nil {
		return err
	}
	owner := ownership{f.root, p.start}
	if owner.superseded(t.Metadata[ownerKey]) {
		f.log.Warn("another node has taken the task since; it is not told of this one", "task", r.Task, "attempt", r.Attempt, "owner", t.Metadata[ownerKey])
		return nil
	}
	tell := &teller{ctx: ctx, client: f.client, id: r.Task, task: t}
	if r.From == "" {
		tell.event(funnel.Start(r.Time))
	}
	if r.From == "" || t.Metadata[ownerKey] != owner.String() {
		tell.metadata(r.Time, p.Metadata, owner)
	}
	for _, x := range p.executors[p.toldExecutors:] {
		tell.event(funnel.Executor(x.Executor, x.ExecutorLog)...)
	}
	for i, line := range p.system[p.toldLines:] {
		tell.line(fmt.Sprintf("%.16s.%d", e.ID, i), r.Time, line)
	}
	state := p.tesState(r)
	if r.To.Final() && state != "" {
		if p.unlisted > 0 {
			tell.line(fmt.Sprintf("%.16s.outputs", e.ID), r.Time, fmt.Sprintf("warning: %d more outputs are published than are listed", p.unlisted))
		}
		if len(p.outputs) > 0 {
			tell.event(funnel.Outputs(r.Time, p.outputs))
		}
		tell.event(funnel.End(r.Time))
		tell.metadata(r.Time, p.taskLog(p.imageOnly()).Metadata, owner)
	}
	// Last: whoever sees a final state reads the rest at once.
	if state != "" {
		tell.state(r.Time, state)
	}
	return tell.told()
}

// past is what the journal tells of an attempt, up to a record that others are told of.
type past struct {
	account
	outputs  []tes.OutputFileLog
	unlisted int // outputs beyond those that one message takes
	// What of the account was there at the record before that others were told of.
	toldLines, toldExecutors int
	// givenUp says that the process that has ended the attempt did not go on with the task.
	givenUp bool
}

// maxOutputs bounds the list of outputs, in bytes: the server takes messages of 4 MiB.
const maxOutputs = 3 << 20

// pastOf reads it.
func pastOf(j tallied, last machine.Record) (*past, error) {
	p := &past{account: *newAccount(last.Time)}
	size := 0
	for r, err := range j.Records(last.Task) {
		if err != nil {
			return nil, err
		}
		if r.Attempt != last.Attempt || r.Seq > last.Seq {
			continue
		}
		if r.From == "" {
			p.account = *newAccount(r.Time)
		}
		if err := p.add(r); err != nil {
			return nil, fmt.Errorf("record %d of task %s: %w", r.Seq, r.Task, err)
		}
		files, err := publishedBy(r)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if size += funnel.OutputSize(f.OutputFileLog); size > maxOutputs {
				p.unlisted++
				continue
			}
			p.outputs = append(p.outputs, f.OutputFileLog)
		}
		if r.Kind == machine.KindResume {
			var detail machine.Resumption
			if err := json.Unmarshal(r.Detail, &detail); err != nil {
				return nil, err
			}
			p.givenUp = detail.GivenUp
		}
		if r.Told() && r.Seq < last.Seq {
			p.toldLines, p.toldExecutors = len(p.system), len(p.executors)
		}
	}
	return p, nil
}

// tesState is the state of the task after a record; empty when the record says nothing
// of it. A task that was handed back to its engine goes on elsewhere: nothing final can
// be said of it. Whoever has given it up knows of no such engine.
func (p *past) tesState(r machine.Record) tes.State {
	switch r.To {
	case machine.Accepted, machine.Scrub, machine.ImageCheck, machine.Download:
		return tes.Initializing
	case machine.Run, machine.Upload:
		return tes.Running
	case machine.Interrupted:
		if p.givenUp {
			return tes.SystemError
		}
		return ""
	}
	return tesStates[r.To]
}

// imageOnly is a document with the image of the task, if it has one only: the order of
// several is not in the journal.
func (p *past) imageOnly() *tes.Task {
	doc := &tes.Task{}
	if references := slices.Collect(maps.Keys(p.images)); len(references) == 1 {
		doc.Executors = []tes.Executor{{Image: references[0]}}
	}
	return doc
}

// ownerKey is where the metadata of a task say whose attempt the newest is.
const ownerKey = "deckhand.owner"

// ownership names an attempt among those of all nodes.
type ownership struct {
	root  string
	since time.Time
}

func (o ownership) String() string { return o.root + " " + o.since.UTC().Format(time.RFC3339Nano) }

// superseded says whether another node has begun a later attempt. Its text is the
// server's; whatever else it may be was written by nobody of ours.
func (o ownership) superseded(by string) bool {
	root, text, _ := strings.Cut(by, " ")
	since, err := time.Parse(time.RFC3339Nano, text)
	return err == nil && root != o.root && since.After(o.since)
}
