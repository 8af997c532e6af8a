package node

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// mountExt4 mounts a small, new ext4 filesystem of its own.
func mountExt4(t *testing.T) string {
	t.Helper()
	needRoot(t)
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 32<<20); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "mkfs.ext4", "-q", "-m", "0", image)
	at := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
		missing(t, fmt.Sprintf("loop devices (%s)", strings.TrimSpace(string(out))))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

// fill leaves no byte free on a filesystem and returns the file that it made.
func fill(t *testing.T, disk string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func TestPrepareRoot(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(t *testing.T, dir string) // makes dir/… as it was before
		root  string
		ok    string // what is in the error; empty for success
	}{
		{"new", nil, "root", ""},
		{"new with parents", nil, "a/b/root", ""},
		{"empty and open to all", mkdir("root", 0o755), "root", ""},
		{"ours, closed", func(t *testing.T, dir string) {
			mkdir("root", 0o700)(t, dir)
			mkdir("root/journal", 0o700)(t, dir)
		}, "root", ""},
		{"ours, opened by somebody", func(t *testing.T, dir string) {
			mkdir("root", 0o777)(t, dir)
			mkfile("root/owner.json")(t, dir)
		}, "root", ""},
		{"another program's lock", func(t *testing.T, dir string) {
			mkdir("root", 0o755)(t, dir)
			mkfile("root/lock")(t, dir)
		}, "root", "holds other things"},
		{"through a link", func(t *testing.T, dir string) {
			mkdir("there", 0o755)(t, dir)
			if err := os.Symlink("there", filepath.Join(dir, "root")); err != nil {
				t.Fatal(err)
			}
		}, "root", ""},
		{"other people's", func(t *testing.T, dir string) {
			mkdir("root", 0o777)(t, dir)
			mkfile("root/thesis")(t, dir)
		}, "root", "holds other things"},
		{"a file", mkfile("root"), "root", "not a directory"},
		{"below a file", mkfile("file"), "file/a/root", "not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.setup != nil {
				tc.setup(t, dir)
			}
			before := listing(t, dir)
			root := filepath.Join(dir, tc.root)
			err := PrepareRoot(root)
			if tc.ok == "" {
				if err != nil {
					t.Fatal(err)
				}
				if info, err := os.Stat(root); err != nil || info.Mode() != os.ModeDir|0o700 {
					t.Errorf("%v, %v", info.Mode(), err)
				}
				if err := PrepareRoot(root); err != nil {
					t.Errorf("second time: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.ok) || machine.FaultOf(err) != machine.NodeFault {
				t.Errorf("%v, want %s", err, tc.ok)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func TestPrepareRootOfOthers(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		name string
		mode os.FileMode
		uid  int
		root string
		want string
	}{
		{"parent not writable", 0o755, 0, "p/a/root", "not writable"},
		{"somebody else's", 0o777, 1, "p", "belongs to user 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("/tmp", "deckhand-node-test-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			mkdir("p", tc.mode)(t, dir)
			if err := os.Chown(filepath.Join(dir, "p"), tc.uid, 0); err != nil {
				t.Fatal(err)
			}
			before := listing(t, dir)
			out, err := nobody(actorCopy(t, dir, "prepare "+filepath.Join(dir, tc.root))).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tc.want) {
				t.Errorf("%v, %s", err, out)
			}
			_ = os.Remove(filepath.Join(dir, "binary"))
			if after := listing(t, dir); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// actorCopy is actor for users who cannot read the test binary where it is.
func actorCopy(t *testing.T, dir, role string) *exec.Cmd {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "binary")
	if err := os.WriteFile(name, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "ROLE="+role)
	return cmd
}

func TestPrepareRootReadOnly(t *testing.T) {
	disk := mountExt4(t)
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := PrepareRoot(filepath.Join(disk, "a", "root")); !errors.Is(err, unix.EROFS) || machine.FaultOf(err) != machine.NodeFault {
		t.Errorf("%v", err)
	}
}

func TestSpaceAt(t *testing.T) {
	disk := mountExt4(t)
	before, err := SpaceAt(filepath.Join(disk, "not", "yet", "there"))
	if err != nil {
		t.Fatal(err)
	}
	if before.TotalBytes < 16<<20 || before.TotalBytes > 32<<20 || before.FreeBytes > before.TotalBytes || before.FreeInodes == 0 {
		t.Errorf("%+v", before)
	}
	filler := fill(t, disk)
	if full, err := SpaceAt(disk); err != nil || full.FreeBytes != 0 || full.FreeInodes != before.FreeInodes-1 {
		t.Errorf("%+v, %v", full, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	mkfile("file")(t, disk)
	if _, err := SpaceAt(filepath.Join(disk, "file", "below")); err == nil {
		t.Error("space below a file")
	}
	// proc counts no inodes, as btrfs does not.
	if s, err := SpaceAt("/proc"); err != nil || s.FreeInodes != math.MaxUint64 {
		t.Errorf("%+v, %v", s, err)
	}
}

func mkdir(name string, mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		full := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(full, mode), os.Chmod(full, mode)); err != nil {
			t.Fatal(err)
		}
	}
}

func mkfile(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("kept"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// listing is all that is in a tree, with modes and contents.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s %v", path, info.Mode())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %q", b)
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
