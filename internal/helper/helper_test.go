package helper

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A whole binary of this version is taken as it is, and no other one.
func TestInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bin")
	if err := errors.Join(Prune(dir), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "deckhand")
	if err := os.WriteFile(other, []byte("of another version"), 0o755); err != nil {
		t.Fatal(err)
	}
	first, err := Install(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(first)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Fatalf("installed is %v: %v", info, err)
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil || info.Size() != self.Size() {
		t.Errorf("%d bytes of %d are installed: %v", info.Size(), self.Size(), err)
	}
	again, err := Install(dir)
	if err != nil || again != first {
		t.Errorf("installed again is %s, want %s: %v", again, first, err)
	}
	if now, err := os.Stat(again); err != nil || !os.SameFile(now, info) {
		t.Errorf("it was installed anew: %v", err)
	}
	if bytes, err := Installed(dir); err != nil || bytes != self.Size()+int64(len("of another version")) {
		t.Errorf("%d bytes are installed: %v", bytes, err)
	}
	if err := errors.Join(os.WriteFile(first+".part", nil, 0o755), Prune(dir)); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != filepath.Base(first) {
		t.Errorf("%v is left, %v", left, err)
	}
}
