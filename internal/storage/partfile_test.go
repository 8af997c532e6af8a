package storage

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// looking is a store whose object is only read after a look.
type looking struct {
	curt
	look func()
}

func (l looking) Open(ctx context.Context, url string, r Range) (*Reader, error) {
	reader, err := l.curt.Open(ctx, url, r)
	reader.ReadCloser = io.NopCloser(io.MultiReader(readerFunc(func([]byte) (int, error) {
		l.look()
		return 0, io.EOF
	}), reader.ReadCloser))
	return reader, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A file that is not worth continuing has no name before it is whole: whoever is killed
// leaves nothing of it. One that takes the place of another does so at once.
func TestNoNameBeforeTheFileIsWhole(t *testing.T) {
	dir := t.TempDir()
	into, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	for _, want := range [][]string{nil, {"file"}} { // what is there before
		looks := 0
		s := Hasten(New(Options{}), time.Minute)
		s.stores[0] = looking{curt{content: []byte("content")}, func() {
			looks++
			if got := names(t, dir); !slices.Equal(got, want) {
				t.Errorf("while it comes there are %q, want %q", got, want)
			}
		}}
		if _, err := s.Fetch(t.Context(), FetchRequest{URL: "/any", Dir: into, Name: "file", NoSync: true}); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "file")); string(got) != "content" || err != nil || looks == 0 {
			t.Errorf("%q, %v came in %d looks", got, err, looks)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"file"}) {
			t.Errorf("in the end there are %q", got)
		}
	}
}

func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// Where no file can be without a name, it has that of a part file.
func TestFilesystemWithoutUnnamedFiles(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("mqueue", dir, "mqueue", 0, ""); errors.Is(err, unix.EPERM) && os.Getenv("CI") == "" {
		t.Skip("only root can mount a filesystem that has none")
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	into, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	f, err := createUnnamed(into, "part", 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); f.name != "part" || !slices.Equal(got, []string{"part"}) {
		t.Errorf("it is called %q; the directory has %q", f.name, got)
	}
	if err := errors.Join(f.remove(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); got != nil {
		t.Errorf("the directory has %q", got)
	}
}
