package outbox

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/journal/journaltest"
)

func lines(t *testing.T, name string) (found []string) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil || !strings.HasSuffix(line, "\n") {
			t.Errorf("%q is no line with an event: %v", line, err)
		}
		found = append(found, e.ID)
	}
	return found
}

func newFile(t *testing.T, name string) *File {
	t.Helper()
	f, err := NewFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Wherever a process dies, each event is in the file once and whole: while it
// writes a line, before it has, and before the journal knows of it.
func TestFileAfterCrash(t *testing.T) {
	j := told(t, "file")
	write(t, j, "t1")
	name := filepath.Join(t.TempDir(), "events")
	o, _ := open(t, j, newFile(t, name))
	o.Close(never)
	all := ids(t, j)
	if got := lines(t, name); !slices.Equal(got, all) {
		t.Fatalf("the file has %v, want %v", got, all)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	last := strings.LastIndexByte(strings.TrimSuffix(string(whole), "\n"), '\n') + 1
	const step = 13
	number := journaltest.Undelivered(t, j, "control")[len(all)-2].Number
	for cut := last; cut < len(whole)+step; cut += step {
		cut = min(cut, len(whole))
		for _, tail := range []string{"", "\x00\x00\x00"} { // as a power cut leaves it
			if cut == len(whole) && tail != "" {
				continue
			}
			if err := errors.Join(os.WriteFile(name, append(slices.Clone(whole[:cut]), tail...), 0o600), j.Delivered("file", number)); err != nil {
				t.Fatal(err)
			}
			o, log := open(t, j, newFile(t, name))
			o.Close(never)
			if got := lines(t, name); !slices.Equal(got, all) {
				t.Fatalf("after a crash at byte %d of %d the file has %v, want %v\n%s", cut, len(whole), got, all, log)
			}
		}
	}
}

// Events that only the journal does not know of are not written again, and a file
// that is moved away begins anew.
func TestFileIsMoved(t *testing.T) {
	memory := told(t, "file")
	write(t, memory, "t1")
	name := filepath.Join(t.TempDir(), "events")
	f := newFile(t, name)
	o, _ := open(t, &refusing{Memory: memory, times: 1}, f)
	o.Close(never)
	first := ids(t, memory)
	if got := lines(t, name); !slices.Equal(got, first) {
		t.Errorf("the file has %v, want %v", got, first)
	}
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, memory, "t2")
	o, _ = open(t, memory, f)
	o.Close(never)
	if got := lines(t, name); !slices.Equal(got, ids(t, memory)[len(first):]) {
		t.Errorf("the new file has %v", got)
	}
}

// Several roots write to one file, and each line is whole.
func TestFileIsShared(t *testing.T) {
	name := filepath.Join(t.TempDir(), "events")
	var roots sync.WaitGroup
	var want []string
	for range 4 {
		j := told(t, "file")
		for _, task := range []string{"t1", "t2", "t3"} {
			write(t, j, task)
		}
		want = append(want, ids(t, j)...)
		o, _ := open(t, j, newFile(t, name))
		roots.Go(func() { o.Close(never) })
	}
	roots.Wait()
	got := lines(t, name)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the file has %d events, want %d", len(got), len(want))
	}
}

// What is no event is not touched.
func TestFileOfOthers(t *testing.T) {
	name := filepath.Join(t.TempDir(), "events")
	const theirs = "a line\nprecious words without an end"
	if err := os.WriteFile(name, []byte(theirs), 0o600); err != nil {
		t.Fatal(err)
	}
	j := told(t, "file")
	write(t, j, "t1")
	o, log := open(t, j, newFile(t, name))
	log.wait(t, "give events.file another name")
	o.Close(0)
	if text, err := os.ReadFile(name); string(text) != theirs || err != nil {
		t.Errorf("the file is %q (%v)", text, err)
	}
}

// A full disk leaves no line that is not whole; with space again all is written.
func TestFileOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		if os.Getenv("CI") != "" || !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		t.Skipf("only root mounts a small filesystem: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	j := told(t, "file")
	for _, task := range []string{"t1", "t2", "t3", "t4", "t5", "t6"} {
		write(t, j, task)
	}
	name, all := filepath.Join(dir, "events"), ids(t, j)
	o, log := open(t, j, newFile(t, name))
	log.wait(t, "no space left")
	o.Close(0)
	o.running.Wait() // it may be in the middle of a line
	got := lines(t, name)
	if len(got) == 0 || len(got) >= len(all) || !slices.Equal(got, all[:len(got)]) {
		t.Fatalf("on the full disk the file has %d of %d events\n%s", len(got), len(all), log)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	o, _ = open(t, j, newFile(t, name))
	o.Close(never)
	if got := lines(t, name); !slices.Equal(got, all) {
		t.Errorf("with space again the file has %d of %d events", len(got), len(all))
	}
}

func TestNewFileRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{dir, filepath.Join(dir, "nowhere", "events"), "/dev/null"} {
		if _, err := NewFile(name); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
