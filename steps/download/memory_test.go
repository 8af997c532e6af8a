package download

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/heap"
)

// numbered is a storage of one directory with so many objects, whose names are made as they
// are listed. It looks at the heap while the list is read and while files are fetched.
type numbered struct {
	Storage
	files   int64
	fetched atomic.Int64
	heap    heap.Gauge
}

// object is the i-th; the names of one directory follow each other, not in their order.
func (s *numbered) object(i int64) storage.Object {
	name := fmt.Sprintf("directory-%04d/a-file-with-a-name-of-usual-length-%08d.fastq.gz", i/1000, i^0x155)
	return storage.Object{URL: "s3://some-bucket/and/a/prefix/" + name, Name: name, Size: 1 << 10, Version: fmt.Sprintf("etag %032x", i)}
}

func (s *numbered) List(context.Context, string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		for i := range s.files {
			if !yield(s.object(i), nil) {
				return
			}
		}
		s.heap.Look()
	}
}

func (s *numbered) Fetch(_ context.Context, r storage.FetchRequest) (storage.Fetched, error) {
	if s.heap.Pass(&s.fetched)%(s.files/3) == 0 {
		s.heap.Look()
	}
	return storage.Fetched{Bytes: 1 << 10, Version: r.Version}, nil
}

// staged makes the records that say that so many files of a numbered storage are staged.
func staged(files int64) func(attempt int) iter.Seq2[machine.Record, error] {
	return func(attempt int) iter.Seq2[machine.Record, error] {
		return func(yield func(machine.Record, error) bool) {
			const together = 400
			for i := int64(0); i < files; i += together {
				var b struct {
					batch.Files[File]
					Step machine.State `json:"step"`
					What string        `json:"what"`
					Name string        `json:"name"`
				}
				b.Step, b.What = machine.Scrub, WhatInputs
				for k := i; k < min(i+together, files); k++ {
					b.Files.Files = append(b.Files.Files, File{Path: "/in/" + new(numbered).object(k).Name, Bytes: 1 << 10})
				}
				raw, err := json.Marshal(b)
				if !yield(machine.Record{Kind: machine.KindDone, Attempt: attempt, Seq: uint64(i) + 1, Detail: raw, Time: time.Now()}, err) {
					return
				}
			}
		}
	}
}

// heapOf stages so many files, as many of which are journaled as staged and yet not in place,
// and returns the most that was reachable meanwhile, in bytes.
func heapOf(t testing.TB, files, there int64) uint64 {
	t.Helper()
	f := newFixture(t, tes.Input{Path: "/in", URL: "s3://some-bucket/and/a/prefix", Type: tes.Directory})
	source := &numbered{Storage: f.step.Storage, files: files}
	f.step.Storage = source
	notes, err := machine.NodeNotes(&journaltest.Sieve{Past: staged(there)})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.step.Do(t.Context(), f.task, notes); err != nil {
		t.Fatal(err)
	}
	if n := source.fetched.Load(); n != files {
		t.Fatalf("%d files were fetched, want %d", n, files)
	}
	return source.heap.Most()
}

// The list of inputs and what the journal has of them take no more memory when there are
// more of them.
func TestMemoryIsBounded(t *testing.T) {
	few, many := heapOf(t, 20_000, 20_000), heapOf(t, 100_000, 100_000)
	t.Logf("%d bytes for 20,000 files, %d for 100,000", few, many)
	if many > few+4<<20 {
		t.Errorf("20,000 files take %d bytes of memory, 100,000 take %d", few, many)
	}
}

func BenchmarkMemory(b *testing.B) {
	for _, files := range []int64{10_000, 100_000, 500_000} {
		b.Run(fmt.Sprint(files), func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(float64(heapOf(b, files, 0))/(1<<20), "MiB")
			}
		})
	}
}
