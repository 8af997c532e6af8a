package progress

import (
	"encoding/json"
	"sync"
	"testing"
)

func TestMeterCountsFromManyGoroutines(t *testing.T) {
	var m Meter
	m.Reset("download")
	m.AddTotal(8, 8000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				m.AddBytes(1)
			}
			m.FileDone()
			_ = m.Snapshot()
		})
	}
	wg.Wait()
	s := m.Snapshot()
	if s.Phase != "download" || s.FilesDone != 8 || s.FilesTotal != 8 || s.BytesDone != 8000 || s.BytesTotal != 8000 {
		t.Fatalf("after 8 files of 1000 bytes: %+v", s)
	}
	m.AddBytes(-1000)
	if got := m.Snapshot().BytesDone; got != 7000 {
		t.Errorf("bytes taken back: %d, want 7000", got)
	}
	began := s.Since
	m.Reset("run")
	s = m.Snapshot()
	if s.FilesDone != 0 || s.FilesTotal != 0 || s.BytesDone != 0 || s.BytesTotal != 0 || s.Phase != "run" {
		t.Errorf("a new phase begins with %+v", s)
	}
	if !s.Since.After(began) {
		t.Errorf("a new phase keeps the time of the old one")
	}
}

func TestNilMeterCountsNothing(t *testing.T) {
	var m *Meter
	m.Reset("x")
	m.AddTotal(1, 1)
	m.AddBytes(1)
	m.FileDone()
	if s := m.Snapshot(); s != (Snapshot{}) {
		t.Errorf("a nil meter shows %+v", s)
	}
}

func TestSnapshotJSON(t *testing.T) {
	b, err := json.Marshal(Snapshot{})
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"files_done", "files_total", "bytes_done", "bytes_total"} {
		if _, ok := fields[name]; !ok {
			t.Errorf("the public field %s is missing in %s", name, b)
		}
	}
}
