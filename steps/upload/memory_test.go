package upload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/heap"
)

// gauge is a storage that takes everything. It looks at the heap while outputs are looked for,
// which is when their URLs are asked for first, and while they are published.
type gauge struct {
	Storage
	files       int64
	joins, puts atomic.Int64
	heap        heap.Gauge
}

func (g *gauge) Join(url, name string) string {
	g.pass(&g.joins)
	return g.Storage.Join(url, name)
}

func (g *gauge) Put(context.Context, storage.PutRequest) error {
	g.pass(&g.puts)
	return nil
}

// pass looks at the heap now and then.
func (g *gauge) pass(count *atomic.Int64) {
	if g.heap.Pass(count)%(g.files/3) == 0 {
		g.heap.Look()
	}
}

// heapOf publishes so many files of one directory and returns the most that was reachable
// meanwhile, in bytes.
func heapOf(t *testing.T, out tes.Output, files int) uint64 {
	t.Helper()
	f := newFixture(t, nil, nil, out)
	place := f.tree.Where("/vol")
	one := filepath.Join(place.Base, place.Name, "one")
	dir := filepath.Join(place.Base, place.Name, "directory")
	err := errors.Join(os.WriteFile(one, []byte("x"), 0o644), os.Mkdir(dir, 0o755))
	for i := range files {
		err = errors.Join(err, os.Link(one, filepath.Join(dir, fmt.Sprintf("a-file-with-a-name-of-usual-length-%04d.vcf.gz", i))))
	}
	if err != nil {
		t.Fatal(err)
	}
	sink := &gauge{Storage: f.step.Storage, files: int64(files)}
	f.step.Storage, f.step.MaxFiles = sink, 2*files+10
	if f.notes, err = machine.NodeNotes(new(journaltest.Sieve)); err != nil {
		t.Fatal(err)
	}
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if n := sink.puts.Load(); n != sink.files {
		t.Fatalf("%d files were published, want %d", n, sink.files)
	}
	return sink.heap.Most()
}

// Neither the list of outputs nor the names in one directory take more memory when
// there are more of them.
func TestMemoryIsBounded(t *testing.T) {
	for name, out := range map[string]tes.Output{
		"directory": {Path: "/vol/directory", URL: "s3://bucket/out", Type: tes.Directory},
		"pattern":   {Path: "/vol/directory/a*.gz", PathPrefix: "/vol", URL: "s3://bucket/out", Type: tes.File},
	} {
		t.Run(name, func(t *testing.T) {
			few, many := heapOf(t, out, 20_000), heapOf(t, out, 60_000)
			t.Logf("%d bytes for 20,000 files, %d for 60,000", few, many)
			if many > few+2<<20 {
				t.Errorf("20,000 files take %d bytes of memory, 60,000 take %d", few, many)
			}
		})
	}
}

// full has containers that have made as many files as a gauge takes, each the same ones,
// and has it look at the heap while they are fetched.
type full struct {
	*gauge
	copies int64
}

func (*full) Container(_ context.Context, id string) (engine.Container, error) {
	return engine.Container{Name: id}, nil
}

func (f *full) Changes(_ context.Context, _ string, read func(iter.Seq[string]) error) error {
	return read(func(yield func(string) bool) {
		for i := range f.files {
			if !yield(fmt.Sprintf("/usr/directory/a-file-with-a-name-of-usual-length-%04d.vcf.gz", i)) {
				return
			}
		}
	})
}

// CopyFrom has nothing in its archives: what is written takes time and no memory.
func (f *full) CopyFrom(_ context.Context, _, _ string, read func(io.Reader) error) error {
	if f.copies++; f.copies%(f.files/3) == 0 {
		f.heap.Look()
	}
	return read(strings.NewReader(""))
}

// Nor does what a pattern matches in containers that have ended.
func TestMemoryOfCaptureIsBounded(t *testing.T) {
	heap := func(files int) uint64 {
		f := newFixture(t, nil, containers{}, tes.Output{Path: "/usr/directory/a*.gz", PathPrefix: "/usr", URL: "s3://bucket/out"})
		made := &full{gauge: &gauge{files: int64(files)}}
		f.step.Engine, f.step.MaxFiles = made, files
		if err := f.step.capture(t.Context(), f.task, f.tree); err != nil {
			t.Fatal(err)
		}
		if made.copies != made.files {
			t.Fatalf("%d files were fetched, want %d", made.copies, made.files)
		}
		return made.heap.Most()
	}
	few, many := heap(30_000), heap(90_000)
	t.Logf("%d bytes for 30,000 files, %d for 90,000", few, many)
	if many > few+2<<20 {
		t.Errorf("30,000 files take %d bytes of memory, 90,000 take %d", few, many)
	}
}
