// Package cgroup finds the control group that a batch engine has put this process
// into, so that the engine's limits hold for the containers of the task too.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is where the kernel tells of groups.
type Host struct {
	// Proc is the directory of a process below /proc; empty for this one's.
	Proc string
}

func (h Host) proc(name string) string {
	if h.Proc == "" {
		return "/proc/self/" + name
	}
	return filepath.Join(h.Proc, name)
}

// controllers are those of version 1 whose group is taken for the job's, the
// first one that has a group. Docker takes one parent for all of them.
var controllers = []string{"memory", "cpuset", "cpu", "freezer"}

// unlimited is what devices.list says of a group that may use every device.
const unlimited = "a *:* rwm"

// Parent is the group below which containers have the limits of this process, as
// the Docker Engine of that cgroup driver and version takes it. The error says
// why there is none.
func (h Host) Parent(driver, version string) (string, error) {
	if driver != "cgroupfs" {
		return "", fmt.Errorf(`the cgroup driver of Docker is %s, which takes no group of others; give dockerd "exec-opts": ["native.cgroupdriver=cgroupfs"]`, driver)
	}
	own, err := h.groups()
	if err != nil {
		return "", err
	}
	mounts, err := h.mounts()
	if err != nil {
		return "", err
	}
	if version == "2" {
		return parent2(own[""], mounts)
	}
	return parent1(own, mounts)
}

var errNone = errors.New("this process is in no control group of an engine")

func parent1(own, mounts map[string]string) (string, error) {
	for _, c := range controllers {
		parent := own[c]
		if parent == "" || parent == "/" {
			continue
		}
		mount, ok := mounts[c]
		if !ok {
			return "", fmt.Errorf("the %s controller is not mounted here as on the host", c)
		}
		if _, err := os.Stat(filepath.Join(mount, parent)); err != nil {
			return "", fmt.Errorf("the control group of this process is not that of the host: %w", err)
		}
		return parent, devicesFree(parent, mounts["devices"])
	}
	return "", errNone
}

// devicesFree refuses a group in which some device is denied: the runtime first
// gives each container the right to make every device node, which the kernel
// refuses there, and the container would not start.
func devicesFree(parent, mount string) error {
	for dir := parent; mount != "" && dir != "/"; dir = path.Dir(dir) {
		list, err := os.ReadFile(filepath.Join(mount, dir, "devices.list"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // Docker makes it, with the rights of the one above
		}
		if err != nil {
			return err
		}
		if text := strings.TrimSpace(string(list)); text != unlimited {
			return fmt.Errorf("the control group %s of the devices controller denies devices, and Docker cannot start a container there (Slurm's ConstrainDevices, under cgroup v1)", dir)
		}
		return nil
	}
	return nil
}

// limits are the files of version 2 in which an engine bounds a job, with what each says of
// a group without a limit.
var limits = []struct{ file, none string }{{"memory.max", "max"}, {"memory.high", "max"}, {"cpu.max", "max"}, {"cpuset.cpus", ""}}

// limitOf names a limit that a group has itself.
func limitOf(dir string) (file string, has bool) {
	for _, l := range limits {
		text, err := os.ReadFile(filepath.Join(dir, l.file))
		if err != nil {
			continue // without that controller
		}
		if value, _, _ := strings.Cut(strings.TrimSpace(string(text)), " "); value != l.none {
			return l.file, true
		}
	}
	return "", false
}

// parent2 is the lowest group above this process that has no process itself:
// in version 2 no other one may have groups below it with controllers. The limits of
// the groups that are passed over would not hold there: engines that give a job one group
// for its processes and its limits, as HTCondor does, bind no container.
func parent2(own string, mounts map[string]string) (string, error) {
	mount, ok := mounts[""]
	if !ok {
		return "", errors.New("cgroup v2 is not mounted here as on the host")
	}
	for dir := own; dir != "" && dir != "/"; dir = path.Dir(dir) {
		procs, err := os.ReadFile(filepath.Join(mount, dir, "cgroup.procs"))
		switch {
		case errors.Is(err, unix.EOPNOTSUPP): // a group of threads
		case err != nil:
			return "", fmt.Errorf("the control group of this process is not that of the host: %w", err)
		case len(procs) == 0:
			return dir, nil
		}
		if file, has := limitOf(filepath.Join(mount, dir)); has {
			return "", fmt.Errorf("the control group %s has the limit %s and a process, so that no container can be below it (cgroup v2)", dir, file)
		}
	}
	return "", errNone
}

// groups are those of the process, by controller; that of version 2 has the name "".
func (h Host) groups() (map[string]string, error) {
	own := map[string]string{}
	err := eachLine(h.proc("cgroup"), func(line string) {
		// cgroups(7): hierarchy:controllers:path
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 || !path.IsAbs(parts[2]) || parts[2] != path.Clean(parts[2]) {
			return // such as /../x: of another cgroup namespace
		}
		for c := range strings.SplitSeq(parts[1], ",") {
			own[c] = parts[2]
		}
	})
	return own, err
}

// mounts are where the hierarchies of the host are mounted whole, by controller;
// that of version 2 has the name "".
func (h Host) mounts() (map[string]string, error) {
	points := map[string]string{}
	err := eachLine(h.proc("mountinfo"), func(line string) {
		// proc(5): id parent device root point options tags - type source options
		fields := strings.Fields(line)
		i := slices.Index(fields, "-")
		if i < 6 || i+3 >= len(fields) || fields[3] != "/" {
			return
		}
		switch fields[i+1] {
		case "cgroup2":
			points[""] = fields[4]
		case "cgroup":
			for c := range strings.SplitSeq(fields[i+3], ",") {
				points[c] = fields[4]
			}
		}
	})
	return points, err
}

func eachLine(name string, do func(string)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read-only
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		do(lines.Text())
	}
	return lines.Err()
}
