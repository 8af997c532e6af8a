package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Everything below goes to the owner of the directory, and is open to him;
// nothing outside does, through a link or a mount.
func TestTakeTree(t *testing.T) {
	needRoot(t)
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "file"), nil, 0o600))
	deep := dir
	for range 40 {
		deep = filepath.Join(deep, "d")
		must(t, os.Mkdir(deep, 0o700))
		for _, name := range []string{"a", "z"} {
			must(t, os.WriteFile(filepath.Join(deep, name), nil, 0o600))
		}
	}
	must(t, errors.Join(os.Mkdir(filepath.Join(dir, "mount"), 0o700), os.Symlink(outside, filepath.Join(dir, "link")),
		os.Symlink(filepath.Join(outside, "file"), filepath.Join(dir, "file link")), unix.Mkfifo(filepath.Join(dir, "fifo"), 0)))
	must(t, errors.Join(os.Chmod(deep+"/a", 0o4000), os.Chmod(deep, 0), os.Chown(dir, 4321, 4322)))
	must(t, unix.Mount(outside, filepath.Join(dir, "mount"), "", unix.MS_BIND, ""))
	defer unix.Unmount(filepath.Join(dir, "mount"), unix.MNT_DETACH)

	var refused []string
	must(t, TakeTree(t.Context(), dir, func(p string, _ error) bool { refused = append(refused, p); return true }))
	entries := 0
	must(t, filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if p == filepath.Join(dir, "mount") {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(p, &st)); err != nil {
			return err
		}
		if entries++; st.Uid != 4321 || st.Gid != 4322 {
			t.Errorf("%s belongs to %d:%d", p, st.Uid, st.Gid)
		}
		if info.Mode().IsRegular() && info.Mode()&0o400 == 0 || info.IsDir() && info.Mode()&0o700 != 0o700 || info.Mode()&os.ModeSetuid != 0 {
			t.Errorf("the mode of %s is %v", p, info.Mode())
		}
		return nil
	}))
	if entries != 1+3*40+3 || len(refused) == 0 || !strings.HasSuffix(refused[0], "/mount") {
		t.Errorf("%d entries were looked at, refused are %v", entries, refused)
	}
	for _, p := range []string{outside, outside + "/file"} {
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		if st.Uid != 0 {
			t.Errorf("%s was given to %d", p, st.Uid)
		}
	}
	if err := TakeTree(t.Context(), dir, func(string, error) bool { return false }); !errors.Is(err, unix.EXDEV) {
		t.Errorf("what was refused and not accepted is %v", err)
	}
}
