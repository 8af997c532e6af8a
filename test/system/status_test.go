package system

import (
	"encoding/json"
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
