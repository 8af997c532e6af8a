package download

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// ending is a storage that fails for good once so many files were fetched.
type ending struct {
	Storage
	after   int64
	fetched atomic.Int64
}

var errEnding = errors.New("the end")

func (e *ending) Fetch(ctx context.Context, r storage.FetchRequest) (storage.Fetched, error) {
	if e.fetched.Add(1) > e.after {
		return storage.Fetched{}, errEnding
	}
	return e.Storage.Fetch(context.WithoutCancel(ctx), r) // what was begun before the end is not cut off by it
}

// 100,000 files take few records and some tens of bytes each in the journal, and
// whoever goes on in the middle fetches none of the journaled ones again.
func TestStageManyFiles(t *testing.T) {
	const files, dirs = 100_000, 100
	source := t.TempDir()
	for d := range dirs {
		dir := filepath.Join(source, fmt.Sprintf("dir-%02d", d))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		one := filepath.Join(dir, "file-000")
		if err := os.WriteFile(one, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		for i := 1; i < files/dirs; i++ {
			if err := os.Link(one, filepath.Join(dir, fmt.Sprintf("file-%03d", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	f := newFixture(t, tes.Input{Path: "/in", URL: source, Type: tes.Directory})
	first := &ending{Storage: f.step.Storage, after: files / 2}
	f.step.Storage = first
	if err := f.step.Do(t.Context(), f.task, f.notes); !errors.Is(err, errEnding) {
		t.Fatal(err)
	}
	second := &ending{Storage: first.Storage, after: files}
	f.step.Storage = second
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if n := second.fetched.Load(); n != files/2 {
		t.Errorf("%d files were fetched by the second process, want %d", n, files/2)
	}
	records, bytes := 0, 0
	for note, err := range f.notes.Each(WhatInputs) {
		if err != nil {
			t.Fatal(err)
		}
		if note.Kind == machine.KindDone {
			records, bytes = records+1, bytes+len(note.Detail)
		}
	}
	t.Logf("%d records with %d bytes", records, bytes)
	if records > files/100 || bytes > 64*files {
		t.Errorf("%d files took %d records with %d bytes", files, records, bytes)
	}
}

// durability notes which fetches leave it to the caller to make the file durable.
type durability struct {
	Storage
	left atomic.Int64
}

func (d *durability) Fetch(ctx context.Context, r storage.FetchRequest) (storage.Fetched, error) {
	if r.NoSync {
		d.left.Add(1)
	}
	return d.Storage.Fetch(ctx, r)
}

// Where the kernel cannot tell of files that were not written, each is made durable
// by itself.
func TestSyncTogether(t *testing.T) {
	was := node.SyncTogether
	t.Cleanup(func() { node.SyncTogether = was })
	source := t.TempDir()
	for name, content := range map[string]string{"empty": "", "small": "x"} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for together, want := range map[int64]int64{1 << 20: 2, 1: 1, 0: 0} {
		node.SyncTogether = together
		f := newFixture(t, tes.Input{Path: "/in", URL: source, Type: tes.Directory})
		d := &durability{Storage: f.step.Storage}
		f.step.Storage = d
		if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
		if left := d.left.Load(); left != want {
			t.Errorf("below %d bytes together: %d files are, want %d", together, left, want)
		}
	}
}

// throng is a storage from which nothing comes before so many files are asked for at a time.
type throng struct {
	numbered
	want int

	mu        sync.Mutex
	now, most int
	full      chan struct{}
}

func (s *throng) Fetch(ctx context.Context, r storage.FetchRequest) (storage.Fetched, error) {
	s.mu.Lock()
	s.now++
	if s.most = max(s.most, s.now); s.now == s.want {
		s.want = 0
		close(s.full)
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now--
	}()
	select {
	case <-s.full:
	case <-ctx.Done():
		return storage.Fetched{}, ctx.Err()
	}
	return storage.Fetched{Bytes: 1 << 10, Version: r.Version}, nil
}

// Stat waits for others, as Fetch does.
func (s *throng) Stat(ctx context.Context, url string) (storage.Object, error) {
	f, err := s.Fetch(ctx, storage.FetchRequest{})
	return storage.Object{URL: url, Size: f.Bytes}, err
}

// So many inputs are looked up side by side as may be fetched.
func TestInputsAtATime(t *testing.T) {
	var inputs []tes.Input
	for i := range 100 {
		inputs = append(inputs, tes.Input{Path: fmt.Sprint("/in/", i), URL: fmt.Sprint("s3://some-bucket/", i)})
	}
	f := newFixture(t, inputs...)
	source := &throng{numbered: numbered{Storage: f.step.Storage}, want: 5, full: make(chan struct{})}
	f.step.Storage, f.step.Parallel = source, 5
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.step.Do(ctx, f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if source.most != 5 {
		t.Errorf("%d inputs were looked up at a time, want 5", source.most)
	}
}

// As many files as are allowed are fetched side by side, and never more.
func TestFilesAtATime(t *testing.T) {
	f := newFixture(t, tes.Input{Path: "/in", URL: "s3://some-bucket/and/a/prefix", Type: tes.Directory})
	source := &throng{numbered: numbered{Storage: f.step.Storage, files: 100}, want: 5, full: make(chan struct{})}
	f.step.Storage, f.step.Parallel = source, 5
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if source.most != 5 {
		t.Errorf("%d files were fetched at a time, want 5", source.most)
	}
}
