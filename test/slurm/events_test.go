package slurm

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
	"github.com/deckhand/deckhand/test/system"
)

// The task of a job that comes near its time limit ends Canceled. Were it only
// interrupted at the limit itself, the job would be run again for ever.
func TestTimeLimit(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	j := c.submit(t, c.waiting("limit"), "--time", "2")
	if job := j.state(t, "FAILED"); job["ExitCode"] != "4:0" || job["Restarts"] != "0" {
		t.Errorf("the job is %v", job)
	}
	if got := j.result(t).State; got != tes.Canceled {
		t.Errorf("the result is %s", got)
	}
	j.gone(t)
}

// A job's container is below the job's control group, and ends with it.
func TestSuccess(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "Epilog=", "Prolog=/etc/slurm/deckhand-epilog.sh\nEpilog=")
	j := c.submit(t, c.waiting("success"))
	container := j.running(t, "")
	groups := about(t, j.pid(t, container), "cgroup")
	if want := "/job_" + strconv.Itoa(j.ID) + "/step_batch/"; !strings.Contains(groups, want) {
		t.Errorf("the container is in the groups %s, want one of job %d", groups, j.ID)
	}
	j.let(t, container)
	j.state(t, "COMPLETED")
	if got := j.result(t).State; got != tes.Complete {
		t.Errorf("the result is %s", got)
	}
	j.gone(t)
}

// What the task's own command does wrong is final.
func TestExecutorError(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	j := c.submit(t, tes.Task{ID: "error", Executors: []tes.Executor{system.Sh(c.image, "exit 75")}})
	if job := j.state(t, "FAILED"); job["ExitCode"] != "1:0" || job["Restarts"] != "0" {
		t.Errorf("the job is %v", job)
	}
	if got := j.result(t).State; got != tes.ExecutorError {
		t.Errorf("the result is %s", got)
	}
	j.gone(t)
}

// A task that was interrupted is run again under the id of its job, and a node
// that is unfit holds its job.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	j := c.submit(t, c.waiting("again"))
	j.running(t, "")
	if err := unix.Kill(j.process(t), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	j.requeued(t, 1)
	j.hasten(t)
	j.let(t, j.running(t, ""))
	j.state(t, "COMPLETED")
	if path := j.Path(t, "again"); strings.Count(path, "Interrupted") != 1 || !strings.HasSuffix(path, "Complete") {
		t.Errorf("the task went through %s", path)
	}
	j.gone(t)

	held := c.submit(t, c.waiting("unfit"), "--export", "ALL,DOCKER_HOST=unix:///nowhere,DECKHAND_ENGINE_WAIT=0s")
	job := held.state(t, "SPECIAL_EXIT")
	if job["ExitCode"] != "78:0" || job["Priority"] != "0" {
		t.Errorf("the job is %v", job)
	}
	c.Cmd(t, "scontrol", "release", strconv.Itoa(held.ID))
	held.hasten(t)
	held.Until(t, held.ID, func(again map[string]string) bool {
		return again["JobState"] == "SPECIAL_EXIT" && again["Restarts"] != job["Restarts"]
	})
}

// slowly is a Slurm that leaves a process the time to end by itself on any machine.
var slowly = []string{"KillWait=30", "KillWait=600"}

// Whoever cancels a job gets it back canceled, and nothing runs on.
func TestCancel(t *testing.T) {
	t.Parallel()
	c := newCluster(t, slowly...)
	j := c.submit(t, c.waiting("cancel"))
	j.running(t, "")
	c.Cmd(t, "scancel", strconv.Itoa(j.ID))
	if job := j.state(t, "CANCELLED"); job["Restarts"] != "0" {
		t.Errorf("the job is %v", job)
	}
	j.gone(t)
	j.ended(t, "cancel", "Interrupted")
	j.itself(t, "cancel")
}

// Preempted, and requeued by hand, a task runs again.
func TestRequeue(t *testing.T) {
	t.Parallel()
	c := newCluster(t, slowly...)
	j := c.submit(t, c.waiting("requeue"), "--exclusive")
	first := j.running(t, "")
	c.Cmd(t, "scontrol", "requeue", strconv.Itoa(j.ID))
	j.requeued(t, 1)
	j.hasten(t)
	j.running(t, first)

	high := c.submit(t, tes.Task{ID: "high", Executors: []tes.Executor{system.Sh(c.image, "true")}}, "--exclusive", "--partition", "high")
	high.state(t, "COMPLETED")
	c.Root = c.root(j.ID)
	j.requeued(t, 2)
	j.hasten(t)
	j.let(t, j.running(t, ""))
	j.state(t, "COMPLETED")
	if path := j.Path(t, "requeue"); strings.Count(path, "Interrupted") != 2 {
		t.Errorf("the task went through %s", path)
	}
	j.itself(t, "requeue")
	j.gone(t)
}

// The memory of a job bounds its task, whatever the task asks for.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	j := c.submit(t, tes.Task{ID: "memory", Resources: tes.Resources{RAMGB: 2},
		Executors: []tes.Executor{system.Sh(c.image, "dd if=/dev/zero of=/dev/null bs=400M count=1")}}, "--mem", "200")
	// Under cgroup v2 Slurm itself learns of it.
	want, code := "FAILED", "1:0"
	if rig.Unified() {
		want, code = "OUT_OF_MEMORY", "0:125"
	}
	if job := j.state(t, want); job["ExitCode"] != code {
		t.Errorf("the job is %v", job)
	}
	result := j.result(t)
	if result.State != tes.ExecutorError || result.Logs[0].Logs[0].ExitCode != 137 {
		t.Errorf("the result is %+v", result)
	}
	if said := strings.Join(result.Logs[0].SystemLogs, "\n"); !strings.Contains(said, "resources.ram_gb or its job allows") {
		t.Errorf("the result tells %q", said)
	}
	j.gone(t)
}

// The cores of a job bind its task.
func TestCores(t *testing.T) {
	t.Parallel()
	if runtime.NumCPU() < 2 {
		rig.Lack(t, "with one processor there is nothing to be kept from")
	}
	c := newCluster(t, "ConstrainRAMSpace=yes", "ConstrainRAMSpace=yes\nConstrainCores=yes")
	j := c.submit(t, c.waiting("cores"))
	container := j.running(t, "")
	if got, want := status(t, j.pid(t, container), "Cpus_allowed_list"), status(t, j.process(t), "Cpus_allowed_list"); got != want || len(want) != 1 {
		t.Errorf("the container has the processors %s, the job %s, want one", got, want)
	}
	j.let(t, container)
	j.state(t, "COMPLETED")
	j.gone(t)
}

// What a task uses is in the accounts of its job.
func TestAccounting(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "KillWait=30", "KillWait=30\nJobAcctGatherType=jobacct_gather/cgroup\nJobAcctGatherFrequency=task=1")
	// More than two seconds in user mode.
	j := c.submit(t, tes.Task{ID: "accounting", Executors: []tes.Executor{system.Sh(c.image, `
		used=0
		until [ $used -gt 210 ]; do
			i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done
			read a b c d e f g h i j k l m used rest </proc/$$/stat
		done
		until [ -e /go ]; do sleep 0.1; done`)}})
	container := j.running(t, "")
	until(t, "its time of the processor in the accounts of the job", func() string { return unless(j.used(t) < 2*time.Second) })
	j.let(t, container)
	j.state(t, "COMPLETED")
	j.gone(t)
}

// used is the job's time of the processor: under cgroup v1 as Slurm tells it. Under v2
// its version 22.05 looks at the group of the job's own process alone, and it is the
// kernel that has the rest in the group above.
func (j *Job) used(t *testing.T) time.Duration {
	t.Helper()
	if rig.Unified() {
		_, own, _ := strings.Cut(strings.TrimSpace(about(t, j.process(t), "cgroup")), "::")
		return usage(t, filepath.Dir(own)) - usage(t, own)
	}
	var h, m, s int
	out := j.Cmd(t, "sstat", "-n", "-P", "-a", "-j", strconv.Itoa(j.ID), "--format=AveCPU")
	_, _ = fmt.Sscanf(out, "%d:%d:%d", &h, &m, &s) // nothing, before the first sample
	return time.Duration(3600*h+60*m+s) * time.Second
}

// usage is the time of the processor that the kernel has counted for a group and
// those below it.
func usage(t *testing.T, group string) time.Duration {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, "cpu.stat"))
	if err != nil {
		t.Fatal(err)
	}
	var micros int64
	if _, err := fmt.Sscanf(string(text), "usage_usec %d", &micros); err != nil {
		t.Fatal(err)
	}
	return time.Duration(micros) * time.Microsecond
}

// Jobs that run on a node at a time have roots of their own.
func TestSeveralJobs(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var jobs []*Job
	for i := range 3 {
		jobs = append(jobs, c.submit(t, c.waiting("several-"+strconv.Itoa(i))))
	}
	var containers []string
	for _, j := range jobs {
		c.Root = c.root(j.ID)
		containers = append(containers, j.running(t, ""))
	}
	for i, j := range jobs {
		c.Root = c.root(j.ID)
		j.let(t, containers[i])
		j.state(t, "COMPLETED")
		j.gone(t)
		if i < len(jobs)-1 {
			c.Deckhand(t, "scrub") // the last root is scrubbed with its World
		}
	}
}

// What of the site and of the job's script would harm a task, doctor says in a job. It
// has nothing against what the page says.
func TestDoctor(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		edits []string
		run   string // what the script has in front of deckhand
		says  []string
	}{
		"page": {nil, "exec ", []string{"ok    launcher: Slurm (SLURM_JOB_ID=", "ok    slurm: RequeueExit, RequeueExitHold, KillWait and the script of job ", "ok    job limits: containers run below"}},
		"bad": {[]string{"RequeueExit=75", "RequeueExit=99", "RequeueExitHold=78", "RequeueExitHold=79", "KillWait=30", "KillWait=5"}, "", []string{
			"warn  slurm: RequeueExit is 99", "Set RequeueExit=75 in slurm.conf.", "warn  slurm: RequeueExitHold is 79", "warn  slurm: KillWait is 5 seconds",
			"Set KillWait=20 or more", "warn  slurm: the script of the job starts deckhand without exec",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, test.edits...)
			said := filepath.Join(c.dir, "said")
			c.install(t, "job.sh", "#!/bin/sh\n"+c.dir+"/deckhand doctor --root "+c.dir+"/root >"+said+"\n"+test.run+c.dir+"/deckhand run --dry-run $1\n")
			c.submit(t, tes.Task{ID: "doctor", Executors: []tes.Executor{system.Sh(c.image, "true")}}).state(t, "COMPLETED")
			text, err := os.ReadFile(said)
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range test.says {
				if !strings.Contains(string(text), word) {
					t.Errorf("doctor does not say %q:\n%s", word, text)
				}
			}
		})
	}
}
