package journal

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

func openTest(t testing.TB, dir string, o Options) *Journal {
	t.Helper()
	j, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func closeTest(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func appendTest(t testing.TB, j *Journal, entries ...machine.Entry) {
	t.Helper()
	for _, e := range entries {
		if _, err := j.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
}

func sound(t testing.TB, dir string) Report {
	t.Helper()
	r, err := Verify(dir, machine.Legal)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Errorf("task %q, record %d: %s", p.Task, p.Seq, p.What)
	}
	return r
}

// compacted closes a journal, puts every finished task into its history and
// opens it again.
func compacted(t testing.TB, j *Journal) *Journal {
	t.Helper()
	closeTest(t, j)
	if err := compact(j.dir); err != nil {
		t.Fatal(err)
	}
	return openTest(t, j.dir, Options{})
}

// bytesOf is a whole pack, whose chunks are as they should be.
func bytesOf(t testing.TB, p pack) (b []byte) {
	t.Helper()
	for chunk, err := range p {
		if err != nil {
			t.Fatal(err)
		}
		if len(b)%chunkSize != 0 || len(chunk) == 0 || len(chunk) > chunkSize {
			t.Fatalf("a chunk of %d bytes follows %d bytes", len(chunk), len(b))
		}
		b = append(b, chunk...)
	}
	return b
}

func TestPack(t *testing.T) {
	head := storedHead{Head: machine.Head{Task: "t1", Seq: 4}, Number: 9, At: time.Unix(0, 12345).UTC()}
	records := [][]byte{[]byte(`{"a":"1","prev":""}`)}
	records = append(records,
		[]byte(`{"a":"2","prev":"`+hashOf(records[0])+`"}`),
		[]byte(`{"a":"3","prev":"altered"}`), // kept as it is
		[]byte(`{"later":"fields","prev":"x","after":1}`),
	)
	encode := func(most int64) ([]byte, packInfo) {
		p, info, err := encodePack(head, func(yield func(storedRecord, error) bool) {
			for i, r := range records {
				if !yield(storedRecord{uint64(i) + 1, r}, nil) {
					return
				}
			}
		}, most)
		if err != nil {
			t.Fatal(err)
		}
		return bytesOf(t, p), info
	}
	raw, info := encode(math.MaxInt64)
	if again, same := encode(0); !bytes.Equal(again, raw) || same != info {
		t.Errorf("a pack that is not held: %x, %+v; want %x, %+v", again, same, raw, info)
	}
	decode := func(raw []byte) (got [][]byte, err error) {
		for s, err := range packOf(raw).records() {
			if err != nil {
				return got, err
			}
			if got = append(got, s.raw); s.seq != uint64(len(got)) {
				t.Errorf("record %d has number %d", len(got), s.seq)
			}
		}
		return got, nil
	}
	got, err := decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	if gotHead, err := packOf(raw).head(); !slices.EqualFunc(got, records, slices.Equal) || gotHead != head || err != nil {
		t.Errorf("%s came back as %s, %v", records, got, err)
	}
	decoded, err := decodePackInfo(raw)
	if err != nil || decoded.bytes != info.bytes || decoded.number != info.number || decoded.records != info.records || !decoded.at.Equal(info.at) {
		t.Errorf("info %+v, %v, want %+v", decoded, err, info)
	}
	if info.number != 9 || info.records != 4 || info.at.UnixNano() != 12345 || info.bytes != int64(len(raw)) {
		t.Errorf("info %+v", info)
	}
	for i := range raw {
		broken := slices.Clone(raw)
		broken[i] ^= 0x10
		if _, err := decode(broken); err == nil {
			t.Errorf("byte %d altered and not noticed", i)
		}
	}
	for n := range raw {
		if _, err := decode(raw[:n]); err == nil {
			t.Errorf("cut to %d bytes and not noticed", n)
		}
	}
}

// A task reads the same before and after it moved to the history, and goes on
// from there.
func TestHistory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, dir, Options{})
	big := journaltest.Task("big", 1)
	filler := machine.Entry{Record: big[7].Record, Head: big[7].Head}
	appendTest(t, j, big[:7]...)
	for i := range 600 { // a pack of several chunks: random text does not compress
		filler.Record.Reason = ""
		for k := range 16 {
			filler.Record.Reason += hashOf(fmt.Append(nil, i, k))
		}
		appendTest(t, j, filler)
	}
	appendTest(t, j, big[7:]...)
	appendTest(t, j, journaltest.Task("a", 1)...)
	appendTest(t, j, journaltest.Task("open", 1)[:5]...)
	before := snapshot(t, j)

	j = compacted(t, j)
	same(t, before, snapshot(t, j))
	if p, err := j.past.pack("big"); err != nil || len(bytesOf(t, p)) <= 2*chunkSize {
		t.Fatalf("the pack of several chunks has one: %v", err)
	}
	closeTest(t, j)
	if r := sound(t, dir); r.Tasks != 3 || r.Records != 611+11+5 {
		t.Errorf("%+v", r)
	}

	j = openTest(t, dir, Options{})
	same(t, before, snapshot(t, j))
	appendTest(t, j, journaltest.Task("a", 2)...)
	appendTest(t, j, journaltest.Task("open", 1)[5:]...)
	before = snapshot(t, j)
	if n := len(before["a"]); n != 22+1 {
		t.Fatalf("%d records of two attempts", n)
	}
	v, err := OpenView(dir)
	if err != nil {
		t.Fatal(err)
	}
	same(t, before, snapshot(t, v))
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	j = compacted(t, j)
	same(t, before, snapshot(t, j))
	if r := sound(t, dir); r.Tasks != 3 || r.Records != 611+22+11 {
		t.Errorf("%+v", r)
	}
}

type readJournal interface {
	journaltest.Reader
	Heads() ([]machine.Head, error)
	Node() (machine.Node, error)
	Head(string) (machine.Head, bool, error)
}

// snapshot has each task's records and head as JSON.
func snapshot(t testing.TB, r readJournal) map[string][]string {
	t.Helper()
	heads, err := r.Heads()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, h := range heads {
		records := journaltest.Records(t, r, h.Task)
		journaltest.Chained(t, records, h)
		for _, rec := range records {
			all[h.Task] = append(all[h.Task], fmt.Sprintf("%+v", rec))
		}
		one, found, err := r.Head(h.Task)
		if err != nil || !found {
			t.Fatal(h.Task, found, err)
		}
		all[h.Task] = append(all[h.Task], fmt.Sprintf("%+v", one))
	}
	return all
}

func same(t testing.TB, want, got map[string][]string) {
	t.Helper()
	for task := range want {
		if !slices.Equal(want[task], got[task]) {
			t.Fatalf("task %s: %d lines became %d", task, len(want[task]), len(got[task]))
		}
	}
	if len(want) != len(got) {
		t.Fatalf("%d tasks became %d", len(want), len(got))
	}
}

// Interrupted at each step, a compaction leaves the journal as it was.
func TestInterruptedCompaction(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, dir, Options{})
	for i := range 4 {
		appendTest(t, j, journaltest.Task(fmt.Sprint("t", i), 1)...)
	}
	before := snapshot(t, j)
	closeTest(t, j)

	// Before CURRENT was replaced: half a generation, and a whole one.
	for _, name := range []string{"000002", "000003", "000017"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(dir, "000001"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "000002", "MANIFEST")); err != nil {
		t.Fatal(err)
	}
	j = openTest(t, dir, Options{})
	same(t, before, snapshot(t, j))

	// After it, before the old generation was removed and the witness told.
	old := filepath.Join(t.TempDir(), "old")
	witness, err := os.ReadFile(filepath.Join(dir, witnessFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(old, os.DirFS(filepath.Join(dir, "000001"))); err != nil {
		t.Fatal(err)
	}
	j = compacted(t, j)
	closeTest(t, j)
	if err := os.CopyFS(filepath.Join(dir, "000001"), os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, witnessFile), witness, 0o600); err != nil {
		t.Fatal(err)
	}
	j = openTest(t, dir, Options{})
	same(t, before, snapshot(t, j))
	closeTest(t, j)
	dirs, err := filepath.Glob(filepath.Join(dir, "0*"))
	if err != nil || len(dirs) != 2 {
		t.Errorf("left over: %v", dirs)
	}
	sound(t, dir)
}

func TestRetention(t *testing.T) {
	now := time.Unix(1000, 0)
	f := func() *finished {
		f := &finished{info: map[string]packInfo{}, fresh: map[string]pack{}}
		for i := range 5 {
			f.info[fmt.Sprint("t", i)] = packInfo{number: uint64(i), at: now.Add(time.Duration(i-5) * time.Hour), records: 2, bytes: 100}
		}
		return f
	}
	for _, c := range []struct {
		r    Retention
		want string
	}{
		{Retention{}, ""},
		{Retention{Keep: 5}, ""},
		{Retention{Keep: 3}, "t0 t1"},
		{Retention{Age: 2 * time.Hour}, "t0 t1 t2"},
		{Retention{Age: 4 * time.Hour, Keep: 1}, "t0 t1 t2 t3"},
		{Retention{Bytes: 299}, "t0 t1"},
		{Retention{Bytes: 1}, "t0 t1 t2 t3"},
	} {
		p := f().drop(c.r, now)
		if got := strings.Join(p.Tasks, " "); got != c.want || p.Records != 2*len(p.Tasks) || p.Bytes != int64(100*len(p.Tasks)) {
			t.Errorf("%+v drops %+v, want %q", c.r, p, c.want)
		}
	}
}

// A task whose record is larger than the history may be goes alone, and not
// before there is a newer one.
func TestRetentionOfALargeTask(t *testing.T) {
	for _, c := range []struct{ tasks, want string }{
		{"small small large", ""},
		{"small large small", "t1"},
		{"large large large", "t0 t1"},
	} {
		f := &finished{info: map[string]packInfo{}, fresh: map[string]pack{}}
		for i, size := range strings.Fields(c.tasks) {
			f.info[fmt.Sprint("t", i)] = packInfo{number: uint64(i), bytes: map[string]int64{"small": 10, "large": 1000}[size]}
		}
		if got := strings.Join(f.drop(Retention{Bytes: 100}, time.Unix(1000, 0)).Tasks, " "); got != c.want {
			t.Errorf("of %s these are dropped: %q, want %q", c.tasks, got, c.want)
		}
	}
}
