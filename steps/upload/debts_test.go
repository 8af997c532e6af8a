package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// away is a storage that removes nothing of some uploads.
type away struct {
	partial
	mu      sync.Mutex
	keeps   func(storage.Unfinished) error
	removed []storage.Unfinished
}

func (a *away) Abort(ctx context.Context, url string, left storage.Unfinished) error {
	if left.Upload == nil {
		return nil
	}
	if err := a.keeps(left); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removed = append(a.removed, left)
	return ctx.Err()
}

// rolledBack is a task whose upload began, and whose storage was away at the roll-back.
func rolledBack(t *testing.T, began storage.Upload) (*fixture, *away) {
	t.Helper()
	down := machine.Faultf(machine.RetryLater, "the storage is away")
	a := &away{keeps: func(storage.Unfinished) error { return down }}
	a.began, a.err = []storage.Upload{began}, down
	f := newFixture(t, map[string]string{"/o/x": "12"}, nil, tes.Output{Path: "/o/x", URL: "https://h/x?sig=secret"})
	f.step.Storage = a
	if err := f.step.Do(t.Context(), f.task, f.notes); !errors.Is(err, down) {
		t.Fatal(err)
	}
	f.task.Outcome = machine.Interrupted
	if err := f.step.Undo(t.Context(), f.task, f.notes); !errors.Is(err, down) {
		t.Errorf("the roll-back tells of %v", err)
	}
	return f, a
}

// What a roll-back cannot abort is owed, and aborted as soon as the storage lets it.
func TestDebts(t *testing.T) {
	f, a := rolledBack(t, storage.Upload{ID: "id"})
	debts := f.notes.Debts()
	if len(debts) != 1 || debts[0].Task != f.task.ID || debts[0].Attempt != 1 || strings.Contains(string(debts[0].Detail), "secret") {
		t.Fatalf("owed is %+v", debts)
	}
	since := debts[0].Since
	var log bytes.Buffer
	settle := func(want int, settled ...Settled) {
		t.Helper()
		log.Reset()
		if got, err := Settle(t.Context(), f.notes, a, slog.New(slog.NewTextHandler(&log, nil))); err != nil || !slices.Equal(got, settled) {
			t.Fatalf("settled are %+v, and the error is %v", got, err)
		}
		if debts := f.notes.Debts(); len(debts) != want {
			t.Errorf("owed is %+v", debts)
		}
	}
	settle(1)
	if said := log.String(); !strings.Contains(said, "the next scrub tries again") || !strings.Contains(said, "the storage is away") {
		t.Errorf("it says %q", said)
	}
	a.keeps = func(storage.Unfinished) error { return nil }
	settle(0, Settled{Task: f.task.ID, URL: "https://h/x"})
	if want := []storage.Unfinished{{Tag: f.step.tag(f.task), Upload: &storage.Upload{ID: "id"}, Before: since}}; !reflect.DeepEqual(a.removed, want) {
		t.Errorf("removed is %+v", a.removed)
	}
	settle(0)
	if len(a.removed) != 1 || log.Len() > 0 {
		t.Errorf("without debts it removes %+v and says %s", a.removed, &log)
	}
}

// Of an upload that has no name it is owed which it may be: one that was begun before the roll-back
// had tried to abort it.
func TestUnnamedUploadIsOwed(t *testing.T) {
	upload := storage.Upload{Listed: true, Others: []string{"another's"}}
	f, a := rolledBack(t, upload)
	debts := f.notes.Debts()
	if len(debts) != 1 || debts[0].Since.IsZero() {
		t.Fatalf("owed is %+v", debts)
	}
	a.keeps = func(storage.Unfinished) error { return nil }
	if _, err := Settle(t.Context(), f.notes, a, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if want := []storage.Unfinished{{Tag: f.step.tag(f.task), Upload: &upload, Before: debts[0].Since}}; !reflect.DeepEqual(a.removed, want) {
		t.Errorf("removed is %+v, want %+v", a.removed, want)
	}
}

// A roll-back that is gone on with owes nothing twice.
func TestDebtIsNotedOnce(t *testing.T) {
	f, _ := rolledBack(t, storage.Upload{ID: "id"})
	before := f.notes.Debts()
	if err := f.step.Undo(t.Context(), f.task, f.notes); err == nil {
		t.Error("the storage is there")
	}
	if after := f.notes.Debts(); len(after) != 1 || !after[0].Since.After(before[0].Since) {
		t.Errorf("owed was %+v, and is %+v", before, after)
	}
}

// Debts are settled by themselves, and are neither kept for ever nor without bound.
func TestDebtsEnd(t *testing.T) {
	n, err := machine.NodeNotes(journaltest.NewMemory())
	if err != nil {
		t.Fatal(err)
	}
	task := &machine.Task{ID: "t", Attempt: 1}
	var left []owed
	for i := range maxDebts {
		left = append(left, owed{"s3://b/x", storage.Unfinished{Upload: &storage.Upload{ID: fmt.Sprint(i)}}})
	}
	for _, some := range [][]owed{left[:2], left[2:], {{"s3://b/y", storage.Unfinished{Upload: &storage.Upload{ID: "newest"}}}}} {
		if err := owe(t.Context(), n, task, some); err != nil {
			t.Fatal(err)
		}
	}
	debts := n.Debts()
	if len(debts) != maxDebts || !strings.Contains(string(debts[0].Detail), `"upload":"1"`) || !strings.Contains(string(debts[maxDebts-1].Detail), "newest") {
		t.Fatalf("%d are owed, from %s to %s", len(debts), debts[0].Detail, debts[len(debts)-1].Detail)
	}
	debts = debts[maxDebts-3:]
	debts[0].Since = debts[0].Since.Add(-owedFor - time.Hour)
	if err := n.Done(t.Context(), machine.Fact{What: whatOwed, Debts: debts}); err != nil {
		t.Fatal(err)
	}
	// The one before the newest goes, the newest stays, and the oldest is given up.
	a := &away{keeps: func(left storage.Unfinished) error {
		if left.Upload.ID == fmt.Sprint(maxDebts-1) {
			return nil
		}
		return errors.New("no")
	}}
	if _, err := Settle(t.Context(), n, a, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if debts := n.Debts(); len(debts) != 1 || !strings.Contains(string(debts[0].Detail), "newest") {
		t.Errorf("owed is %+v", debts)
	}
}
