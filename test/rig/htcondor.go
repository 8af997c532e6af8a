package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// HTCondorCommand is a command with the programs of HTCondor, which are those of a newer
// Debian (see test/deps.sh): in a mount namespace of its own that has their /usr in place
// of the machine's. Every other path means there what it means here.
func HTCondorCommand(tb TB, args ...string) *exec.Cmd {
	tb.Helper()
	return inCondor(tb, `mount --bind "$0" /usr && exec "$@"`, args...)
}

// inCondor runs a script in a mount namespace of its own, with the directory of HTCondor's
// programs and what else it is given.
func inCondor(tb TB, script string, args ...string) *exec.Cmd {
	tb.Helper()
	if os.Getuid() != 0 {
		giveUp(tb, lacking{"HTCondor's programs are mounted, which root can do"})
	}
	_, here, _, _ := runtime.Caller(0)
	usr := filepath.Join(filepath.Dir(here), "..", "..", ".tools", "condor")
	if _, err := os.Stat(usr); err != nil {
		giveUp(tb, lacking{"this machine has no HTCondor: run `make deps` as root"})
	}
	return exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, usr}, args...)...)
}

// HTCondor is a pool of a test's own with one node: the daemons run on loopback, with
// their state in one directory. Jobs are those of one user.
type HTCondor struct {
	dir    string
	user   *syscall.Credential
	groups string // the control group of all jobs; empty for none
	d      *clusterDaemon
}

// condorConf is what the pool needs on one machine. Where nothing is said of it, HTCondor
// does as it does by default, but sooner, and not what it would change of the machine: settings
// of the kernel and, if a test does not ask for them, control groups. Of the directories that a job would have for itself,
// /tmp and /var/tmp, the second is left out: there is what the rig has for jobs.
const condorConf = `
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:%[2]d
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
CONDOR_IDS = %[3]d.%[3]d
RELEASE_DIR = /usr
LIBEXEC = /usr/libexec/condor
LOCAL_DIR = %[1]s
LOG = %[1]s/log
SPOOL = %[1]s/spool
EXECUTE = %[1]s/execute
LOCK = %[1]s/lock
RUN = %[1]s/run
use SECURITY : HOST_BASED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
SCHEDD_INTERVAL = 1
UPDATE_INTERVAL = 5
NUM_CPUS = 2
RunBenchmarks = False
ENABLE_KERNEL_TUNING = False
BASE_CGROUP = %[4]s
MOUNT_UNDER_SCRATCH = /tmp
`

// condorUser is that of the daemons: daemon, whom every Debian has.
const condorUser = 1

// NewHTCondor starts a pool, which ends with the test. Its jobs are in control groups if
// they are to be bound.
func NewHTCondor(tb TB, user *syscall.Credential, bound bool) *HTCondor {
	tb.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "dkht")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	ports, release, err := reservePorts()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(release)
	c := &HTCondor{dir: dir, user: user}
	if bound {
		c.groups = filepath.Base(dir)
		tb.Cleanup(func() { removeGroups(c.groups) })
	}
	err = os.Chmod(dir, 0o755) //nolint:gosec // jobs run below it
	for _, name := range []string{"log", "spool", "execute", "lock", "run"} {
		if err == nil {
			err = os.Mkdir(filepath.Join(dir, name), 0o755) //nolint:gosec // as above
		}
		if err == nil {
			err = os.Chown(filepath.Join(dir, name), condorUser, condorUser)
		}
	}
	if err == nil {
		err = os.WriteFile(c.config(), fmt.Appendf(nil, condorConf, dir, ports[0], condorUser, c.groups), 0o644) //nolint:gosec // the user reads it
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
	host, err := os.Hostname()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	c.add(tb, "hosts", "127.0.0.1 "+host+"\n")
	// HTCondor asks for the names of users, and for their groups.
	c.add(tb, "passwd", fmt.Sprintf("owner:x:%d:%d::/:/bin/sh\n", user.Uid, user.Gid))
	var groups strings.Builder
	for _, gid := range append([]uint32{user.Gid}, user.Groups...) {
		fmt.Fprintf(&groups, "group%d:x:%d:owner\n", gid, gid)
	}
	c.add(tb, "group", groups.String())
	c.start(tb)
	return c
}

func (c *HTCondor) config() string { return filepath.Join(c.dir, "config") }

// add makes the pool's own of a file of /etc.
func (c *HTCondor) add(tb TB, name, lines string) {
	tb.Helper()
	text, err := os.ReadFile("/etc/" + name)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, name), append(text, lines...), 0o644) //nolint:gosec // as its original
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
}

// start starts the daemons and returns when a job could run.
func (c *HTCondor) start(tb TB) {
	tb.Helper()
	// The master changes its user, and so hears nothing of the end of this process: a shell does,
	// and tells it to end, with its daemons and jobs.
	cmd := inCondor(tb, `for f in passwd group hosts; do mount --bind "$1/$f" "/etc/$f" || exit; done
		`+c.hierarchies(tb)+`
		mount --bind "$0" /usr || exit
		trap 'kill -QUIT $master' TERM; condor_master -f & master=$!; wait $master; wait $master`, c.dir)
	cmd.Env = []string{"PATH=" + daemonPath, "CONDOR_CONFIG=" + c.config()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	c.d = startDaemon(tb, cmd, filepath.Join(c.dir, "master"))
	tb.Cleanup(func() {
		_ = c.d.cmd.Process.Signal(syscall.SIGTERM) // already gone is what we want
		<-c.d.ended
	})
	c.d.until(tb, func() bool {
		state, err := c.try("/", "condor_status", "-af", "State")
		return err == nil && state == "Unclaimed"
	})
}

// hierarchies is a script that mounts those of version 1 where HTCondor looks for them: it
// takes cpu and cpuacct for one, which is left out of where they are not. Without them it
// does not count the time of jobs, and bounds their memory all the same.
func (c *HTCondor) hierarchies(tb TB) string {
	if c.groups == "" {
		return ""
	}
	if Unified() {
		Lack(tb, "HTCondor's control groups are tried with version 1")
	}
	return `[ -d /sys/fs/cgroup/cpu,cpuacct ] || {
			mkdir "$1/cgroup" || exit
			mount -t tmpfs none "$1/cgroup" || exit
			for h in memory cpuset freezer devices pids cpu; do
				at="$1/cgroup/$h"; [ $h != cpu ] || at="$at,cpuacct"
				mkdir "$at" && mount --bind /sys/fs/cgroup/$h "$at" || exit
			done
			mount --rbind "$1/cgroup" /sys/fs/cgroup || exit
		}`
}

// removeGroups removes a group and those of jobs below it, which are empty, from all hierarchies.
func removeGroups(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + name + "/*", "/sys/fs/cgroup/*/" + name} {
		found, _ := filepath.Glob(pattern) // a sound pattern
		for _, dir := range found {
			_ = os.Remove(dir) // the files in it are no directories
		}
	}
}

// Cmd runs one of HTCondor's commands as the user, in a directory, and returns what it prints.
func (c *HTCondor) Cmd(tb TB, dir, name string, args ...string) string {
	tb.Helper()
	out, err := c.try(dir, name, args...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return out
}

func (c *HTCondor) try(dir, name string, args ...string) (string, error) {
	path, err := program("nsenter", "util-linux")
	if err != nil {
		return "", err
	}
	cmd := exec.Command(path, append([]string{
		fmt.Sprintf("--mount=/proc/%d/ns/mnt", c.d.cmd.Process.Pid), fmt.Sprintf("--setuid=%d", c.user.Uid), fmt.Sprintf("--setgid=%d", c.user.Gid),
		"--wdns=" + dir, name,
	}, args...)...)
	cmd.Env = []string{"PATH=" + daemonPath, "CONDOR_CONFIG=" + c.config()}
	return output(cmd)
}

// Job is what the pool tells of a job, which may have left the queue.
func (c *HTCondor) Job(tb TB, id string) map[string]string {
	tb.Helper()
	text := c.Cmd(tb, "/", "condor_q", "-long", id)
	if text == "" {
		text = c.Cmd(tb, "/", "condor_history", "-long", "-limit", "1", id)
	}
	job := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " = "); ok {
			job[name] = value
		}
	}
	return job
}

// The states of a job, as its JobStatus has them.
const (
	CondorRemoved   = "3"
	CondorCompleted = "4"
	CondorHeld      = "5" // until somebody releases it
)

// Until waits until the pool tells of a job what is wanted, which is not to come after its end.
func (c *HTCondor) Until(tb TB, id string, want func(job map[string]string) bool) map[string]string {
	tb.Helper()
	var job map[string]string
	for deadline := time.Now().Add(ClusterWait); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if job = c.Job(tb, id); want(job) {
			return job
		}
		if slices.Contains([]string{CondorRemoved, CondorCompleted, CondorHeld}, job["JobStatus"]) {
			break
		}
	}
	tb.Fatalf("job %s is %v", id, job)
	return nil
}

// Logs are the ends of the logs of the daemons.
func (c *HTCondor) Logs() string { return ends(filepath.Join(c.dir, "log", "*Log*")) }
