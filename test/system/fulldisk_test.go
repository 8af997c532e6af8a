package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// newSmallWorld is a world whose root is on a small filesystem of its own.
func newSmallWorld(t *testing.T, kind string) *World {
	t.Helper()
	w := NewWorld(t)
	const size = 320 << 20 // the least that mkfs.xfs takes is 300 MiB
	w.Root = filepath.Join(rig.Filesystem(t, kind, size), "root")
	w.Env = append(w.Env, "DECKHAND_DISK_FLOOR=1MiB")
	return w
}

// fillAndSay is a script that takes every byte of the filesystem that the task
// is on, and says so.
const fillAndSay = `dd if=/dev/zero of=/work/fill bs=1M 2>/dev/null; while echo x >> /work/rest 2>/dev/null; do :; done; echo full`

func freeAt(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bavail * uint64(st.Bsize)
}

// A task that fills the disk is journaled to its end, and the next one finds a
// clean node.
func TestTaskFillsTheDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newSmallWorld(t, kind)
			image := w.Image(t, "fill", rig.Spec{Marker: "fill"})
			o := w.MustRun(t, 0, tes.Task{
				ID: "filler", Volumes: []string{"/work"},
				Executors: []tes.Executor{Sh(image.Tag, fillAndSay), Sh(image.Tag, "echo second")},
			})
			if got := o.Log(t).Logs; len(got) != 2 || got[0].Stdout != "full\n" || got[1].Stdout != "second\n" {
				t.Errorf("executor logs: %+v", got)
			}
			w.MustRun(t, 0, tes.Task{ID: "next", Executors: []tes.Executor{Sh(image.Tag, "true")}})
			w.Clean(t)
		})
	}
}

// A process that dies on a full disk leaves a journal that the next start can
// read, a disk that it can free, and a task that it rolls back or runs again.
func TestKilledOnFullDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for _, next := range []string{"filler", "other"} {
			t.Run(fmt.Sprint(kind, " then ", next), func(t *testing.T) {
				t.Parallel()
				w := newSmallWorld(t, kind)
				image := w.Image(t, "fill", rig.Spec{Marker: "fill"})
				marker := w.Write(t, "shared/first", "")
				filler := tes.Task{
					ID: "filler", Volumes: []string{"/work"}, Inputs: []tes.Input{{URL: marker, Path: "/in/first"}},
					Executors: []tes.Executor{Sh(image.Tag, fillAndSay+"; sleep 600")},
				}
				b := w.Start(t, filler)
				b.Until(t, "executor started")
				eventually(t, "a full disk", func() bool { return strings.Contains(w.Deckhand(t, "logs", "filler").Stdout, "full") })
				if err := b.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				b.End(t)
				// Not even what the container could not use.
				fill(t, filepath.Dir(w.Root))

				task := tes.Task{ID: next, Executors: []tes.Executor{Sh(image.Tag, "true")}}
				args := []string{}
				if next == "filler" {
					args = append(args, "--fresh") // with another document
				}
				o := w.Run(t, task, args...)
				if o.Code != 0 {
					t.Fatalf("exit code is %d\n%s", o.Code, o.Stderr)
				}
				if free := freeAt(t, w.Root); free < 100<<20 {
					t.Errorf("only %d bytes are free afterwards", free)
				}
				w.Clean(t)
			})
		}
	}
}

// fill takes every byte that is left on the filesystem of dir.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "ballast-of-the-test"))
	if err != nil {
		return // not even an inode is left
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for size := len(block); size > 0; {
		n, err := f.Write(block[:size])
		if err != nil || n < size {
			size /= 2
		}
	}
}
