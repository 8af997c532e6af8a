package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/machine"
)

// diskKey is where the detail of a transition says what was free then.
const diskKey = "disk"

// filesystem is what is free where a task takes space, in bytes.
type filesystem struct {
	Path  string `json:"path"`
	Free  uint64 `json:"free"`
	Total uint64 `json:"total"`
}

// Used is how much of the filesystem is taken, from 0 to 1.
func (f filesystem) Used() float64 {
	if f.Total == 0 || f.Free > f.Total {
		return 0
	}
	return 1 - float64(f.Free)/float64(f.Total)
}

// spaceJournal is a journal whose transitions say what was free on the node: that is
// how a disk that fills up can be seen afterwards.
type spaceJournal struct {
	machine.Journal
	// paths are those of the filesystems, the first one's first.
	paths func() []string
}

func (j spaceJournal) Append(ctx context.Context, e machine.Entry) (machine.Head, error) {
	if e.Record.Kind == machine.KindTransition {
		var err error
		if e.Record.Detail, err = withDisk(e.Record.Detail, filesystems(j.paths())); err != nil {
			return machine.Head{}, err
		}
	}
	return j.Journal.Append(ctx, e)
}

// filesystems looks at each filesystem once. One that does not answer is left out: a
// transition does not fail for it.
func filesystems(paths []string) (found []filesystem) {
	for i, path := range paths {
		if i > 0 && node.SameFilesystem(paths[0], path) {
			continue
		}
		if s, err := node.SpaceAt(path); err == nil && s.TotalBytes > 0 {
			found = append(found, filesystem{path, s.FreeBytes, s.TotalBytes})
		}
	}
	return found
}

// withDisk adds filesystems to the detail of a record.
func withDisk(detail json.RawMessage, found []filesystem) (json.RawMessage, error) {
	if len(found) == 0 {
		return detail, nil
	}
	members := map[string]json.RawMessage{}
	if len(detail) > 0 {
		if err := json.Unmarshal(detail, &members); err != nil {
			return nil, fmt.Errorf("the detail of a transition is no object: %w", err)
		}
	}
	text, err := json.Marshal(found)
	if err != nil {
		return nil, err
	}
	members[diskKey] = text
	return json.Marshal(members)
}

// disk is what the record of a transition says of filesystems.
func disk(r machine.Record) ([]filesystem, error) {
	var detail struct {
		Disk []filesystem `json:"disk"`
	}
	if r.Kind != machine.KindTransition {
		return nil, nil
	}
	if err := json.Unmarshal(r.Detail, &detail); err != nil {
		return nil, fmt.Errorf("record %d of task %s has no readable detail: %w", r.Seq, r.Task, err)
	}
	return detail.Disk, nil
}
