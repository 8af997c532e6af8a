package system

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// Of a task that runs status tells the container, the states behind it and the newest
// records; of one that was killed the same, and that nobody works on it.
func TestStatusOfARun(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "status", rig.Spec{})
	b := w.Start(t, tes.Task{ID: "waiting", Executors: []tes.Executor{Sh(image.Tag, "sleep 600")}})
	var container string
	until(t, "the container", func() bool {
		container = strings.TrimSpace(w.Docker(t, "ps", "--filter", "label=deckhand.task=waiting", "--filter", "ancestor="+image.Tag, "--format", "{{.Names}}"))
		return container != ""
	})
	look := func(running bool) {
		t.Helper()
		var s struct {
			State, Container string
			Running          bool
			ExitCode         *int `json:"exit_code"`
			States           []struct {
				State   string
				Seconds float64
			}
		}
		r := w.Deckhand(t, "status", "waiting", "--json")
		if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil || r.Code != 3 {
			t.Fatalf("%v: %+v", err, r)
		}
		var path []string
		for _, x := range s.States {
			if path = append(path, x.State); x.Seconds < 0 {
				t.Errorf("%s took %f seconds", x.State, x.Seconds)
			}
		}
		if got := strings.Join(path, " "); got != "Accepted Scrub ImageCheck Download Run" || s.Container != container || s.Running != running || s.ExitCode != nil {
			t.Errorf("status of the task in %s is %+v", container, s)
		}
		said := w.Deckhand(t, "status", "waiting", "-n", "1").Stdout
		if !strings.Contains(said, "\nexecutor: container "+container+"\n") || !strings.HasSuffix(said, "will executor 0\n") {
			t.Errorf("status says\n%s", said)
		}
	}
	look(true)
	if err := b.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = b.Wait() // killed
	look(false)
}

// On a terminal, status --watch draws over what it has drawn before.
func TestWatchOnATerminal(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "watch", rig.Spec{})
	b := w.Start(t, tes.Task{ID: "watched", Volumes: []string{"/data"}, Executors: []tes.Executor{Sh(image.Tag, "until [ -e /data/go ]; do usleep 10000; done")}})
	b.Until(t, "executor started")
	cmd := w.terminal(t, "status", "watched", "--watch")
	out, err := cmd.StdoutPipe()
	must(t, errors.Join(err, cmd.Start()))
	defer func() { _ = cmd.Process.Kill() }() // if it has not ended
	var shown []byte
	read := bufio.NewReader(out)
	for !strings.HasSuffix(string(shown), "will executor 0") {
		c, err := read.ReadByte()
		if shown = append(shown, c); err != nil {
			t.Fatalf("%v after\n%s", err, shown)
		}
	}
	w.letGo(t)
	b.ends(t, 0)
	rest, err := io.ReadAll(read)
	must(t, err)
	shown = append(shown, rest...)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	const home = "\x1b[H\x1b[2J"
	screens := strings.Split(string(shown), home)
	if last := screens[len(screens)-1]; screens[0] != "" || len(screens) < 3 || !strings.Contains(last, "Complete") || strings.Contains(screens[1], "Complete") {
		t.Errorf("the screens are\n%q", screens)
	}
	w.Clean(t)
}
