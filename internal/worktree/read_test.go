package worktree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/storage/glob"
)

// touch makes empty files in a directory of the container.
func touch(t *testing.T, tree *Tree, dir string, n int) {
	t.Helper()
	place := tree.Where(dir)
	at := filepath.Join(place.Base, place.Name)
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", at, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// list takes all entries of a directory.
func list[E any](entries iter.Seq2[E, error]) (all []E, err error) {
	for e, err := range entries {
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
	return all, nil
}

func link(t *testing.T, tree *Tree, target, at string) {
	t.Helper()
	place := tree.Where(at)
	name := filepath.Join(place.Base, place.Name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(target, name)); err != nil {
		t.Fatal(err)
	}
}

// What it costs to find out that a directory has too many entries does not
// depend on how many it has.
func TestReaderMemoryIsBounded(t *testing.T) {
	tree := newTree(t)
	const limit = 1000
	cost := func(dir string, n int) uint64 {
		touch(t, tree, dir, n)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := list(tree.Reader(limit).List(dir)); !errors.Is(err, ErrTooMuch) {
			t.Errorf("%d entries: %v", n, err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	small, large := cost("/out/small", 2*limit), cost("/out/large", 10*limit)
	if large > small*3/2 {
		t.Errorf("%d entries cost %d bytes, %d cost %d", 2*limit, small, 10*limit, large)
	}
	if entries, err := list(tree.Reader(2 * limit).List("/out/small")); err != nil || len(entries) != 2*limit {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

// Links to directories make a tree endless with a handful of entries; the reader
// comes to its end.
func TestReaderEndsInEndlessTrees(t *testing.T) {
	tree := newTree(t)
	for i := range 10 {
		for j := range 10 {
			link(t, tree, fmt.Sprintf("../%d", i+1), fmt.Sprintf("/out/%d/l%d", i, j))
		}
	}
	touch(t, tree, "/out/10", 1)
	for pattern, endless := range map[string]bool{"/out/*/*": false, "/out/0/*/*/*/*/*/*/*/*/*/*": true} {
		reader, matches := tree.Reader(2000), 0
		var failed error
		for _, err := range glob.Expand(reader, pattern) {
			if matches++; err != nil {
				failed = err
			}
		}
		if errors.Is(failed, ErrTooMuch) != endless || matches > 2000 {
			t.Errorf("%s has %d matches, %v", pattern, matches, failed)
		}
	}
}

// Targets of links are long: to follow very many of them takes too long as well.
func TestReaderCountsWhatLinksCost(t *testing.T) {
	tree := newTree(t)
	link(t, tree, strings.Repeat("../dir/", 500)+"deep", "/data/dir/long")
	reader := tree.Reader(1000)
	for followed := range 1000 {
		physical, _, err := reader.Resolve("/data/dir/long")
		if errors.Is(err, ErrTooMuch) {
			if followed < 10 {
				t.Errorf("only %d links could be followed", followed)
			}
			return
		}
		if err != nil || physical != "/data/dir/deep" {
			t.Fatalf("it leads to %s, %v", physical, err)
		}
	}
	t.Error("all links were followed")
}

func TestReaderList(t *testing.T) {
	tree := newTree(t)
	if err := os.WriteFile(tree.Source(tree.Plan.Mounts[2]), []byte("single"), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		"/": "drwx data 0, drwx etc 0, drwx out 0, drwx root 0", "/etc": "-rwx 0 6", "/data/dir": "-rwx deep 4", "/data/directory": "!", "/data/file": "!", "/data/fifo": "!",
	} {
		entries, err := list(tree.Reader(100).List(dir))
		var parts []string
		for _, e := range entries {
			size := e.Size()
			if e.IsDir() {
				size = 0
			}
			parts = append(parts, fmt.Sprintf("%s %s %d", (e.Type() | 0o700).String()[:4], e.Name(), size))
		}
		got := strings.Join(parts, ", ")
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%s holds %s, want %s (%v)", dir, got, want, err)
		}
	}
	kinds := map[string]fs.FileMode{}
	entries, err := list(tree.Reader(100).List("/data"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		kinds[e.Name()] = e.Type()
	}
	if kinds["fifo"] != fs.ModeNamedPipe || kinds["leak"] != fs.ModeSymlink || kinds["dir"] != fs.ModeDir || kinds["file"] != 0 {
		t.Errorf("/data holds %v", kinds)
	}
}

// Whatever takes the place of a file or directory while it is opened, nothing
// outside of the tree is read, nothing is waited for, and no device is opened.
func TestSwappedWhileRead(t *testing.T) {
	tree := newTree(t)
	outside := t.TempDir()
	for _, name := range []string{"secret", "x"} {
		if err := os.WriteFile(filepath.Join(outside, name), []byte("of the node"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data := tree.Where("/data").Base
	at := func(name string) string { return filepath.Join(data, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(at("swap/d"), 0o755))
	must(os.WriteFile(at("swap/d/x"), []byte("mine"), 0o644))
	must(os.Symlink(outside, at("swap/l")))
	must(os.WriteFile(at("swap/x"), []byte("mine"), 0o644))
	must(os.Symlink(filepath.Join(outside, "secret"), at("swap/xl")))
	must(unix.Mkfifo(at("swap/xf"), 0o644))
	others := []string{"xl", "xf"}
	if os.Getuid() == 0 {
		must(unix.Mknod(at("swap/xd"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5)))) // /dev/zero: endless
		others = append(others, "xd")
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	exchange := func(a, b string) {
		if err := unix.Renameat2(unix.AT_FDCWD, at("swap/"+a), unix.AT_FDCWD, at("swap/"+b), unix.RENAME_EXCHANGE); err != nil {
			t.Error(err)
		}
	}
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			other := others[i%len(others)]
			for range 2 {
				exchange("x", other)
				exchange("d", "l")
			}
		}
	}()
	read := map[string]int{}
	for range 1000 {
		for _, name := range []string{"/data/swap/x", "/data/swap/d/x"} {
			f, _, err := tree.OpenFile(name)
			if err != nil {
				continue
			}
			text, err := io.ReadAll(io.LimitReader(f, 100))
			must(errors.Join(err, f.Close()))
			read[string(text)]++
		}
		entries, _ := list(tree.Reader(100).List("/data/swap/d"))
		for _, e := range entries {
			if e.Name() == "secret" {
				t.Fatal("a directory outside of the tree was listed")
			}
		}
	}
	close(stop)
	<-stopped
	if len(read) != 1 || read["mine"] == 0 {
		t.Errorf("what was read: %v", read)
	}
}
