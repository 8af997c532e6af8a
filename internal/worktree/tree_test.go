package worktree

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
)

// newTree prepares a tree with the directories /data and /out, the single file
// /etc/0 and nothing else mounted, as a container with links of every kind left it.
func newTree(t *testing.T) *Tree {
	t.Helper()
	tree := New(t.TempDir(), 1, &tes.Task{
		Volumes: []string{"/data", "/out"}, Inputs: []tes.Input{{Path: "/etc/0", Type: tes.File}},
	})
	for range 2 { // a second time changes nothing
		if err := tree.Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	at := func(container string) string {
		place := tree.Where(container)
		return filepath.Join(place.Base, place.Name)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	for name, content := range map[string]string{
		secret: "of the node", at("/data/file"): "file", at("/data/dir/deep"): "deep", at("/etc/0"): "single", at("/root/x"): "captured",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"relative": "file", "absolute": "/data/file", "other": "../out/../data/dir/deep", "single": "/etc/0", "taken": "/root/x",
		"up": "..", "directory": "/data/dir", "through": "directory/deep", "slash": "/",
		"leak": secret, "climb": strings.Repeat("../", 40) + secret, "proc": "/proc/self/environ", "dangling": "nowhere",
		"loop": "loop", "ping": "pong", "pong": "ping",
	} {
		if err := os.Symlink(target, at("/data/"+name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(at("/data/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestResolve(t *testing.T) {
	tree := newTree(t)
	for path, want := range map[string]string{ // content; a slash for a directory; ! for an error
		"/data/file": "file", "/data/./dir/../file": "file", "/data/relative": "file", "/data/absolute": "file",
		"/data/other": "deep", "/data/single": "single", "/data/taken": "captured", "/data/through": "deep",
		"/data/up/data/file": "file", "/data/slash/etc/0": "single", "/data/slash/../../data/file": "file", "/../data/file": "file",
		"/data": "/", "/data/directory": "/", "/data/up": "/", "/": "/", "/data/slash": "/", "/etc": "/",
		"/data/leak": "!", "/data/climb": "!", "/data/proc": "!", "/data/dangling": "!", "/none": "!", "/data/file/x": "!",
		"/data/loop": "!", "/data/ping": "!", "/data/fifo": "!",
	} {
		f, info, err := tree.OpenFile(path)
		got := "!"
		if err == nil {
			content, err := io.ReadAll(f)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			got = string(content)
			if info.Size() != int64(len(content)) {
				t.Errorf("%s has %d bytes, it says %d", path, len(content), info.Size())
			}
		} else if _, info, err := tree.Resolve(path); err == nil && info.IsDir() {
			got = "/"
		}
		if got != want {
			t.Errorf("%s is %q, want %q (%v)", path, got, want, err)
		}
	}
	for path, want := range map[string]error{"/data/loop": unix.ELOOP, "/data/ping": unix.ELOOP, "/data/leak": fs.ErrNotExist} {
		if _, _, err := tree.Resolve(path); !errors.Is(err, want) {
			t.Errorf("%s gives %v, want %v", path, err, want)
		}
	}
	if _, info, err := tree.Lookup("/data/slash/data/loop"); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link itself is %v, %v", info, err)
	}
}

// A path of forty links is followed, as Linux does, and one of more is not.
func TestChainOfLinks(t *testing.T) {
	tree := newTree(t)
	place := tree.Where("/out")
	name := "/data/file"
	for i := range maxLinks + 1 {
		link := filepath.Join(place.Base, strings.Repeat("l", i+1))
		if err := os.Symlink(name, link); err != nil {
			t.Fatal(err)
		}
		name = filepath.Base(link)
	}
	if _, _, err := tree.Resolve("/out/" + strings.Repeat("l", maxLinks)); err != nil {
		t.Errorf("%d links: %v", maxLinks, err)
	}
	if _, _, err := tree.Resolve("/out/" + name); !errors.Is(err, unix.ELOOP) {
		t.Errorf("%d links: %v", maxLinks+1, err)
	}
}

func TestReadDir(t *testing.T) {
	tree := newTree(t)
	for path, want := range map[string]string{
		"/data/dir": "deep", "/data/directory": "deep", "/": "data etc out root", "/etc": "0", "/data/slash/root": "x", "/out": "",
	} {
		entries, err := list(tree.Reader(1000).ReadDir(path))
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if got := strings.Join(names, " "); got != want || err != nil {
			t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"/none", "/data/leak", "/data/file", "/data/fifo", "/data/loop"} {
		if entries, err := list(tree.Reader(1000).ReadDir(path)); err == nil {
			t.Errorf("%s holds %v", path, entries)
		}
	}
}

func TestWhere(t *testing.T) {
	tree := New("/tasks/t", 3, &tes.Task{Volumes: []string{"/a", "/a2"}, Inputs: []tes.Input{{Path: "/etc/x", Type: tes.File}}})
	for path, want := range map[string]Place{
		"/a": {"/tasks/t/3/dirs/0", "."}, "/a/": {"/tasks/t/3/dirs/0", "."}, "/a/b/../c": {"/tasks/t/3/dirs/0", "c"},
		"/a2/x": {"/tasks/t/3/dirs/1", "x"}, "/etc/x": {"/tasks/t/3/files", "2"}, "/etc/x2": {"/tasks/t/3/captured", "etc/x2"},
		"/": {"/tasks/t/3/captured", "."},
	} {
		if got := tree.Where(path); got != want {
			t.Errorf("%s is at %v, want %v", path, got, want)
		}
		if got := tree.Captured(path); got != strings.HasSuffix(want.Base, "captured") {
			t.Errorf("%s is captured: %t", path, got)
		}
	}
}

// Whatever the umask, every user of a container may write; nobody else gets in.
func TestModes(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	tree := newTree(t)
	dir, name, err := tree.Parent("/data/new/sub/file")
	if err != nil || name != "file" {
		t.Fatalf("%s, %v", name, err)
	}
	dir.Close()
	for path, want := range map[string]fs.FileMode{"/data": 0o777, "/data/new": 0o777, "/data/new/sub": 0o777, "/etc/0": 0o666} {
		if _, info, err := tree.Resolve(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has the mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if info, err := os.Stat(tree.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the tree has the mode %v, %v", info.Mode(), err)
	}
}

func TestParent(t *testing.T) {
	tree := newTree(t)
	for path, want := range map[string]string{"/data/a/b/x": "dirs/0/a/b/x", "/out/y": "dirs/1/y", "/etc/0": "files/2", "/root/new/z": "captured/root/new/z"} {
		dir, name, err := tree.Parent(path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if name != filepath.Base(want) || !sameDir(t, dir, filepath.Join(tree.Dir, filepath.Dir(want))) {
			t.Errorf("%s is made as %s in %s, want %s", path, name, dir.Name(), want)
		}
		dir.Close()
	}
	for _, path := range []string{"/data/leak/x", "/data/file/x", "/data/dangling/x"} {
		if dir, _, err := tree.Parent(path); err == nil {
			t.Errorf("%s is made in %s", path, dir.Name())
		}
	}
}

func sameDir(t *testing.T, opened *os.File, dir string) bool {
	t.Helper()
	a, errA := opened.Stat()
	b, errB := os.Stat(dir)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	return os.SameFile(a, b)
}

func TestLink(t *testing.T) {
	tree := newTree(t)
	log := tree.Log(0, "stdout")
	if err := os.WriteFile(log, []byte("stream"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/out/new", "/out/a/b/new", "/data/file", "/etc/0",
		"/data/directory/through a link", "/data/loop", // the last component is replaced
	} {
		if err := tree.Link(log, path); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		f, _, err := tree.OpenFile(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		content, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil || string(content) != "stream" {
			t.Errorf("%s is %q, %v", path, content, err)
		}
	}
	if _, info, err := tree.Lookup("/data/dir/through a link"); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the link to a directory was not followed: %v", err)
	}
	for _, path := range []string{"/data/dir", "/data/leak/x", "/data/proc/x", "/data/ping/x"} {
		if err := tree.Link(log, path); err == nil {
			t.Errorf("%s was replaced", path)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(log)); err != nil || !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "0.stdout" }) {
		t.Errorf("the stream's own file is gone: %v, %v", entries, err)
	}
}

// Docker follows links in what it is told to mount.
func TestCheckSource(t *testing.T) {
	tree := newTree(t)
	data := tree.Where("/data").Base
	if err := os.Symlink(tree.Dir, tree.Dir+"-link"); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string][]error{
		data: {nil}, data + "/dir": {nil}, data + "/file": {nil}, "/elsewhere": {nil}, tree.Dir + "-link/x": {nil},
		data + "/directory": {unix.ELOOP}, data + "/slash/etc": {unix.ELOOP}, data + "/leak": {unix.ELOOP}, data + "/dangling": {unix.ELOOP},
		data + "/none": {unix.ENOENT}, data + "/file/x": {unix.ENOTDIR},
	} {
		if err := tree.CheckSource(source); !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
			t.Errorf("%s gives %v, want %v", source, err, want)
		}
	}
}

// Inputs are staged where they are copied or mounted from, in the innermost place.
func TestStaging(t *testing.T) {
	tree := New("/root", 1, &tes.Task{
		Inputs:  []tes.Input{{Path: "/opt/a", Type: tes.Directory}, {Path: "/opt/own", Type: tes.Directory}, {Path: "/etc/x", Type: tes.File}},
		Volumes: []string{"/opt/a/v"}, Executors: []tes.Executor{{Stdout: "/opt/a/o"}},
	}, "/opt/own")
	for path, want := range map[string][2]string{
		"/opt/a": {"captured opt/a", "merges/0 ."}, "/opt/a/b/c": {"captured opt/a/b/c", "merges/0 b/c"}, "/opt/a/v/x": {"dirs/0 x", "dirs/0 x"},
		"/opt/a/o": {"files 3", "files 3"}, "/opt/own/x": {"dirs/1 x", "dirs/1 x"}, "/etc/x": {"files 2", "files 2"}, "/opt/b": {"captured opt/b", "captured opt/b"},
	} {
		for i, tree := range []*Tree{tree, tree.Staging()} {
			place := tree.Where(path)
			if got := strings.TrimPrefix(place.Base, "/root/1/") + " " + place.Name; got != want[i] {
				t.Errorf("%s is at %s, want %s", path, got, want[i])
			}
		}
	}
}
