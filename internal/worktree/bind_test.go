package worktree

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// newBound prepares a tree with two mounted inputs: one in a directory of the task, one in
// the image's.
func newBound(t *testing.T) *Tree {
	t.Helper()
	tree := New(t.TempDir(), 1, &tes.Task{Volumes: []string{"/data"}, Inputs: []tes.Input{
		{Path: "/data/ref/a", Type: tes.File}, {Path: "/etc/b", Type: tes.File},
	}})
	sources := t.TempDir()
	for _, target := range []string{"/data/ref/a", "/etc/b"} {
		source := filepath.Join(sources, filepath.Base(target))
		if err := os.WriteFile(source, []byte(strings.Repeat("of "+target+"\n", 10_000)), 0o644); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(source)
		if err != nil {
			t.Fatal(err)
		}
		tree.Plan.Binds = append(tree.Plan.Binds, NewBind(target, source, info))
	}
	for range 2 { // a second time changes nothing
		if err := tree.Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// at is where a container path is on the node.
func (t *Tree) at(container string) string {
	place := t.Where(container)
	return filepath.Join(place.Base, place.Name)
}

// In the place of an input that is mounted there is a file of its size without a block.
func TestHolders(t *testing.T) {
	tree := newBound(t)
	for _, b := range tree.Plan.Binds {
		info, err := os.Lstat(tree.at(b.Target))
		if err != nil {
			t.Fatal(err)
		}
		if blocks := info.Sys().(*syscall.Stat_t).Blocks; !info.Mode().IsRegular() || info.Size() != b.Size || blocks != 0 {
			t.Errorf("in the place of %s there is %v of %d bytes in %d blocks", b.Target, info.Mode(), info.Size(), blocks)
		}
		if !tree.Holds(b) || tree.Missing() {
			t.Errorf("the holder of %s is not found", b.Target)
		}
		if err := os.Remove(tree.at(b.Target)); err != nil {
			t.Fatal(err)
		}
		if tree.Holds(b) {
			t.Errorf("the holder of %s is found where none is", b.Target)
		}
	}
	if err := tree.Prepare(); err != nil || tree.Missing() {
		t.Fatalf("something is missing (%v)", err)
	}
	if err := os.RemoveAll(filepath.Join(tree.Dir, "binds")); err != nil || !tree.Missing() {
		t.Errorf("nothing is missing (%v)", err)
	}
	if err := tree.Prepare(); err != nil || !tree.Holds(tree.Plan.Binds[0]) || !tree.Holds(tree.Plan.Binds[1]) {
		t.Errorf("they are not made again: %v", err)
	}
}

// Wherever an executor moves the place of an input, what is read there is what the
// executor has read.
func TestReadOfMounted(t *testing.T) {
	tree := newBound(t)
	data := tree.at("/data")
	if err := errors.Join(
		os.Rename(data+"/ref", data+"/moved"), os.Symlink("moved/a", data+"/link"), os.Symlink("/etc/b", data+"/other"),
		os.WriteFile(data+"/plain", []byte("plain"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/data/moved/a": "of /data/ref/a\n", "/data/link": "of /data/ref/a\n", "/data/other": "of /etc/b\n", "/etc/b": "of /etc/b\n", "/data/plain": "plain",
	} {
		f, info, err := tree.OpenFile(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		content, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil || !strings.HasPrefix(string(content), want) || info.Size() != int64(len(content)) {
			t.Errorf("%s is %.20q, with %d of %d bytes (%v)", path, content, len(content), info.Size(), err)
		}
	}
	entries, err := list(tree.Reader(100).ReadDir("/data/moved"))
	if err != nil || len(entries) != 1 || entries[0].(*Entry).Size() != tree.Plan.Binds[0].Size {
		t.Errorf("the directory has %v, %v", entries, err)
	}
}

// A file that is not the one that was chosen any more is not mounted, nor read.
func TestMountedChanges(t *testing.T) {
	for name, change := range map[string]func(source string) error{
		"touched":   func(s string) error { return os.Chtimes(s, time.Time{}, time.Unix(1, 0)) },
		"longer":    func(s string) error { return os.Truncate(s, 1_000_000) },
		"another":   func(s string) error { return errors.Join(os.Rename(s, s+".old"), copyWithTimes(s+".old", s)) },
		"gone":      os.Remove,
		"a link":    func(s string) error { return errors.Join(os.Rename(s, s+".old"), os.Symlink(s+".old", s)) },
		"directory": func(s string) error { return errors.Join(os.Remove(s), os.Mkdir(s, 0o755)) },
	} {
		tree := newBound(t)
		b := tree.Plan.Binds[0]
		if err := errors.Join(tree.CheckBinds(tree.CheckSource), os.Link(b.Source, b.Source+".hard"), tree.CheckBinds(tree.CheckSource)); err != nil {
			t.Fatal(err)
		}
		if err := change(b.Source); err != nil {
			t.Fatal(err)
		}
		err := tree.CheckBinds(tree.CheckSource)
		if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), b.Source) || !strings.Contains(err.Error(), b.Target) {
			t.Errorf("%s: %v", name, err)
		}
		if f, _, err := tree.OpenFile(b.Target); err == nil {
			f.Close()
			t.Errorf("%s: it is read", name)
		}
	}
}

func copyWithTimes(from, to string) error {
	content, err := os.ReadFile(from)
	info, statErr := os.Stat(from)
	if err := errors.Join(err, statErr); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(to, content, 0o644), os.Chtimes(to, info.ModTime(), info.ModTime()))
}

// Docker follows links in the place of a mount.
func TestPlacesOfMounted(t *testing.T) {
	for name, attack := range map[string]func(data string) error{
		"a link above":      func(d string) error { return errors.Join(os.Rename(d+"/ref", d+"/old"), os.Symlink("old", d+"/ref")) },
		"a link to /etc":    func(d string) error { return errors.Join(os.RemoveAll(d+"/ref"), os.Symlink("/etc", d+"/ref")) },
		"a link in place":   func(d string) error { return errors.Join(os.Remove(d+"/ref/a"), os.Symlink("/etc/passwd", d+"/ref/a")) },
		"nothing":           func(d string) error { return os.RemoveAll(d + "/ref") },
		"a file above":      func(d string) error { return errors.Join(os.RemoveAll(d+"/ref"), os.WriteFile(d+"/ref", nil, 0o600)) },
		"a dangling link":   func(d string) error { return errors.Join(os.RemoveAll(d+"/ref"), os.Symlink("/none", d+"/ref")) },
		"a link to nothing": func(d string) error { return errors.Join(os.Remove(d+"/ref/a"), os.Symlink("none", d+"/ref/a")) },
	} {
		tree := newBound(t)
		if err := attack(tree.at("/data")); err != nil {
			t.Fatal(err)
		}
		if err := tree.CheckBinds(tree.CheckSource); err == nil || !strings.Contains(err.Error(), "/data/ref/a") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
