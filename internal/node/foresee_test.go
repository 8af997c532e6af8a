package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is foreseen is what RemoveTree then does, and looking changes nothing.
func TestForesight(t *testing.T) {
	disk := mountExt4(t)
	data := make([]byte, 50_000)
	dir := func(path ...string) string {
		p := filepath.Join(append([]string{disk}, path...)...)
		must(t, os.MkdirAll(p, 0o755))
		return p
	}
	file := func(path ...string) string {
		p := filepath.Join(dir(path[:len(path)-1]...), path[len(path)-1])
		must(t, os.WriteFile(p, data, 0o644))
		return p
	}
	// In one tree that goes and one of which something stays; links from one into the
	// other, and to what is in neither.
	must(t, os.Link(file("goes", "a"), filepath.Join(disk, "goes", "again")))
	must(t, os.Link(file("goes", "shared"), filepath.Join(dir("stays"), "shared")))
	must(t, os.Link(file("elsewhere"), filepath.Join(disk, "goes", "elsewhere")))
	must(t, os.Symlink("/", filepath.Join(disk, "goes", "link")))
	must(t, os.Truncate(file("goes", "sparse"), 1<<30))
	for i := range 300 {
		must(t, os.Mkdir(dir("goes", "wide")+fmt.Sprintf("/%0200d", i), 0o755))
	}
	deep(t, dir("goes", "deep"), 1000)
	mustRun(t, "chattr", "+i", file("stays", "immutable"), file("stays", "locked", "a"), dir("stays", "locked"), dir("stays", "empty"))
	mustRun(t, "chattr", "+a", file("stays", "log", "a"), dir("stays", "log"))
	file("stays", "free", "a")
	for _, at := range []string{dir("stays", "mounted"), file("stays", "bound")} {
		must(t, unix.Mount(map[bool]string{true: filepath.Join(disk, "elsewhere"), false: dir("goes")}[strings.HasSuffix(at, "bound")], at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	t.Cleanup(func() { mustRun(t, "chattr", "-R", "-ai", filepath.Join(disk, "stays")) })

	var f Foresight
	var would []Removed
	for _, name := range []string{"goes", "stays", "none"} {
		r, err := f.Tree(context.Background(), disk, name)
		must(t, err)
		would = append(would, r)
	}
	for i, name := range []string{"goes", "stays", "none"} {
		did, err := RemoveTree(context.Background(), disk, name, nil)
		must(t, err)
		for _, r := range []Removed{would[i], did} {
			slices.SortFunc(r.Kept, func(a, b Left) int { return strings.Compare(a.Path, b.Path) })
		}
		if fmt.Sprintf("%+v", would[i]) != fmt.Sprintf("%+v", did) {
			t.Errorf("%s: foreseen is\n%+v, done\n%+v", name, would[i], did)
		}
		if want := map[string]int{"stays": 6}[name]; len(did.Kept) != want {
			t.Errorf("%s: %d entries stay, want %d: %+v", name, len(did.Kept), want, did.Kept)
		}
	}
}
