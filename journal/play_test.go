package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// player takes tasks through the real machine, with steps that only journal what
// real ones would: each makes a few things, intent before effect. It tells of
// each record that it is about to write it, and that it is durable.
type player struct {
	*Journal
	things int // that each step makes
	tell   func(what, task string, seq uint64)
}

func (p *player) Append(ctx context.Context, e machine.Entry) (machine.Head, error) {
	p.tell("try", e.Head.Task, e.Head.Seq+1)
	head, err := p.Journal.Append(ctx, e)
	if err == nil {
		p.tell("ack", head.Task, head.Seq)
	}
	return head, err
}

func (p *player) machine() *machine.Machine {
	m := &machine.Machine{Journal: p, Steps: map[machine.State]machine.Step{}, MaxAttempts: 3, Log: slog.New(slog.DiscardHandler)}
	for _, state := range machine.Working {
		m.Steps[state] = playedStep{state, p.things}
	}
	return m
}

// play runs a task to its end.
func (p *player) play(task string) error {
	_, err := p.machine().Start(context.Background(), task, "document of "+task)
	return err
}

// goOn ends what is unfinished, by going on with it or by rolling it back.
func (p *player) goOn(resume bool) error {
	n, err := p.Node()
	if err != nil || n.Active == nil {
		return err
	}
	m := p.machine()
	if resume {
		_, err = m.Resume(context.Background(), n.Active.Task, "its process is gone")
	} else {
		_, err = m.RollBack(context.Background(), n.Active.Task, "its process is gone")
	}
	return err
}

// playedStep is the step of a state.
type playedStep struct {
	state  machine.State
	things int
}

func (s playedStep) State() machine.State { return s.state }

func (s playedStep) Probe(context.Context, *machine.Task, machine.Notes) (machine.Progress, error) {
	return machine.Partial, nil
}

func (s playedStep) Do(ctx context.Context, t *machine.Task, n machine.Notes) error {
	for i := range s.things {
		f := machine.Fact{What: "thing", Name: fmt.Sprint(s.state, " ", i), Detail: map[string]any{"bytes": i}}
		if note, known := n.Get(f.What, f.Name); known && note.Kind == machine.KindDone {
			continue
		}
		if err := n.Intent(ctx, f); err != nil {
			return err
		}
		if s.state == machine.ImageCheck {
			f.Images = []machine.ImageRecord{{Reference: "r:1", ImageID: "sha256:1", Phase: machine.Present, Task: t.ID, Last: true}}
		}
		if err := n.Done(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

func (s playedStep) Undo(context.Context, *machine.Task, machine.Notes) error { return nil }

// atomic fails the test when the parts of a transaction are not all there: the
// node's active task is the one that is unfinished.
func atomic(t testing.TB, r readJournal) {
	t.Helper()
	n, err := r.Node()
	if err != nil {
		t.Fatal(err)
	}
	heads, err := r.Heads()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range heads {
		if active := n.Active != nil && n.Active.Task == h.Task; active == h.State.Final() {
			t.Errorf("task %s is in %s, and the active task is %+v", h.Task, h.State, n.Active)
		}
	}
}

// within fails the test when a record is there that nobody was about to write.
func within(t testing.TB, r readJournal, tried map[string]uint64) {
	t.Helper()
	heads, err := r.Heads()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range heads {
		if most, known := tried[h.Task]; known && h.Seq > most {
			t.Errorf("task %s has %d records, and %d were written", h.Task, h.Seq, most)
		}
	}
}

// actPlay goes on with what is unfinished, then plays n tasks, with reopen each
// in a journal opened for it.
func actPlay(j *Journal, dir, prefix string, n, things int, reopen bool) (*Journal, error) {
	tell := func(what, task string, seq uint64) { fmt.Println(what, task, seq) }
	if err := (&player{j, things, tell}).goOn(true); err != nil {
		return j, err
	}
	for i := range n {
		if err := (&player{j, things, tell}).play(fmt.Sprint(prefix, i)); err != nil {
			return j, err
		}
		if !reopen {
			continue
		}
		if err := j.Close(); err != nil {
			return j, err
		}
		began := time.Now()
		var err error
		if j, err = Open(dir, actorOptions()); err != nil {
			return j, errors.Join(errors.New("opened again"), err)
		}
		fmt.Println("cycle", len(descriptors()), time.Since(began).Microseconds())
	}
	return j, nil
}
