package upload

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
)

// slow is a storage that takes its time and notes what is put.
type slow struct {
	Storage
	mu      sync.Mutex
	under   map[string]bool
	puts    []string
	overlap bool
}

func (s *slow) Put(_ context.Context, r storage.PutRequest) error {
	url := "/" + strings.TrimLeft(strings.TrimPrefix(r.URL, "file:"), "/")
	s.mu.Lock()
	s.overlap = s.overlap || s.under[url]
	s.under[url] = true
	s.puts = append(s.puts, r.URL)
	s.mu.Unlock()
	time.Sleep(20 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under[url] = false
	return nil
}

// What two outputs have in common is published once, and two files that go to one
// place one after the other: their beginnings have one name there.
func TestOutputsOfOnePlace(t *testing.T) {
	dst := t.TempDir()
	f := newFixture(t, map[string]string{"/vol/a": "1", "/vol/b": "2"}, nil,
		tes.Output{Path: "/vol", URL: dst, Type: tes.Directory}, tes.Output{Path: "/vol/a", URL: dst + "/a"},
		tes.Output{Path: "/vol/*", URL: dst, PathPrefix: "/vol"}, tes.Output{Path: "/vol/b", URL: "file://" + dst + "/a"})
	s := &slow{Storage: f.step.Storage, under: map[string]bool{}}
	f.step.Storage, f.step.Parallel = s, 8
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	slices.Sort(s.puts)
	if want := []string{dst + "/a", dst + "/b", "file://" + dst + "/a"}; !slices.Equal(s.puts, want) {
		t.Errorf("published are %q, want %q", s.puts, want)
	}
	if s.overlap {
		t.Error("two files go to one place at the same time")
	}
	if done := f.step.Meter.Snapshot(); done.FilesDone != 3 || done.FilesTotal != 3 {
		t.Errorf("the meter shows %+v", done)
	}
}
