// Package node knows this machine: which boot it is in, which process owns a
// root, how to end a process that must not go on, how much space a filesystem
// has, and how to delete a tree that somebody hostile has written.
package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrElsewhere says that a process belongs to another machine or another PID
// namespace: from here nobody can tell whether it is alive.
var ErrElsewhere = errors.New("the process belongs to another host or PID namespace and cannot be judged from here")

// BootID returns the kernel's random id of this boot (random(4)).
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Process names a process beyond reuse of its PID.
type Process struct {
	PID int `json:"pid"`
	// Start is when it started, in clock ticks since boot (proc_pid_stat(5), field 22).
	Start  uint64 `json:"start"`
	Host   string `json:"host"`
	BootID string `json:"boot_id"`
	// PIDNamespace is the inode number of the namespace that PID counts in.
	PIDNamespace uint64 `json:"pid_namespace"`
}

// Self names the calling process.
func Self() (Process, error) {
	p := Process{PID: os.Getpid()}
	// A /proc of another PID namespace would describe other processes under our numbers.
	if link, err := os.Readlink("/proc/self"); err != nil {
		return Process{}, fmt.Errorf("cannot read /proc: %w", err)
	} else if link != strconv.Itoa(p.PID) {
		return Process{}, fmt.Errorf("cannot name this process: /proc shows it as %s, itself says %d; mount a /proc of its own PID namespace", link, p.PID)
	}
	var err error
	if p.BootID, err = BootID(); err != nil {
		return Process{}, err
	}
	if p.Host, err = os.Hostname(); err != nil {
		return Process{}, fmt.Errorf("cannot read the host name: %w", err)
	}
	if p.PIDNamespace, err = pidNamespace(); err != nil {
		return Process{}, err
	}
	s, err := readStat(p.PID)
	if err != nil {
		return Process{}, err
	}
	p.Start = s.start
	return p, nil
}

// Alive says whether the process still runs. A zombie does not: it has released
// everything it held. The error is ErrElsewhere when it cannot be judged.
func (p Process) Alive() (bool, error) {
	gone, err := p.ofEarlierBoot()
	if err != nil || gone {
		return false, err
	}
	s, err := readStat(p.PID)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
		return false, nil
	case err != nil:
		return false, err
	}
	return s.start == p.Start && !s.dead(), nil
}

// ofEarlierBoot is true when this machine was booted since the process ran.
// The boot id is the kernel's, so with the same one a different host name is
// only a renamed host or a container of it, and the namespace decides.
func (p Process) ofEarlierBoot() (bool, error) {
	boot, err := BootID()
	if err != nil {
		return false, err
	}
	if p.BootID != boot {
		host, err := os.Hostname()
		if err != nil {
			return false, fmt.Errorf("cannot read the host name: %w", err)
		}
		if p.Host != host {
			return false, fmt.Errorf("process %d on %s: %w", p.PID, p.Host, ErrElsewhere)
		}
		return true, nil
	}
	ns, err := pidNamespace()
	if err != nil {
		return false, err
	}
	if p.PIDNamespace != ns {
		return false, fmt.Errorf("process %d on %s: %w", p.PID, p.Host, ErrElsewhere)
	}
	return false, nil
}

func pidNamespace() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return 0, fmt.Errorf("cannot read the PID namespace: %w", err)
	}
	return st.Ino, nil
}

type procStat struct {
	state byte
	start uint64
}

// dead is true for a zombie and for a process on its way out.
func (s procStat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	s, err := parseStat(b)
	if err != nil {
		return procStat{}, fmt.Errorf("cannot read /proc/%d/stat: %w", pid, err)
	}
	return s, nil
}

// parseStat reads fields 3 and 22. Field 2, the command name in parentheses,
// may hold blanks and parentheses itself, so counting begins after the last one.
func parseStat(b []byte) (procStat, error) {
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return procStat{}, fmt.Errorf("%d fields after the command name, want at least 20", len(fields))
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return procStat{}, err
	}
	return procStat{state: fields[0][0], start: start}, nil
}
