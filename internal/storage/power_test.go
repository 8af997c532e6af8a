package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/test/power"
)

// What was removed beside an output that is not whole is gone for good, whoever removed
// it: once the attempt has ended nobody knows of it.
func TestUnfinishedOutputStaysAway(t *testing.T) {
	fs := power.NewFilesystem(t)
	target := filepath.Join(fs.Dir, "x")
	const tag = "tag"
	hidden := filepath.Join(fs.Dir, partName("x", tagSuffix(tag)))
	durable := func() error {
		dir, err := os.Open(fs.Dir)
		return errors.Join(err, unix.Syncfs(int(dir.Fd())), dir.Close())
	}
	for name, remove := range map[string]func() error{
		"by the roll-back": func() error {
			if err := errors.Join(os.WriteFile(hidden, []byte("a part"), 0o600), durable()); err != nil {
				t.Fatal(err)
			}
			return local{}.Abort(t.Context(), target, Unfinished{Tag: tag})
		},
		"by who could not publish it": func() error {
			name, content := filepath.Join(t.TempDir(), "x"), make([]byte, 1<<20)
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
			file, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			failed := errors.New("the process is told to stop")
			err = local{}.Put(t.Context(), target, &Source{File: file, Size: int64(len(content)), Tag: tag, meter: func(int64) {}, pace: func(context.Context, int64) error {
				return errors.Join(failed, durable())
			}})
			if !errors.Is(err, failed) {
				t.Fatal(err)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := remove(); err != nil {
				t.Fatal(err)
			}
			fs.Cut(func(dir string) {
				if _, err := os.Lstat(fs.Then(dir, hidden)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("after a power cut it is there again (%v)", err)
				}
			})
		})
	}
}
