package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/internal/engine"
	together "github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

const (
	// statusLimit and doctorLimit bound how long is counted: large trees and volumes
	// take minutes, and status answers at once.
	statusLimit = 500 * time.Millisecond
	doctorLimit = 30 * time.Second
	// holdingsWait is how long a Docker that does not answer is waited for.
	holdingsWait = time.Second
)

// holdings is what takes space on the node, in bytes. Its JSON form is public.
type holdings struct {
	Deckhand ownHoldings     `json:"deckhand"` // this root's
	Others   foreignHoldings `json:"others"`   // everybody else's in Docker
	// Unknown says what could not be counted in full, and why.
	Unknown []string `json:"unknown"`
}

type ownHoldings struct {
	Images     int64 `json:"images"` // that it pulled
	Containers int64 `json:"containers"`
	Volumes    int64 `json:"volumes"`
	Tasks      int64 `json:"tasks"` // the task directories
	Journal    int64 `json:"journal"`
	Reserve    int64 `json:"reserve"` // set aside for the journal on a full disk
	Program    int64 `json:"program"` // copies for containers to run
	// Damaged are journals that were moved aside.
	Damaged int64 `json:"damaged_journals"`
}

type foreignHoldings struct {
	Images     int64 `json:"images"` // without the layers that only ours have
	Containers int64 `json:"containers"`
	Volumes    int64 `json:"volumes"`
	Cache      int64 `json:"build_cache"`
}

// holdings counts what takes space on the node, as far as it comes within limit.
func (a *app) holdings(ctx context.Context, n machine.Node, limit time.Duration) holdings {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var usage engine.Usage
	var silent error
	docker, inner := together.WithContext(ctx) // while the trees are counted
	docker.Go(func() error { usage, silent = a.usage(inner); return nil })
	h := holdings{Unknown: []string{}}
	unknown := func(what string, err error) {
		if err != nil {
			h.Unknown = append(h.Unknown, what+": "+message(err))
		}
	}
	reserve, err := journal.ReserveOf(a.journalDir())
	unknown("reserve", err)
	h.Deckhand.Reserve = reserve.Ballast
	h.Deckhand.Program, err = helper.Installed(a.binDir())
	unknown("program", err)
	damaged, err := filepath.Glob(a.journalDir() + ".damaged-*")
	unknown("damaged journals", err)
	for _, dir := range damaged {
		bytes, err := treeBytes(ctx, dir)
		unknown(filepath.Base(dir), err)
		h.Deckhand.Damaged += bytes
	}
	h.Deckhand.Journal, err = treeBytes(ctx, a.journalDir())
	unknown("journal", err)
	h.Deckhand.Journal = max(0, h.Deckhand.Journal-h.Deckhand.Reserve)
	h.Deckhand.Tasks, err = treeBytes(ctx, a.tasksDir())
	unknown("task directories", err)
	_ = docker.Wait() // silent has it
	unknown("Docker", silent)
	h.add(usage, n)
	return h
}

// usage asks Docker, without waiting for one that does not answer.
func (a *app) usage(ctx context.Context) (usage engine.Usage, err error) {
	docker, err := engine.Connect(ctx, engine.Options{Host: a.conf.Docker.Host, Wait: min(a.conf.Engine.Wait, holdingsWait)})
	if err != nil {
		return usage, err
	}
	defer func() { err = errors.Join(err, docker.Close()) }()
	return docker.Usage(ctx)
}

// add sorts what Docker has into this root's and everybody else's.
func (h *holdings) add(u engine.Usage, n machine.Node) {
	pulled := map[string]bool{}
	for _, r := range n.Images {
		pulled[r.ImageID] = pulled[r.ImageID] || r.PulledByUs
	}
	h.Others.Images, h.Others.Cache = u.LayersBytes, u.CacheBytes
	for _, i := range u.Images {
		if pulled[i.ID] {
			h.Deckhand.Images += i.Bytes
			h.Others.Images -= i.Bytes - i.Shared
		}
	}
	h.Others.Images = max(0, h.Others.Images)
	for _, c := range u.Containers {
		if isOurs(c.Name, c.Labels, n.RootID) {
			h.Deckhand.Containers += c.Bytes
		} else {
			h.Others.Containers += c.Bytes
		}
	}
	for _, v := range u.Volumes {
		if isOurs(v.Name, v.Labels, n.RootID) {
			h.Deckhand.Volumes += v.Bytes
		} else {
			h.Others.Volumes += v.Bytes
		}
	}
}

// isOurs says whether a container or volume is this root's. Docker loses labels of volumes, see
// engine.Docker.Volumes, and Podman does not tell them with what things take.
func isOurs(name string, labels map[string]string, rootID string) bool {
	return labels[engine.LabelRoot] == rootID || len(labels) == 0 && strings.HasPrefix(name, engine.RootPrefix(rootID))
}

// treeBytes counts the blocks of a tree, without following links and mounts; a
// file with several names counts in parts. With an error it is what was counted.
func treeBytes(ctx context.Context, dir string) (bytes int64, err error) {
	var dev uint64
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if path == dir {
			dev = st.Dev
		}
		if st.Dev != dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		names := int64(1)
		if !d.IsDir() {
			names = max(1, int64(st.Nlink))
		}
		bytes += st.Blocks * 512 / names
		return ctx.Err()
	})
	return bytes, err
}

// inWords is the holdings on one line for each side.
func (h holdings) inWords() (ours, others string) {
	list := func(names []string, bytes ...int64) string {
		var parts []string
		for i, b := range bytes {
			if b > 0 {
				parts = append(parts, names[i]+" "+units.BytesSize(float64(b)))
			}
		}
		if len(parts) == 0 {
			return "nothing"
		}
		return strings.Join(parts, ", ")
	}
	d, o := h.Deckhand, h.Others
	ours = list([]string{"images", "containers", "volumes", "task directories", "journal", "reserve", "program", "damaged journals"},
		d.Images, d.Containers, d.Volumes, d.Tasks, d.Journal, d.Reserve, d.Program, d.Damaged)
	others = list([]string{"images", "containers", "volumes", "build cache"}, o.Images, o.Containers, o.Volumes, o.Cache) + " in Docker"
	if o == (foreignHoldings{}) && slices.ContainsFunc(h.Unknown, func(s string) bool { return strings.HasPrefix(s, "Docker: ") }) {
		others = "unknown" // which is not nothing
	}
	if len(h.Unknown) > 0 {
		others += fmt.Sprintf("; not counted in full: %s", strings.Join(h.Unknown, "; "))
	}
	return ours, others
}
