package node

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SyncTogether is the size, in bytes, below which files are better made durable
// together, by Filesystem.Sync: to sync one by itself takes longer than to write
// many.
const SyncTogether = 1 << 20

// Filesystem is one that many small files are written to.
type Filesystem struct{ dir *os.File }

// OpenFilesystem opens the filesystem that a directory is on. Whoever writes to it
// opens it first: syncfs(2) tells of the errors since then, and of those before
// that nobody was told of.
func OpenFilesystem(dir string) (*Filesystem, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Filesystem{f}, nil
}

// Sync makes durable whatever was written to the filesystem, by anybody.
func (f *Filesystem) Sync() error {
	if err := unix.Syncfs(int(f.dir.Fd())); err != nil {
		return fmt.Errorf("cannot bring what was written to the disk of %s: %w", f.dir.Name(), err)
	}
	return nil
}

// Close implements io.Closer.
func (f *Filesystem) Close() error { return f.dir.Close() }
