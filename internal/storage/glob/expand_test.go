package glob

import (
	"cmp"
	"errors"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// tree is a directory in which / is elsewhere. It keeps a list of what was read.
type tree struct {
	root string
	read []string
	fail map[string]error
}

func (d *tree) ReadDir(dir string) iter.Seq2[fs.DirEntry, error] {
	return func(yield func(fs.DirEntry, error) bool) {
		d.read = append(d.read, dir)
		entries, err := os.ReadDir(filepath.Join(d.root, dir))
		if err = cmp.Or(d.fail[dir], err); err != nil {
			yield(nil, err)
			return
		}
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func newTree(t testing.TB, files ...string) *tree {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		f = filepath.Join(root, f)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &tree{root: root}
}

func collect(t *testing.T, d Directories, pattern string) []string {
	t.Helper()
	var found []string
	for f, err := range Expand(d, pattern) {
		if err != nil {
			t.Fatalf("Expand(%q): %v", pattern, err)
		}
		found = append(found, f)
	}
	return found
}

var files = []string{
	"/work/b.txt", "/work/a.txt", "/work/.hidden.txt", "/work/a*b.txt", "/work/[x", "/work/caf\xe9.txt",
	"/work/s1/out/r.bam", "/work/s2/out/r.bam", "/work/s2/out/.r.bam", "/work/s3/r.bam", "/work/.s4/out/r.bam",
	"/other/huge/a.txt", "/été/λ.txt",
}

func TestExpand(t *testing.T) {
	d := newTree(t, files...)
	if err := os.Symlink("s2", filepath.Join(d.root, "work/link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(d.root, "work/sfifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		pattern string
		want    []string
		read    []string
	}{
		{"/work/?.txt", []string{"/work/a.txt", "/work/b.txt"}, []string{"/work"}},
		{"/work/.*.txt", []string{"/work/.hidden.txt"}, nil},
		{`/work/a\*b.txt`, []string{"/work/a*b.txt"}, []string{"/work"}},
		{"/work/[x", []string{"/work/[x"}, nil},
		{"/work/caf?.txt", []string{"/work/caf\xe9.txt"}, nil},
		{"/work/*/out/r.bam", []string{"/work/link/out/r.bam", "/work/s1/out/r.bam", "/work/s2/out/r.bam"},
			// s3 has no out; files and FIFOs are not opened.
			[]string{"/work", "/work/link/out", "/work/s1/out", "/work/s2/out", "/work/s3/out"}},
		{"/work/s*/*", []string{"/work/s1/out", "/work/s2/out", "/work/s3/r.bam"},
			[]string{"/work", "/work/s1", "/work/s2", "/work/s3"}},
		{"/work/a.txt/*", nil, []string{"/work/a.txt"}},
		{"/nothing/*/*", nil, []string{"/nothing"}},
		{"/*/λ*", []string{"/été/λ.txt"}, []string{"/", "/other", "/work", "/été"}},
		{"/", nil, nil},
	}
	for _, test := range tests {
		d.read = nil
		if got := collect(t, d, test.pattern); !slices.Equal(got, test.want) {
			t.Errorf("Expand(%q) = %q, want %q", test.pattern, got, test.want)
		}
		if test.read != nil && !slices.Equal(d.read, test.read) {
			t.Errorf("Expand(%q) read %q, want %q", test.pattern, d.read, test.read)
		}
	}
}

func TestExpandStops(t *testing.T) {
	d := newTree(t, files...)
	for range Expand(d, "/*/*") {
		break
	}
	if want := []string{"/", "/other"}; !slices.Equal(d.read, want) {
		t.Errorf("after the first match the walk went on to %q", d.read)
	}
}

func TestExpandError(t *testing.T) {
	d := newTree(t, files...)
	d.fail = map[string]error{"/work/s2": fs.ErrPermission, "/work/s1": syscall.ELOOP}
	var found []string
	var failed error
	for f, err := range Expand(d, "/work/s*/*") {
		if err != nil {
			failed = err
			continue
		}
		found = append(found, f)
	}
	if !errors.Is(failed, fs.ErrPermission) || !strings.Contains(failed.Error(), "/work/s2") || found != nil {
		t.Errorf("found %q and failed with %v", found, failed)
	}
	for _, err := range Expand(d, "work/*") {
		if err == nil {
			t.Error("a relative pattern was expanded")
		}
	}
}

// TestExpandAgreesWithMatch holds Expand against a walk of the whole tree.
func TestExpandAgreesWithMatch(t *testing.T) {
	d := newTree(t, files...)
	var all []string
	err := filepath.WalkDir(d.root, func(p string, _ fs.DirEntry, err error) error {
		if p != d.root {
			all = append(all, strings.TrimPrefix(p, d.root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(20, 13))
	parts := []string{"work", "s1", "out", "a.txt", "*", "*", "?", "[!a]*", ".*", "s?", "*.txt", "[[:alpha:]]*", "é*", "r.bam", `a\**`}
	matched := 0
	for range 5000 {
		var pattern strings.Builder
		for range 1 + random.IntN(4) {
			pattern.WriteString("/" + parts[random.IntN(len(parts))])
			if random.IntN(5) == 0 {
				pattern.WriteString(parts[random.IntN(len(parts))])
			}
		}
		p := path.Clean(pattern.String())
		var want []string
		for _, f := range all {
			if Match(p, f) {
				want = append(want, f)
			}
		}
		got := collect(t, d, p)
		slices.Sort(got)
		slices.Sort(want)
		matched += len(got)
		if !slices.Equal(got, want) {
			t.Errorf("Expand(%q) = %q, Match says %q", p, got, want)
		}
	}
	if matched < 1000 {
		t.Errorf("only %d matches; the patterns prove little", matched)
	}
}
