package helper

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A whole binary of this version is taken as it is, and no other one.
func TestInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
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
	if err := os.WriteFile(first+".part", nil, 0o755); err != nil {
		t.Error(err)
	}
	old, err := Old(dir)
	if want := []File{{other, 18}, {first + ".part", 0}}; err != nil || !slices.Equal(old, want) {
		t.Errorf("of others are %v, want %v: %v", old, want, err)
	}
	if none, err := Old(filepath.Join(dir, "none")); err != nil || len(none) > 0 {
		t.Errorf("in a directory that is not there are %v, %v", none, err)
	}
}

// What could not be written whole does not stay: it may hold the last free bytes.
func TestInstallOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	this, err := name()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(dir, this+partial)); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(dir); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("installed on a full disk: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// Only the content decides about the name, with and without a note of the linker's.
func TestNameOf(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	note := buildID(bytes.NewReader(self))
	if note == nil {
		t.Fatal("this binary has no build ID")
	}
	changed := bytes.Clone(note)
	changed[len(changed)-1] ^= 1 // in the hash of the binary
	redacted := bytes.ReplaceAll(note, []byte("/"), []byte("-"))
	without := bytes.ReplaceAll(self, note, redacted)
	names := map[string]string{}
	for what, binary := range map[string][]byte{
		"this": self, "another": bytes.ReplaceAll(self, note, changed),
		"without an ID": without, "another without an ID": bytes.ReplaceAll(without, []byte("deckhand"), []byte("dockhand")), "a text": []byte("a"), "another text": []byte("b"),
	} {
		file := filepath.Join(t.TempDir(), "binary")
		if err := os.WriteFile(file, binary, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := nameOf(f)
		if err != nil {
			t.Fatal(err)
		}
		if other := names[got]; other != "" {
			t.Errorf("%s and %s are both %s", what, other, got)
		}
		names[got] = what
	}
	if this, err := name(); err != nil || names[this] != "this" {
		t.Errorf("this binary is %s, and a copy of it is not: %v", this, err)
	}
}

// Whoever holds the root removes what is not whole, and nothing else.
func TestRemovePartial(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"deckhand-1-2", "deckhand-1-3" + partial} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := RemovePartial(dir)
	if want := []File{{filepath.Join(dir, "deckhand-1-3"+partial), 0}}; err != nil || !slices.Equal(gone, want) {
		t.Errorf("removed %v, want %v: %v", gone, want, err)
	}
	if none, err := RemovePartial(filepath.Join(dir, "none")); err != nil || len(none) > 0 {
		t.Errorf("removed %v where nothing is: %v", none, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "deckhand-1-2" {
		t.Errorf("%v is left, %v", left, err)
	}
}
