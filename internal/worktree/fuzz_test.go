package worktree

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
)

// names are components of the paths that FuzzResolve makes.
var names = []string{"a", "b", "data", "out", "deep", "etc", "f", "..", ".", ""}

// reader takes numbers and paths from the bytes of a fuzzer.
type reader []byte

func (r *reader) next() int {
	if len(*r) == 0 {
		return 0
	}
	b := (*r)[0]
	*r = (*r)[1:]
	return int(b)
}

// path is made of up to five names; the first of them are those of ordinary files.
func (r *reader) path(ordinary bool) string {
	known := names
	if ordinary {
		known = names[:7]
	}
	var parts []string
	for range r.next()%5 + 1 {
		parts = append(parts, known[r.next()%len(known)])
	}
	return strings.Join(parts, "/")
}

// FuzzResolve compares the resolution of paths in a work tree, which has mounts
// and links of every kind, with the kernel's own in one directory that looks the same.
func FuzzResolve(f *testing.F) {
	f.Add([]byte("a file, a link to it, and a path through both"))
	f.Add([]byte{0, 1, 0, 1, 2, 0, 0, 1, 3, 2, 2, 4, 2, 1, 2, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 300 {
			return // longer ones only take longer
		}
		dir := t.TempDir()
		tree := New(filepath.Join(dir, "tree"), 1, &tes.Task{
			Volumes: []string{"/data", "/out/deep"}, Inputs: []tes.Input{{Path: "/etc/f", Type: tes.File}},
		})
		plain := filepath.Join(dir, "plain")
		err := tree.Prepare()
		for _, d := range []string{"data", "out/deep", "etc"} {
			err = errors.Join(err, os.MkdirAll(filepath.Join(plain, d), 0o777))
		}
		if err := errors.Join(err, os.WriteFile(filepath.Join(plain, "etc/f"), nil, 0o666)); err != nil {
			t.Fatal(err)
		}
		r := reader(script)
		for range r.next() % 12 {
			change(t, tree, plain, &r)
		}
		root, err := unix.Open(plain, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(root)
		for range 5 {
			p := "/" + r.path(false)
			if got, want := seen(tree, p), kernelSees(t, root, p); got != want {
				t.Errorf("%s is %s, the kernel sees %s", p, got, want)
			}
		}
	})
}

// change makes a directory, a file or a link in both trees, when what leads there
// is a directory.
func change(t *testing.T, tree *Tree, plain string, r *reader) {
	t.Helper()
	kind, p, target := r.next()%4, path.Clean("/"+r.path(true)), r.path(false)
	if r.next()%2 == 0 {
		target = "/" + target
	}
	for d := path.Dir(p); ; d = path.Dir(d) {
		if info, err := os.Lstat(filepath.Join(plain, d)); err != nil || !info.IsDir() {
			return // through a link it would lead out of the test
		}
		if d == "/" {
			break
		}
	}
	place := tree.Where(p)
	var errs []error
	for _, name := range []string{filepath.Join(plain, p), filepath.Join(place.Base, place.Name)} {
		var err error
		switch kind {
		case 0:
			err = os.Mkdir(name, 0o777)
		case 1:
			var f *os.File
			if f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666); err == nil {
				_, err = f.WriteString(p)
				err = errors.Join(err, f.Close())
			}
		default:
			err = os.Symlink(target, name)
		}
		errs = append(errs, err)
	}
	if (errs[0] == nil) != (errs[1] == nil) {
		t.Errorf("%s is made in one tree only: %v", p, errs)
	}
}

// seen is what a path in the tree leads to.
func seen(tree *Tree, p string) string {
	_, info, err := tree.Resolve(p)
	switch {
	case err != nil:
		return "nothing"
	case info.IsDir():
		entries, err := list(tree.Reader(1000).ReadDir(p))
		return listing(entries, err)
	}
	f, _, err := tree.OpenFile(p)
	if err != nil {
		return err.Error()
	}
	return content(f)
}

// kernelSees is what a path leads to below a directory that is taken for the root.
func kernelSees(t *testing.T, root int, p string) string {
	t.Helper()
	fd, err := unix.Openat2(root, p, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		if os.Getenv("CI") == "true" {
			t.Fatal("this kernel has no openat2, which paths are compared with")
		}
		t.Skip("this kernel has no openat2, which paths are compared with")
	case err != nil:
		return "nothing"
	}
	f := os.NewFile(uintptr(fd), p)
	if info, err := f.Stat(); err == nil && info.IsDir() {
		defer f.Close()
		entries, err := f.ReadDir(-1)
		return listing(entries, err)
	}
	return content(f)
}

func listing(entries []os.DirEntry, err error) string {
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	slices.Sort(found)
	return fmt.Sprintf("a directory of %q %v", found, err)
}

func content(f *os.File) string {
	defer f.Close()
	text := make([]byte, 1000)
	n, err := f.Read(text)
	if n == 0 {
		return "an empty file"
	}
	return fmt.Sprintf("a file with %q %v", text[:n], err)
}

// FuzzPlan holds that every path of a valid document has a place of its own,
// inside the tree.
func FuzzPlan(f *testing.F) {
	for _, seed := range []string{
		"v/data\ni/data/x\nf/etc/x\no/out/y\nO/out\ns/logs/o\ne/logs/e", "v/\nf/", "f/a\nf/a/b", "O/root\no/root/*\nv/root/x",
		"d/usr\nf/usr/bin/x", "v/a\nv/a2\nv/a/b", "o/*\nO/var/tmp\no/home/x\ns/x", "f/..\nf/a//b\nf/a/./c", "i/1\ni/files/1\ni/dirs/0",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		doc := tes.Task{Executors: []tes.Executor{{Image: "x", Command: []string{"x"}}}}
		e := &doc.Executors[0]
		for _, line := range strings.Split(text, "\n") {
			if line == "" {
				continue
			}
			switch p := line[1:]; line[0] {
			case 'v':
				doc.Volumes = append(doc.Volumes, p)
			case 'd':
				doc.Inputs = append(doc.Inputs, tes.Input{URL: "u", Path: p, Type: tes.Directory})
			case 'o':
				doc.Outputs = append(doc.Outputs, tes.Output{URL: "u", Path: p, PathPrefix: "/"})
			case 'O':
				doc.Outputs = append(doc.Outputs, tes.Output{URL: "u", Path: p, PathPrefix: "/", Type: tes.Directory})
			case 's':
				e.Stdout = p
			case 'e':
				e.Stderr = p
			default:
				doc.Inputs = append(doc.Inputs, tes.Input{URL: "u", Path: p})
			}
		}
		if _, err := doc.Validate(); err != nil {
			return
		}
		checkPlan(t, &doc, New("/tasks/t", 1, &doc))
	})
}

func checkPlan(t *testing.T, doc *tes.Task, tree *Tree) {
	t.Helper()
	if again := NewPlan(doc); fmt.Sprint(again) != fmt.Sprint(tree.Plan) {
		t.Errorf("planned again it is %v, not %v", again, tree.Plan)
	}
	mustMount := slices.Clone(doc.Volumes)
	for _, in := range doc.Inputs {
		mustMount = append(mustMount, in.Path)
	}
	for _, p := range []string{doc.Executors[0].Stdout, doc.Executors[0].Stderr} {
		if p != "" {
			mustMount = append(mustMount, p)
		}
	}
	for _, p := range mustMount {
		if tree.Staging().Captured(p) {
			t.Errorf("%s is in no mount: %v", p, tree.Plan)
		}
	}
	all := mustMount
	for _, out := range doc.Outputs {
		if out.Wildcard() {
			continue
		}
		p := path.Clean(out.LiteralPath())
		all = append(all, p)
		// A captured directory may lie around mounts, and a path beside them.
		if tree.Captured(p) && !slices.Contains(tree.Plan.Captured, path.Clean(out.Path)) {
			t.Errorf("output %s is neither mounted nor captured: %v", p, tree.Plan)
		}
	}
	checkMounts(t, tree.Plan)
	at := map[Place]string{}
	for _, p := range all {
		place := tree.Staging().Where(p)
		if !strings.HasPrefix(place.Base, tree.Dir+"/") || !filepath.IsLocal(place.Name) {
			t.Errorf("%s is out of the tree, at %v", p, place)
		}
		if other, taken := at[place]; taken && other != p {
			t.Errorf("%s and %s are both at %v", p, other, place)
		}
		at[place] = p
	}
}

// checkMounts holds that no mount hides another, nor the whole image.
func checkMounts(t *testing.T, p Plan) {
	t.Helper()
	sources := map[string]bool{}
	for i, m := range p.Mounts {
		if m.Target == "/" || path.Clean(m.Target) != m.Target || !filepath.IsLocal(m.Source) || sources[m.Source] {
			t.Errorf("%+v cannot be mounted", m)
		}
		sources[m.Source] = true
		for _, other := range p.Mounts[:i] {
			if within(m.Target, other.Target) || within(other.Target, m.Target) {
				t.Errorf("%+v and %+v are one in the other", m, other)
			}
		}
	}
}
