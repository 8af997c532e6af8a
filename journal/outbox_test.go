package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

var told = Options{Sinks: []string{"one", "two"}}

func undeliveredTasks(t *testing.T, j *Journal, sink string) (tasks []string) {
	t.Helper()
	for _, n := range journaltest.Undelivered(t, j, sink) {
		tasks = append(tasks, n.Record.Task)
	}
	return slices.Compact(tasks)
}

// Places and what was not delivered outlive kills, closes, compactions and the
// move into the history.
func TestOutboxStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, dir, told)
	appendTest(t, j, journaltest.Task("t1", 1)...)
	appendTest(t, j, journaltest.Task("t2", 1)...)
	all := journaltest.Undelivered(t, j, "one")
	if err := j.Delivered("one", all[1].Number); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		if left := journaltest.Undelivered(t, j, "one"); !reflect.DeepEqual(left, all[2:]) {
			t.Errorf("%s %d of %d notices are left for one sink, want %d", when, len(left), len(all), len(all)-2)
		}
		if left := journaltest.Undelivered(t, j, "two"); !reflect.DeepEqual(left, all) {
			t.Errorf("%s %d of %d notices are left for the other", when, len(left), len(all))
		}
		sound(t, dir)
	}
	closeTest(t, j)
	j = openTest(t, dir, told)
	check("after a close")
	if err := j.release(); err != nil { // as a kill leaves it
		t.Fatal(err)
	}
	j = openTest(t, dir, told)
	check("after a kill")
	closeTest(t, j)
	if err := compact(dir); err != nil {
		t.Fatal(err)
	}
	if v, err := OpenView(dir); err != nil || v.past.size() == 0 {
		t.Fatalf("nothing went into the history (%v)", err)
	}
	j = openTest(t, dir, Options{}) // by a process that was not told of the sinks
	appendTest(t, j, journaltest.Task("t3", 1)...)
	closeTest(t, j)
	j = openTest(t, dir, told)
	all = append(all, journaltest.Undelivered(t, j, "two")[len(all):]...)
	if last := all[len(all)-1].Record; last.Task != "t3" {
		t.Errorf("the last notice is of %s", last.Task)
	}
	check("after a compaction")

	last := all[len(all)-1].Number
	if err := errors.Join(j.Delivered("one", last), j.Delivered("two", last)); err != nil {
		t.Fatal(err)
	}
	closeTest(t, j)
	if err := compact(dir); err != nil {
		t.Fatal(err)
	}
	j = openTest(t, dir, told)
	for e, err := range j.scan([]byte(eventPrefix)) {
		t.Errorf("%q is left although everybody has it, %v", e.key, err)
	}
}

// A sink is told of what comes after it was configured.
func TestNewSink(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, dir, Options{Sinks: []string{"one"}})
	appendTest(t, j, journaltest.Task("t1", 1)...)
	closeTest(t, j)
	j = openTest(t, dir, told)
	appendTest(t, j, journaltest.Task("t2", 1)...)
	if got := undeliveredTasks(t, j, "two"); !slices.Equal(got, []string{"t2"}) {
		t.Errorf("the new sink is told of %v", got)
	}
	if got := undeliveredTasks(t, j, "one"); !slices.Equal(got, []string{"t1", "t2"}) {
		t.Errorf("the other is told of %v", got)
	}
}

// Retention keeps what somebody is still to be told of, within its bytes, and
// does not wait for a sink that nobody has used for a month.
func TestRetentionOfUndelivered(t *testing.T) {
	later := time.Now().Add(forgetSink + time.Hour)
	for _, c := range []struct {
		name string
		o    Options
		r    Retention
		want []string // that are still to be told of
	}{
		{"by count", told, Retention{Keep: 1}, []string{"t1", "t2", "t3"}},
		{"by age", told, Retention{Age: time.Nanosecond}, []string{"t1", "t2", "t3"}},
		{"by bytes", told, Retention{Bytes: 1}, []string{"t3"}},
		{"forgotten", Options{Now: func() time.Time { return later }}, Retention{Keep: 1}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "journal")
			j := openTest(t, dir, told)
			for i := range 4 {
				appendTest(t, j, journaltest.Task(fmt.Sprint("t", i), 1)...)
			}
			for _, n := range journaltest.Undelivered(t, j, "one") {
				if n.Record.Task == "t0" {
					if err := errors.Join(j.Delivered("one", n.Number), j.Delivered("two", n.Number)); err != nil {
						t.Fatal(err)
					}
				}
			}
			closeTest(t, j)
			p, err := Prune(dir, c.o, c.r)
			if err != nil || !slices.Contains(p.Tasks, "t0") {
				t.Errorf("pruned %+v (%v)", p, err)
			}
			sound(t, dir)
			j = openTest(t, dir, told)
			if got := undeliveredTasks(t, j, "one"); !slices.Equal(got, c.want) {
				t.Errorf("still to be told of %v, want %v", got, c.want)
			}
		})
	}
}

// On a full disk places take what the task does not need of the log.
func TestPlacesLeaveTheLogToTheTask(t *testing.T) {
	mnt, _ := loopFS(t, "ext4", scratch(t), fsSize)
	dir := filepath.Join(mnt, "journal")
	j, err := Open(dir, told)
	if err != nil {
		t.Fatal(err)
	}
	appendTest(t, j, journaltest.Task("t1", 1)...)
	number := journaltest.Undelivered(t, j, "one")[0].Number
	fill(t, mnt)
	for err == nil {
		err = j.Delivered("one", number)
	}
	if !errors.Is(err, ErrNoSpace) || machine.FaultOf(err) != machine.NodeFault {
		t.Errorf("the last place was refused with %v", err)
	}
	for i := range 80 {
		appendTest(t, j, journaltest.Task(fmt.Sprint("full", i), 1)...)
	}
	empty(t, mnt)
	if err := j.Delivered("one", number); err != nil {
		t.Errorf("with space again: %v", err)
	}
	closeTest(t, j)
}
