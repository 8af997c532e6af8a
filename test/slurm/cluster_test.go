// Package slurm tests deckhand as a site runs it under Slurm: with the job script,
// the epilog and the settings of docs/engines/slurm.md, on real daemons.
package slurm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/rig"
	"github.com/deckhand/deckhand/test/system"
)

// pages is where the page is, and the files that it shows.
const pages = "../../docs/engines/"

// Cluster is a Slurm whose nodes are set up as the page says.
type Cluster struct {
	*rig.Slurm
	*system.World
	dir   string
	roots string // in place of /var/lib/deckhand
	image string
}

// newCluster starts a cluster of one node. Of the page's files nothing is changed
// but paths, and in its settings what edits replace, old and new in turn.
func newCluster(t *testing.T, edits ...string) *Cluster {
	t.Helper()
	c := &Cluster{World: system.NewWorld(t), dir: t.TempDir()}
	c.roots = filepath.Join(c.dir, "roots")
	c.image = c.World.Image(t, "task", rig.Spec{}).Tag
	c.install(t, "deckhand", fmt.Sprintf("#!/bin/sh\nexport HOME=%s\nexec %s --docker-host \"${DOCKER_HOST:-%s}\" \"$@\"\n", c.dir, system.Build(t), c.DockerHost))
	c.install(t, "job.sh", c.page(t, "job.sh"))
	c.install(t, "epilog.sh", c.page(t, "epilog.sh"))
	edit := strings.NewReplacer(edits...)
	settings := strings.ReplaceAll(edit.Replace(c.page(t, "slurm.conf")), "/etc/slurm/deckhand-", c.dir+"/")
	c.Slurm = rig.NewSlurm(t, settings, edit.Replace(c.page(t, "cgroup.conf")))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Logs())
		}
	})
	return c
}

// page is a file of the page, for this cluster.
func (c *Cluster) page(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(pages + "slurm/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("/usr/bin/deckhand", c.dir+"/deckhand", "/var/lib/deckhand", c.roots).Replace(string(b))
}

func (c *Cluster) install(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
}

// Job is a job of a task that was submitted.
type Job struct {
	*Cluster
	ID       int
	document string
}

// submit gives a task to Slurm.
func (c *Cluster) submit(t *testing.T, task tes.Task, args ...string) *Job {
	t.Helper()
	document := c.Save(t, task)
	log := filepath.Join(c.dir, task.ID+".log")
	line := append([]string{"--parsable", "--chdir", c.dir, "--output", log, "--mem", "500"}, args...)
	id, err := strconv.Atoi(c.Cmd(t, "sbatch", append(line, c.dir+"/job.sh", document)...))
	if err != nil {
		t.Fatal(err)
	}
	// For World's methods; in a test of several jobs it is the root of the last one.
	c.Root = c.root(id)
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(log) // none from a job that did not run
			t.Logf("job %d:\n%s", id, b)
		}
	})
	return &Job{Cluster: c, ID: id, document: document}
}

// root is the root of a job, as the job script has it.
func (c *Cluster) root(id int) string { return filepath.Join(c.roots, strconv.Itoa(id%4)) }

// state waits for a state of the job, which is an end.
func (j *Job) state(t *testing.T, want string) map[string]string {
	t.Helper()
	ends := []string{"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", want}
	job := j.Until(t, j.ID, func(job map[string]string) bool { return slices.Contains(ends, job["JobState"]) })
	if job["JobState"] != want {
		t.Fatalf("the job is %v, want it to be %s", job, want)
	}
	return job
}

// requeued waits until Slurm has taken the job back, so many times by now.
func (j *Job) requeued(t *testing.T, restarts int) {
	t.Helper()
	j.Until(t, j.ID, func(job map[string]string) bool {
		return job["JobState"] == "PENDING" && job["Restarts"] == strconv.Itoa(restarts)
	})
}

// hasten lets a job that was requeued start again soon: by itself it waits until its
// credential is stale. A new one of the same second as the end of the job before would be
// taken for the old one.
func (j *Job) hasten(t *testing.T) {
	t.Helper()
	j.Cmd(t, "scontrol", "update", "job", strconv.Itoa(j.ID), "StartTime=now+2")
}

// running waits until the executor of a task runs, in a container that is not but,
// and returns that container.
func (j *Job) running(t *testing.T, but string) string {
	t.Helper()
	return until(t, "a container of the task", func() string {
		for _, name := range j.objects(t, "ps", "--format", "{{.Names}}") {
			if name != but {
				return name
			}
		}
		return ""
	})
}

func (j *Job) objects(t *testing.T, args ...string) []string {
	t.Helper()
	id := j.RootID(t)
	if id == "" {
		return nil
	}
	return strings.Fields(j.Docker(t, append(args, "--filter", "label=deckhand.root="+id)...))
}

// let makes the command of waiting end.
func (j *Job) let(t *testing.T, container string) {
	t.Helper()
	j.Docker(t, "exec", container, "touch", "/go")
}

// waiting is a task that runs until it may end.
func (c *Cluster) waiting(id string) tes.Task {
	return tes.Task{ID: id, Executors: []tes.Executor{system.Sh(c.image, "until [ -e /go ]; do sleep 0.1; done")}}
}

// process is the process that runs the task.
func (j *Job) process(t *testing.T) int {
	t.Helper()
	var owner struct {
		PID int `json:"pid"`
	}
	b, err := os.ReadFile(filepath.Join(j.Root, "owner.json"))
	if err == nil {
		err = json.Unmarshal(b, &owner)
	}
	if err != nil {
		t.Fatal(err)
	}
	return owner.PID
}

// pid is the first process of a container.
func (j *Job) pid(t *testing.T, container string) int {
	t.Helper()
	n, err := strconv.Atoi(j.Docker(t, "inspect", "--format", "{{.State.Pid}}", container))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// parent is the parent of a process.
func parent(t *testing.T, pid int) int {
	t.Helper()
	n, err := strconv.Atoi(status(t, pid, "PPid"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// status is what the kernel tells of a process under a name.
func status(t *testing.T, pid int, name string) string {
	t.Helper()
	_, rest, _ := strings.Cut(about(t, pid, "status"), "\n"+name+":\t")
	line, _, _ := strings.Cut(rest, "\n")
	return line
}

// about is a file of a process below /proc.
func about(t *testing.T, pid int, file string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// result is the state that the result names; empty without a result.
func (j *Job) result(t *testing.T) (task tes.Task) {
	t.Helper()
	b, err := os.ReadFile(strings.TrimSuffix(j.document, ".json") + ".result.json")
	if os.IsNotExist(err) {
		return task
	}
	if err == nil {
		err = json.Unmarshal(b, &task)
	}
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// gone fails the test when anything of the job is left once its epilog has run.
func (j *Job) gone(t *testing.T) {
	t.Helper()
	until(t, "the end of the epilog", func() string { return unless(j.Completing(t)) })
	j.Clean(t)
	if t.Failed() {
		return // the groups stay with what is in them
	}
	until(t, "the end of the job's control groups", func() string { return unless(len(j.Groups(j.ID)) > 0) })
}

// ended fails the test unless a task has ended in a state.
func (j *Job) ended(t *testing.T, task, state string) {
	t.Helper()
	if path := j.Path(t, task); !strings.HasSuffix(path, " "+state) {
		t.Errorf("the task went through %s, want it to end in %s", path, state)
	}
}

// itself fails the test when a process that came later, such as that of the epilog, has
// ended an attempt: it was not told in time, or did not do it by itself.
func (j *Job) itself(t *testing.T, task string) {
	t.Helper()
	for _, r := range j.Records(t, task) {
		if r.Kind == string(machine.KindResume) {
			t.Errorf("attempt %d of task %s was ended by another process: %s", r.Attempt, task, r.Reason)
		}
	}
}

// until waits for something. On a slow machine, to look takes what others need: most
// of the time nobody does.
func until(t *testing.T, what string, is func() string) string {
	t.Helper()
	for deadline := time.Now().Add(rig.ClusterWait); time.Now().Before(deadline); {
		began := time.Now()
		if s := is(); s != "" {
			return s
		}
		time.Sleep(max(50*time.Millisecond, 3*time.Since(began)))
	}
	t.Fatalf("%s does not come", what)
	return ""
}
