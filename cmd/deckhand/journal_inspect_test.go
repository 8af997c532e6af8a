package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// A warning is a sentence, and is not cut where other details are left out.
func TestInspectTellsWarnings(t *testing.T) {
	said := strings.Repeat("it is still there; ", 20)
	detail, err := json.Marshal(map[string]string{"step": "Scrub", "what": machine.WhatWarning, "name": "1", "message": said})
	if err != nil {
		t.Fatal(err)
	}
	if line := recordLine(machine.Record{Task: "t", Kind: machine.KindDone, Detail: detail}); !strings.HasSuffix(line, "warning: "+said) {
		t.Errorf("the line is %q", line)
	}
}

// Times are read as people write them, without a zone as local ones.
func TestTimesAsPeopleWriteThem(t *testing.T) {
	zone := time.FixedZone("there", 2*3600)
	now := time.Date(2026, 3, 1, 9, 30, 0, 0, zone)
	for text, want := range map[string]time.Time{
		"":                     {},
		"now":                  now,
		"today":                time.Date(2026, 3, 1, 0, 0, 0, 0, zone),
		"yesterday":            time.Date(2026, 2, 28, 0, 0, 0, 0, zone),
		"90m":                  time.Date(2026, 3, 1, 8, 0, 0, 0, zone),
		"7d":                   time.Date(2026, 2, 22, 9, 30, 0, 0, zone),
		"2026-02-03":           time.Date(2026, 2, 3, 0, 0, 0, 0, zone),
		"2026-02-03 04:05":     time.Date(2026, 2, 3, 4, 5, 0, 0, zone),
		"2026-02-03 04:05:06":  time.Date(2026, 2, 3, 4, 5, 6, 0, zone),
		"2026-02-03T04:05:06Z": time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
	} {
		if got, err := parseTime("--since", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %s, want %s: %v", text, got, want, err)
		}
	}
	for _, text := range []string{"noon", "-1h", "2026-13-01", "04:05"} {
		if got, err := parseTime("--until", text, now); err == nil || !strings.HasPrefix(err.Error(), "--until is ") {
			t.Errorf("%q is %s, %v", text, got, err)
		}
	}
}

// The records of a task are printed as they are read: one of many files takes no more
// memory.
func TestMemoryOfInspect(t *testing.T) {
	a := &app{stderr: io.Discard, conf: &config.Loaded{Config: config.Config{Root: t.TempDir()}}}
	written := 0
	heap := func(records int) uint64 {
		j, err := journal.Open(a.journalDir(), journal.Options{AnyFilesystem: true})
		if err != nil {
			t.Fatal(err)
		}
		for ; written < records; written++ {
			detail := fmt.Appendf(nil, `{"what":"inputs","files":[{"path":"%s"}]}`, strings.Repeat(fmt.Sprintf("/directory-%06d", written), 8000))
			_, err := j.Append(t.Context(), machine.Entry{
				Record: machine.Record{Task: "t", Attempt: 1, Kind: machine.KindDone, Detail: detail},
				Head:   machine.Head{Task: "t", Attempt: 1},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil { // what it writes in the background is not looked at
			t.Fatal(err)
		}
		var g gauge
		a.stdout = &g
		if err := a.inspect(t.Context(), []string{"t"}, inspectOptions{output: "json"}); err != nil {
			t.Fatal(err)
		}
		if g.heap == 0 || g.written < int64(100_000*records) {
			t.Fatalf("%d bytes were printed of %d records", g.written, records)
		}
		return g.heap
	}
	few, many := heap(40), heap(90)
	t.Logf("%d bytes for 40 records, %d for 90", few, many)
	if many > few+4<<20 {
		t.Errorf("40 records take %d bytes of memory, 90 take %d", few, many)
	}
}
