package node

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Space is what a filesystem has left for an unprivileged user.
type Space struct {
	FreeBytes  uint64
	TotalBytes uint64
	// FreeInodes is math.MaxUint64 where the filesystem makes inodes as needed.
	FreeInodes uint64
}

// SpaceAt asks the filesystem that holds path, or would hold it: a path that
// does not exist yet is asked at its nearest existing parent.
func SpaceAt(path string) (Space, error) {
	_, st, err := statfsNearest(path)
	if err != nil {
		return Space{}, fmt.Errorf("cannot read the free space at %s: %w", path, err)
	}
	unit := uint64(st.Frsize)
	if unit == 0 {
		unit = uint64(st.Bsize)
	}
	s := Space{FreeBytes: st.Bavail * unit, TotalBytes: st.Blocks * unit, FreeInodes: st.Ffree}
	if st.Files == 0 { // btrfs and the like count none
		s.FreeInodes = math.MaxUint64
	}
	return s, nil
}

// SameFilesystem says whether two paths, or their nearest existing parents, take
// from the same space. Parts of one filesystem that count their space together but
// look like several, as on btrfs, are told apart.
func SameFilesystem(a, b string) bool {
	x, err := deviceOf(a)
	if err != nil {
		return false
	}
	y, err := deviceOf(b)
	return err == nil && x == y
}

func deviceOf(path string) (uint64, error) {
	path, _, err := statfsNearest(path)
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	err = unix.Stat(path, &st)
	return st.Dev, err
}

// statfsNearest returns the nearest existing path at or above path, and its filesystem.
func statfsNearest(path string) (string, unix.Statfs_t, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", unix.Statfs_t{}, err
	}
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		switch {
		case err == nil:
			return path, st, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOENT) && path != "/":
			path = filepath.Dir(path)
		default:
			return path, st, fmt.Errorf("%s: %w", path, err)
		}
	}
}
