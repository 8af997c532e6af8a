package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"

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

// places are one for each filesystem.
func (e *examination) places() (places []place) {
	const scrub = "free space there; \"deckhand scrub\" removes what earlier tasks left"
	all := []place{{"the root", e.conf.Root, scrub}, {"the journal", e.journalDir(), scrub}, {"the task directories", e.tasksDir(), scrub}}
	// Docker may see other filesystems than this process, in a container of its own.
	if data := e.info.DataRoot; data != "" && e.dockerIsHere() && exists(filepath.Join(data, "containers")) {
		all = append(all, place{"Docker's data", data, "free space there; \"docker system df\" shows what takes it"})
	}
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
