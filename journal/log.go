package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// fdatasync is a variable for the test that must see records lost without it.
var fdatasync = unix.Fdatasync

// logFile is the log that badger writes to, held open a second time: to give it
// blocks ahead, so that badger never touches a page without one, to make it
// durable, and to know how full it is, so that badger never rotates it without
// room for that.
type logFile struct {
	dir string // of the generation
	f   *os.File
	// used is an upper bound of what badger has put into f.
	used int64
	// cost is that of the transaction under way.
	cost int64
}

// prepare takes up the log that badger has made last.
func (l *logFile) prepare() error {
	names, err := filepath.Glob(filepath.Join(l.dir, "*.mem"))
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("badger has no log in %s", l.dir)
	}
	newest := slices.Max(names)
	if l.f != nil && l.f.Name() == newest {
		return nil
	}
	f, err := os.OpenFile(newest, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	// Badger has written to its first page. The file's name has to be durable
	// before what is in it.
	if err := errors.Join(allocate(f, int64(os.Getpagesize()), logSize), f.Sync(), syncDir(l.dir)); err != nil {
		return errors.Join(err, f.Close())
	}
	err = l.close()
	l.f, l.used = f, l.cost
	return err
}

// reserve is called before a transaction of at most cost bytes, which may fill
// the log up to most while there is little space.
func (l *logFile) reserve(cost, most int64) error {
	l.cost = cost
	if l.used+cost <= most {
		return nil
	}
	free, err := freeBytes(l.dir)
	if err != nil {
		return err
	}
	if free < ample {
		return fmt.Errorf("%w: what was set aside for this task is used up (%d bytes free, %d needed to go on)", ErrNoSpace, free, ample)
	}
	return nil
}

// commit makes the transaction durable that badger has written.
func (l *logFile) commit() error {
	l.used += l.cost
	if l.used > memTableSize {
		if err := l.prepare(); err != nil { // badger may have rotated
			return err
		}
	}
	return fdatasync(int(l.f.Fd()))
}

func (l *logFile) close() error {
	if l == nil || l.f == nil {
		return nil
	}
	return l.f.Close()
}
