package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// usage is what the journal takes.
type usage struct {
	files int
	bytes int64 // on disk
	fds   int   // open in the process that has the journal
}

func (u usage) most(other usage) usage {
	return usage{max(u.files, other.files), max(u.bytes, other.bytes), max(u.fds, other.fds)}
}

func measure(t testing.TB, dir string) (u usage) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		u.files++
		u.bytes += st.Blocks * 512
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Ten thousand runs on one root, a tenth of them killed: with at most 64 files
// open nothing hangs, and nothing grows.
func TestBounded(t *testing.T) {
	t.Parallel()
	const lives, runs = 1000, 10 // the last of which is killed
	dir := filepath.Join(scratch(t), "journal")
	var thirds [3]usage
	var opened [3][]int // microseconds
	for life := range lives {
		a := startActor(t, dir, filesVariable+"=64", keepVariable+"=1000", "GOMAXPROCS=1")
		a.expect("open")
		a.say("idle run%d- 1000000", life)
		third := life * 3 / lives
		most := &thirds[third]
		for range runs - 1 {
			var u usage
			var took int
			line := a.hear()
			if n, _ := fmt.Sscanf(line, "cycle %d %d", &u.fds, &took); n != 2 {
				t.Fatalf("life %d: %q", life, line)
			}
			*most = most.most(u)
			opened[third] = append(opened[third], took)
		}
		time.Sleep(time.Duration(rand.IntN(8)) * time.Millisecond)
		acked := a.kill()
		*most = most.most(measure(t, dir))
		if life%50 == 49 {
			v, err := OpenView(dir)
			if err != nil {
				t.Fatal(err)
			}
			holds(t, v, acked)
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, u := range thirds {
		slices.Sort(opened[i])
		t.Logf("runs %d to %d: at most %d files, %d KiB, %d descriptors; opened in %d µs (median)",
			i*lives*runs/3, (i+1)*lives*runs/3, u.files, u.bytes>>10, u.fds, opened[i][len(opened[i])/2])
	}
	// The history is full long before the second third.
	was, is := thirds[1], thirds[2]
	if is.files > was.files+4 || is.fds > was.fds+4 || is.bytes > was.bytes+1<<20 || is.bytes > 24<<20 {
		t.Errorf("it grows: %+v, then %+v", was, is)
	}
	sound(t, dir)
}

// fillHistory puts n finished tasks away, without a transaction for each.
func fillHistory(t testing.TB, dir string, n int) {
	t.Helper()
	closeTest(t, openTest(t, dir, Options{}))
	j, err := enter(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := j.load()
	if err != nil {
		t.Fatal(err)
	}
	f := &finished{info: map[string]packInfo{}, fresh: map[string]pack{}}
	mem := journaltest.NewMemory()
	for i := range n {
		task := fmt.Sprint("t", i)
		var head machine.Head
		for _, e := range journaltest.Task(task, 1) {
			var err error
			if head, err = mem.Append(context.Background(), e); err != nil {
				t.Fatal(err)
			}
		}
		p, _, err := encodePack(storedHead{Head: head, Number: uint64(i) + 1, At: time.Now()}, func(yield func(storedRecord, error) bool) {
			for r, err := range mem.Records(task) {
				if !yield(storedRecord{r.Seq, mustJSON(t, r)}, err) {
					return
				}
			}
		}, math.MaxInt64)
		mem.Forget(task)
		if err != nil {
			t.Fatal(err)
		}
		f.fresh[task] = p
	}
	if err := j.rewrite(c, f, false); err != nil {
		t.Fatal(err)
	}
	if err := j.release(); err != nil {
		t.Fatal(err)
	}
}

// The default history fits into 16 MiB.
func TestDiskOfHistory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	fillHistory(t, dir, 10000)
	left := measure(t, dir)
	t.Logf("10,000 tasks: %d KiB, %d bytes a task", left.bytes>>10, left.bytes/10000)
	if left.bytes > 16<<20 {
		t.Errorf("10,000 tasks take %d bytes", left.bytes)
	}
	j := openTest(t, dir, Options{})
	if head, found, err := j.Head("t9999"); err != nil || !found || head.State != machine.Complete {
		t.Errorf("%+v, %v, %v", head, found, err)
	}
	if heads, err := j.Heads(); err != nil || len(heads) != 10000 {
		t.Errorf("%d heads, %v", len(heads), err)
	}
}

// A run, and one that begins with a crashed journal, more than a megabyte of
// finished tasks in it, and a compaction with ten thousand tasks of history, take
// at most 16 MiB more than the same process without a journal.
func TestMemory(t *testing.T) {
	peakOf := func(a *actor) (kib int) {
		t.Helper()
		line := a.hear()
		if n, _ := fmt.Sscanf(line, "peak %d", &kib); n != 1 || kib == 0 {
			t.Fatal(line)
		}
		return kib
	}
	without := peakOf(startActor(t, noJournal))
	dir := filepath.Join(scratch(t), "journal")
	const tasks = 10000
	fillHistory(t, dir, tasks)
	before, _, err := readCurrent(dir)
	if err != nil {
		t.Fatal(err)
	}
	peaks := map[string]int{}
	for _, what := range []string{"run1", "run2", "compaction"} {
		a := startActor(t, dir, "GOGC=50") // as the program has it
		a.expect("open")
		a.say("play %s- 60", what)
		a.hear()
		a.say("peak")
		peaks[what] = peakOf(a) - without
		a.kill()
	}
	after, _, err := readCurrent(dir)
	if err != nil {
		t.Fatal(err)
	}
	if after.History.Generation == before.History.Generation {
		t.Error("nothing was compacted: this test tests nothing")
	}
	t.Logf("on top of %d KiB, with %d tasks of history, in KiB: %v", without, tasks, peaks)
	for what, kib := range peaks {
		if kib > 16<<10 {
			t.Errorf("%s took %d KiB", what, kib)
		}
	}
}

// BenchmarkOpenWithHistory is the time to the first record with so many finished
// tasks, as a ratio to that without any, which is measured in turn with it.
func BenchmarkOpenWithHistory(b *testing.B) {
	for _, n := range []int{10000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			none, full := filepath.Join(b.TempDir(), "none"), filepath.Join(b.TempDir(), "full")
			closeTest(b, openTest(b, none, Options{}))
			fillHistory(b, full, n)
			first := entry("new", 1)
			began := func(dir string) time.Duration {
				start := time.Now()
				j, err := Open(dir, Options{Retention: keepAll})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := j.Append(context.Background(), first); err != nil {
					b.Fatal(err)
				}
				took := time.Since(start)
				closeTest(b, j)
				return took
			}
			var empty, old []time.Duration
			for b.Loop() {
				empty, old = append(empty, began(none)), append(old, began(full))
			}
			slices.Sort(empty)
			slices.Sort(old)
			middle := len(old) / 2
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(empty[middle].Microseconds()), "µs/none")
			b.ReportMetric(float64(old[middle].Microseconds()), "µs/full")
			b.ReportMetric(float64(old[middle])/float64(empty[middle]), "ratio")
			b.ReportMetric(float64(measure(b, full).bytes)/float64(n), "diskB/task")
		})
	}
}

// BenchmarkInspect reads every record of a thousand finished tasks from a view
// and, in turn with it, its peer: the same records from a file of JSON lines.
func BenchmarkInspect(b *testing.B) {
	const tasks = 1000
	dir := filepath.Join(b.TempDir(), "journal")
	fillHistory(b, dir, tasks)
	v, err := OpenView(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	var lines bytes.Buffer
	records := 0
	ours := func(take func(machine.Record)) time.Duration {
		start := time.Now()
		for i := range tasks {
			for r, err := range v.Records(fmt.Sprint("t", i)) {
				if err != nil {
					b.Fatal(err)
				}
				take(r)
			}
		}
		return time.Since(start)
	}
	ours(func(r machine.Record) {
		records++
		if err := json.NewEncoder(&lines).Encode(r); err != nil {
			b.Fatal(err)
		}
	})
	var mine, theirs time.Duration
	rounds := 0
	for b.Loop() {
		mine += ours(func(machine.Record) {})
		start := time.Now()
		for in := json.NewDecoder(bytes.NewReader(lines.Bytes())); in.More(); {
			var r machine.Record
			if err := in.Decode(&r); err != nil {
				b.Fatal(err)
			}
		}
		theirs += time.Since(start)
		rounds++
	}
	b.ReportMetric(float64(records*rounds)/mine.Seconds(), "records/s")
	b.ReportMetric(float64(records*rounds)/theirs.Seconds(), "records/s-lines")
	b.ReportMetric(mine.Seconds()/theirs.Seconds(), "ratio")
}
