package journal_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

var ctx = context.Background()

func mustOpen(t testing.TB, dir string, o journal.Options) *journal.Journal {
	t.Helper()
	j, err := journal.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func mustClose(t testing.TB, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func appendAll(t testing.TB, j *journal.Journal, entries []machine.Entry) {
	t.Helper()
	for _, e := range entries {
		if _, err := j.Append(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
}

func journalDir(t testing.TB) string {
	return filepath.Join(t.TempDir(), "journal")
}

func TestConformance(t *testing.T) {
	journaltest.Run(t, func(t *testing.T, s journaltest.Settings) journaltest.Journal {
		return mustOpen(t, journalDir(t), journal.Options{BootID: s.BootID, Now: s.Now, Sinks: s.Sinks})
	})
}

func TestReopen(t *testing.T) {
	dir := journalDir(t)
	var rootID string
	for run := range 30 { // more than it takes to compact twice
		j := mustOpen(t, dir, journal.Options{})
		node, err := j.Node()
		if err != nil {
			t.Fatal(err)
		}
		if rootID == "" {
			rootID = node.RootID
		} else if node.RootID != rootID {
			t.Fatalf("root id %s became %s", rootID, node.RootID)
		}
		appendAll(t, j, journaltest.Task(fmt.Sprint("t", run), 1))
		heads, err := j.Heads()
		if err != nil || len(heads) != run+1 || heads[0].Task != fmt.Sprint("t", run) {
			t.Fatalf("run %d: %d heads, %v", run, len(heads), err)
		}
		for _, h := range heads {
			journaltest.Chained(t, journaltest.Records(t, j, h.Task), h)
		}
		mustClose(t, j)
		if files, _ := filepath.Glob(filepath.Join(dir, "*", "*.sst")); len(files) > 13 {
			t.Fatalf("run %d: %d tables", run, len(files))
		}
	}
	verified(t, dir, 30)
}

func verified(t *testing.T, dir string, tasks int) {
	t.Helper()
	report, err := journal.Verify(dir, machine.Legal)
	if err != nil || len(report.Problems) > 0 || report.Tasks != tasks {
		t.Errorf("%d tasks, want %d; %v, %v", report.Tasks, tasks, report.Problems, err)
	}
}

func TestLock(t *testing.T) {
	dir := journalDir(t)
	j := mustOpen(t, dir, journal.Options{})
	_, err := journal.Open(dir, journal.Options{})
	if !errors.Is(err, journal.ErrLocked) || machine.FaultOf(err) != machine.RetryLater {
		t.Errorf("second Open: %v (%s)", err, machine.FaultOf(err))
	}
	if _, err := journal.MoveAside(dir, time.Now()); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("MoveAside of a held journal: %v", err)
	}
	mustClose(t, j)
	mustClose(t, mustOpen(t, dir, journal.Options{}))
}

func TestRefused(t *testing.T) {
	j := mustOpen(t, journalDir(t), journal.Options{})
	ok := journaltest.Task("t1", 1)[0]
	for name, change := range map[string]func(*machine.Entry){
		"no task":       func(e *machine.Entry) { e.Record.Task, e.Head.Task = "", "" },
		"NUL":           func(e *machine.Entry) { e.Record.Task, e.Head.Task = "a\x00b", "a\x00b" },
		"no UTF-8":      func(e *machine.Entry) { e.Record.Task, e.Head.Task = "a\xff", "a\xff" },
		"long":          func(e *machine.Entry) { e.Record.Task = strings.Repeat("x", 2000); e.Head.Task = e.Record.Task },
		"two tasks":     func(e *machine.Entry) { e.Head.Task = "t2" },
		"two attempts":  func(e *machine.Entry) { e.Head.Attempt = 2 },
		"detail array":  func(e *machine.Entry) { e.Record.Detail = []byte("[]") },
		"detail broken": func(e *machine.Entry) { e.Record.Detail = []byte("{") },
		"huge":          func(e *machine.Entry) { e.Record.Reason = strings.Repeat("x", 1<<20) },
	} {
		e := ok
		change(&e)
		if _, err := j.Append(ctx, e); !errors.Is(err, journal.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e := ok
	e.Record.Reason = strings.Repeat("x", 250<<10)
	if _, err := j.Append(ctx, e); err != nil {
		t.Errorf("after refused entries, a large one: %v", err)
	}
}

func TestView(t *testing.T) {
	dir := journalDir(t)
	if _, err := journal.OpenView(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("view of no journal: %v", err)
	}
	j := mustOpen(t, dir, journal.Options{})
	appendAll(t, j, journaltest.Task("t1", 1))
	v, err := journal.OpenView(dir)
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, j, journaltest.Task("t2", 1)[:1])
	head, found, err := v.Head("t1")
	if err != nil || !found {
		t.Fatal(found, err)
	}
	journaltest.Chained(t, journaltest.Records(t, v, "t1"), head)
	if _, found, _ := v.Head("t2"); found {
		t.Error("a view is as of the time when it was opened")
	}
	mustClose(t, v)
	mustClose(t, j)
	before := contents(t, dir)
	v, err = journal.OpenView(dir)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, v)
	if after := contents(t, dir); !reflect.DeepEqual(before, after) {
		t.Error("a view changed the journal")
	}
}

func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		all[path] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPrune(t *testing.T) {
	dir := journalDir(t)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	j := mustOpen(t, dir, journal.Options{Now: func() time.Time { return now }})
	for i := range 6 {
		appendAll(t, j, journaltest.Task(fmt.Sprint("t", i), 1))
		now = now.Add(time.Hour)
	}
	appendAll(t, j, journaltest.Task("unfinished", 1)[:4])
	now = now.Add(1000 * time.Hour)
	e := journaltest.Task("t0", 2)
	e[0].Node = &machine.Node{Active: &machine.TaskRef{Task: "t1", Attempt: 1}}
	appendAll(t, j, e) // newer than t5 now
	mustClose(t, j)
	for _, c := range []struct {
		r    journal.Retention
		dry  bool
		want []string
	}{
		{journal.Retention{}, false, nil},
		{journal.Retention{Keep: 3}, true, []string{"t2", "t3"}},
		{journal.Retention{Age: 1002*time.Hour + time.Minute}, true, []string{"t2", "t3"}},
		{journal.Retention{Keep: 3}, false, []string{"t2", "t3"}},
		{journal.Retention{Keep: 3}, false, nil},
		{journal.Retention{Age: time.Hour}, false, []string{"t4", "t5"}},
	} {
		var p journal.Pruned
		var err error
		if c.dry {
			before := contents(t, dir)
			v, openErr := journal.OpenView(dir)
			if openErr != nil {
				t.Fatal(openErr)
			}
			p, err = journal.PruneView(v, c.r, now)
			mustClose(t, v)
			if !reflect.DeepEqual(before, contents(t, dir)) {
				t.Error("what would be pruned was asked, and the journal changed")
			}
		} else {
			p, err = journal.Prune(dir, journal.Options{Now: func() time.Time { return now }}, c.r)
		}
		if err != nil || !reflect.DeepEqual(p.Tasks, c.want) || p.Records != 11*len(c.want) || (p.Bytes > 0) != (len(c.want) > 0) {
			t.Errorf("%+v: %+v, %v; want %v", c.r, p, err, c.want)
		}
		j := mustOpen(t, dir, journal.Options{})
		if _, err := journal.Prune(dir, journal.Options{}, journal.Retention{Keep: 1}); !errors.Is(err, journal.ErrLocked) {
			t.Errorf("Prune of a held journal: %v", err)
		}
		appendAll(t, j, journaltest.Task("unfinished", 1)[4:5])
		mustClose(t, j)
	}
	j = mustOpen(t, dir, journal.Options{})
	heads, err := j.Heads()
	if err != nil || len(heads) != 3 {
		t.Errorf("%v, %v", heads, err)
	}
}

func TestMoveAside(t *testing.T) {
	dir := journalDir(t)
	j := mustOpen(t, dir, journal.Options{})
	appendAll(t, j, journaltest.Task("t1", 1))
	before, _ := j.Node()
	mustClose(t, j)
	if err := os.WriteFile(filepath.Join(dir, "CURRENT"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(dir, journal.Options{}); !errors.Is(err, journal.ErrDamaged) {
		t.Fatalf("damaged: %v", err)
	}
	moved, err := journal.MoveAside(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(moved, "CURRENT")); err != nil {
		t.Error(err)
	}
	j = mustOpen(t, dir, journal.Options{})
	after, _ := j.Node()
	if _, found, _ := j.Head("t1"); found || after.RootID != before.RootID {
		t.Errorf("found %v, root id %s, was %s", found, after.RootID, before.RootID)
	}
}

func TestNewerSchema(t *testing.T) {
	dir := journalDir(t)
	mustClose(t, mustOpen(t, dir, journal.Options{}))
	if err := os.WriteFile(filepath.Join(dir, "CURRENT"), []byte(`{"schema":99,"new":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"Open":     func() error { _, err := journal.Open(dir, journal.Options{}); return err },
		"OpenView": func() error { _, err := journal.OpenView(dir); return err },
		"Verify":   func() error { _, err := journal.Verify(dir, machine.Legal); return err },
	} {
		if err := f(); !errors.Is(err, journal.ErrNewerSchema) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
