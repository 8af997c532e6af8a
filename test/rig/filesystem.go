package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Filesystem makes a filesystem of some bytes in a file, or of kind tmpfs in
// memory, mounts it and returns the mount point. kind is ext4, xfs or tmpfs. It
// goes when the test ends.
func Filesystem(tb TB, kind string, size int64) string {
	tb.Helper()
	// Not below the test's own directory, whose name may be too long for a socket.
	return FilesystemAt(tb, "/var/tmp", kind, size)
}

// FilesystemAt is Filesystem with its file below a directory.
func FilesystemAt(tb TB, below, kind string, size int64) string {
	tb.Helper()
	if os.Getuid() != 0 {
		giveUp(tb, lacking{"only root can mount a filesystem"})
	}
	dir, err := os.MkdirTemp(below, "fs")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	image, point := filepath.Join(dir, "image"), filepath.Join(dir, "at")
	if err := os.Mkdir(point, 0o755); err != nil {
		tb.Fatalf("%v", err)
	}
	steps := [][]string{{"mount", "-t", kind, "-o", fmt.Sprintf("size=%d", size), kind, point}}
	if kind != "tmpfs" {
		mkfs, err := program("mkfs."+kind, map[string]string{"ext4": "e2fsprogs", "xfs": "xfsprogs"}[kind])
		if err != nil {
			giveUp(tb, err)
		}
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			tb.Fatalf("%v", err)
		}
		if err := os.Truncate(image, size); err != nil {
			tb.Fatalf("%v", err)
		}
		steps = [][]string{{mkfs, "-q", image}, {"mount", "-o", "loop", image, point}}
	}
	for _, args := range steps {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			tb.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			tb.Logf("unmount %s: %v", point, err)
		}
	})
	return point
}
