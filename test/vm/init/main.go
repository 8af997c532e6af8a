// Command init is the first process of virtual machines: it goes from the initial
// file system to the disks, runs the command that its arguments are, buries whoever
// has lost its parent, and tells the host the exit code. The kernel hands on the
// words behind the -- of its command line as arguments, and names with values as
// environment.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where things are. The system disk is read-only.
const (
	modules = "/modules"   // in the initial file system
	system  = "/mnt"       // the system disk before it is the root
	data    = "/data"      // the data disk
	port    = "/dev/ttyS1" // to the host
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is the first process of a test's virtual machine")
		os.Exit(2)
	}
	word, rest := "ended", ""
	code, err := boot(os.Args[1:])
	rest = fmt.Sprint(code)
	if err != nil {
		word, rest = "failed", err.Error()
	}
	if f, err := os.OpenFile(port, os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
		fmt.Fprintln(f, word, rest)
		f.Close()
	} else {
		fmt.Println(word, rest, err) // the console
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // the host kills the machine anyway
}

// boot makes the machine and waits for the command.
func boot(command []string) (code int, err error) {
	if err := enter(); err != nil {
		return 0, err
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("wait: %w", err)
		}
		if pid == cmd.Process.Pid {
			return status.ExitStatus(), nil
		}
	}
}

type mount struct {
	source, target, kind string
	flags                uintptr
}

// enter loads the drivers and goes from the initial file system to the disks.
func enter() error {
	order, err := os.ReadFile(filepath.Join(modules, "order"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open(filepath.Join(modules, name))
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			f.Close()
		}
		if err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	for _, m := range []mount{
		{"dev", "/dev", "devtmpfs", 0},
		{"/dev/vda", system, "ext4", unix.MS_RDONLY},
		{"/dev/vdb", system + data, "ext4", 0},
		{system + data + "/tmp", system + "/var/tmp", "", unix.MS_BIND},
		{"dev", system + "/dev", "devtmpfs", 0},
		{"proc", system + "/proc", "proc", 0},
		{"sys", system + "/sys", "sysfs", 0},
		{"cgroup", system + "/sys/fs/cgroup", "cgroup2", 0},
		{"run", system + "/run", "tmpfs", 0},
		{"tmp", system + "/tmp", "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.source, m.target, err)
		}
	}
	if err := os.Chdir(system); err != nil {
		return err
	}
	// As switch_root(8) does; the initial file system cannot be left by pivot_root.
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s: %w", system, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return errors.Join(os.Chdir("/"), os.Setenv("PATH", "/usr/bin:/usr/sbin"), unix.Sethostname([]byte("node")))
}
