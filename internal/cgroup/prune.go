package cgroup

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kept is how many of the upper levels of a parent stay: those that jobs share,
// such as /slurm/uid_0. There are not many of them, and while one is removed
// another job may need it.
const kept = 2

// Prune removes what is empty of a parent of containers that have gone. Docker
// makes it also in hierarchies that the engine does not use, where nobody else
// would remove it, and below groups that the engine cannot remove then. A group
// that has processes or groups stays. Where version 2 is alone, all of the parent
// is the engine's; beside version 1 Docker makes it there too.
func (h Host) Prune(parent string) error {
	mounts, err := h.mounts()
	if err != nil {
		return err
	}
	if _, ok := mounts[""]; ok && len(mounts) == 1 {
		return nil
	}
	var failed error
	for _, mount := range slices.Sorted(maps.Values(mounts)) {
		for dir := path.Clean(parent); strings.Count(dir, "/") > kept; dir = path.Dir(dir) {
			err := os.Remove(filepath.Join(mount, dir))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
					failed = errors.Join(failed, err)
				}
				break
			}
		}
	}
	return failed
}
