package node

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21\n"
	for _, tc := range []struct {
		name, text string
		want       procStat
		ok         bool
	}{
		{"plain", "12 (sh)" + tail, procStat{'S', 4711}, true},
		{"blanks and parentheses", "12 (a) Z 9 (b ) )" + tail, procStat{'S', 4711}, true},
		{"cut", "12 (sh) S 1 2", procStat{}, false},
		{"empty", "", procStat{}, false},
		{"no number", "12 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20", procStat{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseStat([]byte(tc.text))
			if got != tc.want || (err == nil) != tc.ok {
				t.Errorf("%v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

func TestAlive(t *testing.T) {
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	dead := processOf(t, zombie.Process.Pid)
	var info unix.Siginfo // wait for the end without reaping
	if err := unix.Waitid(unix.P_PID, dead.PID, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*Process)) Process {
		p := self
		change(&p)
		return p
	}
	for _, tc := range []struct {
		name  string
		p     Process
		alive bool
		err   error
	}{
		{"self", self, true, nil},
		{"self after a change of the host's name", with(func(p *Process) { p.Host = "renamed" }), true, nil},
		{"zombie", dead, false, nil},
		{"reused PID", with(func(p *Process) { p.Start++ }), false, nil},
		{"no such PID", with(func(p *Process) { p.PID = 1 << 22 }), false, nil},
		{"earlier boot", with(func(p *Process) { p.BootID = "earlier" }), false, nil},
		{"other host", with(func(p *Process) { p.BootID, p.Host = "other", "other" }), false, ErrElsewhere},
		{"other PID namespace", with(func(p *Process) { p.PIDNamespace++ }), false, ErrElsewhere},
	} {
		t.Run(tc.name, func(t *testing.T) {
			alive, err := tc.p.Alive()
			if alive != tc.alive || !errors.Is(err, tc.err) {
				t.Errorf("%v, %v; want %v, %v", alive, err, tc.alive, tc.err)
			}
		})
	}
	if err := zombie.Wait(); err != nil {
		t.Fatal(err)
	}
	if alive, err := dead.Alive(); alive || err != nil {
		t.Errorf("reaped: %v, %v", alive, err)
	}
}

// A command name that mimics the fields after it changes nothing.
func TestStartTimeOfAwkwardName(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		missing(t, "sleep")
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "x) Z 1 (2")
	if err := os.WriteFile(name, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p := processOf(t, cmd.Process.Pid)
	self, _ := Self()
	if alive, err := p.Alive(); !alive || err != nil || p.Start < self.Start {
		t.Errorf("%+v: %v, %v", p, alive, err)
	}
}

func TestFence(t *testing.T) {
	exit := func(code int) func(syscall.WaitStatus) bool {
		return func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == code }
	}
	killed := func(s syscall.WaitStatus) bool { return s.Signaled() && s.Signal() == unix.SIGKILL }
	for _, tc := range []struct {
		name, role string
		freeze     bool
		grace      time.Duration
		want       func(syscall.WaitStatus) bool
	}{
		{"leaves when asked", "sleep", false, time.Minute, exit(7)},
		{"stopped, leaves when asked", "sleep", true, time.Minute, exit(7)},
		{"stubborn", "stubborn", false, 50 * time.Millisecond, killed},
		{"stubborn and stopped", "stubborn", true, 0, killed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd, p := start(t, tc.role)
			if tc.freeze {
				if err := Signal(p, unix.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			if err := Fence(context.Background(), p, tc.grace); err != nil {
				t.Fatal(err)
			}
			if alive, err := p.Alive(); alive || err != nil {
				t.Errorf("alive after Fence: %v, %v", alive, err)
			}
			_ = cmd.Wait()
			if s := cmd.ProcessState.Sys().(syscall.WaitStatus); !tc.want(s) {
				t.Errorf("ended with %v", cmd.ProcessState)
			}
			if err := Fence(context.Background(), p, tc.grace); err != nil {
				t.Errorf("fencing what is gone: %v", err)
			}
			if err := Signal(p, unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("signalling what is gone: %v", err)
			}
		})
	}
}

func TestFenceSparesOthers(t *testing.T) {
	_, p := start(t, "sleep")
	for _, tc := range []struct {
		name   string
		change func(*Process)
		err    error
	}{
		{"reused PID", func(p *Process) { p.Start-- }, nil},
		{"earlier boot", func(p *Process) { p.BootID = "earlier" }, nil},
		{"other namespace", func(p *Process) { p.PIDNamespace-- }, ErrElsewhere},
		{"other host", func(p *Process) { p.BootID, p.Host = "other", "other" }, ErrElsewhere},
	} {
		t.Run(tc.name, func(t *testing.T) {
			other := p
			tc.change(&other)
			if err := Fence(context.Background(), other, 0); !errors.Is(err, tc.err) {
				t.Errorf("%v, want %v", err, tc.err)
			}
			if err := Signal(other, unix.SIGKILL); err == nil {
				t.Error("signalled")
			}
			if alive, err := p.Alive(); !alive || err != nil {
				t.Fatalf("was shot: %v, %v", alive, err)
			}
		})
	}
	self, _ := Self()
	if err := Fence(context.Background(), self, 0); err == nil {
		t.Error("fenced itself")
	}
}

func TestFenceStopsWithItsContext(t *testing.T) {
	_, p := start(t, "stubborn")
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := Fence(ctx, p, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if alive, err := p.Alive(); !alive || err != nil {
		t.Errorf("%v, %v", alive, err)
	}
}
