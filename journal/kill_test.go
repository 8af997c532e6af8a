package journal

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A thousand kills at random instants of opening, writing, closing and compacting
// lose nothing that was acknowledged; the next process opens the journal, and
// what it has to read to do so does not grow.
func TestKill(t *testing.T) {
	t.Parallel()
	const kills, perJournal = 1000, 100
	dir := filepath.Join(scratch(t), "journal")
	all := map[string]uint64{}
	var opened []time.Duration
	tasks, records := 0, 0
	check := func() {
		t.Helper()
		v, err := OpenView(dir)
		if err != nil {
			t.Fatal(err)
		}
		holds(t, v, all)
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		r := sound(t, dir)
		tasks, records = tasks+r.Tasks, records+r.Records
	}
	for i := range kills {
		if i > 0 && i%perJournal == 0 {
			check()
			clear(all)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		a := startActor(t, dir, keepVariable+"=all")
		started := time.Now()
		if i%8 != 0 { // else killed while it opens
			if line := a.hear(); line != "open" {
				t.Fatalf("after %d kills: %s", i, line)
			}
			opened = append(opened, time.Since(started))
			a.say("%s k%d- 100000", []string{"play", "cycle", "append"}[i%3], i)
			for len(a.soFar()) == 0 { // it writes by now
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond)
		acked := a.kill()
		for task, seq := range acked {
			all[task] = seq
		}
		if tables, err := filepath.Glob(filepath.Join(dir, "0*", "*.sst")); err != nil || len(tables) > 2*maxTables {
			t.Fatalf("kill %d: %d tables, %v", i, len(tables), err)
		}
		if i%10 == 9 {
			v, err := OpenView(dir)
			if err != nil {
				t.Fatalf("kill %d: %v", i, err)
			}
			holds(t, v, acked)
			within(t, v, a.soFarTried())
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check()
	slices.Sort(opened)
	t.Logf("%d kills, %d tasks, %d records; start and open after a kill: median %v, slowest %v",
		kills, tasks, records, opened[len(opened)/2], opened[len(opened)-1])
}
