package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/machine"
)

func TestStatusLine(t *testing.T) {
	start := time.Now()
	for _, test := range []struct {
		name  string
		state machine.State
		p     progress.Snapshot
		speed int64
		after time.Duration
		want  string
	}{
		{"pull", machine.ImageCheck, progress.Snapshot{Phase: "pull alpine", BytesDone: 1 << 20, BytesTotal: 4 << 20}, 2 << 20, 1500 * time.Millisecond,
			"t ImageCheck pull alpine, 1MiB of 4MiB, 2MiB/s, 1s"},
		{"download", machine.Download, progress.Snapshot{Phase: "inputs", FilesDone: 3, FilesTotal: 7, BytesDone: 1 << 30, BytesTotal: 4 << 30}, 0, 75 * time.Second,
			"t Download inputs, 3 of 7 files, 1GiB of 4GiB, 1m15s"},
		{"done", machine.Upload, progress.Snapshot{Phase: "outputs", FilesDone: 1, FilesTotal: 1, BytesDone: 1024, BytesTotal: 1024}, 512, 0,
			"t Upload outputs, 1 of 1 files, 1KiB of 1KiB, 0s"},
		{"unknown size", machine.Download, progress.Snapshot{Phase: "inputs", FilesTotal: 1, BytesDone: 512}, 0, 12 * time.Second,
			"t Download inputs, 0 of 1 files, 512B, 12s"},
		{"run", machine.Run, progress.Snapshot{Phase: "executor 1 of 2"}, 0, 3 * time.Second, "t Run executor 1 of 2, 3s"},
		{"leftovers", machine.Scrub, progress.Snapshot{Phase: "leftovers", FilesDone: 12345, BytesDone: 3 << 20}, 0, time.Minute,
			"t Scrub leftovers, 12345 files, 3MiB, 1m0s"},
		// The meter is still that of the download before.
		{"stale", machine.Run, progress.Snapshot{Phase: "inputs", FilesTotal: 1, Since: start.Add(-time.Second)}, 5, 2 * time.Second, "t Run 2s"},
	} {
		if test.p.Since.IsZero() {
			test.p.Since = start
		}
		if got := statusLine(standing{"t", test.state, start}, test.p, test.speed, start.Add(test.after)); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestRate(t *testing.T) {
	var r rate
	start := time.Now()
	for i, step := range []struct {
		at    time.Duration
		phase int
		bytes int64
		want  int64
	}{
		{0, 0, 100, 0}, // one reading says nothing
		{time.Second, 0, 300, 200},
		{2 * time.Second, 0, 300, 100},
		{4 * time.Second, 0, 900, 200}, // over the last three seconds
		{5 * time.Second, 0, 500, 66},  // part of a transfer started over
		{6 * time.Second, 0, 100, 0},
		{7 * time.Second, 1, 900, 0}, // another phase
		{67 * time.Second, 1, 1500, 10},
	} {
		p := progress.Snapshot{BytesDone: step.bytes, Since: start.Add(time.Duration(step.phase) * time.Hour)}
		if got := r.add(start.Add(step.at), p); got != step.want {
			t.Errorf("reading %d: %d, want %d", i, got, step.want)
		}
	}
}

func TestStateWords(t *testing.T) {
	start := time.Now()
	head := func(state machine.State, attempt int, after time.Duration, reason string) machine.Head {
		return machine.Head{Task: "t", State: state, Attempt: attempt, Accepted: start, Since: start.Add(after), Reason: reason}
	}
	for _, test := range []struct {
		was, is machine.Head
		want    string
	}{
		{machine.Head{}, head(machine.Accepted, 1, 0, ""), "t Accepted"},
		{head(machine.Interrupted, 1, 0, "lost"), head(machine.Accepted, 2, 0, ""), "t Accepted (attempt 2)"},
		{head(machine.Accepted, 1, 0, ""), head(machine.Scrub, 1, 0, ""), "t Scrub"},
		{head(machine.Download, 1, time.Second, ""), head(machine.Run, 1, 3500*time.Millisecond, ""), "t Run (Download took 2.5s)"},
		{head(machine.Run, 1, 0, ""), head(machine.RollingBack, 1, time.Second, "canceled"), "t RollingBack (Run took 1.0s): canceled"},
		// A reason is told once.
		{head(machine.RollingBack, 1, time.Second, "canceled"), head(machine.Canceled, 1, 90*time.Second, "canceled"), "t Canceled (RollingBack took 1m29s, 1m30s in all)"},
	} {
		if got := stateWords(test.was, test.is); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// A log line stands above the status line, which stays the last one and never wraps.
func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, width: func() int { return 10 }}
	step := func(do func(), want string) {
		t.Helper()
		out.Reset()
		do()
		if out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
	}
	log := func(line string) func() {
		return func() {
			if _, err := s.Write([]byte(line)); err != nil {
				t.Error(err)
			}
		}
	}
	step(log("one\n"), "one\n")
	step(func() { s.show("") }, "")
	step(func() { s.show("half") }, "\r\x1b[Khalf")
	step(log("two\n"), "\r\x1b[Ktwo\nhalf")
	step(func() { s.show("längere Zeile") }, "\r\x1b[Klängere Z")
	step(func() { s.show("") }, "\r\x1b[K")
	step(log("three\n"), "three\n")
}
