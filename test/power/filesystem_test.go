package power

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What was synced outlives a cut of a filesystem's power, and what was not is lost.
func TestFilesystem(t *testing.T) {
	f := NewFilesystem(t)
	synced, lost := filepath.Join(f.Dir, "synced"), filepath.Join(f.Dir, "lost")
	file, err := os.Create(synced)
	if err == nil {
		_, err = file.WriteString("whole")
	}
	if err := errors.Join(err, file.Sync(), file.Close(), os.WriteFile(lost, []byte("whole"), 0o600)); err != nil {
		t.Fatal(err)
	}
	look := func(dir string) {
		if text, err := os.ReadFile(f.Then(dir, synced)); string(text) != "whole" {
			t.Errorf("what was synced is %q (%v)", text, err)
		}
		if _, err := os.Lstat(f.Then(dir, lost)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was not synced is there (%v)", err)
		}
	}
	for range 2 {
		f.Cut(look)
	}
	f.Restart()
	look(f.Dir)
}
