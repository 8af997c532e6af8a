package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/test/power"
)

// A result that was written outlives a power cut, in place of what the file held before.
func TestResultOutlivesAPowerCut(t *testing.T) {
	fs := power.NewFilesystem(t)
	for name, before := range map[string]string{"new": "", "old": "another result"} {
		name := filepath.Join(fs.Dir, name)
		if before != "" {
			if err := os.WriteFile(name, []byte(before), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		dir, err := os.Open(fs.Dir)
		if err := errors.Join(err, unix.Syncfs(int(dir.Fd())), dir.Close()); err != nil {
			t.Fatal(err)
		}
		err = replaceFile(t.Context(), name, func(w io.Writer) error {
			_, err := io.WriteString(w, "the result")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		fs.Cut(func(dir string) {
			if text, err := os.ReadFile(fs.Then(dir, name)); string(text) != "the result" {
				t.Errorf("%s is %q after a power cut (%v)", name, text, err)
			}
		})
	}
}
