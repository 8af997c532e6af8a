package journal

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/deckhand/deckhand/machine"
)

// Retention says how much history of finished tasks is kept, the newest first.
// A zero field sets no limit.
type Retention struct {
	// Keep is a number of tasks.
	Keep int
	// Age is that of a task's last record.
	Age time.Duration
	// Bytes is what they take, compressed. In Options zero means DefaultRetention's.
	Bytes int64
}

// DefaultRetention is that of a journal whose options set none.
var DefaultRetention = Retention{Keep: 1000, Age: 30 * 24 * time.Hour, Bytes: 8 << 20}

// archiveSize is how many bytes of finished tasks the generation may hold
// before they go into the history.
const archiveSize = 1 << 20

// Pruned is what Prune removed, or would remove.
type Pruned struct {
	Tasks   []string // oldest first
	Records int
	Bytes   int64 // compressed
}

// Prune removes the whole history of finished tasks beyond r: an unfinished
// task and the active one stay. It copies what stays into new files;
// interrupted anywhere, the journal is as before or as after.
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
	f, err := j.finished()
	if err != nil {
		return Pruned{}, err
	}
	p := f.drop(r, j.opts.Now())
	if dryRun || len(p.Tasks) == 0 {
		return p, nil
	}
	// From here on a failure leaves no database to write to.
	if err := j.rewrite(f); err != nil {
		j.failed = err
		return Pruned{}, err
	}
	return p, j.begin()
}

// compactIfDue compacts a generation of many tables, unless space is short: it
// writes everything anew, and a journal of too many tables still works.
func (j *Journal) compactIfDue() error {
	if len(j.db.Tables()) < maxTables {
		return nil
	}
	size, err := sizeOf(j.dir)
	if err != nil {
		return err
	}
	if free, err := freeBytes(j.dir); err != nil || free < ample+size {
		return err
	}
	return j.compact()
}

// compact makes the next generation. Finished tasks move to the history, which
// is written anew, when there are enough of them to be worth it.
func (j *Journal) compact() error {
	size, err := j.finishedSize()
	if err != nil {
		return err
	}
	if size < archiveSize {
		return j.rewrite(nil)
	}
	f, err := j.finished()
	if err != nil {
		return err
	}
	f.drop(j.opts.Retention, j.opts.Now())
	return j.rewrite(f)
}

// finished are the tasks that belong into the history.
type finished struct {
	// info has every one of them.
	info map[string]packInfo
	// fresh are the packs of those that are in the generation.
	fresh map[string][]byte
}

// isFinished says whether the task may leave the generation.
func isFinished(h storedHead, node machine.Node) bool {
	return h.State.Final() && (node.Active == nil || node.Active.Task != h.Task)
}

// finishedSize is what finished tasks take in the generation, in bytes.
func (j *Journal) finishedSize() (size int64, err error) {
	node, err := j.Node()
	if err != nil {
		return 0, err
	}
	done := map[string]bool{}
	tx := j.db.NewTransaction(false)
	defer tx.Discard()
	for item := range items(tx, []byte(headPrefix)) {
		h, err := decode[storedHead](item)
		if err != nil {
			return 0, err
		}
		if done[h.Task] = isFinished(h, node); done[h.Task] {
			size += item.EstimatedSize()
		}
	}
	for item := range items(tx, []byte(recordPrefix)) {
		if task, _, ok := parseRecordKey(item.Key()); ok && done[task] {
			size += item.EstimatedSize()
		}
	}
	return size, nil
}

// finished packs the finished tasks of the generation and lists those of the
// history.
func (j *Journal) finished() (*finished, error) {
	f := &finished{info: map[string]packInfo{}, fresh: map[string][]byte{}}
	for s, err := range j.past.all() {
		if err != nil {
			return nil, err
		}
		if f.info[s.task], err = decodePackInfo(s.pack); err != nil {
			return nil, err
		}
	}
	node, err := j.Node()
	if err != nil {
		return nil, err
	}
	tx := j.db.NewTransaction(false)
	defer tx.Discard()
	for item := range items(tx, []byte(headPrefix)) {
		h, err := decode[storedHead](item)
		if err != nil {
			return nil, err
		}
		if !isFinished(h, node) {
			delete(f.info, h.Task) // it has begun anew: its past is not touched
			continue
		}
		p := pack{head: h}
		for r, err := range j.records(tx, h.Task) {
			if err != nil {
				return nil, err
			}
			p.records = append(p.records, r.raw)
		}
		if f.fresh[h.Task], err = p.encode(); err != nil {
			return nil, err
		}
		if f.info[h.Task], err = decodePackInfo(f.fresh[h.Task]); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// drop takes out the tasks beyond r and tells which.
func (f *finished) drop(r Retention, now time.Time) Pruned {
	newest := make([]string, 0, len(f.info))
	for task := range f.info {
		newest = append(newest, task)
	}
	slices.SortFunc(newest, func(a, b string) int { return cmp.Compare(f.info[b].number, f.info[a].number) })
	var p Pruned
	var kept int
	var bytes int64
	for _, task := range newest {
		info := f.info[task]
		bytes += info.bytes
		if (r.Keep == 0 || kept < r.Keep) && (r.Age == 0 || now.Sub(info.at) <= r.Age) && (r.Bytes == 0 || bytes <= r.Bytes) {
			kept++
			continue
		}
		p.Tasks = append(p.Tasks, task)
		p.Records += int(info.records)
		p.Bytes += info.bytes
	}
	slices.Reverse(p.Tasks)
	for _, task := range p.Tasks {
		delete(f.info, task)
		f.fresh[task] = nil // known to be in the generation or the history, and to go
	}
	return p
}

// rewrite copies what stays into a new generation and, unless f is nil, into a
// new history, makes them the journal and removes the old ones.
func (j *Journal) rewrite(f *finished) error {
	next := j.current
	if f != nil {
		n := next.free()
		if err := writeDatabase(j.dir, n, func(w *badger.WriteBatch) error { return j.copyHistory(w, f) }); err != nil {
			return err
		}
		mark, err := fingerprintOf(filepath.Join(j.dir, generationName(n), badger.ManifestFilename), -1)
		if err != nil {
			return err
		}
		next.History = &historyRef{Generation: n, Manifest: mark}
	}
	next.Generation = next.free()
	if err := writeDatabase(j.dir, next.Generation, func(w *badger.WriteBatch) error { return j.copyGeneration(w, f) }); err != nil {
		return err
	}
	if err := writeCurrent(j.dir, next); err != nil {
		return err
	}
	if err := j.closeGeneration(); err != nil {
		return err
	}
	j.current = next
	if err := removeOtherGenerations(j.dir, next); err != nil {
		return err
	}
	return j.openGeneration()
}

func (j *Journal) copyHistory(w *badger.WriteBatch, f *finished) error {
	for s, err := range j.past.all() {
		if err != nil {
			return err
		}
		if _, again := f.fresh[s.task]; again {
			continue // packed anew, or to go
		}
		if err := putPack(w, s); err != nil {
			return err
		}
	}
	for task, raw := range f.fresh {
		if err := putPack(w, stored{task, raw}); err != nil {
			return err
		}
	}
	return nil
}

// copyGeneration leaves out the tasks that are in the new history, or dropped.
func (j *Journal) copyGeneration(w *badger.WriteBatch, f *finished) error {
	tx := j.db.NewTransaction(false)
	defer tx.Discard()
	for item := range items(tx, nil) {
		if task, ok := taskOf(item.Key()); ok && f != nil {
			if _, left := f.fresh[task]; left {
				continue
			}
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
}

// writeDatabase makes a new database with what fill puts into it, durably. It
// is nothing until CURRENT names it.
func writeDatabase(dir string, number uint64, fill func(*badger.WriteBatch) error) (err error) {
	path := filepath.Join(dir, generationName(number))
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	db, err := openDatabase(databaseOptions(path))
	if err != nil {
		return err
	}
	w := db.NewWriteBatch()
	if err = fill(w); err == nil {
		err = w.Flush()
	} else {
		w.Cancel()
	}
	if err := errors.Join(err, closeDatabase(db)); err != nil {
		return err
	}
	if err := syncTree(path); err != nil {
		return err
	}
	return syncDir(dir)
}
