package batch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

func notes(t *testing.T, j machine.Journal) machine.Notes {
	t.Helper()
	n, err := machine.NodeNotes(j)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func records(n machine.Notes) (count int) {
	for range n.Each("files") {
		count++
	}
	return count
}

func read(n machine.Notes) (items []string, err error) {
	for item, err := range Read[string](n, "files") {
		if err != nil {
			return items, err
		}
		items = append(items, item)
	}
	return items, nil
}

// What is timed runs in bubbles, whose clocks stand still while anybody works: nobody
// writes because an item has waited for long on a busy machine.

// What was added is read back, each item once, in records of a bounded size.
func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, items := range []int{0, 1, 100, 5000} {
			n := notes(t, journaltest.NewMemory())
			w := NewWriter(n, "files", func(s string) int { return len(s) })
			var group sync.WaitGroup
			for i := range items {
				group.Go(func() {
					if err := w.Add(t.Context(), fmt.Sprintf("%032d", i)); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			for range 2 { // the second has nothing to write
				if err := w.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			got, err := read(n)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			if len(slices.Compact(got)) != items || len(got) != items {
				t.Errorf("%d items were read, want %d", len(got), items)
			}
			if kept := n.All("files"); len(kept) != 0 {
				t.Errorf("%d notes are kept in memory", len(kept))
			}
			if want := (items*32 + limit - 1) / limit; records(n) != want {
				t.Errorf("%d items took %d records, want %d", items, records(n), want)
			}
			for note := range n.Each("files") {
				if len(note.Detail) > 2*limit {
					t.Errorf("a record has %d bytes", len(note.Detail))
				}
			}
		}
	})
}

// An item that nothing follows is journaled nevertheless.
func TestItemsDoNotWaitForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journaltest.NewMemory()
		n := notes(t, j)
		w := NewWriter(n, "files", func(string) int { return 1 })
		if err := w.Add(t.Context(), "a"); err != nil || records(n) != 0 {
			t.Fatalf("%d records at once (%v)", records(n), err)
		}
		time.Sleep(delay)
		synctest.Wait()
		if got, err := read(n); len(got) != 1 || err != nil {
			t.Fatalf("after a second: %q, %v", got, err)
		}
		if err := w.Flush(t.Context()); err != nil || records(n) != 1 {
			t.Fatalf("%d records in the end (%v)", records(n), err)
		}
		// A late error is told by whoever comes next.
		full := errors.New("full")
		j.Fail = func(machine.Entry) (bool, error) { return false, full }
		if err := w.Add(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay)
		synctest.Wait()
		if err := w.Add(t.Context(), "c"); !errors.Is(err, full) {
			t.Errorf("the next item is told %v", err)
		}
		if err := w.Flush(t.Context()); !errors.Is(err, full) {
			t.Errorf("the end is told %v", err)
		}
	})
}

// A later writer goes on after the records of an earlier one.
func TestLaterWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := notes(t, journaltest.NewMemory())
		for _, item := range []string{"a", "b"} {
			w := NewWriter(n, "files", func(string) int { return together })
			if err := w.Add(t.Context(), item); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := read(n); strings.Join(got, "") != "ab" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if err := n.Intent(t.Context(), machine.Fact{What: "files", Name: "all"}); err != nil {
			t.Fatal(err)
		}
		if got, err := read(n); len(got) != 2 || err != nil {
			t.Errorf("with an intent beside them: %q, %v", got, err)
		}
	})
}

func TestErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journaltest.NewMemory()
		n := notes(t, j)
		if err := n.Done(t.Context(), machine.Fact{What: "files", Name: "batch 1", Detail: map[string]int{"files": 1}}); err != nil {
			t.Fatal(err)
		}
		if got, err := read(n); err == nil {
			t.Errorf("read %q", got)
		}
		full := errors.New("full")
		j.Fail = func(machine.Entry) (bool, error) { return false, full }
		w := NewWriter(n, "files", func(string) int { return 1 })
		if err := w.Add(context.Background(), "x"); err != nil {
			t.Errorf("nothing was to be written yet: %v", err)
		}
		if err := w.Flush(context.Background()); !errors.Is(err, full) {
			t.Errorf("got %v, want %v", err, full)
		}
	})
}

// What a record tells of is durable before it is written; where that fails,
// nothing more is.
func TestDurableFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := notes(t, journaltest.NewMemory())
		w := NewWriter(n, "files", func(string) int { return together })
		var asked []int // how many records there were
		var fails error
		w.Durable = func() error { asked = append(asked, records(n)); return fails }
		for _, name := range []string{"first", "second"} {
			if err := w.Add(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		fails = errors.New("the disk is gone")
		for _, name := range []string{"third", "fourth"} {
			if err := w.Add(t.Context(), name); !errors.Is(err, fails) {
				t.Errorf("%s: %v, want %v", name, err, fails)
			}
		}
		if err := w.Flush(t.Context()); err == nil {
			t.Error("Flush says that everything is journaled")
		}
		if want := []int{0, 1, 2}; !slices.Equal(asked, want) || records(n) != 2 {
			t.Errorf("asked after %v records, want %v; %d were written, want 2", asked, want, records(n))
		}
	})
}

// While one makes durable what was added, others go on adding. What they have added is
// made durable together.
func TestOthersGoOnAdding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := notes(t, journaltest.NewMemory())
		w := NewWriter(n, "files", func(string) int { return together / 2 })
		syncs, begun, disk := 0, make(chan struct{}, 9), make(chan struct{})
		w.Durable = func() error {
			syncs++
			begun <- struct{}{}
			<-disk
			return nil
		}
		add := func(items ...string) {
			for _, item := range items {
				if err := w.Add(t.Context(), item); err != nil {
					t.Error(err)
				}
			}
		}
		var first sync.WaitGroup
		first.Go(func() { add("a", "b") })
		<-begun
		add("c", "d", "e")
		close(disk)
		first.Wait()
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := read(n); strings.Join(got, "") != "abcde" || err != nil || syncs != 2 {
			t.Errorf("%q is journaled after %d syncs, want 2 (%v)", got, syncs, err)
		}
	})
}
