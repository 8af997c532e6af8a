package journal

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// MoveAside renames the journal in dir to dir.damaged-TIME and returns the new
// name. Nothing is deleted. The next Open makes a new journal, which keeps the
// root id if the old one can still tell it. A journal that a process holds
// stays where it is: ErrLocked.
func MoveAside(dir string, now time.Time) (movedTo string, err error) {
	movedTo = dir + ".damaged-" + now.UTC().Format("20060102T150405.000000000Z")
	if err := moveAside(dir, movedTo); err != nil {
		return "", machine.Faultf(machine.NodeFault, "cannot move the journal %s aside: %w", dir, err)
	}
	return movedTo, nil
}

func moveAside(dir, movedTo string) error {
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Space set aside serves the next journal better.
	if err := os.Remove(filepath.Join(dir, ballastFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	id, known := anyRootID(dir)
	if err := os.Rename(dir, movedTo); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if !known {
		return nil
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	return writeRootID(dir, id)
}

// anyRootID finds the root id where it is written down: it names what is on
// the node.
func anyRootID(dir string) (string, bool) {
	if id, ok := readRootID(dir); ok {
		return id, true
	}
	if c, found, err := readCurrent(dir); found && err == nil && rootIDPattern.MatchString(c.Root) {
		return c.Root, true
	}
	said, err := testimonyIn(dir)
	return said.Root, err == nil && rootIDPattern.MatchString(said.Root)
}
