// Package glob matches paths by the rules of POSIX.1-2017 XCU 2.13 (pattern
// matching notation), as TES asks for output paths. It is what fnmatch(3) does
// with FNM_PATHNAME and FNM_PERIOD in the locale C.UTF-8, whatever the locale
// of the node:
//
//   - `*`, `?` and bracket expressions never match a slash, nor a dot that
//     begins a component; there is no `**` and no `{a,b}`.
//   - `[...]` may hold ranges (by code point), `[:class:]`, `[=c=]` and `[.c.]`
//     of one character, and is negated by `!`. POSIX leaves `[^...]` open; here
//     it negates too, as in every shell.
//   - A `[` that no bracket expression follows is an ordinary character. So is
//     one whose `]` comes after a slash.
//   - A backslash quotes what follows, in a bracket expression too. POSIX leaves
//     open what one at the very end means; here it is an ordinary character.
//   - Characters are those of UTF-8; a byte that is no UTF-8 is a character of
//     its own.
package glob

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// HasMeta says whether pattern holds anything that could match more than one
// path. When it does not, Unescape gives the one path that it matches.
func HasMeta(pattern string) bool {
	for _, c := range split(pattern) {
		if _, literal := compile(c).literal(); !literal {
			return true
		}
	}
	return false
}

// Unescape removes the quoting from a pattern for which HasMeta is false.
func Unescape(pattern string) string {
	parts := split(pattern)
	for i, p := range parts {
		parts[i] = unescape(p)
	}
	return strings.Join(parts, "/")
}

// Match says whether pattern matches the whole of path. It never takes more time
// than in proportion to the square of their lengths.
func Match(pattern, path string) bool {
	patterns, names := split(pattern), strings.Split(path, "/")
	if len(patterns) != len(names) {
		return false
	}
	for i, p := range patterns {
		if !compile(p).match(names[i]) {
			return false
		}
	}
	return true
}

// HasPrefix says whether every path that an absolute pattern matches lies below
// dir, which is an absolute clean path: the components of dir are written out in
// the pattern.
func HasPrefix(pattern, dir string) bool {
	if dir == "/" {
		return strings.HasPrefix(pattern, "/")
	}
	patterns, names := split(pattern), strings.Split(dir, "/")
	if len(patterns) <= len(names) {
		return false
	}
	for i, want := range names {
		if name, ok := compile(patterns[i]).literal(); !ok || name != want {
			return false
		}
	}
	return true
}

// split cuts a pattern at its slashes, quoted ones included: no slash can be
// anything else than itself.
func split(pattern string) []string {
	var parts []string
	start := 0
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '/':
			parts = append(parts, pattern[start:i])
			start = i + 1
		case '\\':
			if i++; i < len(pattern) && pattern[i] == '/' {
				parts = append(parts, pattern[start:i-1])
				start = i + 1
			}
		}
	}
	return append(parts, pattern[start:])
}

// unescape removes the quoting from one component.
func unescape(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if p[i] == '\\' && i+1 < len(p) {
			i++
		}
		b.WriteByte(p[i])
	}
	return b.String()
}

// component is the pattern for one name between slashes.
type component []element

// element matches one character, or any number of them.
type element struct {
	kind kind
	char rune // of an ordinary character
	set  *set // of a bracket expression
}

type kind int

const (
	ordinary kind = iota
	question
	star
	bracket
)

// compile reads the pattern of one component. Every string is one.
func compile(p string) component {
	var c component
	for p != "" {
		r, n := next(p)
		e := element{kind: ordinary, char: r}
		switch r {
		case '*':
			e = element{kind: star}
		case '?':
			e = element{kind: question}
		case '[':
			if s, length := readSet(p); s != nil {
				e, n = element{kind: bracket, set: s}, length
			}
		case '\\':
			if n < len(p) {
				quoted, width := next(p[n:])
				e.char, n = quoted, n+width
			}
		}
		c = append(c, e)
		p = p[n:]
	}
	return c
}

// literal returns the only name that c matches; false when c may match others.
func (c component) literal() (string, bool) {
	var b []byte
	for _, e := range c {
		if e.kind != ordinary {
			return "", false
		}
		b = appendChar(b, e.char)
	}
	return string(b), true
}

// match walks the name once. It remembers the last star only: when a later
// element fails, that star takes one character more. An earlier star never has
// to be tried again, because what follows it has matched as early as possible.
func (c component) match(name string) bool {
	if strings.HasPrefix(name, ".") && (len(c) == 0 || c[0].kind != ordinary) {
		return false
	}
	i, s := 0, name
	lastStar, rest := -1, ""
	for {
		switch {
		case i < len(c) && c[i].kind == star:
			lastStar, rest = i, s
			i++
			continue
		case s == "" && i == len(c):
			return true
		case s != "" && i < len(c):
			if r, n := next(s); c[i].matches(r) {
				i, s = i+1, s[n:]
				continue
			}
		}
		if lastStar < 0 || rest == "" {
			return false
		}
		_, n := next(rest)
		rest = rest[n:]
		i, s = lastStar+1, rest
	}
}

func (e element) matches(r rune) bool {
	switch e.kind {
	case ordinary:
		return e.char == r
	case question:
		return true
	default:
		return e.set.contains(r)
	}
}

// next returns the first character of s and its length in bytes. A byte that
// begins no UTF-8 sequence becomes a character beyond those of Unicode, so that
// it equals itself only.
func next(s string) (rune, int) {
	r, n := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && n == 1 {
		return unicode.MaxRune + 1 + rune(s[0]), 1
	}
	return r, n
}

// appendChar is the inverse of next.
func appendChar(b []byte, r rune) []byte {
	if r > unicode.MaxRune {
		return append(b, byte(r-unicode.MaxRune-1))
	}
	return utf8.AppendRune(b, r)
}
