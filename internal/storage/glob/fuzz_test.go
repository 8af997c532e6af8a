package glob

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"unicode"
	"unicode/utf8"
)

func FuzzMatch(f *testing.F) {
	for _, seed := range [][2]string{
		{"/work/*.html", "/work/a.html"}, {"[[:alpha:]-z]", "a"}, {`[\`, "["}, {"[[.", "[[."}, {"[!]", "\xff"}, {`a\/b`, "a/b"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if len(pattern) > 1000 || len(path) > 1000 {
			return // longer ones only take longer
		}
		matched := Match(pattern, path)
		if !HasMeta(pattern) && matched != (path == Unescape(pattern)) {
			t.Errorf("%q matches %q: %v; it stands for %q", pattern, path, matched, Unescape(pattern))
		}
		// Quoted as a whole, a path is the pattern for itself.
		var quoted strings.Builder
		for s := path; s != ""; {
			_, n := next(s)
			quoted.WriteString(`\` + s[:n])
			s = s[n:]
		}
		if !Match(quoted.String(), path) || HasMeta(quoted.String()) {
			t.Errorf("%q does not match %q", quoted.String(), path)
		}
	})
}

// oracle is a program of testdata that answers one question after the other.
type oracle struct {
	mu  sync.Mutex
	in  io.Writer
	out *bufio.Reader
}

func newOracle(f *testing.F, name, dir string) *oracle {
	f.Helper()
	cmd := exec.Command(buildC(f, name))
	cmd.Dir = dir
	// See TestFnmatch.
	cmd.Env = without(cmd.Environ(), "POSIXLY_CORRECT")
	in, err := cmd.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			f.Errorf("%s: %v", name, err)
		}
	})
	return &oracle{in: in, out: bufio.NewReader(out)}
}

// ask writes words, each with a NUL at its end, and lets read take the answer.
func (o *oracle) ask(t *testing.T, words []string, read func(*bufio.Reader) error) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := io.WriteString(o.in, strings.Join(words, "\x00")+"\x00")
	if err == nil {
		err = read(o.out)
	}
	if err != nil {
		t.Fatalf("the C library does not answer: %v", err)
	}
}

// agreed says whether a comparison with the C library means anything. POSIX
// knows patterns of characters only.
func agreed(pattern string) bool {
	return len(pattern) <= 200 && utf8.ValidString(pattern) && !strings.Contains(pattern, "\x00") && !unspecified(pattern)
}

// agrees says whether Match is of glibc's mind about a path. What is no UTF-8
// glibc matches by the byte, the pattern too.
func agrees(pattern, path string, matched bool) bool {
	return Match(pattern, path) == matched || matchAsGlibc(pattern, path, matched) == matched ||
		!utf8.ValidString(path) && Match(singleBytes(pattern), singleBytes(path)) == matched
}

// classed says whether everybody agrees which classes the characters of s are of:
// Go and the C library are of other versions of Unicode.
func classed(s string) bool {
	for _, r := range s {
		if r > unicode.MaxASCII && !strings.ContainsRune("éλ中", r) {
			return false
		}
	}
	return true
}

// FuzzFnmatch compares Match with fnmatch(3).
func FuzzFnmatch(f *testing.F) {
	o := newOracle(f, "fnmatch", "")
	for _, part := range patternParts {
		f.Add("/w"+part+"*", "/wa.b")
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if !agreed(pattern) || len(path) > 200 || strings.Contains(path, "\x00") || strings.Contains(pattern, "[:") && !classed(path) {
			return
		}
		var answer byte
		o.ask(t, []string{pattern, path}, func(r *bufio.Reader) (err error) {
			answer, err = r.ReadByte()
			return err
		})
		if matched := answer == '1'; !agrees(pattern, path, matched) {
			t.Errorf("Match(%q, %q) = %v, fnmatch says %v", pattern, path, !matched, matched)
		}
	})
}

// FuzzGlob compares Expand with glob(3) on one tree.
func FuzzGlob(f *testing.F) {
	d := newTree(f, files...)
	o := newOracle(f, "glob", d.root)
	for _, seed := range []string{
		"/work/*.txt", "/work/*/out/r.bam", "/*/*", `/work/a\*b.txt`, "/work/[x", "/work/.[!.]*", "/*/s?/[!a]*", "/été/λ*", "/work/caf?.txt", "/work/[[:alpha:]].txt",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		if !agreed(pattern) || !strings.HasPrefix(pattern, "/") {
			return
		}
		for _, part := range split(pattern)[1:] {
			// Only glob lists . and .., by which it would leave the tree. A task that
			// has one of them in a path is refused, and a path is cleaned.
			if part == "" || Match(part, ".") || Match(part, "..") {
				return
			}
		}
		theirs := map[string]bool{}
		o.ask(t, []string{pattern[1:]}, func(r *bufio.Reader) error {
			for {
				found, err := r.ReadString(0)
				if err != nil || found == "\x00" {
					return err
				}
				theirs["/"+strings.TrimSuffix(found, "\x00")] = true
			}
		})
		ours := map[string]bool{}
		for found, err := range Expand(d, pattern) {
			if err != nil {
				t.Fatal(err)
			}
			ours[found] = true
		}
		d.read = nil
		for p := range theirs {
			if !ours[p] && (Match(pattern, p) || !agrees(pattern, p, true)) {
				t.Errorf("Expand(%q) does not find %q, glob does", pattern, p)
			}
		}
		for p := range ours {
			if !theirs[p] && (!Match(pattern, p) || !agrees(pattern, p, false)) {
				t.Errorf("Expand(%q) finds %q, glob does not", pattern, p)
			}
		}
	})
}
