package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/machine"
)

// plainEvery is how often progress is written where there is no terminal to draw on.
const plainEvery = 15 * time.Second

// drawEvery is how often the status line of a terminal is drawn.
const drawEvery = 200 * time.Millisecond

func isTerminal(fd int) bool { return term.IsTerminal(fd) }

// screen is standard error: log lines, and below them on a terminal one status
// line that is drawn again and again.
type screen struct {
	mu    sync.Mutex
	w     io.Writer
	mode  string // auto, plain, none
	draws bool
	line  bool // a status line stands on the terminal
}

func newScreen(w io.Writer, mode string) *screen {
	draws := mode == "auto" && terminal(w) && os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == ""
	return &screen{w: w, mode: mode, draws: draws}
}

// Write writes a log line above the status line.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	return s.w.Write(p)
}

// clear takes the status line away. A terminal that does not answer is no
// reason to end a task, so its errors are ignored, here and below.
func (s *screen) clear() {
	if s.line {
		_, _ = io.WriteString(s.w, "\r\x1b[K")
		s.line = false
	}
}

func (s *screen) show(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draws {
		_, _ = fmt.Fprintf(s.w, "\r\x1b[K%s", text)
		s.line = true
		return
	}
	_, _ = fmt.Fprintln(s.w, text)
}

// follow shows the progress of a run until the returned function is called.
func (s *screen) follow(meter *progress.Meter, state func() machine.State) (stop func()) {
	if s.mode == "none" {
		return func() {}
	}
	every := plainEvery
	if s.draws {
		every = drawEvery
	}
	start := time.Now()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		var last progress.Snapshot
		for {
			select {
			case <-done:
				s.mu.Lock()
				s.clear()
				s.mu.Unlock()
				return
			case <-tick.C:
				now := meter.Snapshot()
				s.show(statusLine(state(), last, now, every, time.Since(start)))
				last = now
			}
		}
	}()
	return func() { close(done); <-ended }
}

// statusLine is one line such as
// "Download 3/7 files 1.2GB/4GB 210MB/s 12s".
func statusLine(state machine.State, last, now progress.Snapshot, every, elapsed time.Duration) string {
	text := string(state)
	if now.Phase != "" {
		text += ": " + now.Phase
	}
	if now.FilesTotal > 0 {
		text += fmt.Sprintf(" %d/%d files", now.FilesDone, now.FilesTotal)
	}
	if now.BytesTotal > 0 || now.BytesDone > 0 {
		text += " " + units.BytesSize(float64(now.BytesDone))
		if now.BytesTotal > 0 {
			text += " of " + units.BytesSize(float64(now.BytesTotal))
		}
		if moved := now.BytesDone - last.BytesDone; now.Phase == last.Phase && moved > 0 {
			text += fmt.Sprintf(" %s/s", units.BytesSize(float64(moved)/every.Seconds()))
		}
	}
	return text + " " + elapsed.Round(time.Second).String()
}
