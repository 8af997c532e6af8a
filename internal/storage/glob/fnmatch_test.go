package glob

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// pairs is how many generated patterns are compared with the C library.
const pairs = 200_000

// TestFnmatch compares Match with fnmatch(3) of the C library, for glibc in the
// locale C.UTF-8, on generated pairs of a pattern and a path.
func TestFnmatch(t *testing.T) {
	fnmatch := buildC(t, "fnmatch")
	random := rand.New(rand.NewPCG(2013, 2017))
	var input bytes.Buffer
	var patterns, paths []string
	for len(patterns) < pairs {
		pattern := randomPattern(random)
		if unspecified(pattern) {
			continue
		}
		path := randomPath(random, pattern)
		patterns, paths = append(patterns, pattern), append(paths, path)
		input.WriteString(pattern + "\x00" + path + "\x00")
	}
	cmd := exec.Command(fnmatch)
	cmd.Stdin, cmd.Stderr = &input, os.Stderr
	// Whether [^...] negates depends on it; see the package's comment.
	cmd.Env = without(os.Environ(), "POSIXLY_CORRECT")
	answers, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if len(answers) != pairs {
		t.Fatalf("fnmatch answered %d of %d pairs", len(answers), pairs)
	}
	matched, wrong := 0, 0
	for i := range patterns {
		want := answers[i] == '1'
		if want {
			matched++
		}
		if got := matchAsGlibc(patterns[i], paths[i], want); got != want {
			if wrong++; wrong <= 20 {
				t.Errorf("Match(%q, %q) = %v, fnmatch says %v", patterns[i], paths[i], got, want)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d pairs differ", wrong, pairs)
	}
	// Without enough of both answers the comparison would mean little.
	if matched < pairs/10 || matched > pairs*9/10 {
		t.Errorf("%d of %d pairs match; the generator is off balance", matched, pairs)
	}
}

// buildC compiles a program of testdata, which asks the C library.
func buildC(tb testing.TB, name string) string {
	tb.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatalf("gcc is missing, and with it the comparison with %s(3)", name)
		}
		tb.Skipf("gcc is missing, and with it the comparison with %s(3)", name)
	}
	program := filepath.Join(tb.TempDir(), name)
	out, err := exec.Command(gcc, "-D_GNU_SOURCE", "-O1", "-o", program, "testdata/"+name+".c").CombinedOutput()
	if err != nil {
		tb.Fatalf("gcc: %v\n%s", err, out)
	}
	return program
}

var patternParts = []string{
	"a", "b", "c", "A", "7", ".", "-", "_", " ", "é", "λ", "中",
	"*", "*", "?", "?", "/", "/", "/", "\\", "\\", "[", "[", "]", "]", "!", "^", ":", "=",
	"[ab]", "[!ab]", "[^.]", "[a-c]", "[!a-c]", "[éλ]", "[c-a]", "[]a]", "[!]a]", "[a-]", "[-a]", "[--7]",
	"[[:alpha:]]", "[![:alpha:]]", "[[:digit:]_]", "[[:upper:][:lower:]]", "[[:punct:]]", "[[:space:]]",
	"[[:alnum:].]", "[[:xdigit:]]", "[[:graph:]]", "[[:print:]]", "[[:blank:]]", "[[:cntrl:]]", "[[:nosuch:]]",
	"[[=a=]b]", "[[.a.]]", "[[.-.]]", "[[.].]]", "[[.a.]-c]", `[\]]`, `[\!a]`, `[a\-c]`, `[\a-\c]`,
}

func randomPattern(random *rand.Rand) string {
	var b strings.Builder
	for range 1 + random.IntN(7) {
		b.WriteString(patternParts[random.IntN(len(patternParts))])
	}
	return b.String()
}

var pathParts = []string{"a", "b", "c", "A", "7", ".", "-", "_", " ", "é", "λ", "中", "/", "[", "]", "\\", "*", "!", "^", ":"}

// randomPath makes a path that has a fair chance to match: it follows the
// pattern, with something else in the place of its special characters.
func randomPath(random *rand.Rand, pattern string) string {
	var b strings.Builder
	for pattern != "" {
		_, n := next(pattern)
		part := pattern[:n]
		switch set, length := readSet(pattern); {
		case part == "*":
			part = ""
			for range random.IntN(3) {
				part += pathParts[random.IntN(len(pathParts))]
			}
		case part == "?":
			part = pathParts[random.IntN(len(pathParts))]
		case part == "[" && set != nil:
			n = length
			part = pathParts[random.IntN(len(pathParts))]
			for range 5 {
				if r, _ := next(part); set.contains(r) {
					break
				}
				part = pathParts[random.IntN(len(pathParts))]
			}
		case part == "\\" && n < len(pattern):
			_, width := next(pattern[n:])
			part, n = pattern[n:n+width], n+width
		}
		if random.IntN(20) == 0 {
			part = pathParts[random.IntN(len(pathParts))]
		}
		b.WriteString(part)
		pattern = pattern[n:]
	}
	return b.String()
}

// afterStars finds where glibc takes a dot for one that begins a component,
// although a `?` stands for what is before it.
var afterStars = regexp.MustCompile(`(^|/)\*[*?]*\?[*?]*\[`)

// oddClass is a class that cannot exist, whose z ends its name for glibc, or
// which is longer than any that exists.
var oddClass = regexp.MustCompile(`\[:[a-z]*z|\[:[a-z]{20}`)

var oneCharacter = regexp.MustCompile(`\[\..\.\]|\[=.=\]`)

// unspecified says whether POSIX leaves open what the pattern means, or glibc
// does not do what it says.
func unspecified(pattern string) bool {
	// A backslash at the end.
	if rest := strings.TrimRight(pattern, `\`); (len(pattern)-len(rest))%2 == 1 {
		return true
	}
	// glibc errs about the dot that begins a component.
	if strings.Contains(pattern, `\/`) || afterStars.MatchString(pattern) {
		return true
	}
	// A class without a name, or with one that glibc does not take for one.
	if strings.Contains(pattern, "[::") || oddClass.MatchString(pattern) {
		return true
	}
	// A hyphen that comes last, after one of these.
	if strings.Contains(pattern, ".]-]") || strings.Contains(pattern, "=]-]") {
		return true
	}
	// A collating element or equivalence class that is never closed.
	if open := oneCharacter.ReplaceAllString(pattern, ""); strings.Contains(open, "[.") || strings.Contains(open, "[=") {
		return true
	}
	for i := range pattern {
		if pattern[i] != '[' {
			continue
		}
		set, n := readSet(pattern[i:])
		if set == nil {
			// glibc does not take the bracket as an ordinary character then.
			if strings.HasSuffix(pattern, "-") {
				return true
			}
			continue
		}
		// glibc lets a slash be a member.
		if strings.Contains(pattern[i:i+n], "/") {
			return true
		}
		// An unknown class among other members.
		if set.void && pattern[i:i+n] != "[[:nosuch:]]" {
			return true
		}
		// The order of characters that are not ASCII is none in C.UTF-8 of glibc.
		if slices.ContainsFunc(set.ranges, func(s span) bool { return s.low != s.high && max(s.low, s.high) > unicode.MaxASCII }) {
			return true
		}
	}
	return false
}

// matchAsGlibc is Match where glibc says want.
func matchAsGlibc(pattern, path string, want bool) bool {
	got := Match(pattern, path)
	if !got && want {
		// Where characters do not match, glibc tries the bytes.
		return Match(singleBytes(pattern), singleBytes(path))
	}
	return got
}

// singleBytes makes a character of each byte that is not ASCII.
func singleBytes(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if s[i] < utf8.RuneSelf {
			b.WriteByte(s[i])
		} else {
			b.WriteRune(0xE000 + rune(s[i])) // for private use, hence of no class
		}
	}
	return b.String()
}

func without(env []string, name string) []string {
	var rest []string
	for _, e := range env {
		if !strings.HasPrefix(e, name+"=") {
			rest = append(rest, e)
		}
	}
	return rest
}
