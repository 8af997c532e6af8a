package journal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/journal/journaltest"
)

// BenchmarkAppend is one durable transition (record, head and tip) and, in turn
// with it, its peer: the same bytes by pwrite and fdatasync to the end of a file
// on the same filesystem. The ratio is that of the medians.
func BenchmarkAppend(b *testing.B) {
	j := mustOpen(b, journalDir(b), journal.Options{BootID: "boot"})
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	e := journaltest.Task("t1", 1)[1]
	record, _ := json.Marshal(e.Record)
	head, _ := json.Marshal(e.Head)
	raw := append(record, head...)
	var ours, theirs []time.Duration
	for i := int64(0); b.Loop(); i++ {
		begin := time.Now()
		if _, err := j.Append(ctx, e); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, time.Since(begin))
		begin = time.Now()
		_, err := f.WriteAt(raw, i*int64(len(raw)))
		if err := errors.Join(err, unix.Fdatasync(int(f.Fd()))); err != nil {
			b.Fatal(err)
		}
		theirs = append(theirs, time.Since(begin))
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	n := len(ours) / 2
	b.ReportMetric(float64(ours[n].Microseconds()), "µs/append")
	b.ReportMetric(float64(theirs[n].Microseconds()), "µs/raw")
	b.ReportMetric(float64(ours[n])/float64(theirs[n]), "ratio")
}

// BenchmarkOpen opens an empty journal to where it takes records.
func BenchmarkOpen(b *testing.B) {
	dir := journalDir(b)
	mustClose(b, mustOpen(b, dir, journal.Options{}))
	for b.Loop() {
		j, err := journal.Open(dir, journal.Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		mustClose(b, j)
		b.StartTimer()
	}
}

// BenchmarkView is what inspect and status pay before they read.
func BenchmarkView(b *testing.B) {
	dir := journalDir(b)
	j := mustOpen(b, dir, journal.Options{})
	for i := range 20 {
		appendAll(b, j, journaltest.Task(fmt.Sprint("t", i), 1))
	}
	for b.Loop() {
		v, err := journal.OpenView(dir)
		if err != nil {
			b.Fatal(err)
		}
		mustClose(b, v)
	}
}
