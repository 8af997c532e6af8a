package system

import (
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// logs --follow waits for an executor that has not begun, prints what it
// writes, and ends with it; afterwards logs prints what the journal has kept.
func TestLogs(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "logs", rig.Spec{}).Tag
	b := w.Start(t, tes.Task{ID: "talk", Executors: []tes.Executor{
		Sh(image, "echo one; sleep 2; echo two; echo complaint >&2"),
		Sh(image, "echo three"),
	}})
	b.Until(t, "talk Scrub")
	const first, second = "one\ntwo\n", "three\n"
	if r := w.Deckhand(t, "logs", "talk", "--follow"); r.Code != 0 || r.Stdout != first {
		t.Errorf("followed: %+v, want %q", r, first)
	}
	if r := w.Deckhand(t, "logs", "last", "--executor", "1", "--follow"); r.Code != 0 || r.Stdout != second {
		t.Errorf("the second, followed: %+v, want %q", r, second)
	}
	if code, log := b.End(t); code != 0 {
		t.Fatalf("exit code %d\n%s", code, log)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"logs", "talk"}, first},
		{[]string{"logs", "talk", "--follow"}, first},
		{[]string{"logs", "talk", "--stderr"}, "complaint\n"},
		{[]string{"logs", "ta", "--executor", "1"}, second},
	} {
		if r := w.Deckhand(t, c.args...); r.Code != 0 || r.Stdout != c.want {
			t.Errorf("%v: %+v, want %q", c.args, r, c.want)
		}
	}
	w.Clean(t)
}
