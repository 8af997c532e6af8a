package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// ErrRootName refuses a root whose name no filesystem takes.
var ErrRootName = errors.New("its name is too long; choose a shorter one (--root)")

// PrepareRoot makes root a directory of mode 0700 that this user owns, with its
// parents. All checks come before the first change, and a refusal leaves
// nothing behind. Refusals carry machine.NodeFault.
func PrepareRoot(root string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return fmt.Errorf("cannot use %s as root: %w", root, err)
	}
	if err := prepareRoot(root); err != nil {
		return machine.Faultf(machine.NodeFault, "cannot use %s as root: %w", root, err)
	}
	return nil
}

// CheckRoot makes the checks of PrepareRoot that need no change.
func CheckRoot(root string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return fmt.Errorf("cannot use %s as root: %w", root, err)
	}
	at, info, err := checkRoot(root)
	if err == nil && at == root {
		_, err = mayTighten(root, info)
	}
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot use %s as root: %w", root, err)
	}
	return nil
}

// checkRoot returns the nearest directory of root that exists.
func checkRoot(root string) (at string, info os.FileInfo, err error) {
	at, _, err = statfsNearest(root)
	if errors.Is(err, unix.ENAMETOOLONG) {
		return "", nil, ErrRootName
	}
	if err != nil {
		return "", nil, err
	}
	if info, err = os.Stat(at); err != nil {
		return "", nil, err
	}
	if !info.IsDir() {
		return "", nil, fmt.Errorf("%s is not a directory", at)
	}
	// AT_EACCESS: as the effective user, and with a read-only filesystem in mind.
	if err := unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return "", nil, fmt.Errorf("%s is not writable: %w; choose another directory (--root) or run as its owner", at, err)
	}
	return at, info, nil
}

func prepareRoot(root string) error {
	at, info, err := checkRoot(root)
	if err != nil {
		return err
	}
	if at != root {
		return makeRoot(root, at)
	}
	return tightenRoot(root, info)
}

// makeRoot creates root below the existing directory at, durably, or nothing.
func makeRoot(root, at string) (err error) {
	rel, err := filepath.Rel(at, root)
	if err != nil {
		return err
	}
	var made []string
	defer func() {
		if err != nil {
			for i := len(made) - 1; i >= 0; i-- {
				_ = os.Remove(made[i]) // not if somebody has put something into it
			}
		}
	}()
	dir := at
	for _, part := range strings.Split(rel, string(filepath.Separator)) {
		parent := dir
		dir = filepath.Join(dir, part)
		mode := os.FileMode(0o755)
		if dir == root {
			mode = 0o700
		}
		if err := os.Mkdir(dir, mode); errors.Is(err, os.ErrExist) && dir != root {
			continue // another process makes a root beside ours
		} else if errors.Is(err, os.ErrExist) {
			return prepareRoot(root)
		} else if err != nil {
			return err
		}
		made = append(made, dir)
		if err := syncDir(parent); err != nil {
			return err
		}
	}
	return nil
}

// tightenRoot takes an existing directory over.
func tightenRoot(root string, info os.FileInfo) error {
	open, err := mayTighten(root, info)
	if err != nil || !open {
		return err
	}
	return os.Chmod(root, 0o700)
}

// mayTighten says whether an existing directory is open to others, and why it
// must not be closed to them.
func mayTighten(root string, info os.FileInfo) (open bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return false, err
	}
	if int(st.Uid) != os.Geteuid() {
		return false, fmt.Errorf("it belongs to user %d and this is user %d; run as user %d, or choose another directory (--root)", st.Uid, os.Geteuid(), st.Uid)
	}
	if info.Mode().Perm() == 0o700 {
		return false, nil
	}
	// Only a root of ours, or an empty directory, is closed to others: not /tmp
	// because somebody mistyped.
	if _, err := os.Lstat(filepath.Join(root, ownerFile)); err != nil {
		entries, err := os.ReadDir(root)
		if err != nil {
			return false, err
		}
		if len(entries) > 0 {
			return false, fmt.Errorf("it holds other things and its mode is %04o; choose an empty directory (--root), or chmod 0700 it", info.Mode().Perm())
		}
	}
	return true, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
