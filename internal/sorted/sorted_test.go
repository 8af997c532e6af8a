package sorted

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/machine"
)

// fill adds so many entries in a random order, several with each key, whose values tell
// their turn.
func fill(t testing.TB, l *List, count int) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, uint64(count)))
	for i := range count {
		key := fmt.Sprintf("%07d/%s", random.IntN(count/2+1), strings.Repeat("k", 40))
		if err := l.Add(Entry{key, fmt.Appendf(nil, "%09d", i)}); err != nil {
			t.Fatal(err)
		}
	}
}

// check reads the whole list and wants every entry in its place.
func check(t testing.TB, all iter.Seq2[Entry, error], count int) {
	t.Helper()
	var last Entry
	seen := 0
	turns := map[string]bool{}
	for e, err := range all {
		if err != nil {
			t.Fatal(err)
		}
		if seen > 0 && (e.Key < last.Key || e.Key == last.Key && string(e.Value) < string(last.Value)) {
			t.Fatalf("%q %q comes after %q %q", e.Key, e.Value, last.Key, last.Value)
		}
		last = e
		turns[string(e.Value)] = true
		seen++
	}
	if seen != count || len(turns) != count {
		t.Errorf("%d entries were read, %d of them different; want %d", seen, len(turns), count)
	}
}

// Lists of any length are read in order, as often as wanted; a short one makes no file,
// and that of a long one has no name.
func TestOrder(t *testing.T) {
	for count, runs := range map[int]int{0: 0, 1: 0, 1000: 0, 50_000: 1, 200_000: 5} {
		dir := t.TempDir()
		l := New(filepath.Join(dir, "list"), strings.Compare)
		fill(t, l, count)
		for range 2 {
			check(t, l.All(), count)
		}
		if len(l.runs) < runs || runs == 0 && l.disk != nil {
			t.Errorf("%d entries: %d runs, want at least %d", count, len(l.runs), runs)
		}
		if entries, err := os.ReadDir(dir); len(entries) != 0 || err != nil {
			t.Errorf("%d entries: %v are in the directory (%v)", count, entries, err)
		}
		// Who reads may stop, and two may read at a time.
		next, stop := iter.Pull2(l.All())
		first, _, ok := next()
		check(t, l.All(), count)
		if second, _, more := next(); count > 1 && (!ok || !more || second.Key < first.Key) {
			t.Errorf("%q comes after %q", second.Key, first.Key)
		}
		stop()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The order is the caller's; keys and values may be empty and of any bytes.
func TestAnyBytes(t *testing.T) {
	l := New(filepath.Join(t.TempDir(), "list"), func(a, b string) int { return strings.Compare(b, a) })
	defer l.Close()
	want := []string{"\xff\xfe", "k", "\n", "\x00", ""}
	for _, i := range []int{3, 0, 4, 1, 2} {
		if err := l.Add(Entry{want[i], []byte(want[i])}); err != nil {
			t.Fatal(err)
		}
		if err := l.spill(); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for e, err := range l.All() {
		if err != nil || e.Key != string(e.Value) {
			t.Fatalf("%q: %q, %v", e.Key, e.Value, err)
		}
		got = append(got, e.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
}

// What cannot be written or read is the node's fault.
func TestErrors(t *testing.T) {
	nowhere := New(filepath.Join(t.TempDir(), "no", "directory"), strings.Compare)
	var err error
	for i := 0; err == nil && i < 200_000; i++ {
		err = nowhere.Add(Entry{fmt.Sprint(i), []byte("value")})
	}
	if machine.FaultOf(err) != machine.NodeFault || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}

	for name, cut := range map[string]int64{"in a key": 20, "in a value": 55, "between them": 49} {
		l := New(filepath.Join(t.TempDir(), "list"), strings.Compare)
		fill(t, l, 100)
		if err := l.spill(); err != nil {
			t.Fatal(err)
		}
		if err := l.disk.Truncate(l.size - 59 + cut); err != nil {
			t.Fatal(err)
		}
		var last error
		for _, last = range l.All() {
		}
		if machine.FaultOf(last) != machine.NodeFault || last == nil {
			t.Errorf("cut off %s: %v", name, last)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// On a full disk a list stays in memory, from whatever entry on, and is whole.
func TestFullDisk(t *testing.T) {
	const count = 200_000
	for name, from := range map[string]int{"from the beginning": 0, "later": count / 2} {
		l := New(filepath.Join(t.TempDir(), "list"), strings.Compare)
		fill(t, l, from)
		has := l.disk
		var err error
		if l.disk, err = os.OpenFile("/dev/full", os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(2, 2))
		for i := from; i < count; i++ {
			key := fmt.Sprintf("%07d/%s", random.IntN(count/2+1), strings.Repeat("k", 40))
			if err := l.Add(Entry{key, fmt.Appendf(nil, "%09d", i)}); err != nil {
				t.Fatal(name, err)
			}
		}
		runs := len(l.runs)
		if from > 0 {
			full := l.disk
			l.disk = has
			defer full.Close()
		}
		if len(l.entries) < 100_000 || (runs > 0) != (from > 0) {
			t.Errorf("%s: %d entries are in memory and %d runs on the disk", name, len(l.entries), runs)
		}
		for range 2 {
			check(t, l.All(), count)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What a killed process has left of a file is no obstacle.
func TestLeftover(t *testing.T) {
	name := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(name, []byte("of a process that died before it had removed the name"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := New(name, strings.Compare)
	defer l.Close()
	fill(t, l, 60_000)
	check(t, l.All(), 60_000)
}

// A long list keeps nothing in memory but what is read ahead.
func TestMemory(t *testing.T) {
	l := New(filepath.Join(t.TempDir(), "list"), strings.Compare)
	defer l.Close()
	fill(t, l, 200_000)
	for _, err := range l.All() {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if len(l.entries) != 0 || l.size < 200_000*50 {
		t.Errorf("%d entries are in memory, %d bytes on the disk", len(l.entries), l.size)
	}
}
