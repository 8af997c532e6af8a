package glob

import (
	"strings"
	"unicode"
)

// set is a bracket expression.
type set struct {
	negated bool
	// void marks an expression that names an unknown class, or a collating
	// element or equivalence class of more than one character: it matches nothing.
	void    bool
	ranges  []span
	classes []func(rune) bool
}

type span struct{ low, high rune }

func (s *set) contains(r rune) bool {
	if s.void {
		return false
	}
	for _, x := range s.ranges {
		if x.low <= r && r <= x.high {
			return !s.negated
		}
	}
	for _, in := range s.classes {
		if in(r) {
			return !s.negated
		}
	}
	return s.negated
}

// readSet reads the bracket expression with which p begins and returns its
// length in bytes, or nil when the bracket is never closed.
func readSet(p string) (*set, int) {
	s, i := &set{}, 1
	if i < len(p) && (p[i] == '!' || p[i] == '^') {
		s.negated = true
		i++
	}
	// A `]` that comes first is a member.
	for first := i; i < len(p); {
		if p[i] == ']' && i > first {
			return s, i + 1
		}
		if name, n := delimited(p[i:], ':'); n > 0 && className(name) {
			s.addClass(name)
			i += n
			continue
		}
		low, n := s.readMember(p[i:])
		if n == 0 {
			return nil, 0
		}
		i += n
		high := low
		// A hyphen that comes last is a member.
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			i++
			if high, n = s.readMember(p[i:]); n == 0 {
				return nil, 0
			}
			i += n
		}
		s.ranges = append(s.ranges, span{low, high})
	}
	return nil, 0
}

// readMember reads one character of a bracket expression, be it quoted or
// written as a collating element or equivalence class. Length 0 means that p
// ends too soon.
func (s *set) readMember(p string) (rune, int) {
	for _, mark := range []byte{'.', '='} {
		if name, n := delimited(p, mark); n > 0 {
			r, width := next(name)
			if width != len(name) {
				s.void = true
			}
			return r, n
		}
	}
	if p[0] == '\\' {
		if len(p) == 1 {
			return 0, 0
		}
		r, n := next(p[1:])
		return r, n + 1
	}
	return next(p)
}

// maxName is longer than the names of characters and classes in POSIX (XBD 6.1).
// It keeps a pattern of openings that are never closed from being read over and over.
const maxName = 32

// delimited reads `[:name:]`, `[.name.]` or `[=name=]` at the start of p; n is
// its length, 0 when there is none.
func delimited(p string, mark byte) (name string, n int) {
	// The name has a character at least, which may be the mark itself.
	if len(p) < 3 || p[0] != '[' || p[1] != mark {
		return "", 0
	}
	end := strings.Index(p[3:min(len(p), 3+maxName)], string(mark)+"]")
	if end < 0 {
		return "", 0
	}
	return p[2 : 3+end], 3 + end + 2
}

// className says whether name could name a class. `[[:]` and the like hold
// ordinary characters.
func className(name string) bool {
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyz") == ""
}

func (s *set) addClass(name string) {
	if in, ok := classes[name]; ok {
		s.classes = append(s.classes, in)
	} else {
		s.void = true
	}
}

// classes are those of XBD 7.3.1. As in C.UTF-8, only ASCII has digits.
var classes = map[string]func(rune) bool{
	"alnum":  func(r rune) bool { return unicode.IsLetter(r) || digit(r) },
	"alpha":  unicode.IsLetter,
	"blank":  func(r rune) bool { return r == ' ' || r == '\t' },
	"cntrl":  unicode.IsControl,
	"digit":  digit,
	"graph":  graph,
	"lower":  unicode.IsLower,
	"print":  unicode.IsPrint,
	"punct":  func(r rune) bool { return graph(r) && !unicode.IsLetter(r) && !digit(r) },
	"space":  unicode.IsSpace,
	"upper":  unicode.IsUpper,
	"xdigit": func(r rune) bool { return digit(r) || 'a' <= r && r <= 'f' || 'A' <= r && r <= 'F' },
}

func digit(r rune) bool { return '0' <= r && r <= '9' }
func graph(r rune) bool { return unicode.IsPrint(r) && r != ' ' }
