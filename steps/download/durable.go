package download

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// small is the size, in bytes, below which files are made durable together: each
// sync of one takes longer than to write many.
const small = 1 << 20

// filesystem is the one that a task's inputs are on.
type filesystem struct{ dir *os.File }

// openFilesystem is called before anything is written: syncfs(2) tells of the
// errors since then.
func openFilesystem(dir string) (filesystem, error) {
	f, err := os.Open(dir)
	if err != nil {
		return filesystem{}, machine.Faultf(machine.NodeFault, "%w", err)
	}
	return filesystem{f}, nil
}

// sync makes durable whatever was written.
func (f filesystem) sync() error {
	if err := unix.Syncfs(int(f.dir.Fd())); err != nil {
		return machine.Faultf(machine.NodeFault, "cannot bring the inputs to the disk of %s: %w", f.dir.Name(), err)
	}
	return nil
}
