package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/scrub"
)

const (
	fixDamage  = "look at \"deckhand journal verify\"; the next run moves a journal that cannot be opened aside and begins a new one"
	fixRecover = "run the task again to resume it, or \"deckhand recover\" to roll it back"
)

func (e *examination) journal(context.Context) []finding {
	switch known, err := e.hasJournal(); {
	case err != nil:
		return []finding{broken(message(err), "see whether this user may look at the root")}
	case !known:
		return []finding{fine("none yet; the first run makes it")}
	}
	report, err := journal.Verify(e.journalDir(), machine.Legal)
	switch {
	case err != nil:
		return []finding{broken(message(err), fixDamage)}
	case len(report.Problems) > 0:
		return []finding{broken(fmt.Sprintf("%s, the first: %s", counted(len(report.Problems), "problem"), report.Problems[0].What), fixDamage)}
	}
	return []finding{fine("%s, %s, sound", counted(report.Tasks, "task"), counted(report.Records, "record"))}
}

func (e *examination) reserve(context.Context) []finding {
	if !exists(e.journalDir()) {
		return nil
	}
	r, err := journal.ReserveOf(e.journalDir())
	switch {
	case err != nil:
		return []finding{doubt(message(err), fixDamage)}
	case r.Ballast < r.BallastWanted:
		return []finding{doubt(reserveInWords(r), "free space; the next run fills the reserve again")}
	}
	return []finding{fine("%s", reserveInWords(r))}
}

// quietView opens a copy of the journal to read; what is wrong with it is told by
// the check of the journal alone.
func (e *examination) quietView() (v *journal.View, ok bool, err error) {
	if known, err := e.hasJournal(); !known {
		return nil, false, err
	}
	v, err = journal.OpenView(e.journalDir())
	return v, err == nil, err
}

// account is what the journal knows of the node; false when there is none that can
// be read, of which the check of the journal tells.
func (e *examination) account() (n machine.Node, ok bool) {
	v, ok, err := e.quietView()
	if err != nil || !ok {
		return n, false
	}
	n, err = v.Node()
	return n, errors.Join(err, v.Close()) == nil
}

func (e *examination) unfinished(context.Context) []finding {
	n, ok := e.account()
	if !ok {
		return nil
	}
	if n.Active == nil {
		return []finding{fine("none")}
	}
	found := fmt.Sprintf("task %s, attempt %d", n.Active.Task, n.Active.Attempt)
	if owner, alive, err := e.owner(); err == nil && alive && owner.Task == n.Active.Task {
		return []finding{fine("%s, which runs", found)}
	}
	return []finding{doubt(found+", and no process works on it", fixRecover)}
}

// lock compares who has the lock of the root with who says so.
func (e *examination) lock(ctx context.Context) []finding {
	if !node.Locked(e.conf.Root) {
		return []finding{fine("free")}
	}
	holder, err := node.Holder(e.conf.Root)
	if err != nil {
		return []finding{doubt(message(err), "see whether this user may look at the root, and whether /proc is mounted")}
	}
	owner, known, err := node.ReadOwner(e.conf.Root)
	if err != nil {
		return []finding{doubt(message(err), "see whether this user may read it")}
	}
	const harmless = "nothing: the lock itself is free, and the next run, or \"deckhand recover\", takes its things away"
	_, err = owner.Alive()
	switch {
	case holder == 0 && known && errors.Is(err, node.ErrElsewhere):
		return []finding{doubt("perhaps held: "+message(err), fmt.Sprintf("look at process %d on %s, or outside this container", owner.PID, owner.Host))}
	case holder == 0 && known:
		return []finding{doubt(fmt.Sprintf("stale: process %d has left without giving up the root", owner.PID), harmless)}
	case holder == 0 && exists(filepath.Join(e.conf.Root, socketName)):
		return []finding{doubt("stale: "+socketName+" of a dead process is there, and nobody answers on it", harmless)}
	case holder == 0:
		return []finding{fine("free")}
	case !known || owner.PID != holder:
		return []finding{broken(fmt.Sprintf("process %d holds it and has not written down who it is", holder),
			fmt.Sprintf("look at process %d (\"ps -fp %d\") and end it if it is no deckhand; until then every run ends with 75", holder, holder))}
	}
	found := fmt.Sprintf("process %d holds it", holder)
	if owner.Task == "" {
		return []finding{fine("%s", found)}
	}
	found += " for task " + owner.Task
	if _, err := askProgress(ctx, e.conf.Root); err != nil {
		return []finding{doubt(found+" and does not answer on "+socketName,
			fmt.Sprintf("see whether process %d is stopped (\"ps -o state= -p %d\" says T; \"kill -CONT %d\" lets it go on) or waits for a disk", holder, holder, holder))}
	}
	return []finding{fine("%s", found)}
}

// leftovers are what the next scrub would remove, without what belongs to the
// unfinished task, of which another check tells.
func (e *examination) leftovers(ctx context.Context) []finding {
	if e.silent != nil || e.checkRoot() != nil || !exists(e.conf.Root) {
		return nil
	}
	n, ok := e.account()
	if !ok {
		var err error
		if n.RootID, err = journal.RootIDOf(e.journalDir()); err != nil || n.RootID == "" {
			return nil // nothing ever ran here
		}
	}
	dir := ""
	if n.Active != nil {
		dir = taskDir(n.Active.Task)
	}
	cleaner := &scrub.Cleaner{Engine: e.docker, RootID: n.RootID, TasksDir: e.tasksDir(), Bin: e.binDir(), Grace: e.conf.Run.StopGrace}
	gone, _, err := cleaner.Find(ctx, n.Active, dir, n.Images)
	if err != nil {
		return []finding{doubt(message(err), "look at \"deckhand scrub --dry-run\"")}
	}
	if len(gone) == 0 {
		return []finding{fine("none")}
	}
	kinds, bytes := map[scrub.Kind]int{}, int64(0)
	for _, i := range gone {
		kinds[i.Kind]++
		bytes += i.Bytes
	}
	words := make([]string, 0, len(kinds))
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		words = append(words, fmt.Sprintf("%d of kind %s", kinds[kind], kind))
	}
	return []finding{doubt(fmt.Sprintf("%s, %s as far as it is known", strings.Join(words, ", "), units.BytesSize(float64(bytes))), "the next run removes them; \"deckhand scrub\" does it now, \"deckhand scrub --dry-run\" lists them")}
}

// held tells what takes space on the node.
func (e *examination) held(ctx context.Context) []finding {
	n, ok := e.account()
	if !ok {
		return nil
	}
	ours, others := e.holdings(ctx, n, doctorLimit).inWords()
	return []finding{fine("by deckhand: %s; by others: %s", ours, others)}
}
