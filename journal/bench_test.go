package journal_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/journal/journaltest"
)

// BenchmarkAppend is one durable transition: record, head and tip.
func BenchmarkAppend(b *testing.B) {
	j := mustOpen(b, journalDir(b), journal.Options{BootID: "boot"})
	e := journaltest.Task("t1", 1)[1]
	for b.Loop() {
		if _, err := j.Append(ctx, e); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRawAppend is its peer: the same bytes by pwrite and fdatasync to the
// end of a file on the same filesystem.
func BenchmarkRawAppend(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	e := journaltest.Task("t1", 1)[1]
	record, _ := json.Marshal(e.Record)
	head, _ := json.Marshal(e.Head)
	raw := append(record, head...)
	at := int64(0)
	for b.Loop() {
		n, err := f.WriteAt(raw, at)
		if err != nil {
			b.Fatal(err)
		}
		at += int64(n)
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
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
