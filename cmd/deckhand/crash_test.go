//go:build crash

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/crash"
	"github.com/deckhand/deckhand/test/crash/shape"
)

// TestEveryCrash is the exhaustive proof: every shape is killed at each crash
// point, and again at points of its recovery. It is built with crash points, and
// told what to do, by package test/crash.
func TestEveryCrash(t *testing.T) {
	plan, err := crash.ReadPlan()
	if err != nil {
		t.Fatal(err)
	}
	// One thing at a time, so that the same points are passed in every run.
	runtime.GOMAXPROCS(1)
	b := newBench(t)
	var tally crash.Tally
	for _, s := range plan.Shapes() {
		t.Run(s.Name, func(t *testing.T) { (&explorer{b, s, plan, &tally, check.Node{}}).explore(t) })
	}
	text, err := json.Marshal(tally)
	if err := errors.Join(err, os.WriteFile(plan.Result, text, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// explorer kills the runs of one shape.
type explorer struct {
	*bench
	shape shape.Shape
	plan  crash.Plan
	tally *crash.Tally
	twin  check.Node
}

func (e *explorer) explore(t *testing.T) {
	w := e.world(t, e.shape)
	o := w.process(t, e.shape.Run, "")
	if o.code != e.shape.Code {
		t.Fatalf("the run that nobody killed ended with %d, want %d\n%s", o.code, e.shape.Code, o.log)
	}
	e.twin = w.look(t)
	if got := w.problems(e.shape, e.twin, nil); len(got) > 0 {
		t.Fatalf("after the run that nobody killed:\n%s\n%s", strings.Join(got, "\n"), o.log)
	}
	w.end(t)
	e.tally.See(o.trace)
	points := crash.Distinct(o.trace)
	if e.plan.Shard == 0 {
		e.tally.Add(crash.Tally{Shapes: 1, Passed: len(o.trace), Points: len(points)})
	}
	for _, at := range e.plan.Share(points) {
		if e.shape.Run.Task != nil {
			e.leave(t, at)
		}
		again := crash.Distinct(e.kill(t, at))
		for _, second := range e.plan.Seconds(e.shape, at, again) {
			e.kill(t, at, second)
		}
	}
}

// kill runs the shape in a new world, kills it at each of the points in turn and
// lets it end. It returns the points that the last process has passed.
func (e *explorer) kill(t *testing.T, points ...string) []string {
	w := e.world(t, e.shape)
	defer w.end(t)
	count := crash.Tally{Singles: 1}
	if len(points) > 1 {
		count = crash.Tally{Doubles: 1}
	}
	var o ending
	var logs, got []string
	for i, at := range append(slices.Clone(points), "") {
		o = w.process(t, e.shape.Run, at)
		logs = append(logs, o.log)
		if o.killed {
			count.Kills++
			if e.shape.Restart {
				w.restart(t)
			}
		} else if at != "" {
			// A container goes on while nobody looks: a recovery may come upon it
			// later than the one before did, and pass other points.
			// How much there is to deliver depends on how far the process before came.
			if i == 0 || !strings.HasPrefix(at, "internal/outbox.") && !strings.HasPrefix(at, "internal/funnel.") {
				count.Missed++
			}
			if i == 0 {
				got = append(got, "it ended without passing "+at)
			}
			break
		}
	}
	got = append(got, w.problems(e.shape, w.look(t), &e.twin)...)
	if o.code != e.shape.Code {
		got = append(got, fmt.Sprintf("the exit code is %d, want %d", o.code, e.shape.Code))
	}
	if len(got) > 0 {
		count.Failures++
		t.Errorf("killed at %s:\n  %s", strings.Join(points, "\n  and "), strings.Join(got, "\n  "))
		for i, log := range logs {
			t.Logf("process %d said:\n%s", i+1, log)
		}
	}
	count.See(o.trace)
	e.tally.Add(count)
	return o.trace
}

// leave kills the shape at a point, and another task comes to the node instead of
// this one: it rolls back what is there, without knowing the document.
func (e *explorer) leave(t *testing.T, at string) {
	w := e.world(t, e.shape)
	defer w.end(t)
	count := crash.Tally{Singles: 1}
	first := w.process(t, e.shape.Run, at)
	if first.killed {
		count.Kills++
	}
	other := w.process(t, shape.Other, "")
	after := w.look(t)
	got := check.Case{Task: "other", Before: w.before, After: after, Events: w.engine.Events()}.Problems()
	for name := range after.Outputs {
		if strings.HasPrefix(filepath.Base(name), ".") {
			got = append(got, "an unfinished output is left: "+name)
		}
	}
	got = slices.Concat(got, w.toldProblems(), w.countProblems(), w.frontProblems(e.shape))
	if other.code != 0 {
		got = append(got, fmt.Sprintf("the other task ended with %d", other.code))
	}
	if len(got) > 0 {
		count.Failures++
		t.Errorf("killed at %s, then another task:\n  %s\nthe first said:\n%s\nthe other said:\n%s",
			at, strings.Join(got, "\n  "), first.log, other.log)
	}
	e.tally.Add(count)
}

// look reads what is on the world's node.
func (w *world) look(t *testing.T) (n check.Node) {
	t.Helper()
	n.Engine = w.engine.Look()
	entries, err := os.ReadDir(filepath.Join(w.dir, "engine"))
	n.Layers.Entries = len(entries) + len(n.Images)
	if err == nil {
		err = n.ReadDisk(filepath.Join(w.dir, "root"), filepath.Join(w.dir, "out"))
	}
	if err == nil {
		n.Journal, err = check.ReadJournal(w.journal)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	for path, text := range w.puts {
		n.Outputs["server"+path] = text
	}
	w.mu.Unlock()
	if said, err := crash.Summary(filepath.Join(w.dir, "out", "result.json")); err == nil {
		n.Outputs["result.json"] = said
	}
	n.Replace(w.dir, "DIR", w.server.URL, "SERVER")
	return n
}

func (w *world) problems(s shape.Shape, after check.Node, twin *check.Node) []string {
	c := check.Case{Before: w.before, After: after, Twin: twin, Events: w.engine.Events()}
	if s.Run.Task != nil {
		c.Task = s.Run.Task(w.place()).ID
	}
	return slices.Concat(c.Problems(), w.bucket.Problems(), w.toldProblems(), w.countProblems(), w.frontProblems(s))
}

// toldProblems are those with what others were told.
func (w *world) toldProblems() []string {
	if !w.told {
		return nil
	}
	file, err := os.ReadFile(filepath.Join(w.dir, shape.EventsFile))
	if err != nil {
		return []string{err.Error()}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return check.Told(w.journal, string(file), w.sent)
}

// frontProblems are those with what the server of Funnel has of its task.
func (w *world) frontProblems(s shape.Shape) []string {
	if !s.Run.Front {
		return nil
	}
	task := s.Run.Task(w.place())
	head, known, err := w.journal.Head(task.ID)
	var result tes.Task
	if err == nil && known {
		var text bytes.Buffer
		if err = writeFinal(&text, &task, head, w.journal.Records(task.ID)); err == nil {
			err = json.Unmarshal(text.Bytes(), &result)
		}
	}
	if err != nil {
		return []string{err.Error()}
	}
	return check.Front(w.journal, w.funnel, task.ID, result)
}

// countProblems are those with what metrics have counted: each attempt once.
func (w *world) countProblems() []string {
	counted, last, err := count(w.journal, math.MaxInt)
	ended, err2 := check.Ended(w.journal)
	if err := errors.Join(err, err2); err != nil {
		return []string{err.Error()}
	}
	var sum int64
	for _, n := range counted.Attempts {
		sum += n
	}
	if last != 0 || sum != int64(ended) {
		return []string{fmt.Sprintf("%d attempts have ended, and metrics have counted %v; not counted are the notices up to %d", ended, counted.Attempts, last)}
	}
	return nil
}
