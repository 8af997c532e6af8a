package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestSuccessor(t *testing.T) {
	root := t.TempDir()
	if Successor(root) {
		t.Fatal("a root without an announcement has a successor")
	}
	done, err := Succeed(root)
	if err != nil {
		t.Fatal(err)
	}
	if Successor(root) {
		t.Error("a process takes itself for its successor")
	}
	// As another living process would have written it.
	parent, err := readStat(os.Getppid())
	if err != nil {
		t.Fatal(err)
	}
	other, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	other.PID, other.Start = os.Getppid(), parent.start
	text, err := json.Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, successorFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if !Successor(root) {
		t.Error("the announcement is not seen")
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	if Successor(root) {
		t.Error("the announcement was not taken back")
	}
	// A process that died before it had the root succeeds nobody.
	if err := os.WriteFile(filepath.Join(root, successorFile), []byte(`{"pid":1,"start":1,"boot_id":"another"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if Successor(root) {
		t.Error("a dead process counts as successor")
	}
}
