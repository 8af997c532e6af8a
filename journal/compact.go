package journal

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// Retention says how much history of finished tasks is kept, the newest first.
// A zero field sets no limit.
type Retention struct {
	// Keep is a number of tasks.
	Keep int
	// Age is that of a task's last record.
	Age time.Duration
	// Bytes is what they take, compressed; the newest one is not counted, since it
	// is the one that people ask for. In Options zero means DefaultRetention's.
	Bytes int64
}

// DefaultRetention is that of a journal whose options set none.
var DefaultRetention = Retention{Keep: 10000, Age: 30 * 24 * time.Hour, Bytes: 8 << 20}

const (
	// maxTables is how many tables badger may have added to a generation before
	// the next one is made: one comes with every run.
	maxTables = 12
	// maxAdded is how large they may be together, in bytes, when there is more than one.
	maxAdded = 4 << 20
	// mostTables is how many there may be when there is no space to make the next
	// generation: each takes a file descriptor.
	mostTables = 36
	// archiveSize is how many bytes of finished tasks the generation may hold
	// before they go into the history.
	archiveSize = 1 << 20
	// heldPacks is how many bytes of packs are held until they are written, and
	// largePack what one of them may have; the others are made again then.
	heldPacks = 8 << 20
	largePack = 1 << 20
)

// Pruned is what Prune removed, or would remove.
type Pruned struct {
	Tasks   []string // oldest first
	Records int
	Bytes   int64 // compressed
}

// Prune removes the history of finished tasks beyond r from the journal in dir:
// an unfinished task and the active one stay. It copies what stays into new
// files; interrupted anywhere, the journal is as before or as after. A journal
// that a process holds is ErrLocked. Errors are as Open's.
func Prune(dir string, o Options, r Retention) (Pruned, error) {
	p, err := prune(dir, o, r)
	if err != nil {
		return Pruned{}, openError(dir, err)
	}
	return p, nil
}

func prune(dir string, o Options, r Retention) (p Pruned, err error) {
	j, err := enter(dir, o)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, j.release()) }()
	defer frugally()()
	c, logged, err := j.load()
	if err != nil {
		return p, err
	}
	f, err := (&reader{c, j.past}).finished(j.opts.Now())
	if err != nil {
		return p, err
	}
	if p = f.drop(r, j.opts.Now()); len(p.Tasks) == 0 {
		return p, nil
	}
	return p, j.rewrite(c, f, logged > 0)
}

// PruneView tells what Prune would remove, from what v holds.
func PruneView(v *View, r Retention, now time.Time) (Pruned, error) {
	f, err := v.finished(now)
	if err != nil {
		return Pruned{}, readError("the finished tasks", err)
	}
	return f.drop(r, now), nil
}

// frugally has the garbage collector keep the process small while a generation is
// read, and lets go of what that took: the run that follows should not
// hold for its whole life what its beginning threw away.
func frugally() (end func()) {
	percent := debug.SetGCPercent(20)
	return func() {
		debug.SetGCPercent(percent)
		debug.FreeOSMemory()
	}
}

// added are the tables that badger has added to a generation.
type added struct {
	tables int
	bytes  int64
}

func measureTables(tables []listed) (a added, err error) {
	for _, t := range tables {
		if t.level > 0 {
			continue
		}
		info, err := os.Stat(t.name)
		if err != nil {
			return a, err
		}
		a.tables++
		a.bytes += info.Size()
	}
	return a, nil
}

// due says that it is time for the next generation.
func (a added) due() bool {
	return a.tables >= maxTables || a.tables > 1 && a.bytes >= maxAdded
}

// renewIfDue makes the next generation of one that a process left without
// closing it, or that has many tables. Without space for it a closed one is
// used as it is.
func (j *Journal) renewIfDue(crashed bool, a added) (renewed bool, err error) {
	defer frugally()()
	c, logged, err := j.load()
	if err != nil {
		return false, err
	}
	if crashed && logged == 0 && !a.due() { // nothing was journaled
		return false, j.removeLogs()
	}
	if !crashed {
		free, err := freeBytes(j.dir)
		if err != nil {
			return false, err
		}
		size, err := c.size()
		if err != nil {
			return false, err
		}
		if need := roomFor(size) + openRoom; free < need {
			if a.tables < mostTables {
				return false, nil
			}
			return false, fmt.Errorf("%w: %d bytes free, %d needed to make few tables of many", ErrNoSpace, free, need)
		}
	}
	return true, j.renew(c, crashed)
}

// renew makes the next generation of c. Finished tasks move to the history,
// which is written anew, when there are enough of them to be worth it.
func (j *Journal) renew(c *contents, crashed bool) error {
	r := &reader{c, j.past}
	done, err := r.finishedSize()
	if err != nil {
		return err
	}
	size, err := c.size()
	if err != nil {
		return err
	}
	free, err := freeBytes(j.dir)
	if err != nil {
		return err
	}
	if done < archiveSize || free < roomFor(size+j.past.size())+openRoom {
		return j.rewrite(c, nil, crashed)
	}
	f, err := r.finished(j.opts.Now())
	if err != nil {
		return err
	}
	f.drop(j.opts.Retention, j.opts.Now())
	return j.rewrite(c, f, crashed)
}

// removeLogs removes logs in which nothing is.
func (j *Journal) removeLogs() error {
	logs, err := filesOf(j.generation(), "*.mem")
	for _, name := range logs {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// finished are the tasks that belong into the history.
type finished struct {
	// info has every one of them.
	info map[string]packInfo
	// fresh are the packs of those that are in the generation; nil for a task
	// that goes.
	fresh map[string]pack
	pending
}

// isFinished says whether the task may leave the generation.
func isFinished(h storedHead, node machine.Node) bool {
	return h.State.Final() && (node.Active == nil || node.Active.Task != h.Task)
}

// finishedSize is what finished tasks take in the generation, in bytes.
func (r *reader) finishedSize() (size int64, err error) {
	node, err := r.node()
	if err != nil {
		return 0, err
	}
	done := map[string]bool{}
	for e, err := range r.scan([]byte(headPrefix)) {
		if err != nil {
			return 0, err
		}
		h, err := decode[storedHead](e.key, e.value)
		if err != nil {
			return 0, err
		}
		if isFinished(h, node) {
			done[h.Task] = true
			size += int64(len(e.key) + len(e.value))
		}
	}
	for e, err := range r.scan([]byte(recordPrefix)) {
		if err != nil {
			return 0, err
		}
		if task, _, ok := parseRecordKey(e.key); ok && done[task] {
			size += int64(len(e.key) + len(e.value))
		}
	}
	return size, nil
}

// finished packs the finished tasks of the generation and lists those of the
// history.
func (r *reader) finished(now time.Time) (*finished, error) {
	node, err := r.node()
	if err != nil {
		return nil, err
	}
	room := int64(heldPacks)
	f := &finished{info: map[string]packInfo{}, fresh: map[string]pack{}}
	if f.pending, err = r.pending(now); err != nil {
		return nil, err
	}
	for s, err := range r.past.all() {
		if err != nil {
			return nil, err
		}
		f.info[s.task] = s.info
	}
	for e, err := range r.scan([]byte(headPrefix)) {
		if err != nil {
			return nil, err
		}
		h, err := decode[storedHead](e.key, e.value)
		if err != nil {
			return nil, err
		}
		if !isFinished(h, node) {
			delete(f.info, h.Task) // it has begun anew: its past is not touched
			continue
		}
		p, info, err := encodePack(h, r.records(h.Task), min(room, largePack))
		if err != nil {
			return nil, err
		}
		if info.bytes <= min(room, largePack) {
			room -= info.bytes
		}
		f.fresh[h.Task], f.info[h.Task] = p, info
	}
	return f, nil
}

// drop takes out the tasks beyond r and tells which. A task of which somebody is
// still to be told stays for its number of bytes alone.
func (f *finished) drop(r Retention, now time.Time) Pruned {
	newest := make([]string, 0, len(f.info))
	for task := range f.info {
		newest = append(newest, task)
	}
	slices.SortFunc(newest, func(a, b string) int { return cmp.Compare(f.info[b].number, f.info[a].number) })
	var p Pruned
	var kept int
	var bytes int64
	for i, task := range newest {
		info := f.info[task]
		counted := info.bytes
		if i == 0 {
			counted = 0
		}
		stays := (r.Keep == 0 || kept < r.Keep) && (r.Age == 0 || now.Sub(info.at) <= r.Age)
		if (stays || f.tasks[task]) && (r.Bytes == 0 || bytes+counted <= r.Bytes) {
			kept++
			bytes += counted // a task too large for the limit takes no smaller one with it
			continue
		}
		p.Tasks = append(p.Tasks, task)
		p.Records += int(info.records)
		p.Bytes += info.bytes
	}
	slices.Reverse(p.Tasks)
	for _, task := range p.Tasks {
		delete(f.info, task)
		delete(f.tasks, task)
		f.fresh[task] = nil // known to be in the generation or the history, and to go
	}
	return p
}

// packs yields what the new history holds, ordered by task.
func (f *finished) packs(past *history) iter.Seq2[stored, error] {
	return func(yield func(stored, error) bool) {
		fresh := slices.Sorted(maps.Keys(f.fresh))
		next := func(before string, all bool) bool {
			for len(fresh) > 0 && (all || fresh[0] < before) {
				s := stored{task: fresh[0], pack: f.fresh[fresh[0]]}
				fresh = fresh[1:]
				if s.pack != nil && !yield(s, nil) {
					return false
				}
			}
			return true
		}
		for s, err := range past.all() {
			if err != nil {
				yield(stored{}, err)
				return
			}
			if !next(s.task, false) {
				return
			}
			if _, again := f.fresh[s.task]; !again && !yield(s, nil) {
				return
			}
		}
		next("", true)
	}
}

// rewrite writes what stays of c into a new generation and, unless f is nil,
// into a new history, makes them the journal and removes the old ones. The
// generation that a dead process left stays as evidence, where there is space.
func (j *Journal) rewrite(c *contents, f *finished, crashed bool) (err error) {
	next, was := j.current, j.generation()
	var p pending
	if f != nil {
		p = f.pending
	} else if p, err = (&reader{c, j.past}).pending(j.opts.Now()); err != nil {
		return err
	}
	size, err := c.size()
	if err != nil {
		return err
	}
	if err := makeRoom(j.dir, roomFor(size)); err != nil {
		return err
	}
	if f != nil {
		if next.History, err = writeHistory(j.dir, next.free(), f.packs(j.past)); err != nil {
			return err
		}
	}
	next.Generation = next.free()
	if err := writeGeneration(j.dir, next.Generation, f.rest(c, p)); err != nil {
		return errors.Join(err, removeOtherGenerations(j.dir, j.current))
	}
	past, err := openHistory(j.dir, next)
	if err != nil {
		return missing(err)
	}
	if err := writeCurrent(j.dir, next); err != nil {
		return err
	}
	j.current, j.past = next, past
	if err := j.testify(j.witness.said); err != nil {
		return err
	}
	if crashed {
		if err := keepEvidence(j.dir, was); err != nil {
			return err
		}
	}
	return removeOtherGenerations(j.dir, next)
}

// rest yields what stays in the generation: all but the tasks that are in the
// new history, or dropped, and what nobody waits for.
func (f *finished) rest(c *contents, p pending) iter.Seq2[tableEntry, error] {
	return func(yield func(tableEntry, error) bool) {
		for e, err := range c.scan(nil) {
			if err != nil {
				yield(tableEntry{}, err)
				return
			}
			if task, ok := taskOf(e.key); ok && f != nil {
				if _, left := f.fresh[task]; left {
					continue
				}
			}
			if !p.over(e.key, e.value) && !yield(e, nil) {
				return
			}
		}
	}
}
