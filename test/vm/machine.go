package vm

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/test/rig"
)

// Machine is one that runs.
type Machine struct {
	tb      testing.TB
	cmd     *exec.Cmd
	console string
	lines   chan Line
}

// Line is something that the guest said: a word and what belongs to it.
type Line struct {
	Word, Rest string
	At         time.Time
}

// Words of the first process.
const (
	Ended  = "ended"  // the command has, with this code
	Failed = "failed" // the machine could not be made, or a guest says that it failed
)

// silence is how long a machine may say nothing: emulated on a busy host, a node
// takes minutes for what a real one does in a second.
const silence = 10 * time.Minute

// emulation is qemu's accelerator that every machine has.
const emulation = "tcg"

// choose returns how qemu runs machines here: with kvm where a machine really
// boots with it, which nested virtualisation may only promise, else by emulation.
func (s *System) choose(tb testing.TB) string {
	tb.Helper()
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return emulation
	}
	m := s.boot(tb, "kvm", "format=raw,file="+NewImage(tb), nil, "/bin/busybox", "true")
	defer m.Kill()
	for deadline := time.After(30 * time.Second); ; {
		select {
		case l, ok := <-m.lines:
			switch {
			case !ok:
				return emulation
			case l.Word == Ended:
				return "kvm"
			}
		case <-deadline:
			return emulation
		}
	}
}

// Accelerator is what qemu runs this system's machines with.
func (s *System) Accelerator() string { return s.accelerator }

// Boot turns a machine on that runs a command, see test/vm/init. data is what a
// -drive of qemu says of its data disk. environment holds NAME=value; nothing has spaces.
func (s *System) Boot(tb testing.TB, data string, environment []string, command ...string) *Machine {
	tb.Helper()
	return s.boot(tb, s.accelerator, data, environment, command...)
}

func (s *System) boot(tb testing.TB, accelerator, data string, environment []string, command ...string) *Machine {
	tb.Helper()
	m := &Machine{tb: tb, console: filepath.Join(tb.TempDir(), "console"), lines: make(chan Line, 10_000)}
	// An emulated processor has no wide vectors, which are slow to emulate. A single
	// one has a clock of its own that counts instructions, of two nanoseconds: nothing
	// runs into its time limits because the host is busy.
	processor := []string{"-cpu", "host"}
	if accelerator == emulation {
		processor = []string{"-cpu", "qemu64"}
		if s.cpus == 1 {
			processor = append(processor, "-icount", "shift=1")
		}
	}
	m.cmd = exec.Command(rig.Program(tb, "qemu-system-x86_64", "qemu-system-x86"), append(processor,
		"-accel", accelerator, "-smp", strconv.Itoa(s.cpus), "-m", strconv.Itoa(1024*s.cpus),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:"+m.console, "-serial", "stdio",
		"-kernel", s.kernel, "-initrd", s.initial,
		// What the kernel does not know it hands on to its first process: names
		// with values as environment, words behind -- as arguments.
		"-append", strings.Join(append(append([]string{"console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0"}, environment...), append([]string{"--"}, command...)...), " "),
		"-drive", "if=virtio,format=raw,readonly=on,file="+s.disk,
		"-drive", "if=virtio,"+data,
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
	)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complaints strings.Builder
	m.cmd.Stderr = &complaints
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		defer close(m.lines)
		lines := bufio.NewReader(stdout)
		for {
			text, err := lines.ReadString('\n')
			if err != nil {
				return // what is cut off was not said
			}
			word, rest, _ := strings.Cut(strings.TrimRight(text, "\r\n"), " ")
			m.lines <- Line{word, rest, time.Now()}
		}
	}()
	tb.Cleanup(func() { m.Kill() })
	return m
}

// Kill takes the power away. It returns what the guest had said before and nobody
// had heard yet.
func (m *Machine) Kill() (said []Line) {
	_ = m.cmd.Process.Kill()
	for l := range m.lines {
		said = append(said, l)
	}
	_ = m.cmd.Wait() // killed
	return said
}

// Next returns what the guest says next; false when the time is over before
// that. A machine that ends or hangs fails the test.
func (m *Machine) Next(until <-chan time.Time) (Line, bool) {
	m.tb.Helper()
	select {
	case l, ok := <-m.lines:
		if !ok {
			m.tb.Fatalf("the machine has ended by itself; its console:\n%s", m.lastWords())
		}
		if l.Word == Failed {
			m.tb.Fatalf("the guest: %s; its console:\n%s", l.Rest, m.lastWords())
		}
		return l, true
	case <-until:
	case <-time.After(silence):
		m.tb.Fatalf("the machine says nothing; its console:\n%s", m.lastWords())
	}
	return Line{}, false
}

func (m *Machine) lastWords() string {
	text, err := os.ReadFile(m.console)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}
