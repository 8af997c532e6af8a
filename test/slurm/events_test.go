package slurm

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
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
	out := filepath.Join(c.Dir, "group")
	j := c.submit(t, tes.Task{ID: "success", Volumes: []string{"/out"}, Outputs: []tes.Output{{URL: out, Path: "/out/group"}},
		Executors: []tes.Executor{system.Sh(c.image, "sed -n s/.*:memory://p /proc/self/cgroup >/out/group")}})
	j.state(t, "COMPLETED")
	if got := j.result(t).State; got != tes.Complete {
		t.Errorf("the result is %s", got)
	}
	if got, want := c.Read(t, "group"), "/job_"+strconv.Itoa(j.ID)+"/step_batch/"; !strings.Contains(got, want) {
		t.Errorf("the container was in the group %s, want one of job %d", got, j.ID)
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
	if job := j.state(t, "FAILED"); job["ExitCode"] != "1:0" {
		t.Errorf("the job is %v", job)
	}
	result := j.result(t)
	if result.State != tes.ExecutorError || result.Logs[0].Logs[0].ExitCode != 137 {
		t.Errorf("the result is %+v", result)
	}
	j.gone(t)
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
