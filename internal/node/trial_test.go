package node

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a killed process has left of its trial goes with a later one; that of a process
// which is at it stays.
func TestTrialAfterAKill(t *testing.T) {
	dir := t.TempDir()
	dead, live := filepath.Join(dir, trialName+"1.moved"), filepath.Join(dir, trialName+"2")
	for _, name := range []string{dead, live} {
		if err := os.WriteFile(name, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * trialTime)
	if err := os.Chtimes(dead, past, past); err != nil {
		t.Fatal(err)
	}
	if err := TryDisk(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != filepath.Base(live) {
		t.Errorf("there are %v, %v; want %s", left, err, live)
	}
}
