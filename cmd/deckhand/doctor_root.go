package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
)

func (e *examination) root(context.Context) []finding {
	root := e.conf.Root
	if err := e.checkRoot(); err != nil {
		return []finding{broken(message(err), "choose a directory on a disk of this node with --root")}
	}
	if err := node.CheckFilesystem(root); err != nil {
		return []finding{doubt(message(err), "disk.any_filesystem takes the risk; better choose another directory with --root")}
	}
	return []finding{fine("%s", root)}
}

// place is a directory whose filesystem a task fills.
type place struct{ what, dir, fix string }

// own are the places below the root, which may be on filesystems of their own.
func (e *examination) own() []place {
	const scrub = "free space there; \"deckhand scrub\" removes what earlier tasks left"
	return e.apart([]place{{"the root", e.conf.Root, scrub}, {"the journal", e.journalDir(), scrub}, {"the task directories", e.tasksDir(), scrub}})
}

// places are own, and Docker's.
func (e *examination) places() []place {
	all := e.own()
	// Docker may see other filesystems than this process, in a container of its own.
	if data := e.info.DataRoot; data != "" && e.dockerIsHere() && exists(filepath.Join(data, "containers")) {
		all = append(all, place{"Docker's data", data, "free space there; \"docker system df\" shows what takes it"})
	}
	return e.apart(all)
}

// apart leaves one place for each filesystem.
func (e *examination) apart(all []place) (places []place) {
	for _, p := range all {
		if p.dir != e.conf.Root && !exists(p.dir) {
			continue // it will be in the root
		}
		if !slices.ContainsFunc(places, func(q place) bool { return node.SameFilesystem(p.dir, q.dir) }) {
			places = append(places, p)
		}
	}
	return places
}

func (e *examination) space(context.Context) []finding {
	return e.room(func(p place, s node.Space) finding {
		found := fmt.Sprintf("%s of %s free for %s at %s", bytesSize(s.FreeBytes), bytesSize(s.TotalBytes), p.what, p.dir)
		if floor := uint64(max(0, e.conf.Disk.Floor)); s.FreeBytes < floor {
			return broken(found, fmt.Sprintf("%s; %s must stay free (disk.floor)", p.fix, bytesSize(floor)))
		}
		return fine("%s", found)
	})
}

func (e *examination) inodes(context.Context) []finding {
	return e.room(func(p place, s node.Space) finding {
		if s.FreeInodes == math.MaxUint64 {
			return fine("made as needed for %s at %s", p.what, p.dir)
		}
		found := fmt.Sprintf("%d free for %s at %s", s.FreeInodes, p.what, p.dir)
		if floor := uint64(max(0, e.conf.Disk.InodeFloor)); s.FreeInodes < floor {
			return broken(found, fmt.Sprintf("remove files there; %d inodes must stay free (disk.inode_floor)", floor))
		}
		return fine("%s", found)
	})
}

func (e *examination) room(judge func(place, node.Space) finding) (found []finding) {
	for _, p := range e.places() {
		space, err := node.SpaceAt(p.dir)
		if err != nil {
			found = append(found, broken(message(err), "see whether this user may look at it, and whether the filesystem is mounted"))
			continue
		}
		found = append(found, judge(p, space))
	}
	return found
}

// disk tries the filesystems of the root out: what the kernel tells of a disk says nothing of
// one that fails when it is written to.
func (e *examination) disk(context.Context) (found []finding) {
	if e.checkRoot() != nil {
		return nil
	}
	for _, p := range e.own() {
		err := node.TryDisk(p.dir)
		space, unknown := node.SpaceAt(p.dir)
		switch {
		case err == nil:
			found = append(found, fine("a file for %s at %s was written, read back and removed", p.what, p.dir))
		case errors.Is(err, unix.ENOSPC) && unknown == nil && (space.FreeBytes < diskFull || space.FreeInodes == 0):
			// Space and inodes tell of it, and the journal has its reserve.
		default:
			found = append(found, broken(fmt.Sprintf("a file for %s at %s cannot be used: %s", p.what, p.dir, message(err)),
				"see the log of the kernel (dmesg) and the options of the mount; choose a directory on another disk with --root"))
		}
	}
	return found
}

// diskFull is what a filesystem may have free, in bytes, and yet not give.
const diskFull = 1 << 20
