package journal

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	fds   int   // open in this process
}

func measure(t testing.TB, dir string) (u usage) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
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
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	u.fds = len(fds)
	return u
}

// Run after run on one root, a tenth of them killed, nothing grows: with at
// most 64 files open, nothing hangs.
func TestBounded(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := was
	few.Cur = 64
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }()

	dir := filepath.Join(t.TempDir(), "journal")
	runs := campaign(150, 10000)
	var worst usage
	begin := measure(t, t.TempDir())
	for i := range runs {
		if i%10 == 9 {
			a := startActor(t, dir)
			a.expect("open")
			a.say("append killed%d 30", i)
			a.hear()
			a.kill()
			continue
		}
		j := openTest(t, dir, Options{BootID: "boot"})
		appendTest(t, j, journaltest.Task(fmt.Sprint("t", i), 1)...)
		during := measure(t, dir)
		closeTest(t, j)
		worst.files, worst.bytes, worst.fds = max(worst.files, during.files), max(worst.bytes, during.bytes), max(worst.fds, during.fds)
		if during.fds > begin.fds+40 || during.files > 60 || during.bytes > 24<<20 {
			t.Fatalf("run %d: %+v", i, during)
		}
	}
	left := measure(t, dir)
	if left.bytes > 16<<20 {
		t.Errorf("%d bytes are left on disk", left.bytes)
	}
	t.Logf("%d runs: at most %d files, %d KiB, %d descriptors; %d KiB left when closed", runs, worst.files, worst.bytes>>10, worst.fds, left.bytes>>10)
	sound(t, dir)
}

// fillHistory puts n finished tasks away, without a transaction for each.
func fillHistory(t testing.TB, dir string, n int) {
	t.Helper()
	j := openTest(t, dir, Options{Retention: Retention{Keep: 1 << 30, Bytes: 1 << 40}})
	f := &finished{info: map[string]packInfo{}, fresh: map[string][]byte{}}
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
		p := pack{head: storedHead{Head: head, Number: uint64(i) + 1, At: time.Now()}}
		for r := range mem.Records(task) {
			p.records = append(p.records, mustJSON(t, r))
		}
		mem.Forget(task)
		raw, err := p.encode()
		if err != nil {
			t.Fatal(err)
		}
		f.fresh[task] = raw
	}
	if err := j.rewrite(f); err != nil {
		t.Fatal(err)
	}
	if err := j.begin(); err != nil {
		t.Fatal(err)
	}
	closeTest(t, j)
}

// Ten times the default history fits into 16 MiB.
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

// A run, and a compaction of the whole default history, take at most 16 MiB
// more than the same process without a journal.
func TestMemory(t *testing.T) {
	peakOf := func(a *actor) (kib int) {
		line := a.hear()
		if n, _ := fmt.Sscanf(line, "peak %d", &kib); n != 1 || kib == 0 {
			t.Fatal(line)
		}
		return kib
	}
	without := peakOf(startActor(t, noJournal))
	dir := filepath.Join(t.TempDir(), "journal")
	fillHistory(t, dir, DefaultRetention.Keep)
	a := startActor(t, dir)
	a.expect("open")
	a.say("append run %d", taskOf500)
	a.hear()
	a.say("peak")
	run := peakOf(a) - without
	a.hear()
	a.say("compact")
	a.hear()
	a.say("peak")
	compact := peakOf(a) - without
	t.Logf("on top of %d KiB: a run %d KiB, a compaction of %d tasks %d KiB", without, run, DefaultRetention.Keep, compact)
	if run > 16<<10 || compact > 16<<10 {
		t.Errorf("more than 16 MiB")
	}
}

func BenchmarkOpenWithHistory(b *testing.B) {
	for _, n := range []int{0, 10000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "journal")
			fillHistory(b, dir, n)
			first := entry("new", 1)
			for b.Loop() {
				j, err := Open(dir, Options{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := j.Append(context.Background(), first); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				closeTest(b, j)
				b.StartTimer()
			}
			b.ReportMetric(float64(measure(b, dir).bytes)/float64(max(n, 1)), "diskB/task")
		})
	}
}
