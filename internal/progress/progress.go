// Package progress counts what a phase of a task has done, so that a terminal,
// a log line and the status command show the same figures.
package progress

import (
	"sync"
	"sync/atomic"
	"time"
)

// Meter counts files and bytes of one phase at a time: those that are moved, or,
// where what earlier tasks left is removed, those that go, directories included. It is safe for
// concurrent use, its zero value is ready, and a nil Meter counts nothing.
type Meter struct {
	mu    sync.Mutex // phase and since change together
	phase string
	since time.Time

	filesDone, filesTotal atomic.Int64
	bytesDone, bytesTotal atomic.Int64
}

// Snapshot is what a Meter showed at one moment. Bytes are those that were
// moved by then; BytesTotal grows as sizes become known.
type Snapshot struct {
	Phase      string    `json:"phase"`
	FilesDone  int64     `json:"files_done"`
	FilesTotal int64     `json:"files_total"`
	BytesDone  int64     `json:"bytes_done"`
	BytesTotal int64     `json:"bytes_total"`
	Since      time.Time `json:"since"`
}

// Reset begins a phase: every count is zero again.
func (m *Meter) Reset(phase string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.phase, m.since = phase, time.Now()
	for _, n := range []*atomic.Int64{&m.filesDone, &m.filesTotal, &m.bytesDone, &m.bytesTotal} {
		n.Store(0)
	}
}

// AddTotal adds to what the phase has to do.
func (m *Meter) AddTotal(files, bytes int64) {
	if m == nil {
		return
	}
	m.filesTotal.Add(files)
	m.bytesTotal.Add(bytes)
}

// AddBytes adds to what is done. A transfer that starts over takes its bytes
// back with a negative number.
func (m *Meter) AddBytes(n int64) {
	if m != nil {
		m.bytesDone.Add(n)
	}
}

// FileDone counts one whole file.
func (m *Meter) FileDone() {
	if m != nil {
		m.filesDone.Add(1)
	}
}

// Snapshot reads the counts.
func (m *Meter) Snapshot() Snapshot {
	if m == nil {
		return Snapshot{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return Snapshot{
		Phase: m.phase, Since: m.since,
		FilesDone: m.filesDone.Load(), FilesTotal: m.filesTotal.Load(),
		BytesDone: m.bytesDone.Load(), BytesTotal: m.bytesTotal.Load(),
	}
}
