package upload

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// gauge is a storage that takes everything and looks at the heap on the way.
type gauge struct {
	Storage
	files int64
	puts  atomic.Int64
	heap  atomic.Uint64 // the largest seen, in bytes
}

func (g *gauge) Put(context.Context, storage.PutRequest) error {
	if n := g.puts.Add(1); n%(g.files/3) == 0 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		g.heap.Store(max(g.heap.Load(), m.HeapAlloc))
	}
	return nil
}

// sieve is a journal that keeps nothing but its head.
type sieve struct{ head machine.Head }

func (j *sieve) Append(_ context.Context, e machine.Entry) (machine.Head, error) {
	seq := j.head.Seq
	j.head = e.Head
	j.head.Seq = seq + 1
	return j.head, nil
}

func (j *sieve) Head(string) (machine.Head, bool, error) { return j.head, j.head.Task != "", nil }
func (j *sieve) Node() (machine.Node, error)             { return machine.Node{}, nil }
func (j *sieve) Records(string) iter.Seq2[machine.Record, error] {
	return func(func(machine.Record, error) bool) {}
}

// heapOf publishes so many files and returns the most that was reachable meanwhile, in bytes.
func heapOf(t *testing.T, dirs, inEach int) uint64 {
	t.Helper()
	f := newFixture(t, nil, nil, tes.Output{Path: "/vol", URL: "s3://bucket/out", Type: tes.Directory})
	place := f.tree.Where("/vol")
	one := filepath.Join(place.Base, place.Name, "one")
	if err := os.WriteFile(one, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for d := range dirs {
		dir := filepath.Join(place.Base, place.Name, fmt.Sprintf("directory-%04d", d))
		err := os.Mkdir(dir, 0o755)
		for i := range inEach {
			err = errors.Join(err, os.Link(one, filepath.Join(dir, fmt.Sprintf("a-file-with-a-name-of-usual-length-%04d.vcf.gz", i))))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	sink := &gauge{Storage: f.step.Storage, files: int64(dirs * inEach)}
	f.step.Storage, f.step.MaxFiles = sink, 2*dirs*inEach+10
	var err error
	if f.notes, err = machine.NodeNotes(new(sieve)); err != nil {
		t.Fatal(err)
	}
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if n := sink.puts.Load(); n != sink.files+1 {
		t.Fatalf("%d files were published, want %d", n, sink.files+1)
	}
	return sink.heap.Load()
}

// The list of outputs takes no more memory when there are more of them.
func TestMemoryIsBounded(t *testing.T) {
	few, many := heapOf(t, 20, 1000), heapOf(t, 60, 1000)
	t.Logf("%d bytes for 20,000 files, %d for 60,000", few, many)
	if many > few+4<<20 {
		t.Errorf("20,000 files take %d bytes of memory, 60,000 take %d", few, many)
	}
}
