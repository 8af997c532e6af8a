package power

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/test/rig"
)

// Machine is a node under power.
type Machine struct {
	tb      testing.TB
	cmd     *exec.Cmd
	disk    *Disk
	console string
	lines   chan Line
}

// Line is something that the guest said: a word and what belongs to it.
type Line struct {
	Word, Rest string
	At         time.Time
}

// silence is how long a machine may say nothing: emulated on a busy host, a node
// takes minutes for what a real one does in a second.
const silence = 10 * time.Minute

// emulation is qemu's accelerator that every machine has.
const emulation = "tcg"

// Accelerator returns how qemu runs machines here: with kvm where a machine
// really boots with it, which nested virtualisation may only promise, else by
// emulation.
func (n *Node) Accelerator(tb testing.TB) string {
	tb.Helper()
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return emulation
	}
	m := n.Boot(tb, "kvm", NewDisk(tb, NewImage(tb)), []string{"registry=none"})
	defer m.kill()
	for deadline := time.After(30 * time.Second); ; {
		select {
		case l, ok := <-m.lines:
			switch {
			case !ok:
				return emulation
			case l.Word == "done":
				return "kvm"
			}
		case <-deadline:
			return emulation
		}
	}
}

// Boot turns a machine on with a disk and tells the guest what to do, see
// test/power/guest. environment holds NAME=value, without spaces.
func (n *Node) Boot(tb testing.TB, accelerator string, d *Disk, environment []string, words ...string) *Machine {
	tb.Helper()
	m := &Machine{tb: tb, disk: d, console: filepath.Join(tb.TempDir(), "console"), lines: make(chan Line, 10_000)}
	// An emulated machine has a clock of its own that counts instructions, of two
	// nanoseconds: nothing in it runs into its time limits because the host is busy.
	// Its processor has no wide vectors, which are slow to emulate.
	processor := []string{"-cpu", "qemu64", "-icount", "shift=1"}
	if accelerator != emulation {
		processor = []string{"-cpu", "host"}
	}
	m.cmd = exec.Command(rig.Program(tb, "qemu-system-x86_64", "qemu-system-x86"), append(processor,
		"-accel", accelerator, "-smp", "1", "-m", "1024",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:"+m.console, "-serial", "stdio",
		"-kernel", n.kernel, "-initrd", n.initial,
		// What the kernel does not know it hands on to its first process: names
		// with values as environment, words behind -- as arguments.
		"-append", strings.Join(append(append([]string{"console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0"}, environment...), append([]string{"--"}, words...)...), " "),
		"-drive", "if=virtio,format=raw,readonly=on,file="+n.system,
		// The disk is told of each flush, and qemu keeps nothing back itself.
		"-drive", "if=virtio,format=raw,cache=writeback,file=nbd+unix:///?socket="+d.socket,
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
	tb.Cleanup(m.kill)
	return m
}

func (m *Machine) kill() {
	_ = m.cmd.Process.Kill()
	for range m.lines {
	}
	_ = m.cmd.Wait()
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
		if l.Word == "failed" {
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

// Cut takes the power away. It returns what the guest had said before and nobody
// had heard yet, and what the disk has lost. The machine goes before its disk:
// it would take a disk that is gone for one that fails, and say so.
func (m *Machine) Cut(random *rand.Rand, keep float64) (said []Line, loss Loss) {
	m.tb.Helper()
	_ = m.cmd.Process.Kill()
	for l := range m.lines {
		said = append(said, l)
	}
	_ = m.cmd.Wait() // killed
	loss, err := m.disk.Cut(random, keep)
	if err != nil {
		m.tb.Fatal(err)
	}
	return said, loss
}

func (l Loss) String() string {
	return fmt.Sprintf("%d writes and %d flushes; of %d sectors not flushed, %d lost", l.Writes, l.Flushes, l.Cached, l.Lost)
}
