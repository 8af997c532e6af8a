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
// would remove it, and below groups that the engine cannot remove then: an engine
// whose job ends before its container does not come back for them. A group that has
// processes or groups stays.
func (h Host) Prune(parent string) error {
	mounts, err := h.mounts()
	if err != nil {
		return err
	}
	var failed error
	for _, mount := range slices.Sorted(maps.Values(mounts)) {
		for dir := path.Clean(parent); strings.Count(dir, "/") > kept; dir = path.Dir(dir) {
			// Who is not root may not even try, and would be told so.
			if hasGroups(filepath.Join(mount, dir)) {
				break
			}
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

func hasGroups(dir string) bool {
	entries, _ := os.ReadDir(dir) // none, of what is not there
	return slices.ContainsFunc(entries, fs.DirEntry.IsDir)
}
