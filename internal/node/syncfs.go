package node

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SyncTogether is the size, in bytes, below which files are better made durable
// together, by Filesystem.Sync: to sync one by itself takes longer than to write
// many. It is 0 where the kernel would not tell that one of them was not written.
var SyncTogether = syncTogether()

func syncTogether() int64 {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil || !syncfsTells(unix.ByteSliceToString(u.Release[:])) {
		return 0
	}
	return 1 << 20
}

// syncfsTells says whether syncfs(2) of a release of Linux tells of write errors.
func syncfsTells(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 8
}

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

// SyncFilesystem makes durable whatever was written to the filesystem of a directory, by
// anybody. Nothing interrupts syncfs(2), and a slow disk may have much to write: when ctx
// ends, it goes on, and nobody waits for it.
func SyncFilesystem(ctx context.Context, dir string) error {
	f, err := OpenFilesystem(dir)
	if err != nil {
		return err
	}
	synced := make(chan error, 1)
	go func() { synced <- errors.Join(f.Sync(), f.Close()) }()
	select {
	case err := <-synced:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close implements io.Closer.
func (f *Filesystem) Close() error { return f.dir.Close() }
