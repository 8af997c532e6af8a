package system

import (
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestProgramRuns(t *testing.T) {
	node := NewNode(t, "unix:///nowhere.sock")
	for _, test := range []struct {
		args   []string
		code   int
		stdout string // what standard output begins with
	}{
		{[]string{"version"}, 0, "deckhand "},
		{[]string{"no-such-command"}, 2, ""},
	} {
		t.Run(test.args[0], func(t *testing.T) {
			got := node.Deckhand(t, test.args...)
			if got.Code != test.code || !strings.HasPrefix(got.Stdout, test.stdout) {
				t.Errorf("deckhand %v: %+v, want exit code %d and output %q", test.args, got, test.code, test.stdout)
			}
		})
	}
	if _, err := os.Stat(node.Root); err == nil {
		t.Errorf("%s was made, though nothing ran", node.Root)
	}
}
