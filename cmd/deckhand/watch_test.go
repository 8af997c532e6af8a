package main

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// status --watch shows a task again when it has changed, and ends with its attempt.
func TestStatusWatch(t *testing.T) {
	n := newNode(t)
	n.remember(t, "one=dead")
	cmd := n.command("status", "last", "--watch", "--json")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	var shown []string
	lines := bufio.NewScanner(out)
	until := func(text string) {
		t.Helper()
		for lines.Scan() {
			shown = append(shown, lines.Text())
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("it ended before %q: %v", text, shown)
	}
	until(`"state":"Run"`)
	j, err := journal.Open(filepath.Join(n.dir, "root", "journal"), journal.Options{BootID: "an earlier boot"})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine.Machine{Journal: j, Steps: map[machine.State]machine.Step{}, Log: slog.New(slog.DiscardHandler)}
	for _, state := range machine.Working {
		m.Steps[state] = &pastStep{state: state, task: "one", end: "complete"}
	}
	_, err = m.RollBack(context.Background(), "one", "the test ends it")
	if err := errors.Join(err, j.Close()); err != nil {
		t.Fatal(err)
	}
	until(`"reason":"the test ends it"`)
	for lines.Scan() {
		shown = append(shown, lines.Text())
	}
	_ = cmd.Wait() // its code is looked at
	if code := cmd.ProcessState.ExitCode(); code != statusEnded || !strings.Contains(shown[len(shown)-1], `"state":"Interrupted"`) {
		t.Errorf("exit code %d, shown %v", code, shown)
	}
}
