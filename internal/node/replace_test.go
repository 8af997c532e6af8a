package node

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestReplaceFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, base := range []string{"file", strings.Repeat("x", 255)} {
		name := filepath.Join(dir, base)
		// What a killed process has left is in nobody's way.
		if err := os.WriteFile(newName(name), bytes.Repeat([]byte("left"), 1000), 0o600); err != nil {
			t.Fatal(err)
		}
		for i, text := range []string{"first", "second, longer", "3"} {
			if err := ReplaceFile(name, []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(name); err != nil || string(got) != text {
				t.Errorf("the file holds %q (%v), want %q", got, err, text)
			}
			info, err := os.Stat(name)
			if want := []os.FileMode{0o640, 0o640, 0o604}[i]; err != nil || info.Mode() != want {
				t.Errorf("mode %v (%v), want %v", info.Mode(), err, want)
			}
			if i == 1 {
				if err := os.Chmod(name, 0o604); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("beside the files there is something left: %v", entries)
	}
	if err := ReplaceFile(filepath.Join(dir, "no/such/directory"), nil, 0o600); err == nil {
		t.Error("no error for a directory that is not there")
	}
	taken := filepath.Join(dir, "taken")
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceFile(taken, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if _, err := os.Lstat(newName(taken)); err == nil {
		t.Error("after an error the new file is left")
	}
}

// Whoever reads sees one whole content, however many write.
func TestReplaceFileTogether(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	var wait sync.WaitGroup
	for i := range 8 {
		text := bytes.Repeat([]byte{byte('a' + i)}, 100_000)
		wait.Go(func() {
			for range 20 {
				if err := ReplaceFile(name, text, 0o600); err != nil {
					t.Error(err)
				}
				got, err := os.ReadFile(name)
				if err != nil || len(got) != len(text) || bytes.Count(got, got[:1]) != len(got) {
					t.Errorf("the file is not one of those that were written: %d bytes (%v)", len(got), err)
				}
			}
		})
	}
	wait.Wait()
	if _, err := os.Lstat(newName(name)); err == nil {
		t.Error("a new file is left")
	}
}
