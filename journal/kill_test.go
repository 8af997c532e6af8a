package journal

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// Kills at random instants of opening, writing, closing and compacting lose
// nothing that was acknowledged, and the next process opens the journal.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	all := map[string]uint64{}
	var opened []time.Duration
	kills := campaign(100, 1000)
	for i := range kills {
		a := startActor(t, dir)
		started := time.Now()
		if i%4 != 0 { // else killed while it opens
			if line := a.hear(); line != "open" {
				t.Fatalf("after %d kills: %s", i, line)
			}
			opened = append(opened, time.Since(started))
		}
		if i%2 == 0 {
			a.say("append k%d 100000", i)
		} else {
			a.say("cycle k%d- 100000", i)
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		acked := a.kill()
		if i%10 == 0 {
			v, err := OpenView(dir)
			if err != nil && i > 0 { // the first may have been killed before there was one
				t.Fatalf("kill %d: %v", i, err)
			}
			if err == nil {
				holds(t, v, acked)
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for task, seq := range acked {
			all[task] = seq
		}
	}
	j := openTest(t, dir, Options{})
	holds(t, j, all)
	closeTest(t, j)
	r := sound(t, dir)
	slices.Sort(opened)
	t.Logf("%d kills, %d tasks, %d records; start and open after a kill: median %v, slowest %v",
		kills, r.Tasks, r.Records, opened[len(opened)/2], opened[len(opened)-1])
	if r.Records == 0 || len(all) < kills/4 {
		t.Errorf("only %d tasks were written: this test tests nothing", len(all))
	}
}
