package run

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/deckhand/deckhand/internal/ring"
)

func TestTail(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for name, test := range map[string]struct{ in, want string }{
		"nothing":            {"", ""},
		"short":              {"a\n", "a\n"},
		"all of it":          {x(tailBytes), x(tailBytes)},
		"one byte too many":  {"y" + x(tailBytes), x(tailBytes)},
		"much too long":      {"y" + x(5*tailBytes) + "z", x(tailBytes-1) + "z"},
		"a character of 2":   {"ä" + x(tailBytes-1), x(tailBytes - 1)},
		"a character of 4":   {"😀" + x(tailBytes-1), x(tailBytes - 1)},
		"3 bytes of 4":       {"😀" + x(tailBytes-3), x(tailBytes - 3)},
		"whole characters":   {strings.Repeat("ä", tailBytes), strings.Repeat("ä", tailBytes/2)},
		"not cut, not UTF-8": {"\x80a\xff\xfeb", "\uFFFDa\uFFFDb"},
		"cut, not UTF-8":     {"y" + strings.Repeat("\x80", 5) + x(tailBytes-5), "\uFFFD" + x(tailBytes-5)},
		"cut in the stream":  {"a\xe2\x82", "a\uFFFD"},
	} {
		t.Run(name, func(t *testing.T) {
			for way, in := range map[string]io.Reader{
				"at once": strings.NewReader(test.in), "by the byte": iotest.OneByteReader(strings.NewReader(test.in)),
				"in halves": iotest.HalfReader(strings.NewReader(test.in)),
			} {
				var tail tail
				if _, err := io.CopyBuffer(&tail, struct{ io.Reader }{in}, make([]byte, 7000)); err != nil {
					t.Fatal(err)
				}
				if got := tail.String(); got != test.want || !utf8.ValidString(got) {
					t.Errorf("%s: %d bytes, want %d; or others", way, len(got), len(test.want))
				}
			}
			var tail tail
			file := filepath.Join(t.TempDir(), "stream")
			if err := os.WriteFile(file, []byte(test.in), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := tail.readFile(file); err != nil || tail.String() != test.want {
				t.Errorf("from a file: %d bytes, %v; want %d", len(tail.String()), err, len(test.want))
			}
			ended := readTail(t, test.in)
			if got := ended.String(); got != test.want {
				t.Errorf("from a ring: %d bytes; want %d", len(got), len(test.want))
			}
		})
	}
}

// readTail writes a stream into a ring and reads its end.
func readTail(t *testing.T, stream string) (ended tail) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ring")
	if err := ring.Make(file); err != nil {
		t.Fatal(err)
	}
	w, err := ring.Append(file)
	if err == nil {
		_, err = io.WriteString(w, stream)
	}
	if err := errors.Join(err, w.Close(), ended.readRing(file)); err != nil {
		t.Fatal(err)
	}
	return ended
}
