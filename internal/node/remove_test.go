package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/test/heap"
)

// gone fails unless RemoveTree removed base/name without a rest.
func gone(t *testing.T, base, name string) Removed {
	t.Helper()
	r, err := RemoveTree(context.Background(), base, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kept) > 0 {
		t.Errorf("kept: %+v", r.Kept)
	}
	if _, err := os.Lstat(filepath.Join(base, name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// deep makes a chain of n directories below dir, each with a file in it.
func deep(t *testing.T, dir string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range n {
		name := fmt.Sprintf("d%d", i)
		must(t, unix.Mkdirat(fd, name, 0o755))
		must(t, unix.Mknodat(fd, "f", unix.S_IFREG|0o644, 0))
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
}

func TestRemoveTree(t *testing.T) {
	for _, tc := range []struct {
		name    string
		make    func(t *testing.T, dir string) // dir/tree
		entries int64
	}{
		{"nothing", func(t *testing.T, dir string) {}, 0},
		{"file", mkfile("tree"), 1},
		{"dangling link", func(t *testing.T, dir string) { must(t, os.Symlink("nowhere", filepath.Join(dir, "tree"))) }, 1},
		{"empty directory", mkdir("tree", 0o755), 1},
		{"every kind of entry", func(t *testing.T, dir string) {
			mkdir("tree", 0o755)(t, dir)
			mkfile("tree/file")(t, dir)
			mkdir("tree/sub", 0o755)(t, dir)
			mkfile("tree/sub/.hidden")(t, dir)
			must(t, unix.Mkfifo(filepath.Join(dir, "tree/fifo"), 0o600))
			must(t, unix.Mknod(filepath.Join(dir, "tree/socket"), unix.S_IFSOCK|0o600, 0))
			must(t, os.Symlink("..", filepath.Join(dir, "tree/up")))
		}, 7},
		{"names that are not UTF-8", func(t *testing.T, dir string) {
			mkdir("tree", 0o755)(t, dir)
			mkdir("tree/\xff\xfe", 0o755)(t, dir)
			mkfile("tree/\xff\xfe/\x80\n\t ")(t, dir)
			mkfile("tree/-rf")(t, dir)
			mkfile("tree/"+strings.Repeat("\xf0", 255))(t, dir)
		}, 5},
		{"many files in one directory", func(t *testing.T, dir string) {
			mkdir("tree", 0o755)(t, dir)
			for i := range 1500 {
				mkfile(fmt.Sprintf("tree/some-file-%d", i))(t, dir)
			}
		}, 1501},
		{"wide", func(t *testing.T, dir string) {
			for i := range 400 {
				must(t, os.MkdirAll(filepath.Join(dir, "tree", fmt.Sprint(i%20), fmt.Sprint(i)), 0o755))
			}
		}, 421},
		{"wide and deeper than is held open", func(t *testing.T, dir string) {
			for i := range 5 {
				at := filepath.Join(dir, "tree", fmt.Sprint(i))
				must(t, os.MkdirAll(at, 0o755))
				deep(t, at, 100)
			}
		}, 1 + 5*201},
		{"rest of an interrupted deletion", func(t *testing.T, dir string) {
			mkdir("tree", 0o755)(t, dir)
			mkdir("tree/.deckhand-0123456789abcdef-1-1", 0o755)(t, dir)
			mkfile("tree/.deckhand-0123456789abcdef-1-1/f")(t, dir)
		}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			tc.make(t, dir)
			mkfile("tree2")(t, dir) // whose name begins alike
			if r := gone(t, dir, "tree"); r.Entries != tc.entries {
				t.Errorf("%d entries, want %d", r.Entries, tc.entries)
			}
			if _, err := os.Lstat(filepath.Join(dir, "tree2")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRemoveTreeNames(t *testing.T) {
	dir := t.TempDir()
	mkfile("file")(t, dir)
	for _, name := range []string{"", ".", "..", "a/b", "/", "../file", "file\x00"} {
		if _, err := RemoveTree(context.Background(), dir, name, nil); err == nil {
			t.Errorf("%q accepted", name)
		}
	}
	if _, err := RemoveTree(context.Background(), filepath.Join(dir, "file"), "x", nil); err == nil {
		t.Error("a file as base")
	}
	if r, err := RemoveTree(context.Background(), filepath.Join(dir, "missing"), "x", nil); err != nil || r.Entries != 0 {
		t.Errorf("missing base: %+v, %v", r, err)
	}
}

// 10,000 levels with 256 descriptors; a path of that length cannot even be named.
func TestRemoveTreeDeep(t *testing.T) {
	const levels = 10_000
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	low := old
	low.Cur = 256
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)

	dir := t.TempDir()
	mkdir("tree", 0o755)(t, dir)
	deep(t, filepath.Join(dir, "tree"), levels)
	if r := gone(t, dir, "tree"); r.Entries != 2*levels+1 {
		t.Errorf("%d entries, want %d", r.Entries, 2*levels+1)
	}
}

func TestRemoveTreeFollowsNoLink(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	mkfile("file")(t, outside)
	before := listing(t, outside)
	mkdir("tree", 0o755)(t, dir)
	for name, to := range map[string]string{"dir": outside, "file": outside + "/file", "slash": outside + "/", "up": "../..", "root": "/"} {
		must(t, os.Symlink(to, filepath.Join(dir, "tree", name)))
	}
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	gone(t, dir, "tree")
	gone(t, dir, "link")
	if after := listing(t, outside); after != before {
		t.Errorf("outside is now\n%s", after)
	}
}

// Both ways of opening a directory stop at a mount point.
func TestRemoveTreeStopsAtMounts(t *testing.T) {
	needRoot(t)
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old kernel %v", old), func(t *testing.T) {
			noOpenat2.Store(old)
			defer noOpenat2.Store(false)
			dir, outside := t.TempDir(), t.TempDir()
			mkfile("file")(t, outside)
			before := listing(t, outside)
			for _, sub := range []string{"tree/bind", "tree/tmpfs", "tree/sub/deeper/bind", "tree/gone", "mounted"} {
				must(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
			}
			mkfile("tree/sub/file")(t, dir)
			mkfile("tree/bound")(t, dir)
			mount := func(name, source, fstype string, flags uintptr) {
				at := filepath.Join(dir, name)
				must(t, unix.Mount(source, at, fstype, flags, ""))
				t.Cleanup(func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) })
			}
			mount("tree/bind", outside, "", unix.MS_BIND)
			mount("tree/sub/deeper/bind", outside, "", unix.MS_BIND)
			mount("tree/bound", outside+"/file", "", unix.MS_BIND)
			mount("tree/tmpfs", "tmpfs", "tmpfs", 0)
			mount("mounted", outside, "", unix.MS_BIND)
			mkfile("tree/tmpfs/file")(t, dir)

			r, err := RemoveTree(context.Background(), dir, "tree", nil)
			must(t, err)
			var kept []string
			for _, k := range r.Kept {
				kept = append(kept, strings.TrimPrefix(k.Path, dir+"/"))
				if !strings.Contains(k.Why, "mounted there") {
					t.Errorf("%s: %s", k.Path, k.Why)
				}
			}
			slices.Sort(kept)
			if want := []string{"tree/bind", "tree/bound", "tree/sub/deeper/bind", "tree/tmpfs"}; !slices.Equal(kept, want) {
				t.Errorf("kept %v, want %v", kept, want)
			}
			if r.Entries != 2 { // sub/file and gone
				t.Errorf("%d entries", r.Entries)
			}
			if r, err := RemoveTree(context.Background(), dir, "mounted", nil); err != nil || len(r.Kept) != 1 {
				t.Errorf("%+v, %v", r, err)
			}
			if after := listing(t, outside); after != before {
				t.Errorf("outside is now\n%s", after)
			}
			if _, err := os.Stat(filepath.Join(dir, "tree/tmpfs/file")); err != nil {
				t.Error(err)
			}
		})
	}
}

// What the owner of the filesystem has locked stays and is told once, also
// when it is in a directory that was moved up.
func TestRemoveTreeLockedInodes(t *testing.T) {
	disk := mountExt4(t)
	tree := filepath.Join(disk, "tree")
	for _, sub := range []string{"locked", "free", "log"} {
		must(t, os.MkdirAll(filepath.Join(tree, sub), 0o755))
	}
	for _, name := range []string{"tree/immutable", "tree/append", "tree/locked/a", "tree/free/a", "tree/log/a"} {
		mkfile(name)(t, disk)
	}
	const chains = 8
	for i := range chains {
		far := filepath.Join(tree, fmt.Sprint("far", i), strings.Repeat("d/", maxDepth+5))
		must(t, os.MkdirAll(far, 0o755))
		mkfile("immutable")(t, far)
		mustRun(t, "chattr", "+i", far+"/immutable")
	}
	mustRun(t, "chattr", "+i", tree+"/immutable", tree+"/locked")
	mustRun(t, "chattr", "+a", tree+"/append", tree+"/log")

	r, err := RemoveTree(context.Background(), disk, "tree", nil)
	must(t, err)
	want := map[string]string{
		"immutable": "immutable (chattr +i)",
		"append":    "append-only (chattr +a)",
		"locked/a":  "its directory is immutable (chattr +i)",
		"log/a":     "its directory is append-only (chattr +a)",
	}
	moved := 0
	for _, k := range r.Kept {
		name := strings.TrimPrefix(k.Path, tree+"/")
		if _, err := os.Lstat(k.Path); err != nil {
			t.Errorf("reported where it is not: %v", err)
		}
		if strings.HasPrefix(name, ".deckhand-") && strings.HasSuffix(name, "/immutable") {
			moved++
			continue
		}
		if want[name] != k.Why {
			t.Errorf("%s: %s, want %s", name, k.Why, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 || moved != chains || r.KeptTotal != chains+4 {
		t.Errorf("not reported: %v; in all %d: %+v", want, r.KeptTotal, r.Kept)
	}
	if _, err := os.Lstat(tree + "/free"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("tree/free: %v", err)
	}

	mustRun(t, "chattr", "-R", "-ai", tree)
	gone(t, disk, "tree")
}

func TestRemoveTreeReportsAreBounded(t *testing.T) {
	disk := mountExt4(t)
	mkdir("tree", 0o755)(t, disk)
	for i := range keptListed + 50 {
		mkfile(fmt.Sprintf("tree/%d", i))(t, disk)
	}
	mustRun(t, "chattr", "+i", disk+"/tree")
	r, err := RemoveTree(context.Background(), disk, "tree", nil)
	must(t, err)
	if len(r.Kept) != keptListed || r.KeptTotal != keptListed+50 {
		t.Errorf("%d of %d", len(r.Kept), r.KeptTotal)
	}
	mustRun(t, "chattr", "-i", disk+"/tree")
	gone(t, disk, "tree")
}

// The queue for deep directories needs no space: the chain alone fills the disk.
func TestRemoveTreeOnFullDisk(t *testing.T) {
	disk := mountExt4(t)
	mkdir("tree", 0o755)(t, disk)
	deep(t, filepath.Join(disk, "tree"), 300)
	fill(t, disk)
	if s, err := SpaceAt(disk); err != nil || s.FreeBytes != 0 {
		t.Fatalf("not full: %+v, %v", s, err)
	}
	gone(t, disk, "tree")
}

// What the filesystem says it has more is what RemoveTree says it has freed.
func TestRemoveTreeBytes(t *testing.T) {
	disk := mountExt4(t)
	must(t, os.MkdirAll(disk+"/tree/a/b", 0o755))
	must(t, os.MkdirAll(disk+"/tree/c", 0o755))
	write := func(name string, size int) {
		must(t, ReplaceFile(filepath.Join(disk, name), make([]byte, size), 0o644))
	}
	write("outside", 64<<10)
	write("tree/a/big", 1<<20)
	write("tree/c/small", 1)
	must(t, os.Truncate(disk+"/tree/c/small", 1<<30)) // sparse
	for _, link := range []string{"tree/c/big", "tree/a/b/big", "tree/big"} {
		must(t, os.Link(disk+"/tree/a/big", filepath.Join(disk, link)))
	}
	must(t, os.Link(disk+"/outside", disk+"/tree/a/outside"))
	unix.Sync()
	before, err := SpaceAt(disk)
	must(t, err)
	r := gone(t, disk, "tree")
	unix.Sync()
	after, err := SpaceAt(disk)
	must(t, err)
	if freed := int64(after.FreeBytes - before.FreeBytes); r.Bytes != freed || freed < 1<<20 {
		t.Errorf("%d bytes reported, %d freed", r.Bytes, freed)
	}
}

// Two workers that delete the two names of a file at the same time count it once.
func TestUnlinkCountsHardLinksOnce(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	must(t, unix.Mount("tmpfs", base, "tmpfs", 0, "")) // counts blocks at once
	defer unix.Unmount(base, unix.MNT_DETACH)
	fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	const files = 2000
	r := new(remover)
	var ready [2]atomic.Int64
	for file := range int64(files) {
		mkfile("0")(t, base)
		must(t, os.Link(base+"/0", base+"/1"))
		var workers sync.WaitGroup
		for w := range ready {
			workers.Go(func() {
				ready[w].Store(file + 1)
				for ready[1-w].Load() <= file {
				}
				if err := r.unlink(&dir{fd: fd}, fmt.Sprint(w)); err != nil {
					t.Error(err)
				}
			})
		}
		workers.Wait()
	}
	if r.bytes.Load() != files*4096 || r.entries.Load() != files*2 {
		t.Errorf("%d bytes of %d names", r.bytes.Load(), r.entries.Load())
	}
}

// Nothing but a directory of the same mount is ever entered.
func TestOpenBeneath(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mkdir("dir", 0o755)(t, dir)
	mkfile("file")(t, dir)
	mkdir("bind", 0o755)(t, dir)
	must(t, unix.Mount(dir+"/dir", dir+"/bind", "", unix.MS_BIND, ""))
	defer unix.Unmount(dir+"/bind", unix.MNT_DETACH)
	for name, to := range map[string]string{"link": "dir", "self": ".", "absolute": dir + "/dir", "dangling": "nothing"} {
		must(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(at)
	isLink := []error{unix.ELOOP, unix.ENOTDIR}
	for name, want := range map[string][]error{
		"dir": {nil}, "file": {unix.ENOTDIR}, "missing": {unix.ENOENT}, "bind": {unix.EXDEV},
		"link": isLink, "self": isLink, "absolute": isLink, "dangling": isLink,
	} {
		for _, old := range []bool{false, true} {
			noOpenat2.Store(old)
			fd, err := openBeneath(at, name, unix.O_RDONLY|unix.O_DIRECTORY)
			if err == nil {
				unix.Close(fd)
			}
			if !slices.Contains(want, err) {
				t.Errorf("%s, old kernel %v: %v, want %v", name, old, err, want)
			}
		}
	}
	noOpenat2.Store(false)
}

// A path of any length is opened, and no element of it may be a link or a mount.
func TestOpenPathBeneath(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	long := strings.Repeat("elements/", 600) + "x"
	deep, err := os.OpenRoot(dir)
	must(t, err)
	must(t, deep.MkdirAll("a/b/c", 0o755))
	must(t, deep.MkdirAll(long, 0o755))
	mkfile("a/b/file")(t, dir)
	must(t, unix.Mkfifo(dir+"/a/b/fifo", 0o600))
	for name, to := range map[string]string{"link": "a", "a/link": "b", "a/b/link": "file", "a/b/out": dir} {
		must(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	mkdir("bind", 0o755)(t, dir)
	must(t, unix.Mount(dir+"/a", dir+"/bind", "", unix.MS_BIND, ""))
	defer unix.Unmount(dir+"/bind", unix.MNT_DETACH)

	isLink := []error{unix.ELOOP, unix.ENOTDIR}
	defer noOpenat2.Store(false)
	for name, want := range map[string][]error{
		".": {nil}, "a/b/file": {nil}, "a/b/fifo": {nil}, long: {nil}, "a/b/link": {nil}, "a/b/file/x": {unix.ENOTDIR},
		"link/b/file": isLink, "a/link/file": isLink, "a/b/out/a": isLink,
		"missing/x": {unix.ENOENT}, "bind/b/file": {unix.EXDEV}, "bind": {unix.EXDEV}, "a/" + long: {unix.ENOENT},
	} {
		for _, old := range []bool{false, true} {
			noOpenat2.Store(old)
			f, err := OpenBeneath(dir, name, unix.O_PATH)
			if err == nil {
				f.Close()
			}
			if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
				t.Errorf("%.40s, old kernel %v: %v, want %v", name, old, err, want)
			}
		}
	}
	for _, old := range []bool{false, true} {
		noOpenat2.Store(old)
		if f, err := OpenBeneath(dir, "a/b/link", unix.O_RDONLY); err == nil {
			t.Errorf("%s was opened", f.Name())
		}
	}
	// A kernel that turns out to be old on the way.
	noOpenat2.Store(false)
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(at)
	if _, err := openBeneathOld(at, "link/b/file", unix.O_RDONLY); err == nil {
		t.Error("an old kernel follows a link in the middle")
	}
}

// What an entry was when the directory was read need not be what it is.
func TestRemoveDistrustsTheType(t *testing.T) {
	base, outside := t.TempDir(), t.TempDir()
	mkfile("file")(t, outside)
	for i, kind := range []byte{unix.DT_DIR, unix.DT_REG, unix.DT_LNK, unix.DT_UNKNOWN} {
		tree := fmt.Sprintf("tree%d", i)
		mkdir(tree, 0o755)(t, base)
		mkdir(tree+"/dir", 0o755)(t, base)
		mkfile(tree+"/dir/file")(t, base)
		mkfile(tree+"/file")(t, base)
		must(t, os.Symlink(outside, filepath.Join(base, tree, "link")))

		r := &remover{ctx: context.Background(), workers: make(chan struct{}, 1)}
		r.workers <- struct{}{}
		fd, err := unix.Open(filepath.Join(base, tree), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		top := &dir{fd: fd, name: tree, depth: 0}
		for _, name := range []string{"dir", "file", "link", "missing"} {
			r.remove(top, name, kind)
		}
		unix.Close(fd)
		if len(r.kept) > 0 || r.entries.Load() != 4 {
			t.Errorf("type %d: %d entries, kept %+v", kind, r.entries.Load(), r.kept)
		}
		if err := os.Remove(filepath.Join(base, tree)); err != nil {
			t.Errorf("type %d: %v", kind, err)
		}
	}
	if _, err := os.Lstat(outside + "/file"); err != nil {
		t.Error(err)
	}
}

// Without privileges the owner's own modes must not stop the deletion; what
// belongs to others does.
func TestRemoveTreeUnprivileged(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/tmp", "deckhand-node-test-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	base := filepath.Join(dir, "base")
	far := filepath.Join(base, "tree", strings.Repeat("d/", maxDepth))
	must(t, os.MkdirAll(far+"/deeper", 0o755))
	for _, sub := range []string{"read-only", "closed", "other"} {
		must(t, os.MkdirAll(filepath.Join(base, "tree", sub, "sub"), 0o755))
		mkfile("tree/"+sub+"/sub/file")(t, base)
	}
	must(t, filepath.Walk(base, func(path string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Chown(path, 65534, 65534))
	}))
	must(t, os.Chmod(far+"/deeper", 0o500)) // moving it up writes to it
	must(t, os.Chmod(base+"/tree/read-only/sub", 0o500))
	must(t, os.Chmod(base+"/tree/read-only", 0o500))
	must(t, os.Chmod(base+"/tree/closed/sub", 0))
	must(t, os.Chmod(base+"/tree/closed", 0))
	must(t, os.Chown(base+"/tree/other/sub", 0, 0))

	out, err := nobody(actorCopy(t, dir, "remove "+base+" tree")).Output()
	must(t, err)
	var r Removed
	must(t, json.Unmarshal(out, &r))
	if len(r.Kept) != 1 || r.Kept[0].Path != base+"/tree/other/sub/file" || !strings.Contains(r.Kept[0].Why, "permission denied") {
		t.Errorf("kept %+v", r.Kept)
	}
	left, err := os.ReadDir(base + "/tree")
	must(t, err)
	if len(left) != 1 {
		t.Errorf("left %v", left)
	}
}

func TestRemoveTreeStopsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	mkdir("tree", 0o755)(t, dir)
	mkfile("tree/file")(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if r, err := RemoveTree(ctx, dir, "tree", nil); !errors.Is(err, context.Canceled) || r.Entries != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	gone(t, dir, "tree")
}

// While a tree is deleted, somebody swaps its directories for links to a victim
// and back. The victim must not lose a file, and in the end the tree is gone.
func TestRemoveTreeUnderAttack(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old kernel %v", old), func(t *testing.T) {
			noOpenat2.Store(old)
			defer noOpenat2.Store(false)
			dir, victim := t.TempDir(), t.TempDir()
			for i := range 50 {
				mkfile(fmt.Sprint(i))(t, victim)
				must(t, os.MkdirAll(fmt.Sprintf("%s/sub/%d", victim, i), 0o755))
			}
			before := listing(t, victim)
			for round := range 6 {
				tree := filepath.Join(dir, "tree")
				for i := range 30 {
					for j := range 5 {
						must(t, os.MkdirAll(fmt.Sprintf("%s/%d/sub/%d", tree, i, j), 0o755))
						must(t, os.WriteFile(fmt.Sprintf("%s/%d/%d", tree, i, j), nil, 0o644))
					}
				}
				stop := make(chan struct{})
				var attackers sync.WaitGroup
				for a := range 2 {
					attackers.Go(func() {
						for n := a; ; n++ {
							select {
							case <-stop:
								return
							default:
							}
							name := fmt.Sprintf("%s/%d", tree, n%30)
							aside := fmt.Sprintf("%s/aside-%d", tree, a)
							_ = os.Symlink(victim, aside)
							_ = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE)
							_ = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE)
							_ = os.Remove(aside)
						}
					})
				}
				r, err := RemoveTree(context.Background(), dir, "tree", nil)
				close(stop)
				attackers.Wait()
				must(t, err)
				if after := listing(t, victim); after != before {
					t.Fatalf("round %d: the victim was hurt after %d entries", round, r.Entries)
				}
				gone(t, dir, "tree")
			}
		})
	}
}

// looking is a context that looks at the heap now and then while a tree is
// deleted, which asks it before every entry. Everybody waits meanwhile: what they
// allocate while the collector runs would count as alive, the more the busier the
// machine is.
type looking struct {
	context.Context
	mu    sync.Mutex
	asked int
	most  uint64 // bytes alive
}

func (l *looking) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked++; l.asked%20_000 == 0 {
		l.most = max(l.most, heap.Reachable())
	}
	return l.Context.Err()
}

// Neither many entries in a directory nor many directories take memory.
func TestRemoveTreeMemory(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	must(t, unix.Mount("tmpfs", base, "tmpfs", 0, "size=2g,nr_inodes=1m"))
	defer unix.Unmount(base, unix.MNT_DETACH)
	const wide, many = 300_000, 50_000
	for name, n := range map[string]int{"wide": wide, "many": many} {
		at := filepath.Join(base, "tree", name)
		must(t, os.MkdirAll(at, 0o755))
		fd, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		for i := range n {
			entry := fmt.Sprintf("a-name-that-is-not-short-%d", i)
			if name == "wide" {
				must(t, unix.Mknodat(fd, entry, unix.S_IFREG|0o644, 0))
				continue
			}
			must(t, unix.Mkdirat(fd, entry, 0o755))
			must(t, unix.Mknodat(fd, entry+"/f", unix.S_IFREG|0o644, 0))
		}
		unix.Close(fd)
	}
	ctx := &looking{Context: context.Background()}
	before := heap.Reachable()
	r, err := RemoveTree(ctx, base, "tree", nil)
	if want := int64(3 + wide + 2*many); err != nil || r.Entries != want {
		t.Fatalf("%d entries of %d, %v", r.Entries, want, err)
	}
	if looks := ctx.asked / 20_000; looks < 10 {
		t.Errorf("the heap was looked at %d times", looks)
	}
	const limit = 1 << 20
	if grown := int64(ctx.most) - int64(before); grown > limit {
		t.Errorf("the heap grew by %d bytes, more than %d", grown, limit)
	}
}

// The meter counts what RemoveTree counts.
func TestRemoveTreeCounts(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/tree/sub", 0o755))
	for i := range 10 {
		must(t, os.WriteFile(fmt.Sprintf("%s/tree/sub/%d", dir, i), make([]byte, 5000), 0o644))
	}
	var meter progress.Meter
	r, err := RemoveTree(context.Background(), dir, "tree", &meter)
	must(t, err)
	if s := meter.Snapshot(); s.FilesDone != 12 || s.FilesDone != r.Entries || s.BytesDone != r.Bytes || s.BytesDone == 0 {
		t.Errorf("metered %+v, removed %+v", s, r)
	}
}
