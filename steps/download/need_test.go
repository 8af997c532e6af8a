package download

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// A file's holes take no space, nor do blocks that its copy shares: what fits is staged.
func TestNeedOfCopies(t *testing.T) {
	const size = 200 << 20
	at := rig.Filesystem(t, "xfs", 320<<20) // it can share blocks
	t.Setenv("TMPDIR", at)
	whole, holes := filepath.Join(at, "whole"), filepath.Join(at, "dir", "holes")
	if err := os.WriteFile(whole, make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(os.Mkdir(filepath.Dir(holes), 0o755), os.WriteFile(holes, nil, 0o644), os.Truncate(holes, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, tes.Input{URL: whole, Path: "/in/whole"}, tes.Input{URL: filepath.Dir(holes), Path: "/in/dir", Type: tes.Directory})
	if bytes, _ := f.step.Need(t.Context(), f.notes); bytes != 0 {
		t.Errorf("%d bytes are needed", bytes)
	}
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"/in/whole": size, "/in/dir/holes": 1 << 40} {
		if _, info, err := f.tree.Lookup(name); err != nil || info.Size() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// What is known of the inputs is added up, and what is not counts nothing; a
// source that has answered is not asked again when its input is staged.
func TestNeed(t *testing.T) {
	var heads atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			heads.Add(1)
		}
		if r.URL.Path == "/absent" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", "5")
		fmt.Fprint(w, "12345")
	}))
	defer server.Close()
	dir := t.TempDir()
	for name, size := range map[string]int{"file": 7, "dir/a": 100, "dir/sub/b": 1000} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	content := "ten bytes."
	inputs := []tes.Input{
		{Content: &content, Path: "/in/content"},
		{URL: filepath.Join(dir, "file"), Path: "/in/file"},
		{URL: filepath.Join(dir, "dir"), Path: "/in/dir", Type: tes.Directory},
		{URL: server.URL + "/there", Path: "/in/there"},
	}
	f := newFixture(t, inputs...)
	if bytes, files := f.step.Need(t.Context(), f.notes); bytes != 10+7+1100+5 || files != 6 { // a directory is an inode too
		t.Errorf("%d bytes in %d files", bytes, files)
	}
	if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
		t.Fatal(err)
	}
	if n := heads.Load(); n != 1 {
		t.Errorf("the source was asked %d times", n)
	}

	absent := newFixture(t, append(inputs, tes.Input{URL: server.URL + "/absent", Path: "/in/absent"},
		tes.Input{URL: dir + "/nothing", Path: "/in/nothing", Type: tes.Directory})...)
	if bytes, files := absent.step.Need(t.Context(), absent.notes); bytes != 10+7+1100+5 || files != 6 {
		t.Errorf("with inputs that are not there: %d bytes in %d files", bytes, files)
	}
	if err := absent.step.Do(t.Context(), absent.task, absent.notes); err == nil {
		t.Error("inputs that are not there were staged")
	}
}
