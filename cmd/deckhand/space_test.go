package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// A transition says what is free, beside what it says itself; nothing else does.
func TestSpaceJournal(t *testing.T) {
	dir := t.TempDir()
	j := spaceJournal{journaltest.NewMemory(), func() []string { return []string{dir, filepath.Join(dir, "not", "yet"), "/proc"} }}
	head := machine.Head{Task: "t", Attempt: 1, State: machine.Accepted}
	for _, test := range []struct {
		kind   machine.Kind
		detail string
		disks  int
	}{
		{machine.KindTransition, `{"warnings":["w"]}`, 1}, // one filesystem, and one without blocks
		{machine.KindIntent, `{"what":"x","name":"y"}`, 0},
	} {
		r := machine.Record{Task: "t", Attempt: 1, Kind: test.kind, Event: machine.AcceptedTask, To: machine.Accepted, Detail: json.RawMessage(test.detail)}
		if _, err := j.Append(t.Context(), machine.Entry{Record: r, Head: head}); err != nil {
			t.Fatal(err)
		}
	}
	for r, err := range j.Records("t") {
		if err != nil {
			t.Fatal(err)
		}
		found, err := disk(r)
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind == machine.KindIntent {
			if len(found) != 0 || string(r.Detail) != `{"what":"x","name":"y"}` {
				t.Errorf("an intent says %s", r.Detail)
			}
			continue
		}
		if len(found) != 1 || found[0].Path != dir || found[0].Free == 0 || found[0].Free > found[0].Total {
			t.Errorf("the filesystems are %+v", found)
		}
		var said struct{ Warnings []string }
		if err := json.Unmarshal(r.Detail, &said); err != nil || len(said.Warnings) != 1 {
			t.Errorf("the detail is %s: %v", r.Detail, err)
		}
	}
}

func TestDisksOf(t *testing.T) {
	at := func(second int, path string, free, total uint64, state machine.State) reading {
		return reading{time.Unix(int64(second), 0), state, fmt.Sprint("t", second), filesystem{path, free, total}}
	}
	early, full, late := at(10, "/b", 90, 100, machine.Accepted), at(15, "/b", 10, 100, machine.Run), at(20, "/b", 60, 100, machine.Complete)
	alone := at(12, "/a", 5, 0, machine.Scrub)
	got := disksOf([]reading{late, alone, early, full}) // the newest task comes first
	want := []reportDisk{
		{"/a", alone, alone, alone, "0.0,100.0 1000,100.0"},
		{"/b", early, full, late, "0.0,90.0 500.0,10.0 1000.0,60.0 1000,60.0"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if used := (filesystem{Free: 25, Total: 100}).Used(); used != 0.75 {
		t.Errorf("used: %v", used)
	}
}
