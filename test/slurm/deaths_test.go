package slurm

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A job whose slurmd dies runs on. When slurmd is there again, Slurm kills it
// without a warning, and its epilog removes the container.
func TestKilledSlurmd(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	j := c.submit(t, c.waiting("slurmd"))
	first, process := j.running(t, ""), j.process(t)
	c.KillSlurmd()
	j.Until(t, j.ID, func(job map[string]string) bool { return job["Restarts"] == "1" })
	if !alive(process) {
		t.Error("the process has ended with slurmd")
	}
	c.StartSlurmd(t)
	until(t, "the end of the process", func() string { return unless(alive(process)) })
	j.requeued(t, 1)
	j.hasten(t)
	j.let(t, j.running(t, first))
	j.state(t, "COMPLETED")
	j.gone(t)
}

// A job whose slurmstepd dies runs on, and Slurm takes it for dead: the epilog ends
// it before it is run again.
func TestKilledSlurmstepd(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	j, process, _ := c.orphan(t, "stepd")
	j.requeued(t, 1)
	until(t, "the end of the process", func() string { return unless(alive(process)) }) // the epilog may still run
	j.hasten(t)
	j.let(t, j.running(t, ""))
	j.state(t, "COMPLETED")
	if path := j.Path(t, "stepd"); strings.Count(path, "Interrupted") != 1 {
		t.Errorf("the task went through %s", path)
	}
	j.gone(t)
}

// Without an epilog there are then two processes of one job on the node: the second
// one ends the first, and goes on with its container.
func TestTwoCopiesOfAJob(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "Epilog=", "# ")
	j, process, container := c.orphan(t, "copies")
	j.requeued(t, 1)
	j.hasten(t)
	until(t, "the end of the first process", func() string { return unless(alive(process)) })
	j.let(t, container)
	j.state(t, "COMPLETED")
	if path := j.Path(t, "copies"); strings.Contains(path, "Interrupted") {
		t.Errorf("the task went through %s", path)
	}
	j.Clean(t)
}

// The killed process of a job leaves no container: its epilog removes it.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	j := c.submit(t, c.waiting("killed"))
	j.running(t, "")
	if err := unix.Kill(j.process(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if job := j.state(t, "FAILED"); job["ExitCode"] != "0:9" {
		t.Errorf("the job is %v", job)
	}
	j.gone(t)
	j.ended(t, "killed", "Interrupted")
}

// orphan is a job whose slurmstepd was killed, its process, and its container.
func (c *Cluster) orphan(t *testing.T, task string) (j *Job, process int, container string) {
	t.Helper()
	j = c.submit(t, c.waiting(task))
	container, process = j.running(t, ""), j.process(t)
	if err := unix.Kill(parent(t, process), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return j, process, container
}

// alive says whether a process is there.
func alive(pid int) bool {
	_, err := os.Stat("/proc/" + strconv.Itoa(pid))
	return err == nil
}

// unless is what until waits for: that something is no longer.
func unless(is bool) string {
	if is {
		return ""
	}
	return "ended"
}
