// Command guest is the first process of the machines whose power the tests cut:
// it makes a node of what the kernel has booted, runs tasks on it and tells the
// host what came of them.
//
// Its arguments are what to do, one after the other; the kernel hands on those
// behind the -- of its command line:
//
//	others   put things on the node that are not deckhand's
//	NAME     run the task document NAME to its end
//	save     make everything durable
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/test/check"
)

func main() {
	var err error
	switch {
	case os.Args[0] == "node":
		err = work(os.Args[1:])
	case os.Getpid() == 1:
		err = boot(os.Args[1:])
	default:
		err = fmt.Errorf("this is the first process of a test's virtual machine")
	}
	if err != nil {
		say("failed", err.Error())
	}
	if os.Getpid() == 1 {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // the host kills the machine anyway
	}
}

// boot makes the node and waits for the process that works on it.
func boot(words []string) error {
	if err := enter(); err != nil {
		return err
	}
	worker := exec.Command("/bin/guest")
	worker.Args = append([]string{"node"}, words...)
	worker.Stdout, worker.Stderr = os.Stdout, os.Stderr
	if err := worker.Start(); err != nil {
		return err
	}
	// Whoever has lost its parent is the first process's to bury.
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait: %w", err)
		}
		if pid == worker.Process.Pid {
			return nil
		}
	}
}

// Where things are. The system disk is read-only.
const (
	modules = "/modules"     // in the initial file system
	system  = "/mnt"         // the system disk before it is the root
	data    = "/data"        // the data disk
	port    = "/dev/ttyS1"   // to the host
	socket  = "/run/d.sock"  // of Docker
	tasks   = "/tasks"       // task documents
	root    = data + "/root" // deckhand's
	docker  = data + "/docker"
	outputs = data + "/out"
)

type mount struct{ source, target, kind, options string }

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
		{"dev", "/dev", "devtmpfs", ""},
		{"/dev/vda", system, "ext4", "ro"},
		{"/dev/vdb", system + data, "ext4", "rw"},
		{"dev", system + "/dev", "devtmpfs", ""},
		{"proc", system + "/proc", "proc", ""},
		{"sys", system + "/sys", "sysfs", ""},
		{"cgroup", system + "/sys/fs/cgroup", "cgroup2", ""},
		{"run", system + "/run", "tmpfs", ""},
		{"tmp", system + "/tmp", "tmpfs", ""},
	} {
		flags := uintptr(0)
		if m.options == "ro" {
			flags = unix.MS_RDONLY
		}
		if err := unix.Mount(m.source, m.target, m.kind, flags, ""); err != nil {
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
	return errors.Join(os.Chdir("/"), os.Setenv("PATH", "/bin"))
}

// work does what it is told, and looks at the node after each task.
func work(words []string) error {
	if err := start(); err != nil {
		return err
	}
	watch, err := check.NewWatch("unix://" + socket)
	if err != nil {
		return err
	}
	watch.Tell(func(e check.Event) { sayJSON("event", e) })
	for _, word := range words {
		var err error
		switch word {
		case "others":
			err = others()
		case "save":
			unix.Sync()
			say("saved")
		default:
			err = run(word, watch)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	say("done")
	return nil
}
