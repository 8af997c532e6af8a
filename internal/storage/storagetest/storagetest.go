// Package storagetest holds what every kind of storage must do, as one suite
// that runs against the real thing.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/machine"
)

// Server is one storage under test, reachable by its URLs and, for the test,
// behind their back.
type Server struct {
	// URL of a directory; objects are named by Storage.Join with it.
	URL string
	// Store and Load reach the object of a name without the code under test.
	Store func(t *testing.T, name string, content []byte)
	Load  func(t *testing.T, name string) []byte
	// Names lists everything in the storage.
	Names func(t *testing.T) []string
	// Directories says that the storage has them.
	Directories bool
	// Options reach the storage.
	Options storage.Options
}

// Content returns n bytes that nothing compresses and no part of which equals another.
func Content(n int) []byte {
	b := make([]byte, n)
	var seed [32]byte
	seed[0] = byte(n)
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

// large has several parts and ends in the middle of one.
const large = 40<<20 + 4321

var names = []string{
	"plain", "with space", "ünïcödé ☂", "per%cent", "per%20cent", "ha#sh", "que?ry", "plus+and&", "semi;colon",
	"quote'\"", "[brackets]", "back\\slash", "deep/er/down", "-dash", ".hidden", "tilde~", "colon:name",
}

// Run runs the suite.
func Run(t *testing.T, s Server) {
	meter := &progress.Meter{}
	s.Options.Meter = meter
	st := storage.New(s.Options)
	ctx := context.Background()

	fetch := func(t *testing.T, url, name string) (string, storage.Fetched, error) {
		t.Helper()
		dir := t.TempDir()
		into, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer into.Close()
		got, err := st.Fetch(ctx, storage.FetchRequest{URL: url, Dir: into, Name: name})
		return dir, got, err
	}

	for _, n := range []int{0, 1, 4096, 16 << 20, 16<<20 + 1, large} {
		t.Run(fmt.Sprintf("fetch %d bytes", n), func(t *testing.T) {
			name := fmt.Sprintf("sized-%d", n)
			want := Content(n)
			s.Store(t, name, want)
			meter.Reset("fetch")
			dir, got, err := fetch(t, st.Join(s.URL, name), "file")
			if err != nil {
				t.Fatal(err)
			}
			if got.Bytes != int64(n) {
				t.Errorf("%d bytes are said to have come", got.Bytes)
			}
			if done := meter.Snapshot().BytesDone; done != int64(n) {
				t.Errorf("the meter shows %d bytes", done)
			}
			Only(t, dir, "file", want)
		})
		t.Run(fmt.Sprintf("put %d bytes", n), func(t *testing.T) {
			name := fmt.Sprintf("put-%d", n)
			want := Content(n)
			meter.Reset("put")
			if err := put(t, st, st.Join(s.URL, name), want); err != nil {
				t.Fatal(err)
			}
			if done := meter.Snapshot().BytesDone; done != int64(n) {
				t.Errorf("the meter shows %d bytes", done)
			}
			if got := s.Load(t, name); !bytes.Equal(got, want) {
				t.Errorf("%d bytes were published, not the %d that were put, or others", len(got), n)
			}
		})
	}

	t.Run("names", func(t *testing.T) {
		for _, name := range names {
			t.Run(name, func(t *testing.T) {
				name := "names/" + name
				want := []byte("content of " + name)
				url := st.Join(s.URL, name)
				if err := put(t, st, url, want); err != nil {
					t.Fatal(err)
				}
				if got := s.Load(t, name); !bytes.Equal(got, want) {
					t.Errorf("published: %q", got)
				}
				dir, _, err := fetch(t, url, "file")
				if err != nil {
					t.Fatal(err)
				}
				Only(t, dir, "file", want)
			})
		}
	})

	t.Run("a longer object does not keep its tail", func(t *testing.T) {
		s.Store(t, "tail", Content(100000))
		if err := put(t, st, st.Join(s.URL, "tail"), []byte("short")); err != nil {
			t.Fatal(err)
		}
		if got := s.Load(t, "tail"); string(got) != "short" {
			t.Errorf("%d bytes are there", len(got))
		}
	})

	t.Run("a longer file does not keep its tail", func(t *testing.T) {
		s.Store(t, "short", []byte("short"))
		dir := t.TempDir()
		Write(t, filepath.Join(dir, "file"), Content(100000))
		into, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer into.Close()
		if _, err := st.Fetch(ctx, storage.FetchRequest{URL: st.Join(s.URL, "short"), Dir: into, Name: "file", Mode: 0o640}); err != nil {
			t.Fatal(err)
		}
		Only(t, dir, "file", []byte("short"))
		if info, err := os.Stat(filepath.Join(dir, "file")); err != nil || info.Mode() != 0o640 {
			t.Errorf("the mode is %v (%v), not the one that was asked for", info.Mode(), err)
		}
	})

	t.Run("only what was put appears", func(t *testing.T) {
		before := strings.Join(s.Names(t), "\n")
		if err := st.Abort(ctx, st.Join(s.URL, "never"), storage.Unfinished{Tag: "tag", Upload: &storage.Upload{Listed: true}}); err != nil {
			t.Errorf("nothing to abort: %v", err)
		}
		if after := strings.Join(s.Names(t), "\n"); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if strings.Contains(before, "deckhand") {
			t.Errorf("something is left behind:\n%s", before)
		}
	})

	t.Run("no such object", func(t *testing.T) {
		url := st.Join(s.URL, "missing")
		dir, _, err := fetch(t, url, "file")
		if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "missing") {
			t.Errorf("error %v, fault %q", err, machine.FaultOf(err))
		}
		Empty(t, dir)
		if _, err := st.Stat(ctx, url); err == nil || machine.FaultOf(err) != machine.TaskFault {
			t.Errorf("stat: %v", err)
		}
	})

	t.Run("stat", func(t *testing.T) {
		s.Store(t, "stat", Content(12345))
		o, err := st.Stat(ctx, st.Join(s.URL, "stat"))
		if err != nil || o.Size != 12345 {
			t.Errorf("size %d, %v", o.Size, err)
		}
	})

	t.Run("ranges are of one version", func(t *testing.T) {
		url := st.Join(s.URL, "versions")
		s.Store(t, "versions", []byte("0123456789"))
		store, err := st.For(url)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := store.Open(ctx, url, storage.Range{Length: -1})
		if err != nil {
			t.Fatal(err)
		}
		whole.Close()
		version := whole.Object.Version
		if version == "" {
			t.Fatal("the storage offers no version")
		}
		r, err := store.Open(ctx, url, storage.Range{Offset: 3, Length: 4, Version: version})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if string(b) != "3456" || r.Offset != 3 || r.Object.Size != 10 || r.Object.Version != version {
			t.Errorf("read %q (%v) at %d of %+v", b, err, r.Offset, r.Object)
		}
		r.Close()
		s.Store(t, "versions", []byte("abcdefghijk"))
		if r, err := store.Open(ctx, url, storage.Range{Offset: 3, Length: 4, Version: version}); !errors.Is(err, storage.ErrChanged) {
			t.Errorf("a changed object opens: %+v, %v", r, err)
		}
	})

	t.Run("many at a time", func(t *testing.T) {
		var g errgroup.Group
		for i := range 40 {
			name := fmt.Sprintf("many/%d", i)
			want := Content(1000 * i)
			g.Go(func() error {
				if err := put(t, st, st.Join(s.URL, name), want); err != nil {
					return err
				}
				dir, _, err := fetch(t, st.Join(s.URL, name), "file")
				if err == nil {
					Only(t, dir, "file", want)
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})

	t.Run("cancelled", func(t *testing.T) {
		s.Store(t, "cancelled", Content(large))
		dir := t.TempDir()
		into, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer into.Close()
		why := errors.New("because")
		ctx, cancel := context.WithCancelCause(ctx)
		cancel(why)
		_, err = st.Fetch(ctx, storage.FetchRequest{URL: st.Join(s.URL, "cancelled"), Dir: into, Name: "file"})
		if !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "file")); err == nil {
			t.Error("there is a file under the final name")
		}
	})

	t.Run("list", func(t *testing.T) {
		if !s.Directories {
			for _, err := range st.List(ctx, s.URL) {
				if machine.FaultOf(err) != machine.TaskFault || err == nil {
					t.Errorf("a storage without directories lists: %v", err)
				}
			}
			return
		}
		want := map[string]string{"a": "1", "sub/b": "22", "sub/deep/c": "333"}
		for name, content := range want {
			s.Store(t, "tree/"+name, []byte(content))
		}
		got := map[string]string{}
		for o, err := range st.List(ctx, st.Join(s.URL, "tree")) {
			if err != nil {
				t.Fatal(err)
			}
			if o.Mode.IsDir() {
				continue
			}
			dir, fetched, err := fetch(t, o.URL, "file")
			if err != nil {
				t.Fatal(err)
			}
			b, _ := os.ReadFile(filepath.Join(dir, "file"))
			if fetched.Bytes != o.Size {
				t.Errorf("%s: listed with %d bytes, has %d", o.Name, o.Size, fetched.Bytes)
			}
			got[o.Name] = string(b)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("listed %v, want %v", got, want)
		}
	})
}

func put(t *testing.T, st *storage.Storage, url string, content []byte) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	Write(t, path, content)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return st.Put(context.Background(), storage.PutRequest{URL: url, File: f, Size: int64(len(content)), Tag: "tag"})
}

// Write makes a file with its directories.
func Write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Only fails the test unless dir holds that file alone, with that content.
func Only(t *testing.T, dir, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, want %d, or others", name, len(got), len(want))
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v (%v)", entries, err)
	}
}

// Empty fails the test unless dir holds nothing.
func Empty(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the directory holds %v (%v)", entries, err)
	}
}

// Tree returns a Server on a directory of this node, which URL leads to.
func Tree(url, dir string) Server {
	return Server{
		URL: url,
		Store: func(t *testing.T, name string, content []byte) {
			t.Helper()
			path := filepath.Join(dir, name)
			_ = os.Remove(path) // a new inode, as a real writer would make
			Write(t, path, content)
		},
		Load: func(t *testing.T, name string) []byte {
			t.Helper()
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Error(err)
			}
			return b
		},
		Names: func(t *testing.T) []string {
			t.Helper()
			var names []string
			err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
				names = append(names, path)
				return err
			})
			if err != nil {
				t.Error(err)
			}
			return names
		},
	}
}
