package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/upload"
	"github.com/deckhand/deckhand/test/heap"
)

// publishing makes the records of a task with one attempt for each of counts, which
// published so many files, as they are read.
func publishing(counts ...int) iter.Seq2[machine.Record, error] {
	return func(yield func(machine.Record, error) bool) {
		for i, count := range counts {
			r := machine.Record{Task: "t", Attempt: i + 1, Kind: machine.KindTransition, To: machine.Accepted, Detail: json.RawMessage(`{}`), Time: time.Unix(int64(i), 0)}
			if !yield(r, nil) {
				return
			}
			r.Kind = machine.KindDone
			for at := 0; at < count; at += 100 {
				var fact struct {
					What string `json:"what"`
					batch.Files[upload.Published]
				}
				fact.What = upload.WhatOutputs
				for k := at; k < min(at+100, count); k++ {
					fact.Files.Files = append(fact.Files.Files, upload.Published{OutputFileLog: output(k)})
				}
				detail, err := json.Marshal(fact)
				r.Seq++
				if r.Detail = detail; !yield(r, err) {
					return
				}
			}
		}
	}
}

func output(k int) tes.OutputFileLog {
	name := fmt.Sprintf("a-file-with-a-name-of-usual-length-%07d<&>\u2028\"\n.vcf.gz", k)
	return tes.OutputFileLog{URL: "s3://bucket/out/" + name, Path: "/out/" + name, SizeBytes: int64(k)}
}

// The document whose outputs are read from the journal as they are written is the one
// that has them all in memory.
func TestFinalTaskIsStreamed(t *testing.T) {
	// An output that looks like the place of outputs as far as one can.
	doc := &tes.Task{ID: "t", Outputs: []tes.Output{{}}, Executors: []tes.Executor{{Image: "i", Command: tes.Arguments{"{\n  \"url\": \"\""}}}}
	head := machine.Head{State: machine.Complete}
	for _, counts := range [][]int{nil, {0}, {1}, {0, 250, 0, 1, 101}} {
		records := publishing(counts...)
		whole, err := finalTask(doc, head, records)
		if err != nil {
			t.Fatal(err)
		}
		for i, count := range counts {
			if (len(whole.Logs[i].Outputs) > 0) != (count > 0) {
				t.Fatalf("attempt %d of %v has %d places", i, counts, len(whole.Logs[i].Outputs))
			}
			whole.Logs[i].Outputs = nil
			for k := range count {
				whole.Logs[i].Outputs = append(whole.Logs[i].Outputs, output(k))
			}
		}
		want, err := encodeTask(whole)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := writeFinal(&got, doc, head, records); err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("outputs %v: the document is\n%s\nwant\n%s", counts, got.String(), want)
		}
	}
	if err := writeFinal(brokenWriter{}, doc, head, publishing(1)); !errors.Is(err, errBroken) {
		t.Errorf("a failed write ends with %v", err)
	}
}

var errBroken = errors.New("broken")

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

// A named pipe is waited for until somebody reads it, and no longer than the process may run.
func TestResultToAPipe(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pipe")
	must(t, unix.Mkfifo(name, 0o600))
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("it is told to stop")
	hello := func(w io.Writer) error {
		_, err := io.WriteString(w, "hello")
		return err
	}
	ended := make(chan error)
	go func() { ended <- replaceFile(ctx, name, hello) }()
	cancel(stopped)
	if err := <-ended; !errors.Is(err, stopped) {
		t.Errorf("without a reader: %v", err)
	}
	go func() { ended <- replaceFile(t.Context(), name, hello) }()
	text, err := os.ReadFile(name)
	if err := errors.Join(err, <-ended); err != nil || string(text) != "hello" {
		t.Errorf("%q is read (%v)", text, err)
	}
	reader, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	defer reader.Close()
	if err := replaceFile(ctx, name, hello); err != nil {
		t.Errorf("a process that is told to stop, with a reader: %v", err)
	}
}

// gauge looks at the heap as it is written to.
type gauge struct {
	written int64
	heap    uint64 // the largest seen, in bytes
}

func (g *gauge) Write(b []byte) (int, error) {
	const every = 4 << 20
	if before := g.written / every; before != (g.written+int64(len(b)))/every {
		g.heap = max(g.heap, heap.Reachable())
	}
	g.written += int64(len(b))
	return len(b), nil
}

// The document takes no more memory when it names more outputs.
func TestMemoryOfFinalTask(t *testing.T) {
	heap := func(files int) uint64 {
		var g gauge
		if err := writeFinal(io.Writer(&g), &tes.Task{}, machine.Head{}, publishing(files)); err != nil {
			t.Fatal(err)
		}
		if g.heap == 0 {
			t.Fatalf("%d bytes were written and never looked at", g.written)
		}
		return g.heap
	}
	few, many := heap(30_000), heap(90_000)
	t.Logf("%d bytes for 30,000 outputs, %d for 90,000", few, many)
	if many > few+2<<20 {
		t.Errorf("30,000 outputs take %d bytes of memory, 90,000 take %d", few, many)
	}
}
