package main

import (
	"bufio"
	"os/exec"
	"strings"
	"testing"
)

// journal inspect --follow prints what there is, then what comes, once each.
func TestInspectFollow(t *testing.T) {
	n := newNode(t)
	n.remember(t, "one=complete")
	cmd := n.command("journal", "inspect", "--follow")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	seen := map[string]int{}
	lines := bufio.NewScanner(out)
	until := func(text string) {
		t.Helper()
		for lines.Scan() {
			seen[lines.Text()]++
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("it ended before %q", text)
	}
	until("one #1.")
	until("Upload → Complete")
	n.remember(t, "two=complete")
	until("two #1.1 ")
	until("Upload → Complete")
	for line, times := range seen {
		if times > 1 {
			t.Errorf("%d times: %s", times, line)
		}
	}
}

// remember writes tasks into the journal of a node; see history.
func (n *bareNode) remember(t *testing.T, tasks ...string) {
	t.Helper()
	cmd := exec.Command("history", tasks...)
	cmd.Env = n.env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("history %v: %v\n%s", tasks, err, out)
	}
}
