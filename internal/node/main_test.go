package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary plays other processes too: the first word of ROLE says which.
func TestMain(m *testing.M) {
	if role := os.Getenv("ROLE"); role != "" {
		os.Exit(play(strings.Fields(role)))
	}
	os.Exit(m.Run())
}

func play(role []string) int {
	switch role[0] {
	case "sleep": // leaves at SIGTERM with 7
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGTERM)
		fmt.Println("ready")
		<-c
		return 7
	case "stubborn": // ignores SIGTERM
		signal.Ignore(unix.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "hold": // holds the lock of role[1] for a task
		l, err := Lock(role[1])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		self, _ := Self()
		if err := l.SetOwner(Owner{Process: self, Task: "t1", Document: "d1", Since: time.Now()}); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "remove": // prints what RemoveTree(role[1], role[2]) returns
		removed, err := RemoveTree(context.Background(), role[1], role[2], nil)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		_ = json.NewEncoder(os.Stdout).Encode(removed)
	case "prepare":
		if err := PrepareRoot(role[1]); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return 0
}

// actor is this binary in another role, not started yet.
func actor(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ROLE="+role)
	return cmd
}

// start starts an actor that says "ready", and ends it with the test.
func start(t *testing.T, role string) (*exec.Cmd, Process) {
	t.Helper()
	cmd := actor(role)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	buf := make([]byte, 200)
	n, _ := out.Read(buf)
	if string(buf[:n]) != "ready\n" {
		t.Fatalf("%s: %q", role, buf[:n])
	}
	return cmd, processOf(t, cmd.Process.Pid)
}

func processOf(t *testing.T, pid int) Process {
	t.Helper()
	p, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	s, err := readStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	p.PID, p.Start = pid, s.start
	return p
}

// nobody makes cmd run without any privilege.
func nobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

// needRoot skips, or fails in CI, where the test cannot mount or change owners.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("needs %s", what)
	}
	t.Skipf("needs %s", what)
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, name)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
