package main

import (
	"os/exec"
	"strings"
	"testing"
)

// A journal that its reader may not see is not taken for one that is empty: nobody is told
// that it is sound, that there is nothing to recover, or that a task is unknown.
func TestUnreadableJournal(t *testing.T) {
	n := newNode(t)
	history := exec.Command("history", "t=dead")
	history.Env = n.env
	if out, err := history.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	chown(t, n.dir+"/root", 54321)
	for line, code := range map[string]int{
		"status last": exitUnfit, "status t": exitUnfit, "logs t": exitUnfit, "journal inspect": exitUnfit, "journal list": exitUnfit, "journal images": exitUnfit,
		"journal verify": exitUnfit, "journal export": exitUnfit, "journal report": exitUnfit, "journal prune --keep 1": exitUnfit, "journal prune --keep 1 --dry-run": exitUnfit,
		"metrics": exitUnfit, "scrub --dry-run": exitUnfit,
	} {
		as(n, "deckhand "+line).want(t, code, "permission denied.*run as its owner")
	}
	r := as(n, "deckhand recover")
	if r.code != 0 || !strings.Contains(r.stdout, "problem: ") || !strings.Contains(r.stdout, "permission denied") {
		t.Errorf("recover: %+v", r)
	}
	if said := as(n, "deckhand doctor").stdout; !strings.Contains(said, "fail  journal: ") {
		t.Errorf("doctor says\n%s", said)
	}
}

// as runs a command as a user to whom permissions apply.
func as(n *bareNode, line string) ended {
	cmd := exec.Command("setpriv", append([]string{"--bounding-set=-dac_override,-dac_read_search"}, strings.Fields(line)...)...)
	cmd.Env, cmd.Dir = n.env, n.dir
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // its exit code tells
	return ended{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}
