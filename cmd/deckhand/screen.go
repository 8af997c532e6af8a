package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/machine"
)

const (
	// plainEvery is how often progress is logged where there is no terminal to draw on.
	plainEvery = 15 * time.Second
	// drawEvery is how often the status line of a terminal is drawn.
	drawEvery = 200 * time.Millisecond
	// rateOver is the time over which a rate is the average.
	rateOver = 3 * time.Second
)

// screen is standard error: log lines, and below them on a terminal one status
// line that is drawn again and again. A terminal that does not answer is no
// reason to end a task: errors of the status line are ignored.
type screen struct {
	mu     sync.Mutex
	w      io.Writer
	width  func() int // of the terminal; nil when w is none, or must not be drawn on
	status string     // the line that stands on the terminal
}

// newScreen draws where a person looks on and nobody has asked for plain text.
func newScreen(w io.Writer, conf *config.Loaded) *screen {
	s := &screen{w: w}
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || conf.Progress != "auto" || conf.Log.Format != "text" ||
		os.Getenv("TERM") == "dumb" || os.Getenv("NO_COLOR") != "" {
		return s
	}
	s.width = func() int {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			return width
		}
		return 80
	}
	return s
}

// draws says whether there is a terminal to draw on.
func (s *screen) draws() bool { return s.width != nil }

// Write writes a log line above the status line.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status == "" {
		return s.w.Write(p)
	}
	_, _ = io.WriteString(s.w, "\r\x1b[K")
	n, err := s.w.Write(p)
	_, _ = io.WriteString(s.w, s.status)
	return n, err
}

// show replaces the status line; with an empty text it goes.
func (s *screen) show(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text == "" && s.status == "" {
		return
	}
	// A line that wraps could not be taken away again.
	if line := []rune(text); s.draws() && len(line) >= s.width() {
		text = string(line[:s.width()-1])
	}
	s.status = text
	_, _ = io.WriteString(s.w, "\r\x1b[K"+text)
}

// standing is where a task stands.
type standing struct {
	task  string
	state machine.State
	since time.Time // in that state
}

// follow shows the progress of a task until the returned function is called:
// on the status line of a terminal, else now and then in the log.
func (a *app) follow(meter *progress.Meter, where func() standing) (stop func()) {
	if a.conf.Progress == "none" {
		return func() {}
	}
	every := plainEvery
	if a.screen.draws() {
		every = drawEvery
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		var rate rate
		for {
			select {
			case <-done:
				a.screen.show("")
				return
			case now := <-tick.C:
				p := meter.Snapshot()
				w := where()
				speed := rate.add(now, p)
				if words := statusLine(w, p, speed, now); a.screen.draws() {
					a.screen.show(words)
				} else {
					a.tell(words, "progress", "task", w.task, "state", w.state, slog.Group("transfer",
						"phase", p.Phase, "files_done", p.FilesDone, "files_total", p.FilesTotal,
						"bytes_done", p.BytesDone, "bytes_total", p.BytesTotal, "bytes_per_second", speed))
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}

// rate is the speed of a phase over its last seconds.
type rate struct {
	phase   time.Time
	samples []sample
}

type sample struct {
	at    time.Time
	bytes int64
}

// add takes a reading and returns bytes a second, 0 as long as that cannot be told.
func (r *rate) add(now time.Time, p progress.Snapshot) int64 {
	if !p.Since.Equal(r.phase) {
		r.phase, r.samples = p.Since, nil
	}
	r.samples = append(r.samples, sample{now, p.BytesDone})
	for len(r.samples) > 2 && now.Sub(r.samples[1].at) >= rateOver {
		r.samples = r.samples[1:]
	}
	first := r.samples[0]
	seconds := now.Sub(first.at).Seconds()
	if seconds <= 0 || p.BytesDone < first.bytes { // a transfer that started over
		return 0
	}
	return int64(float64(p.BytesDone-first.bytes) / seconds)
}

// statusLine is one line such as
// "sort-1 Download inputs, 3 of 7 files, 1.2GiB of 4GiB, 210MiB/s, 12s".
func statusLine(w standing, p progress.Snapshot, speed int64, now time.Time) string {
	var parts []string
	// What the meter counts may still belong to the state before.
	if !p.Since.Before(w.since) {
		parts = append(parts, p.Phase)
		if p.FilesTotal > 0 {
			parts = append(parts, fmt.Sprintf("%d of %d files", p.FilesDone, p.FilesTotal))
		} else if p.FilesDone > 0 {
			parts = append(parts, counted(int(p.FilesDone), "file"))
		}
		if p.BytesTotal > 0 {
			parts = append(parts, units.BytesSize(float64(p.BytesDone))+" of "+units.BytesSize(float64(p.BytesTotal)))
		} else if p.BytesDone > 0 {
			parts = append(parts, units.BytesSize(float64(p.BytesDone)))
		}
		if speed > 0 && (p.BytesTotal == 0 || p.BytesDone < p.BytesTotal) {
			parts = append(parts, units.BytesSize(float64(speed))+"/s")
		}
	}
	parts = append(parts, now.Sub(w.since).Truncate(time.Second).String())
	return fmt.Sprintf("%s %s %s", w.task, w.state, strings.Join(parts, ", "))
}

// stateWords tells of a transition, such as "sort-1 Download (ImageCheck took 2.1s)".
func stateWords(was, is machine.Head) string {
	words := fmt.Sprintf("%s %s", is.Task, is.State)
	var notes []string
	if is.Attempt > 1 && is.State == machine.Accepted {
		notes = append(notes, fmt.Sprintf("attempt %d", is.Attempt))
	}
	if was.State != "" && was.State != machine.Accepted && is.State != machine.Accepted {
		notes = append(notes, fmt.Sprintf("%s took %s", was.State, took(is.Since.Sub(was.Since))))
	}
	if is.State.Final() {
		notes = append(notes, took(is.Since.Sub(is.Accepted))+" in all")
	}
	if len(notes) > 0 {
		words += " (" + strings.Join(notes, ", ") + ")"
	}
	if is.Reason != "" && is.Reason != was.Reason { // else it was told already
		words += ": " + is.Reason
	}
	return words
}
