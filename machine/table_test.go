package machine

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestEveryDestinationIsAState(t *testing.T) {
	for _, tr := range Table {
		if !slices.Contains(States, tr.From) || !slices.Contains(States, tr.To) {
			t.Errorf("%v leads from or to something that is no state", tr)
		}
	}
}

func TestNoTransitionStandsTwice(t *testing.T) {
	seen := map[Transition]bool{}
	for _, tr := range Table {
		if seen[tr] {
			t.Errorf("%v stands twice", tr)
		}
		seen[tr] = true
	}
}

func TestOnlyRolledBackIsAmbiguous(t *testing.T) {
	to := map[[2]string]State{}
	for _, tr := range Table {
		key := [2]string{string(tr.From), string(tr.Event)}
		if other, ok := to[key]; ok && tr.Event != RolledBack {
			t.Errorf("%s in %s leads to %s and to %s", tr.Event, tr.From, other, tr.To)
		}
		to[key] = tr.To
	}
}

func TestEveryStateReachesAFinalOne(t *testing.T) {
	ends := map[State]bool{}
	for _, s := range States {
		ends[s] = s.Final()
	}
	for range States {
		for _, tr := range Table {
			ends[tr.From] = ends[tr.From] || ends[tr.To]
		}
	}
	for s, ok := range ends {
		if !ok {
			t.Errorf("no way leads from %s to a final state", s)
		}
	}
}

func TestFinalStatesAreFinal(t *testing.T) {
	for _, tr := range Table {
		if tr.From.Final() {
			t.Errorf("%v leaves a final state", tr)
		}
	}
}

func TestEveryStateIsReached(t *testing.T) {
	reached := map[State]bool{Accepted: true}
	for range States {
		for _, tr := range Table {
			reached[tr.To] = reached[tr.To] || reached[tr.From]
		}
	}
	for _, s := range States {
		if !reached[s] {
			t.Errorf("nothing leads to %s", s)
		}
	}
}

// The library knows one destination for an event and a source: what it was
// given must be the whole table.
func TestLibraryHoldsTheTable(t *testing.T) {
	for _, s := range States {
		f := newFSM(s, nil)
		for _, tr := range Table {
			if can := f.Can(fsmName(tr.Event, tr.To)); can != (tr.From == s || sameName(tr, s)) {
				t.Errorf("in %s, %v: can is %v", s, tr, can)
			}
		}
	}
}

// sameName says whether another row of the table has the event and destination
// of tr and begins in s.
func sameName(tr Transition, s State) bool {
	return slices.Contains(Table, Transition{s, tr.Event, tr.To})
}

func TestLegal(t *testing.T) {
	for _, tr := range Table {
		if !Legal(tr.From, tr.Event, tr.To) {
			t.Errorf("%v is not legal", tr)
		}
	}
	for _, tr := range []Transition{
		{Scrub, ImageReady, Download}, {Complete, Started, Scrub}, {"", Started, Scrub}, {RollingBack, RolledBack, Complete},
	} {
		if Legal(tr.From, tr.Event, tr.To) {
			t.Errorf("%v is legal", tr)
		}
	}
	if !Legal("", AcceptedTask, Accepted) {
		t.Error("an attempt cannot begin")
	}
}

// The picture in the documentation is the one that the code draws.
func TestPicture(t *testing.T) {
	for _, file := range []string{"../docs/states.md", "../README.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, ok := strings.Cut(string(text), "```mermaid\n")
		picture, _, closed := strings.Cut(rest, "```")
		if !ok || !closed {
			t.Errorf("%s has no Mermaid picture", file)
			continue
		}
		if picture != Mermaid() {
			t.Errorf("the picture in %s is not what `deckhand graph` draws:\n%s", file, Mermaid())
		}
	}
}
