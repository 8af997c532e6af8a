package upload

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
)

// sink is a storage that takes so many files and then fails for good.
type sink struct {
	Storage
	after int64
	puts  atomic.Int64
}

var errSink = errors.New("the end")

func (s *sink) Put(context.Context, storage.PutRequest) error {
	if s.puts.Add(1) > s.after {
		return errSink
	}
	return nil
}

// Many outputs take few records in the journal, and what was published is not
// sent again.
func TestUploadManyFiles(t *testing.T) {
	const files = 10_000
	names := map[string]string{}
	for i := range files {
		names[fmt.Sprintf("/vol/dir-%02d/file-%04d", i%100, i)] = "x"
	}
	f := newFixture(t, names, nil, tes.Output{Path: "/vol", URL: "s3://bucket/out", Type: tes.Directory})
	f.step.MaxFiles = 2 * files
	first := &sink{Storage: f.step.Storage, after: files / 2}
	f.step.Storage = first
	if err := f.step.Do(t.Context(), f.task, f.notes); !errors.Is(err, errSink) {
		t.Fatal(err)
	}
	second := &sink{Storage: first.Storage, after: files}
	f.step.Storage = second
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if n := second.puts.Load(); n != files/2 {
		t.Errorf("%d files were sent by the second process, want %d", n, files/2)
	}
	records, bytes := 0, 0
	for note, err := range f.notes.Each(WhatOutputs) {
		if err != nil {
			t.Fatal(err)
		}
		records, bytes = records+1, bytes+len(note.Detail)
	}
	t.Logf("%d records with %d bytes", records, bytes)
	// The URL twice and the path, and what is about them.
	if records > files/100 || bytes > 256*files {
		t.Errorf("%d files took %d records with %d bytes", files, records, bytes)
	}
}
