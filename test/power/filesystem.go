package power

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/test/rig"
)

// Filesystem is one on a disk of its own, for tests that need no whole machine. It
// brings to the disk what it is told to, and nothing else for as long as a test lasts.
type Filesystem struct {
	Dir string // where it is mounted

	tb     testing.TB
	image  string
	unplug func()
}

// filesystemSize is that of the disk, in bytes. It takes what is written to it.
const filesystemSize = 1 << 30

// NewFilesystem makes a filesystem, which goes when the test ends. It needs root.
func NewFilesystem(tb testing.TB) *Filesystem {
	tb.Helper()
	if os.Geteuid() != 0 {
		rig.Lack(tb, "to mount a filesystem takes root")
	}
	dir, err := os.MkdirTemp("", "dkpower") // a test may have its own directory on it
	if err != nil {
		tb.Fatal(err)
	}
	f := &Filesystem{tb: tb, image: filepath.Join(dir, "image"), Dir: filepath.Join(dir, "now"), unplug: func() {}}
	tb.Cleanup(func() {
		f.unplug()
		os.RemoveAll(dir)
	})
	err = os.WriteFile(f.image, nil, 0o600)
	if err := errors.Join(err, os.Truncate(f.image, filesystemSize)); err != nil {
		tb.Fatal(err)
	}
	if out, err := exec.Command(rig.Program(tb, "mkfs.ext4", "e2fsprogs"), "-q", f.image).CombinedOutput(); err != nil {
		tb.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	f.plugIn()
	return f
}

func (f *Filesystem) plugIn() {
	f.tb.Helper()
	// Without this it brings its metadata to the disk every five seconds.
	f.unplug = f.mount(f.image, f.Dir, "loop,commit=3600")
}

// mount mounts an image at a directory.
func (f *Filesystem) mount(image, dir, options string) (unmount func()) {
	f.tb.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.tb.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", options, image, dir).CombinedOutput(); err != nil {
		rig.Lack(f.tb, "this machine mounts no image of a disk: "+string(out))
	}
	return func() {
		// Others, such as a container that has just begun, may have a copy of the mount for a moment.
		for range 100 {
			if unix.Unmount(dir, 0) == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			f.tb.Errorf("unmount %s: %v", dir, err)
		}
	}
}

// Cut has look see the filesystem as it is when the power goes now and comes back. The
// filesystem itself goes on. Nobody may write to it meanwhile.
func (f *Filesystem) Cut(look func(dir string)) {
	f.tb.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(f.image), "cut")
	if err != nil {
		f.tb.Fatal(err)
	}
	image := filepath.Join(dir, "image")
	if err := copyFile(f.image, image); err != nil {
		f.tb.Fatal(err)
	}
	at := filepath.Join(dir, "then")
	defer f.mount(image, at, "loop")()
	look(at)
}

// Restart takes the power away and gives it back. Nobody may have anything open.
func (f *Filesystem) Restart() {
	f.tb.Helper()
	left := f.image + "-left"
	if err := copyFile(f.image, left); err != nil {
		f.tb.Fatal(err)
	}
	f.unplug()
	if err := os.Rename(left, f.image); err != nil {
		f.tb.Fatal(err)
	}
	f.plugIn()
}

// Then is where a file of the filesystem is in a directory that look was given.
func (f *Filesystem) Then(dir, name string) string {
	f.tb.Helper()
	rel, err := filepath.Rel(f.Dir, name)
	if err != nil || !filepath.IsLocal(rel) {
		f.tb.Fatalf("%s is not below %s", name, f.Dir)
	}
	return filepath.Join(dir, rel)
}
