package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fixture is a host whose files say what the test wants them to.
type fixture struct {
	Host
	dir string
}

// newFixture makes a process with these groups on a host with these mounts, each
// of which is a line of mountinfo with %s for the fixture's directory.
func newFixture(t *testing.T, groups string, mounts ...string) fixture {
	t.Helper()
	f := fixture{dir: t.TempDir()}
	f.Proc = filepath.Join(f.dir, "proc")
	f.write(t, "proc/cgroup", groups)
	f.write(t, "proc/mountinfo", strings.ReplaceAll(strings.Join(mounts, "\n"), "%s", f.dir))
	return f
}

func (f fixture) write(t *testing.T, name, text string) {
	t.Helper()
	name = filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const (
	mountMemory  = "31 30 0:27 / %s/memory rw,relatime - cgroup cgroup rw,memory"
	mountCPU     = "32 30 0:28 / %s/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
	mountDevices = "33 30 0:29 / %s/devices rw,relatime - cgroup cgroup rw,devices"
	mountUnified = "34 30 0:30 / %s/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
	mountBound   = "35 30 0:27 /docker/x %s/memory rw,relatime - cgroup cgroup rw,memory"
)

// Under version 1 the group of the first controller that has one is the job's.
func TestParent1(t *testing.T) {
	const step = "/slurm_n1/uid_0/job_1/step_batch/task_0"
	for _, test := range []struct {
		name   string
		groups string
		mounts []string
		files  map[string]string
		want   string // the parent, or what the error tells after "! "
	}{
		{name: "memory", groups: "4:memory:" + step + "\n3:cpuset:/\n1:cpu,cpuacct:/other\n0::/", want: step},
		{name: "cpu without memory", groups: "4:memory:/\n1:cpu,cpuacct:/job\n", files: map[string]string{"cpu,cpuacct/job/x": ""}, want: "/job"},
		{name: "no group", groups: "4:memory:/\n1:cpu,cpuacct:/\n0::/\n", want: "! no control group"},
		{name: "only of systemd", groups: "4:memory:/\n9:name=systemd:/user.slice\n0::/user.slice\n", want: "! no control group"},
		{name: "colon in the name", groups: "4:memory:/a:b\n", files: map[string]string{"memory/a:b/x": ""}, want: "/a:b"},
		{name: "another namespace", groups: "4:memory:/../job\n", want: "! no control group"},
		{name: "mounted in part", groups: "4:memory:" + step + "\n", mounts: []string{mountBound}, want: "! not mounted"},
		{name: "not there", groups: "4:memory:/elsewhere\n", want: "! not that of the host"},
		{name: "every device", groups: "4:memory:" + step + "\n", want: step,
			files: map[string]string{"devices/slurm_n1/uid_0/job_1/devices.list": "a *:* rwm\n"}},
		{name: "devices denied", groups: "4:memory:" + step + "\n", want: "! ConstrainDevices",
			files: map[string]string{"devices/slurm_n1/uid_0/job_1/devices.list": "b *:* rwm\nc 1:* rwm\n"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.mounts == nil {
				test.mounts = []string{mountMemory, mountCPU, mountDevices, mountUnified}
			}
			f := newFixture(t, test.groups, test.mounts...)
			f.write(t, "memory"+step+"/cgroup.procs", "1\n")
			for name, text := range test.files {
				f.write(t, name, text)
			}
			check(t, f.Host, "1", test.want)
		})
	}
}

// Under version 2 it is the lowest one that may have groups with controllers.
func TestParent2(t *testing.T) {
	const job = "/system.slice/slurmstepd.scope/job_1"
	for _, test := range []struct {
		name, groups string
		mount        string
		procs        map[string]string
		limits       map[string]string
		want         string
	}{
		{name: "Slurm", groups: "0::" + job + "/step_batch/user/task_0\n", want: job + "/step_batch/user",
			procs: map[string]string{job + "/step_batch/user/task_0": "7\n", job + "/step_batch/user": ""}},
		{name: "processes above", groups: "0::/a/b/c\n", want: "/a", procs: map[string]string{"/a/b/c": "7\n", "/a/b": "8\n", "/a": ""}},
		{name: "limits of its own", groups: "0::/htcondor/slot1\n", want: "! group /htcondor/slot1 has the limit memory.max",
			procs: map[string]string{"/htcondor/slot1": "7\n", "/htcondor": ""}, limits: map[string]string{"/htcondor/slot1/memory.max": "104857600\n"}},
		{name: "limits between", groups: "0::/a/b/c\n", want: "! group /a/b has the limit cpu.max",
			procs: map[string]string{"/a/b/c": "7\n", "/a/b": "8\n", "/a": ""}, limits: map[string]string{"/a/b/cpu.max": "50000 100000\n"}},
		{name: "no limits", groups: "0::/a/b\n", want: "/a", procs: map[string]string{"/a/b": "7\n", "/a": ""},
			limits: map[string]string{"/a/b/memory.max": "max\n", "/a/b/memory.high": "max\n", "/a/b/cpu.max": "max 100000\n", "/a/b/cpuset.cpus": "\n", "/a/b/pids.max": "9\n"}},
		{name: "no group", groups: "0::/\n", want: "! no control group"},
		{name: "processes everywhere", groups: "0::/a\n", want: "! no control group", procs: map[string]string{"/a": "7\n"}},
		{name: "not there", groups: "0::/a\n", want: "! not that of the host"},
		{name: "not mounted", groups: "0::/a\n", mount: mountMemory, want: "! not mounted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.mount == "" {
				test.mount = mountUnified
			}
			f := newFixture(t, test.groups, test.mount)
			for dir, text := range test.procs {
				f.write(t, "unified"+dir+"/cgroup.procs", text)
			}
			for file, text := range test.limits {
				f.write(t, "unified"+file, text)
			}
			check(t, f.Host, "2", test.want)
		})
	}
}

// Docker's systemd driver takes no group that it has not made.
func TestParentWithSystemd(t *testing.T) {
	f := newFixture(t, "4:memory:/job\n0::/job\n", mountMemory, mountUnified)
	for _, version := range []string{"1", "2"} {
		if parent, err := f.Parent("systemd", version); parent != "" || err == nil || !strings.Contains(err.Error(), "native.cgroupdriver=cgroupfs") {
			t.Errorf("version %s: %q, %v", version, parent, err)
		}
	}
}

func check(t *testing.T, h Host, version, want string) {
	t.Helper()
	parent, err := h.Parent("cgroupfs", version)
	if refused, ok := strings.CutPrefix(want, "! "); ok {
		if err == nil || !strings.Contains(err.Error(), refused) {
			t.Errorf("got %q and the error %v, want one that tells %q", parent, err, refused)
		}
		return
	}
	if parent != want || err != nil {
		t.Errorf("got %q and the error %v, want %q", parent, err, want)
	}
}

// What is empty of the job's group goes, except the levels that jobs share.
func TestPrune(t *testing.T) {
	f := newFixture(t, "", mountMemory, mountCPU, mountDevices, mountUnified)
	for _, dir := range []string{
		"memory/slurm/uid_0/job_1/step/task", "devices/slurm/uid_0/job_1/step/task",
		"devices/slurm/uid_0/job_1/other", "unified/slurm/uid_0/job_1/step/task", "memory/slurm/uid_0/job_2",
		"memory/slurm/uid_1",
	} {
		if err := os.MkdirAll(filepath.Join(f.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Prune("/slurm/uid_0/job_1/step/task"); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(f.dir, "*/slurm/uid_0/*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, dir := range left {
		left[i] = strings.TrimPrefix(dir, f.dir+"/")
	}
	if want := []string{"devices/slurm/uid_0/job_1", "memory/slurm/uid_0/job_2"}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
	// Empty, so that nothing but its level keeps it.
	if err := f.Prune("/slurm/uid_1/job_3"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "memory/slurm/uid_1")); err != nil {
		t.Errorf("a level that jobs share has gone: %v", err)
	}
}

// Where version 2 is alone, an engine has left the groups of a job that ended before
// its container.
func TestPruneVersion2(t *testing.T) {
	f := newFixture(t, "", mountUnified)
	scope := filepath.Join(f.dir, "unified/system.slice/slurmstepd.scope")
	for _, dir := range []string{"job_1/step_batch/user", "job_2/step_batch/user/task_0"} {
		if err := os.MkdirAll(filepath.Join(scope, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, job := range []string{"job_1", "job_2"} {
		if err := f.Prune("/system.slice/slurmstepd.scope/" + job + "/step_batch/user"); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := filepath.Glob(scope + "/*/*/*/*"); err != nil || len(left) != 1 {
		t.Errorf("of a job that runs %v are left (%v)", left, err)
	}
	if _, err := os.Stat(filepath.Join(scope, "job_1")); err == nil {
		t.Error("of a job that has ended its group is left")
	}
}

// A user who may remove no group hears nothing of those that stay anyway.
func TestPruneByUser(t *testing.T) {
	if os.Getuid() != 0 {
		lacks(t, "only root can be another user")
	}
	f := newFixture(t, "", mountUnified)
	const parent = "/system.slice/slurmstepd.scope/job_1/step_batch/user"
	f.write(t, "unified"+parent+"/task_0/cgroup.procs", "7\n")
	for dir := f.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with the function, and this user with it
		_, err := unix.SetfsuidRetUid(65534)
		failed <- errors.Join(err, f.Prune(parent))
	}()
	if err := <-failed; err != nil {
		t.Error(err)
	}
}
