package rig

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Slurm is a cluster of a test's own with one node: munged, slurmctld and slurmd on
// loopback, with their state in one directory. Its name, which is the node's too, its
// ports and its control groups are no other cluster's.
type Slurm struct {
	dir, name string
	slurmd    *clusterDaemon
}

// slurmConf is what the cluster needs to run as root on one machine without
// systemd. A job that was requeued waits for a credential that does not come to its end
// while a test looks at it. What a site has to set for deckhand is included. Jobs of the
// second partition preempt those of the first.
const slurmConf = `
ClusterName=%[1]s
SlurmctldHost=%[2]s(127.0.0.1)
SlurmctldPort=%[3]d
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=%[4]s/munge.socket,cred_expire=600
StateSaveLocation=%[4]s/ctld
SlurmdSpoolDir=%[4]s/spool
SlurmctldPidFile=%[4]s/slurmctld.pid
SlurmdPidFile=%[4]s/slurmd.pid
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
BatchStartTimeout=10
MessageTimeout=60
Include %[4]s/site.conf
NodeName=%[1]s NodeHostname=%[2]s NodeAddr=127.0.0.1 Port=%[5]d CPUs=8 RealMemory=8000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
`

// slurmCgroup is what Slurm has to be told of this machine's control groups.
const slurmCgroup = `
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
CgroupPlugin=cgroup/v1
`

// slurmUnified is slurmCgroup where version 2 is alone: Slurm makes the groups itself
// that systemd would.
const slurmUnified = `
CgroupPlugin=cgroup/v2
IgnoreSystemd=yes
CgroupAutomount=yes
`

// Unified says whether cgroup v2 is alone on this machine.
func Unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// NewSlurm starts a cluster, which ends with the test. site is a fragment of
// slurm.conf, cgroup one of cgroup.conf.
func NewSlurm(tb TB, site, cgroup string) *Slurm {
	tb.Helper()
	if os.Getuid() != 0 {
		giveUp(tb, lacking{"slurmd runs as root"})
	}
	groups := slurmCgroup
	if Unified() {
		groups = slurmUnified
	}
	host, err := os.Hostname()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "dksl")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	s := &Slurm{dir: dir, name: filepath.Base(dir)}
	ports, release, err := reservePorts()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(release)
	conf := fmt.Sprintf(slurmConf, s.name, host, ports[0], dir, ports[1])
	for name, text := range map[string]string{
		"slurm.conf": conf, "cgroup.conf": groups + cgroup, "site.conf": site, "munge.key": strings.Repeat(s.name, 64),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			tb.Fatalf("%v", err)
		}
	}
	// Others than root may reach the socket of munge, or it refuses to start.
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // no secrets but the key, which is closed
		tb.Fatalf("%v", err)
	}
	munge := s.start(tb, "munged", "munge", "--foreground", "--socket="+dir+"/munge.socket", "--key-file="+dir+"/munge.key",
		"--log-file="+dir+"/munged.messages", "--pid-file="+dir+"/munged.pid", "--seed-file="+dir+"/munged.seed")
	munge.until(tb, func() bool { _, err := os.Stat(dir + "/munge.socket"); return err == nil })
	ctld := s.start(tb, "slurmctld", "slurmctld", "-D", "-c")
	ctld.until(tb, func() bool { _, err := s.try("scontrol", "ping"); return err == nil })
	s.StartSlurmd(tb)
	tb.Cleanup(func() { s.end(tb) })
	return s
}

// StartSlurmd starts slurmd and returns when the controller knows of the node.
func (s *Slurm) StartSlurmd(tb TB) {
	tb.Helper()
	s.slurmd = s.start(tb, "slurmd", "slurmd", "-D", "-N", s.name)
	s.slurmd.until(tb, func() bool {
		state, _ := s.try("sinfo", "-h", "-N", "-p", "low", "-o", "%T")
		return slices.Contains([]string{"idle", "mixed", "allocated", "completing"}, state)
	})
}

// Conf is the file that its commands read.
func (s *Slurm) Conf() string { return s.dir + "/slurm.conf" }

// KillSlurmd ends slurmd with SIGKILL. Its jobs run on.
func (s *Slurm) KillSlurmd() { s.slurmd.kill() }

// Completing says whether an epilog runs.
func (s *Slurm) Completing(tb TB) bool {
	tb.Helper()
	return strings.Contains(s.Cmd(tb, "scontrol", "show", "node", s.name), "COMPLETING")
}

// Cmd runs one of Slurm's commands and returns what it prints.
func (s *Slurm) Cmd(tb TB, name string, args ...string) string {
	tb.Helper()
	out, err := s.try(name, args...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return out
}

func (s *Slurm) try(name string, args ...string) (string, error) {
	path, err := program(name, "slurm-client")
	if err != nil {
		return "", err
	}
	cmd := exec.Command(path, args...)
	// sbatch gives the job what it has itself, which must not be the tester's own.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SLURM_CONF=" + s.dir + "/slurm.conf"}
	return output(cmd)
}

// Job is what the controller tells of a job.
func (s *Slurm) Job(tb TB, id int) map[string]string {
	tb.Helper()
	job := map[string]string{}
	for field := range strings.FieldsSeq(s.Cmd(tb, "scontrol", "show", "job", "-o", strconv.Itoa(id))) {
		if name, value, ok := strings.Cut(field, "="); ok {
			job[name] = value
		}
	}
	return job
}

// Until waits until the controller tells of a job what is wanted.
func (s *Slurm) Until(tb TB, id int, want func(job map[string]string) bool) map[string]string {
	tb.Helper()
	var job map[string]string
	for deadline := time.Now().Add(ClusterWait); time.Now().Before(deadline); {
		began := time.Now()
		if job = s.Job(tb, id); want(job) {
			return job
		}
		time.Sleep(max(100*time.Millisecond, 3*time.Since(began)))
	}
	tb.Fatalf("job %d is still %v\n%s", id, job, s.Logs())
	return nil
}

// Groups are the control groups that are there of a job.
func (s *Slurm) Groups(id int) []string {
	pattern := fmt.Sprintf("/sys/fs/cgroup/*/slurm_%s/uid_*/job_%d", s.name, id)
	if Unified() {
		pattern = fmt.Sprintf("/sys/fs/cgroup/system.slice/%s_slurmstepd.scope/job_%d", s.name, id)
	}
	groups, _ := filepath.Glob(pattern) // a sound one
	return groups
}

// Logs are the ends of the logs of the daemons.
func (s *Slurm) Logs() string { return ends(s.dir + "/*.log") }

// end ends slurmd, and its jobs by their control groups.
func (s *Slurm) end(tb TB) {
	s.slurmd.kill()
	pattern := "/sys/fs/cgroup/*/slurm_" + s.name
	if Unified() {
		pattern = "/sys/fs/cgroup/system.slice/" + s.name + "_slurm*"
	}
	groups, _ := filepath.Glob(pattern) // a sound one
	for _, top := range groups {
		if err := removeGroup(top); err != nil {
			tb.Logf("cannot remove a control group of Slurm: %v", err)
		}
	}
}

// removeGroup kills the processes of a control group and all below it, and removes it.
func removeGroup(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		dirs = append(dirs, path)
		procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(procs)) {
			n, _ := strconv.Atoi(pid)
			_ = syscall.Kill(n, syscall.SIGKILL) // already gone is what we want
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		var err error
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if err = os.Remove(dir); err == nil || os.IsNotExist(err) {
				err = nil
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// service makes the group in which systemd would start slurmd. It takes the controllers
// for those of the jobs that it has itself.
func (s *Slurm) service() (*os.File, error) {
	dir := "/sys/fs/cgroup/system.slice/" + s.name + "_slurmd.service"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// start starts a daemon, which dies with this process.
func (s *Slurm) start(tb TB, name, pkg string, args ...string) *clusterDaemon {
	tb.Helper()
	path, err := program(name, pkg)
	if err != nil {
		giveUp(tb, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = []string{"PATH=" + daemonPath, "SLURM_CONF=" + s.Conf()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if name == "slurmd" && Unified() {
		group, err := s.service()
		if err != nil {
			tb.Fatalf("%v", err)
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	d := startDaemon(tb, cmd, filepath.Join(s.dir, name+".log"))
	tb.Cleanup(d.kill)
	return d
}
