package journal

import (
	"bytes"
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/deckhand/deckhand/machine"
)

// Retention says how much history of finished tasks is kept. A zero field sets
// no limit.
type Retention struct {
	// Keep is the number of finished tasks, the newest.
	Keep int
	// Age is that of a finished task's last record.
	Age time.Duration
}

// DefaultRetention is that of a journal whose options set none.
var DefaultRetention = Retention{Keep: 1000, Age: 90 * 24 * time.Hour}

// Pruned is what Prune removed, or would remove.
type Pruned struct {
	Tasks   []string // oldest first
	Records int
	Bytes   int64 // of keys and values, before badger's own
}

// Prune removes the whole history of finished tasks beyond r: an unfinished
// task and the active one stay. It copies what stays into a new generation; interrupted
// anywhere, the journal is as before or as after.
func (j *Journal) Prune(_ context.Context, r Retention, dryRun bool) (Pruned, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
		return Pruned{}, j.failed
	}
	p, err := j.prune(r, dryRun)
	if err != nil {
		return Pruned{}, machine.Faultf(machine.NodeFault, "cannot prune the journal %s: %w", j.dir, err)
	}
	return p, nil
}

func (j *Journal) prune(r Retention, dryRun bool) (Pruned, error) {
	drop, err := j.expired(r)
	if err != nil {
		return Pruned{}, err
	}
	p := Pruned{Tasks: drop.tasks}
	err = j.db.View(func(tx *badger.Txn) error {
		for item := range items(tx, nil) {
			if task, _, ok := parseRecordKey(item.Key()); ok && drop.has(task) {
				p.Records++
			}
			if drop.covers(item.Key()) {
				p.Bytes += int64(len(item.Key())) + item.ValueSize()
			}
		}
		return nil
	})
	if err != nil || dryRun || len(drop.tasks) == 0 {
		return p, err
	}
	if err := j.compact(r); err != nil {
		return Pruned{}, err
	}
	return p, j.begin()
}

// dropped are the tasks that a retention removes.
type dropped struct {
	tasks []string // oldest first
	set   map[string]bool
}

func (d dropped) has(task string) bool { return d.set[task] }

// covers says whether a key belongs to one of them.
func (d dropped) covers(key []byte) bool {
	if task, _, ok := parseRecordKey(key); ok {
		return d.set[task]
	}
	task, ok := bytes.CutPrefix(key, []byte(headPrefix))
	return ok && d.set[string(task)]
}

// expired lists the finished tasks beyond r.
func (j *Journal) expired(r Retention) (dropped, error) {
	var finished []storedHead
	err := j.db.View(func(tx *badger.Txn) error {
		node, err := j.Node()
		if err != nil {
			return err
		}
		for item := range items(tx, []byte(headPrefix)) {
			h, err := decode[storedHead](item)
			if err != nil {
				return err
			}
			if h.State.Final() && (node.Active == nil || node.Active.Task != h.Task) {
				finished = append(finished, h)
			}
		}
		return nil
	})
	if err != nil {
		return dropped{}, err
	}
	slices.SortFunc(finished, func(a, b storedHead) int { return cmp.Compare(a.Number, b.Number) })
	now := j.opts.Now()
	d := dropped{set: map[string]bool{}}
	for i, h := range finished {
		newer := len(finished) - 1 - i
		if (r.Keep > 0 && newer >= r.Keep) || (r.Age > 0 && now.Sub(h.At) > r.Age) {
			d.tasks = append(d.tasks, h.Task)
			d.set[h.Task] = true
		}
	}
	return d, nil
}

// compact copies what is alive and not expired into a new generation, makes
// that the journal and removes the old one.
func (j *Journal) compact(r Retention) error {
	drop, err := j.expired(r)
	if err != nil {
		return err
	}
	next := current{Schema: Schema, Generation: j.current.Generation + 1}
	err = writeGeneration(j.dir, next.Generation, func(w *badger.WriteBatch) error {
		return j.db.View(func(tx *badger.Txn) error {
			for item := range items(tx, nil) {
				if drop.covers(item.Key()) {
					continue
				}
				value, err := item.ValueCopy(nil)
				if err != nil {
					return err
				}
				if err := w.Set(item.KeyCopy(nil), value); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if err := writeCurrent(j.dir, next); err != nil {
		return err
	}
	old := j.generation()
	if err := closeDatabase(j.db); err != nil {
		return err
	}
	j.db = nil
	j.current = next
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	return j.openGeneration()
}

// writeGeneration makes a new generation with what fill puts into it, durably.
// It is nothing until CURRENT names it.
func writeGeneration(dir string, number uint64, fill func(*badger.WriteBatch) error) error {
	path := filepath.Join(dir, generationName(number))
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	db, err := openDatabase(databaseOptions(path).WithSyncWrites(false))
	if err != nil {
		return err
	}
	w := db.NewWriteBatch()
	if err := fill(w); err != nil {
		w.Cancel()
		return err
	}
	if err := w.Flush(); err != nil {
		return databaseError(err)
	}
	if err := closeDatabase(db); err != nil {
		return err
	}
	if err := syncTree(path); err != nil {
		return err
	}
	return syncDir(dir)
}
