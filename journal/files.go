package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
)

// The files of the journal's directory, beside the generations.
const (
	lockFile    = "LOCK"
	currentFile = "CURRENT"
	rootIDFile  = "ROOT_ID"
	witnessFile = "WITNESS"
	ballastFile = "BALLAST"

	// listFile is in the directory of a history.
	listFile = "TABLES"
)

var (
	generationPattern = regexp.MustCompile(`^[0-9]{6,}$`)
	rootIDPattern     = regexp.MustCompile(`^[0-9a-f]{16}$`)
)

// lockDir takes the journal's lock without waiting. The kernel releases it when
// the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readCurrent returns the content of CURRENT; false when there is no such file.
func readCurrent(dir string) (current, bool, error) {
	raw, err := os.ReadFile(filepath.Join(dir, currentFile))
	if errors.Is(err, os.ErrNotExist) {
		return current{}, false, nil
	}
	if err != nil {
		return current{}, false, err
	}
	var version struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(raw, &version); err != nil {
		return current{}, false, fmt.Errorf("%w: %s is not readable: %.80q", ErrDamaged, currentFile, raw)
	}
	if version.Schema > Schema {
		return current{}, false, fmt.Errorf("%w: its schema is %d and this one knows up to %d; install that release or choose another root", ErrNewerSchema, version.Schema, Schema)
	}
	if _, known := upgrades[version.Schema]; version.Schema != Schema && !known {
		return current{}, false, fmt.Errorf("%w: %s names schema %d, which never was", ErrDamaged, currentFile, version.Schema)
	}
	var c current
	in := json.NewDecoder(bytes.NewReader(raw))
	in.DisallowUnknownFields() // a name that was altered is not one left out
	if err := in.Decode(&c); err != nil || c.Generation == 0 {
		return current{}, false, fmt.Errorf("%w: %s is not readable: %.80q", ErrDamaged, currentFile, raw)
	}
	return c, true, nil
}

// writeCurrent replaces CURRENT: the moment at which a generation becomes the journal.
func writeCurrent(dir string, c current) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, currentFile), append(raw, '\n'))
}

// writeFile replaces a file atomically and durably.
func writeFile(name string, content []byte) error {
	if err := node.ReplaceFile(name, content, 0o600); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncTree makes the files in a directory durable, then the directory.
func syncTree(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range files {
		if e.IsDir() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// removeOtherGenerations removes what a compaction left that was interrupted
// before or after it replaced CURRENT, and a file that was not put in place.
func removeOtherGenerations(dir string, c current) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		unplaced := strings.HasSuffix(f.Name(), node.NewSuffix)
		if !unplaced && (!f.IsDir() || !generationPattern.MatchString(f.Name()) || c.names(f.Name())) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}
