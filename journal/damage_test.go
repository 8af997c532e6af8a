package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// worn makes a journal with everything in it: a history, tables, a log of a
// process that died, and what it holds.
func worn(t *testing.T) (dir string, holds map[string][]string) {
	t.Helper()
	live := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, live, Options{})
	for i := range 5 {
		appendTest(t, j, journaltest.Task(fmt.Sprint("past", i), 1)...)
	}
	j = compacted(t, j)
	for i := range 3 {
		appendTest(t, j, journaltest.Task(fmt.Sprint("table", i), 1)...)
		closeTest(t, j)
		j = openTest(t, live, Options{})
	}
	appendTest(t, j, journaltest.Task("log", 1)[:7]...)
	holds = snapshot(t, j)
	dir = filepath.Join(t.TempDir(), "journal")
	if err := os.CopyFS(dir, os.DirFS(live)); err != nil { // as a kill would leave it
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, ballastFile)); err != nil {
		t.Fatal(err)
	}
	return dir, holds
}

// Damage to any file is either without effect or noticed, by Open and by
// Verify; nobody panics, and nothing is lost in silence.
func TestDamage(t *testing.T) {
	worn, holds := worn(t)
	damages := map[string]func([]byte) []byte{
		"deleted":   func([]byte) []byte { return nil },
		"emptied":   func([]byte) []byte { return []byte{} },
		"zeroed":    func(b []byte) []byte { return make([]byte, len(b)) },
		"cut short": func(b []byte) []byte { return b[:len(b)-1] },
		"garbage":   func(b []byte) []byte { return bytes.Repeat([]byte("garbage!"), len(b)/8+1) },
	}
	for i, n := 0, campaign(1, 60); i < n; i++ {
		damages[fmt.Sprintf("cut at %d/%d", i+1, n+1)] = func(b []byte) []byte { return b[:len(b)*(i+1)/(n+1)] }
		damages[fmt.Sprintf("flipped at %d/%d", i+1, n+1)] = func(b []byte) []byte {
			b = slices.Clone(b)
			b[len(b)*(i+1)/(n+1)] ^= 0x40
			return b
		}
	}
	var files []string
	err := filepath.WalkDir(worn, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(worn, path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{".mem", ".sst", ".vlog", "MANIFEST", "KEYREGISTRY", "DISCARD", currentFile, witnessFile, rootIDFile} {
		if !slices.ContainsFunc(files, func(f string) bool { return strings.HasSuffix(f, kind) }) {
			t.Fatalf("no file of kind %s among %v", kind, files)
		}
	}
	noticed := map[string]int{}
	for _, file := range files {
		original, err := os.ReadFile(filepath.Join(worn, file))
		if err != nil {
			t.Fatal(err)
		}
		if len(original) == 0 || filepath.Base(file) == ballastFile {
			continue
		}
		data := original
		if strings.HasSuffix(file, ".mem") {
			data = bytes.TrimRight(original, "\x00") // the rest was never written
		}
		for _, name := range slices.Sorted(maps.Keys(damages)) {
			t.Run(file+" "+name, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "journal")
				if err := os.CopyFS(dir, os.DirFS(worn)); err != nil {
					t.Fatal(err)
				}
				target := filepath.Join(dir, file)
				if damaged := damages[name](data); damaged == nil {
					err = os.Remove(target)
				} else {
					err = os.WriteFile(target, damaged, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				if judge(t, dir, holds, name == "zeroed") {
					noticed[filepath.Ext(file)+filepath.Base(file)]++
				}
			})
		}
	}
	t.Logf("noticed: %v", noticed)
}

// judge says whether the damage was noticed, and fails the test when something
// is missing and it was not. With goOn a new journal takes its place.
func judge(t *testing.T, dir string, holds map[string][]string, goOn bool) bool {
	t.Helper()
	report, err := Verify(dir, machine.Legal)
	found := len(report.Problems) > 0
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrNewerSchema) {
		t.Errorf("Verify: %v", err)
	}
	found = found || err != nil
	j, err := Open(dir, Options{})
	if err != nil {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerSchema) {
			t.Errorf("Open: %v", err)
		}
		if !found {
			t.Errorf("Open says %v, Verify found nothing", err)
		}
		if !goOn {
			return true
		}
		moved, err := MoveAside(dir, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(moved); err != nil {
			t.Error(err)
		}
		j = openTest(t, dir, Options{})
		appendTest(t, j, journaltest.Task("new", 1)...)
		closeTest(t, j)
		sound(t, dir)
		return true
	}
	defer closeTest(t, j)
	got, err := trySnapshot(j)
	if err != nil {
		if !errors.Is(err, ErrDamaged) || !found {
			t.Errorf("reading: %v; Verify found: %v", err, report.Problems)
		}
		return true
	}
	for task, lines := range holds {
		if !slices.Equal(lines, got[task]) && !found {
			t.Errorf("task %s lost in silence: %d lines of %d", task, len(got[task]), len(lines))
		}
	}
	return found
}

// trySnapshot is snapshot where reading may fail.
func trySnapshot(r readJournal) (map[string][]string, error) {
	heads, err := r.Heads()
	if err != nil {
		return nil, err
	}
	all := map[string][]string{}
	for _, h := range heads {
		for rec, err := range r.Records(h.Task) {
			if err != nil {
				return nil, err
			}
			all[h.Task] = append(all[h.Task], fmt.Sprintf("%+v", rec))
		}
		one, _, err := r.Head(h.Task)
		if err != nil {
			return nil, err
		}
		all[h.Task] = append(all[h.Task], fmt.Sprintf("%+v", one))
	}
	return all, nil
}

// A file that badger cannot make is an error and not the end of the process, as
// it is where badger makes it itself.
func TestDiscardInTheWay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, dir, Options{})
	appendTest(t, j, journaltest.Task("task", 1)...)
	holds := snapshot(t, j)
	name := filepath.Join(j.generation(), discardFile)
	closeTest(t, j)
	if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := openDatabase(databaseOptions(filepath.Dir(name))); err == nil || !strings.Contains(err.Error(), discardFile) {
		t.Errorf("the error is %v", err)
	}
	j = openTest(t, dir, Options{})
	defer closeTest(t, j)
	if got := snapshot(t, j); !slices.Equal(got["task"], holds["task"]) {
		t.Errorf("the journal holds %v", got)
	}
}

// A bit of CURRENT that flips makes it name other directories, or none: it is
// noticed, and what it named before is not taken for the rest of a compaction.
func TestDamagedCurrent(t *testing.T) {
	worn, holds := worn(t)
	raw, err := os.ReadFile(filepath.Join(worn, currentFile))
	if err != nil {
		t.Fatal(err)
	}
	was, _, err := readCurrent(worn)
	if err != nil {
		t.Fatal(err)
	}
	flips := 0
	for i := range len(raw) * 8 {
		flipped := slices.Clone(raw)
		flipped[i/8] ^= 1 << (i % 8)
		var is current
		if json.Unmarshal(flipped, &is) != nil || is.Schema != was.Schema || is.Generation == was.Generation && is.History != nil && is.History.Generation == was.History.Generation {
			continue // no JSON, or it names the same
		}
		flips++
		dir := filepath.Join(t.TempDir(), "journal")
		if err := os.CopyFS(dir, os.DirFS(worn)); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, currentFile)
		if err := os.WriteFile(name, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		if !judge(t, dir, holds, false) {
			t.Errorf("not noticed: %s", flipped)
		}
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := Verify(dir, machine.Legal); err != nil || len(r.Problems) > 0 {
			t.Errorf("after %s there is not everything left: %+v, %v", flipped, r.Problems, err)
		}
	}
	if flips < 10 {
		t.Errorf("%d flips: this test tests nothing", flips)
	}
}

// Records that are lost in front of the newest are noticed too: those of an
// older log, and those of a table that a process made on its way.
func TestDamageBeforeTheNewest(t *testing.T) {
	live := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, live, Options{Retention: keepAll})
	list := filepath.Join(j.generation(), "MANIFEST")
	known, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(j.generation(), "00001.mem")
	var full []byte // the first log, which goes when it has become a table
	for n := 0; ; n++ {
		raw, err := os.ReadFile(log)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) >= len(full) { // badger cuts it to nothing before it removes it
			full = raw
		}
		appendTest(t, j, journaltest.Task(fmt.Sprint("t", n), 1)...)
	}
	appendTest(t, j, journaltest.Task("newest", 1)[:5]...)
	holds := snapshot(t, j)
	written := len(bytes.TrimRight(full, "\x00"))
	flipped := slices.Clone(full)
	flipped[written/2] ^= 0x40
	for name, first := range map[string][]byte{"list cut": nil, "log cut": full[:written/2], "log flipped": flipped} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "journal")
			if err := os.CopyFS(dir, os.DirFS(live)); err != nil { // as a kill would leave it
				t.Fatal(err)
			}
			path := filepath.Join(dir, generationName(j.current.Generation))
			if err := os.WriteFile(filepath.Join(path, "MANIFEST"), known, 0o600); err != nil {
				t.Fatal(err)
			}
			if first != nil { // as before it became a table
				if err := os.WriteFile(filepath.Join(path, filepath.Base(log)), first, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if !judge(t, dir, holds, false) {
				t.Error("Verify found nothing")
			}
			if k, err := Open(dir, Options{}); !errors.Is(err, ErrDamaged) {
				t.Errorf("Open: %v", err)
				if err == nil {
					closeTest(t, k)
				}
			}
		})
	}
}

// A view of a journal whose end was lost says so; one of a whole journal that is
// being written does not.
func TestDoubt(t *testing.T) {
	live := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, live, Options{})
	doubt := func(dir string) error {
		t.Helper()
		v, err := OpenView(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		return v.Doubt()
	}
	for i := range 20 {
		appendTest(t, j, journaltest.Task(fmt.Sprint("t", i), 1)...)
		if err := doubt(live); err != nil {
			t.Errorf("after task %d: %v", i, err)
		}
	}
	cut := filepath.Join(t.TempDir(), "journal")
	if err := os.CopyFS(cut, os.DirFS(live)); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(cut, generationName(j.current.Generation), "*.mem"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("logs: %v, %v", logs, err)
	}
	if err := os.Truncate(logs[0], 3000); err != nil {
		t.Fatal(err)
	}
	if err := doubt(cut); !errors.Is(err, ErrDamaged) {
		t.Errorf("with half a log: %v", err)
	}
}
