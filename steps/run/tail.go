package run

import (
	"strings"
	"unicode/utf8"
)

// tailBytes is how much of a stream the task log holds: its end. TES promises
// nothing about it; the whole stream is in the executor's stdout and stderr files.
const tailBytes = 10_000

// tail keeps the last bytes written to it.
type tail struct {
	buf []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > tailBytes {
		p, t.cut = p[len(p)-tailBytes:], true
	}
	if over := len(t.buf) + len(p) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
		t.cut = true
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

// String is valid UTF-8: a character that was cut in two is left out, other
// bytes that are none are replaced.
func (t *tail) String() string {
	b := t.buf
	if t.cut {
		for i := 0; i < utf8.UTFMax && len(b) > 0 && !utf8.RuneStart(b[0]); i++ {
			b = b[1:]
		}
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}
