package upload

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/power"
)

// putting does something in place of publishing.
type putting struct {
	Storage
	put func() error
}

func (p *putting) Put(context.Context, storage.PutRequest) error { return p.put() }

// When the first output is published all are on the disk, under their names: a task may
// have renamed a directory after what is in it had come there.
func TestSecuredUnderTheirNames(t *testing.T) {
	for what, size := range map[string]int64{"small": 1, "large": node.SyncTogether} {
		t.Run(what, func(t *testing.T) {
			fs := power.NewFilesystem(t)
			t.Setenv("TMPDIR", fs.Dir) // for the work tree
			f := newFixture(t, map[string]string{"/vol/part/x": string(make([]byte, size))}, nil, tes.Output{Path: "/vol/whole", URL: "/u", Type: tes.Directory})
			disk, err := node.OpenFilesystem(fs.Dir)
			if err := errors.Join(err, disk.Sync(), disk.Close()); err != nil {
				t.Fatal(err)
			}
			vol := f.tree.Where("/vol").Base
			if err := os.Rename(filepath.Join(vol, "part"), filepath.Join(vol, "whole")); err != nil {
				t.Fatal(err)
			}
			published := 0
			f.step.Storage = &putting{f.step.Storage, func() error {
				published++
				fs.Cut(func(dir string) {
					info, err := os.Stat(fs.Then(dir, filepath.Join(vol, "whole/x")))
					if err != nil || info.Size() != size {
						t.Errorf("after a power cut: %v", err)
					}
				})
				return nil
			}}
			if err := f.step.Do(t.Context(), f.task, f.notes); err != nil || published != 1 {
				t.Errorf("%d are published: %v", published, err)
			}
		})
	}
}

// What came out of a container before the power went is what is published: the container's
// own files were not brought to the disk.
func TestCapturedOnce(t *testing.T) {
	ended := containers{"0": {"/etc/x": "whole"}}
	target := filepath.Join(t.TempDir(), "x")
	f := newFixture(t, nil, ended, tes.Output{Path: "/etc/x", URL: target})
	cut := errors.New("the power goes")
	there := f.step.Storage
	f.step.Storage = &putting{there, func() error { return cut }}
	if err := f.step.Do(t.Context(), f.task, f.notes); !errors.Is(err, cut) {
		t.Fatalf("the first process: %v", err)
	}
	ended["0"]["/etc/x"] = ""
	f.step.Storage, f.step.BootID, f.task.Boot = there, "now", "before"
	if p, err := f.step.Probe(t.Context(), f.task, f.notes); p != machine.Partial || err != nil {
		t.Fatalf("after the cut: %v, %v", p, err)
	}
	err := f.step.Do(t.Context(), f.task, f.notes)
	if text, readErr := os.ReadFile(target); string(text) != "whole" {
		t.Errorf("%q is published (%v)", text, errors.Join(err, readErr))
	}
}
