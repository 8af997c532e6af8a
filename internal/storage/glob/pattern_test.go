package glob

import (
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		pattern, path string
		want          bool
	}{
		{"/work/*.html", "/work/a.html", true},
		{"/work/*.html", "/work/sub/a.html", false},
		{"/work/*/*.html", "/work/sub/a.html", true},
		{"/work/**/a", "/work/x/y/a", false},
		{"/work/{a,b}", "/work/a", false},
		{"/work/{a,b}", "/work/{a,b}", true},
		{"", "", true},
		{"*", "", true},
		{"a//b", "a/b", false},

		// A dot that begins a component.
		{"*", ".hidden", false},
		{"?hidden", ".hidden", false},
		{"[.]hidden", ".hidden", false},
		{"[!a]hidden", ".hidden", false},
		{".h*", ".hidden", true},
		{`\.h*`, ".hidden", true},
		{"*.txt", ".txt", false},
		{"/*/a", "/.x/a", false},
		{"*?[.]c", "a.c", true}, // glibc says no
		{"a\\/[--7]", "a/.", false},

		// Bracket expressions.
		{"[!a]", "b", true},
		{"[!a]", "a", false},
		{"[^a]", "b", true},
		{"[^a]", "^", true},
		{"[[:digit:]]", "7", true},
		{"[[:digit:]]", "٧", false},
		{"[[:alpha:]]", "λ", true},
		{"[[:nosuch:]]", "n", false},
		{"[![:nosuch:]]", "n", false},
		{"[[=a=]]", "a", true},
		{"[[.ab.]]", "a", false},
		{"[[.-.]-0]", ".", false}, // a component begins
		{"x[[.-.]-0]", "x.", true},
		{"[]a]", "]", true},
		{"[a-]", "-", true},
		{"[z-a]", "m", false},
		{"[é-λ]", "α", true},
		{`[\]]`, "]", true},
		{`[a\-c]`, "b", false},
		{"[", "[", true},
		{"[a", "[a", true},
		{"[!", "[!", true},
		{"[]", "[]", true},
		{"[[:alpha:]", "[a", true},
		{"[[:alpha:]", "[z", false},
		{"[a/b]", "[a/b]", true},
		{"[a/b]", "a", false},

		// Quoting.
		{`a\*b`, "a*b", true},
		{`a\*b`, "axb", false},
		{`\[a]`, "[a]", true},
		{`a\`, `a\`, true},
		{`a\/b`, "a/b", true},
		{`\é`, "é", true},

		// Characters, and bytes that are none.
		{"?", "中", true},
		{"??", "中", false},
		{"?", "\xff", true},
		{"\xff", "\xff", true},
		{"\xff", "\xfe", false},
		{"[!a]", "\xff", true},
		{"[\xff]", "\xff", true},
		{"\uFFFD", "\xff", false},
		{"??", "\xe4\xb8", true}, // a character cut short
	}
	for _, test := range tests {
		if got := Match(test.pattern, test.path); got != test.want {
			t.Errorf("Match(%q, %q) = %v", test.pattern, test.path, got)
		}
	}
}

// A matcher that tries every way to share out the stars would not end.
func TestMatchHostile(t *testing.T) {
	a := strings.Repeat("a", 4000)
	for _, pattern := range []string{
		strings.Repeat("a*", 60) + "b",
		strings.Repeat("*a", 60) + "b",
		strings.Repeat("*", 4000) + "b",
		strings.Repeat("?*", 60) + "b",
		strings.Repeat("[a]*", 60) + "[b]",
		strings.Repeat("[", 4000),
		strings.Repeat("[[.", 1300),
	} {
		if Match(pattern, a) {
			t.Errorf("%.20s... matches", pattern)
		}
	}
	if !Match(strings.Repeat("a*", 60)+"b", a+"b") {
		t.Error("no match, although there is one")
	}
}

func TestHasMeta(t *testing.T) {
	tests := []struct {
		pattern string
		meta    bool
		literal string
	}{
		{"/work/out", false, "/work/out"},
		{"/work/*", true, ""},
		{"/work/?", true, ""},
		{"/work/[ab]", true, ""},
		{"/wor[k]/out", true, ""},
		{`/work/\*\?\[a]`, false, "/work/*?[a]"},
		{"/work/[ab", false, "/work/[ab"},
		{"/work[/]", false, "/work[/]"},
		{`/work/a\b`, false, "/work/ab"},
		{`/work/a\\b`, false, `/work/a\b`},
		{`/work/a\`, false, `/work/a\`},
		{`/work\/a`, false, "/work/a"},
		{`/work/\\*`, true, ""},
		{"/work/\xff", false, "/work/\xff"},
	}
	for _, test := range tests {
		if got := HasMeta(test.pattern); got != test.meta {
			t.Errorf("HasMeta(%q) = %v", test.pattern, got)
		}
		if got := Unescape(test.pattern); !test.meta && got != test.literal {
			t.Errorf("Unescape(%q) = %q", test.pattern, got)
		}
	}
}

func TestHasPrefix(t *testing.T) {
	tests := []struct {
		pattern, dir string
		want         bool
	}{
		{"/work/*.txt", "/work", true},
		{"/work/*.txt", "/", true},
		{"/work/*.txt", "/wor", false},
		{"/work2/*.txt", "/work", false},
		{"/work/*.txt", "/work/*.txt", false},
		{"/work/*/a", "/work/x", false},
		{"/work/*/a", "/work/*", false},
		{`/a\*b/*`, "/a*b", true},
		{`/a\*b/*`, `/a\*b`, false},
		{"/work", "/work/sub", false},
	}
	for _, test := range tests {
		if got := HasPrefix(test.pattern, test.dir); got != test.want {
			t.Errorf("HasPrefix(%q, %q) = %v", test.pattern, test.dir, got)
		}
	}
}
