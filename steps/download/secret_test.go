package download

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/deckhand/deckhand/internal/sorted"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
)

// signing is a storage of one object below every directory, which lists it with the
// directory's signature.
type signing struct {
	Storage

	mu      sync.Mutex
	fetched []string
}

func (s *signing) Stat(context.Context, string) (storage.Object, error) {
	return storage.Object{Size: 1}, nil
}

func (s *signing) List(_ context.Context, url string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		yield(storage.Object{URL: s.Join(url, "sub/a b"), Name: "sub/a b", Size: 1}, nil)
	}
}

func (s *signing) Fetch(_ context.Context, r storage.FetchRequest) (storage.Fetched, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched = append(s.fetched, r.URL)
	return storage.Fetched{Bytes: 1}, nil
}

// The list of inputs, which may go to the disk, has no signature of their URLs; they are
// fetched with it.
func TestListHasNoSecrets(t *testing.T) {
	const at, sas = "https://account.blob.core.windows.net/box", "?sv=2026&sig=s3cr3t"
	f := newFixture(t,
		tes.Input{URL: at + "/dir" + sas, Path: "/in/dir", Type: tes.Directory},
		tes.Input{URL: at + "/file" + sas, Path: "/in/file"},
		tes.Input{URL: "https://user:s3cr3t@example.org/x", Path: "/in/x"},
	)
	store := &signing{Storage: f.step.Storage}
	f.step.Storage = store
	list := sorted.New(filepath.Join(t.TempDir(), "list"), inTree)
	defer list.Close()
	if err := f.step.list(t.Context(), f.notes, f.tree, list); err != nil {
		t.Fatal(err)
	}
	entries := 0
	for e, err := range list.All() {
		if err != nil {
			t.Fatal(err)
		}
		if entries++; strings.Contains(fmt.Sprintf("%s %s", e.Key, e.Value), "s3cr3t") {
			t.Errorf("the list has %s: %q", e.Key, e.Value)
		}
	}
	if entries != 4 {
		t.Errorf("the list has %d entries, want 4", entries)
	}
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	slices.Sort(store.fetched)
	want := []string{at + "/dir/sub/a%20b" + sas, at + "/file" + sas, "https://user:s3cr3t@example.org/x"}
	if !slices.Equal(store.fetched, want) {
		t.Errorf("fetched were %q, want %q", store.fetched, want)
	}
}
