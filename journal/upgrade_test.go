package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// An older journal is backed up and upgraded; interrupted, it begins again; and
// the backup is a whole journal.
func TestUpgrade(t *testing.T) {
	broken := true
	upgrades[0] = func(key, value []byte) ([]byte, []byte, error) {
		if broken && bytes.HasPrefix(key, []byte(recordPrefix)) {
			return nil, nil, errors.New("interrupted")
		}
		if bytes.HasPrefix(key, []byte("obsolete")) {
			return nil, nil, nil
		}
		return key, bytes.ReplaceAll(value, []byte(`"reason":"old"`), []byte(`"reason":"new"`)), nil
	}
	defer delete(upgrades, 0)

	dir := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, dir, Options{})
	appendTest(t, j, journaltest.Task("past", 1)...)
	j = compacted(t, j)
	e := entry("t1", 1)
	e.Head.Reason = "old"
	appendTest(t, j, e)
	closeTest(t, j)
	name := filepath.Join(dir, currentFile)
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(string(raw), `"schema":1`, `"schema":0`, 1)
	if err := os.WriteFile(name, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}

	if _, err := OpenView(dir); err == nil || !strings.Contains(err.Error(), "schema 0") {
		t.Errorf("a view of an older schema: %v", err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Fatalf("a failing upgrade: %v", err)
	}
	broken = false
	j = openTest(t, dir, Options{})
	if head, found, err := j.Head("t1"); err != nil || !found || head.Reason != "new" {
		t.Errorf("%+v, %v, %v", head, found, err)
	}
	if _, found, err := j.Head("past"); err != nil || !found {
		t.Error(found, err)
	}
	appendTest(t, j, entry("t2", 1))
	closeTest(t, j)
	sound(t, dir)

	saved := filepath.Join(t.TempDir(), "journal")
	if err := os.Rename(filepath.Join(dir, backupName(0)), saved); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(filepath.Join(saved, currentFile)); err != nil || string(raw) != old {
		t.Errorf("the backup's CURRENT: %s, %v", raw, err)
	}
	if err := os.WriteFile(filepath.Join(saved, currentFile), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(saved, machine.Legal); err != nil || len(r.Problems) > 0 || r.Tasks != 2 {
		t.Errorf("the backup: %+v, %v", r, err)
	}
}
