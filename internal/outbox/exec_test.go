package outbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func program(t *testing.T, script string) (*Exec, string) {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "hook")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+strings.ReplaceAll(script, "DIR", dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	x, err := NewExec(name)
	if err != nil {
		t.Fatal(err)
	}
	return x, dir
}

// The program has the event on its standard input and no secret in its environment.
func TestExec(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "geheim")
	j := told(t, "exec")
	write(t, j, "t1")
	x, dir := program(t, "cat >> DIR/events; env > DIR/env; pwd > DIR/pwd")
	o, log := open(t, j, x)
	o.Close(never)
	got, want := lines(t, filepath.Join(dir, "events")), ids(t, j)
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the program was told of %v, want %v\n%s", got, want, log)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	where, err2 := os.ReadFile(filepath.Join(dir, "pwd"))
	for line := range strings.Lines(string(env)) {
		if name, _, _ := strings.Cut(line, "="); name != "PATH" && name != "PWD" && name != "_" && name != "SHLVL" { // the latter are the shell's own
			t.Errorf("its environment has %s", line)
		}
	}
	if string(where) != "/\n" || len(env) == 0 {
		t.Errorf("it runs in %q with %q (%v)", where, env, errors.Join(err, err2))
	}
}

func TestExecFails(t *testing.T) {
	for _, c := range []struct {
		script  string
		refused bool
		says    string
	}{
		{"echo it is broken >&2; exit 1", false, "it is broken"},
		{"echo it is not mine; exit 65", true, "it is not mine"},
		{"kill -9 $$", false, "killed"},
	} {
		x, _ := program(t, c.script)
		err := x.Deliver(t.Context(), Event{})
		if err == nil || errors.Is(err, ErrRefused) != c.refused || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.script, err)
		}
	}
	dir := t.TempDir()
	for begin, wrong := range map[string]bool{
		"#!/bin/sh\n": false, "#! /bin/sh -e\n": false, "#!\t/bin/sh\t-e\n": false, "#!/bin/sh": false,
		"#!/bin/nowhere\n": true, "#!/bin/sh\r\n": true, "#!/bin\n": true, "#!\n": true, "echo\n": true, "": true,
	} {
		name := filepath.Join(dir, "hook")
		if err := os.WriteFile(name, []byte(begin), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := NewExec(name)
		_, runs := exec.Command(name).Output()
		if (err != nil) != wrong || (runs != nil) != wrong {
			t.Errorf("%q: %v, and to run it: %v", begin, err, runs)
		}
	}
	if _, err := NewExec("/bin/true"); err != nil {
		t.Error(err)
	}
	for name, what := range map[string]string{"/nowhere": "a program that is not there", "/usr/bin": "a directory", "/etc/passwd": "a file that nobody may run"} {
		if _, err := NewExec(name); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

// A program has ended when it has, whoever still holds its output.
func TestExecLeavesSomebody(t *testing.T) {
	x, dir := program(t, "sleep 1000 & echo $! > DIR/child")
	if err := x.Deliver(t.Context(), Event{}); err != nil {
		t.Error(err)
	}
	child, err := os.ReadFile(filepath.Join(dir, "child"))
	pid, err2 := strconv.Atoi(strings.TrimSpace(string(child)))
	if err := errors.Join(err, err2, unix.Kill(pid, unix.SIGKILL)); err != nil {
		t.Error(err)
	}
}

// A program that does not end is killed, with what it has started.
func TestExecHangs(t *testing.T) {
	x, dir := program(t, "sleep 1000 & echo $! > DIR/child.new; mv DIR/child.new DIR/child; wait")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- x.Deliver(ctx, Event{}) }()
	var child []byte
	for child == nil {
		child, _ = os.ReadFile(filepath.Join(dir, "child"))
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("it ended with %v", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(child)))
	if err != nil {
		t.Fatal(err)
	}
	// Nobody may have reaped it: then it is a zombie.
	for range 60_000 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(time.Millisecond)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	t.Error("what it has started still runs")
}
