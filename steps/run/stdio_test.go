package run

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/ring"
)

// TestMain makes the test binary the helper when it is called as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 7 && os.Args[1] == StdioCommand {
		os.Exit(ExecStdio(os.Args[2], os.Args[3], [3]string(os.Args[4:7]), os.Args[7:]))
	}
	os.Exit(m.Run())
}

// A signal to the helper reaches the command, as it must when Docker stops the container.
func TestExecStdioHandsSignalsOn(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(out, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, StdioCommand, "", "", "", out, out, "sh", "-c", "trap 'echo stopped; exit 5' TERM; echo ready; while :; do sleep 0.01; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	written := func() string {
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for written() != "ready\n" {
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the exit code says it
	if code := cmd.ProcessState.ExitCode(); code != 5 || written() != "ready\nstopped\n" {
		t.Errorf("exit code %d, output %q", code, written())
	}
}

// A signal that comes as the gate is opened, or before there is a command, reaches that
// too: Docker sends but one before it kills.
func TestEarlySignalsAreHandedOn(t *testing.T) {
	program, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	none, came := make(chan os.Signal), make(chan os.Signal, 1)
	came <- syscall.SIGTERM
	for _, test := range []struct {
		early   os.Signal
		signals <-chan os.Signal
	}{{syscall.SIGTERM, none}, {nil, came}} {
		pid, err := start(program, []string{"sleep", "60"}, &outputs{fds: [3]uintptr{0, 1, 2}}, test.early, test.signals)
		if err != nil {
			t.Fatal(err)
		}
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.Signal() != syscall.SIGTERM {
			t.Errorf("it ended with %d (signal %d, %v)", status.ExitStatus(), status.Signal(), err)
		}
	}
}

func TestExecStdio(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	in := write("in", "input\n", 0o644)
	write("noexec", "#!/bin/sh\n", 0o644)
	write("broken", "#!/no/such/interpreter\n", 0o755)
	write("text", "no program", 0o755)
	for name, test := range map[string]struct {
		files     [3]string // out and err are made in the directory
		command   []string
		code      int
		out, errs string // in the files
		ring, say string // in the rings: of both streams, and a part of why it failed
	}{
		"all files":           {[3]string{in, "out", "err"}, []string{"sh", "-c", "cat; echo problem >&2"}, 0, "was\ninput\n", "was\nproblem\n", "", ""},
		"one file":            {[3]string{"", "out", "out"}, []string{"sh", "-c", "echo 1; echo 2 >&2; echo 3"}, 0, "was\n1\n2\n3\n", "was\n", "", ""},
		"rings":               {[3]string{"", "ring", "ring"}, []string{"sh", "-c", "cat; echo 1; echo 2 >&2"}, 0, "was\n", "was\n", "plain input\n1\n2\n", ""},
		"arguments":           {[3]string{"", "ring", "err"}, []string{"printf", "[%s]", "", "a b", "*"}, 0, "was\n", "was\n", "[][a b][*]", ""},
		"exit code":           {[3]string{in, "ring", "err"}, []string{"sh", "-c", "exit 9"}, 9, "was\n", "was\n", "", ""},
		"in the PATH":         {[3]string{in, "ring", "err"}, []string{"cat"}, 0, "was\n", "was\n", "input\n", ""},
		"no output":           {[3]string{}, []string{"true"}, 126, "was\n", "was\n", "", "no such file"},
		"not found":           {[3]string{in, "out", "err"}, []string{"no-such-command"}, 127, "was\n", "was\n", "", `cannot start "no-such-command"`},
		"no such path":        {[3]string{in, "out", "err"}, []string{"/no/such/command"}, 127, "was\n", "was\n", "", "no such file"},
		"not executable":      {[3]string{in, "", ""}, []string{dir + "/noexec"}, 126, "was\n", "was\n", "", "permission denied"},
		"a directory":         {[3]string{in, "", ""}, []string{dir}, 126, "was\n", "was\n", "", "is a directory"},
		"no interpreter":      {[3]string{in, "", ""}, []string{dir + "/broken"}, 126, "was\n", "was\n", "", "cannot start"},
		"no program":          {[3]string{in, "out", "err"}, []string{dir + "/text"}, 126, "was\n", "was\n", "", "exec format error"},
		"no such input":       {[3]string{dir + "/none", "", ""}, []string{"cat"}, 126, "was\n", "was\n", "", "as its standard input"},
		"no such output":      {[3]string{"", dir + "/none/x", ""}, []string{"true"}, 126, "was\n", "was\n", "", "no such file"},
		"opened again":        {[3]string{"", "out", "err"}, []string{"sh", "-c", "echo 1; echo 2 > /dev/stdout; echo 3 | tee /dev/stderr; echo 4 >&2"}, 0, "was\n1\n2\n3\n", "was\n3\n4\n", "", ""},
		"killed":              {[3]string{"", "out", "err"}, []string{"sh", "-c", "echo 1; kill -9 $$"}, 137, "was\n1\n", "was\n", "", ""},
		"leaves one running":  {[3]string{"", "out", "err"}, []string{"sh", "-c", "sleep 60 & echo 1; exit 3"}, 3, "was\n1\n", "was\n", "", ""},
		"no space":            {[3]string{"", "/dev/full", "err"}, []string{"sh", "-c", "echo 1"}, 74, "was\n", "was\n", "", `cannot keep the output of "sh": no space left`},
		"no space, no end":    {[3]string{"", "/dev/full", "err"}, []string{"sh", "-c", "trap '' PIPE; while :; do echo 1; done 2>&-"}, 74, "was\n", "was\n", "", "cannot keep"},
		"not in this PATH":    {[3]string{in, "", ""}, []string{"noexec"}, 126, "was\n", "was\n", "", "permission denied"},
		"not where it stands": {[3]string{in, "", ""}, []string{"in"}, 127, "was\n", "was\n", "", "cannot start"},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs := write("out", "was\n", 0o644), write("err", "was\n", 0o644)
			output, failed := filepath.Join(t.TempDir(), "output"), filepath.Join(t.TempDir(), "failed")
			if err := errors.Join(ring.Make(output), ring.Make(failed)); err != nil {
				t.Fatal(err)
			}
			files := test.files
			for i, f := range files {
				switch f {
				case "out":
					files[i] = out
				case "err":
					files[i] = errs
				case "ring":
					files[i] = ringMark + output
				}
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self, append(append([]string{StdioCommand, "", failed}, files[:]...), test.command...)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("plain input\n"), &stdout, &stderr
			cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
			if name == "not in this PATH" {
				cmd.Env = []string{"PATH=/nowhere:" + dir}
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			_ = cmd.Run() // the exit code says it
			// In a container what it leaves running ends with it.
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Error(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code %d, want %d\n%s", code, test.code, &stderr)
			}
			if stdout.Len() > 0 || stderr.Len() > 0 {
				t.Errorf("the helper's own standard output is %q and its error %q", &stdout, &stderr)
			}
			var written, said tail
			if err := errors.Join(written.readRing(output), said.readRing(failed)); err != nil {
				t.Fatal(err)
			}
			if written.String() != test.ring || !strings.Contains(said.String(), test.say) || test.say == "" && said.String() != "" {
				t.Errorf("the rings have %q and %q, want %q and %q", written.String(), said.String(), test.ring, test.say)
			}
			for file, want := range map[string]string{out: test.out, errs: test.errs} {
				if got, err := os.ReadFile(file); err != nil || string(got) != want {
					t.Errorf("%s is %q, %v; want %q", filepath.Base(file), got, err, want)
				}
			}
		})
	}
}

// A command begins when the gate is open and not before.
func TestExecStdioWaitsAtTheGate(t *testing.T) {
	dir := t.TempDir()
	gate, began := filepath.Join(dir, "gate"), filepath.Join(dir, "began")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, StdioCommand, gate, "", "", os.DevNull, os.DevNull, "touch", began)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * gatePoll)
	if _, err := os.Stat(began); err == nil {
		t.Error("it began before the gate was open")
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(began); err != nil {
		t.Error("it did not begin")
	}
}
