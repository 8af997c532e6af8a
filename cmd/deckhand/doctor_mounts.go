package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/deckhand/deckhand/internal/node"
)

// mounts looks at the directories whose files are mounted as inputs: whoever can change
// them changes what a task sees while it runs.
func (e *examination) mounts(context.Context) (found []finding) {
	declared := fields(e.conf.Storage.File.Mount)
	usable := mountable(e.conf.Config)
	for _, dir := range declared {
		found = append(found, mountsOf(dir, len(usable) > 0))
	}
	return found
}

func mountsOf(dir string, usable bool) finding {
	name := "storage.file.mount " + dir
	if !usable {
		return doubt("nothing of "+name+" is mounted: run.cap_add lets containers make a mount writable", "take SYS_ADMIN out of run.cap_add, or the directory out of storage.file.mount")
	}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return doubt(fmt.Sprintf("%s cannot be used: %s", name, message(err)), "mend it, or take it out of the setting; inputs from there are copied until then")
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return doubt(fmt.Sprintf("%s cannot be used: %s", name, message(err)), "mend it, or take it out of the setting")
	}
	if point, private := node.ReadMounts().Private(resolved); private {
		return doubt(fmt.Sprintf("nothing of %s is mounted: it is on %s", name, ofJobAlone(point)), "declare a directory that the node has too; inputs from there are copied until then")
	}
	for at := resolved; at != "/"; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err == nil && others(info) {
			return doubt(fmt.Sprintf("others can change %s: %s has mode %04o and belongs to user %d", name, at, info.Mode().Perm(), info.Sys().(*syscall.Stat_t).Uid),
				"let root or the user of deckhand alone write to it; tasks see what is changed there while they run")
		}
	}
	return fine("files of %s are mounted as inputs, read-only", dir)
}

// others says whether somebody else than root and this user may change what is in a
// directory. With the sticky bit they may add to it only.
func others(info fs.FileInfo) bool {
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	return uid != 0 && uid != os.Geteuid() || info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0
}
