package system

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/test/rig"
)

// BenchmarkScrub removes the leftover of a task, 1,000,000 files in 50,000
// directories or as many files as DECKHAND_BENCH_FILES says, beside rm -rf of the
// same tree. Reported are the medians in seconds, start and journal included, their
// ratio, files a second, and the most memory.
func BenchmarkScrub(b *testing.B) {
	files := 1_000_000
	if n := os.Getenv("DECKHAND_BENCH_FILES"); n != "" {
		var err error
		if files, err = strconv.Atoi(n); err != nil {
			b.Fatal(err)
		}
	}
	const each = 2 // of both, in turn
	w := NewWorld(b)
	var ours, peer []time.Duration
	var memory int64
	for b.Loop() {
		for round := range each {
			// ext4 avoids the inodes of what has just been deleted, which makes files slow
			// to make there: every round has a filesystem of its own.
			at := rig.Filesystem(b, "ext4", 40<<30)
			w.Root = filepath.Join(at, "root")
			if r := w.Deckhand(b, "scrub"); r.Code != 0 { // makes the root
				b.Fatalf("%+v", r)
			}
			left, same := filepath.Join(w.Root, "tasks", "left"), filepath.Join(at, "same")
			plant(b, left, files)
			plant(b, same, files)
			remove := func(cmd *exec.Cmd, tree string, times *[]time.Duration) (peak int64) {
				unix.Sync()
				start := time.Now()
				peak = observe(b, cmd)
				*times = append(*times, time.Since(start))
				if _, err := os.Lstat(tree); !os.IsNotExist(err) {
					b.Fatalf("%s is left: %v", tree, err)
				}
				return peak
			}
			scrub := func() {
				memory = max(memory, remove(w.Command(b, "scrub", "--progress", "none"), left, &ours))
			}
			rm := func() { remove(exec.Command("rm", "-rf", same), same, &peer) }
			for _, do := range [][]func(){{scrub, rm}, {rm, scrub}}[round%2] {
				do()
			}
		}
	}
	b.ReportMetric(0, "ns/op") // of both together: it says nothing
	a, p := median(ours).Seconds(), median(peer).Seconds()
	b.ReportMetric(a, "deckhand-s")
	b.ReportMetric(p, "rm-s")
	b.ReportMetric(a/p, "of-rm")
	b.ReportMetric(float64(files)/a, "files/s")
	b.ReportMetric(float64(memory)/(1<<20), "deckhand-MiB")
}

// plant makes a tree of that many files, 20 in a directory, below directories of a
// hundred.
func plant(b *testing.B, top string, files int) {
	b.Helper()
	const inDir, dirs = 20, 100
	var makers errgroup.Group
	makers.SetLimit(2)
	for i := range max(1, files/inDir/dirs) {
		makers.Go(func() error {
			for j := range dirs {
				dir := filepath.Join(top, fmt.Sprint(i), fmt.Sprint(j))
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				for k := range inDir {
					if err := unix.Mknod(filepath.Join(dir, fmt.Sprintf("file-%02d", k)), unix.S_IFREG|0o644, 0); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	if err := makers.Wait(); err != nil {
		b.Fatal(err)
	}
}
