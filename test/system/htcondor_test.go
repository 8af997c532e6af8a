package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/engines"
	"github.com/deckhand/deckhand/test/rig"
)

// pool is a real HTCondor, whose jobs are those of the example.
type pool struct {
	*rig.HTCondor
	*World
	stuck *stuck // for what executors write down
	image string
}

// newPool starts a pool whose user may use Docker, and whose jobs may be bound by control
// groups.
func newPool(t *testing.T, bound bool) *pool {
	t.Helper()
	w := newUserWorld(t)
	p := &pool{World: w, stuck: &stuck{World: w, gate: newGate()}, HTCondor: rig.NewHTCondor(t, w.User, bound)}
	p.image = w.Image(t, "task", rig.Spec{}).Tag
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.Logs())
		}
	})
	return p
}

// batch is what one condor_submit has made jobs of.
type batch struct {
	*pool
	dir     string // where it was called
	cluster string // the number that its jobs share
}

// submit makes a job of each task. Of the example nothing is changed but paths, where
// Docker is, and what edits replace, old and new in turn.
func (p *pool) submit(t *testing.T, tasks []tes.Task, edits ...string) *batch {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(engines.Dir(), "htcondor.sub"))
	must(t, err)
	dir, err := os.MkdirTemp(p.Dir, "submit")
	must(t, err)
	must(t, os.Chown(dir, userID, userID))
	var list strings.Builder
	for _, task := range tasks {
		fmt.Fprintln(&list, p.Save(t, task))
	}
	home := filepath.Dir(p.Dir)
	edited := strings.NewReplacer(append(edits,
		"/usr/bin/deckhand", filepath.Join(home, "program"),
		"DECKHAND_ROOT=/var/lib/deckhand", fmt.Sprintf("DECKHAND_ROOT=%s DECKHAND_DOCKER_HOST=%s HOME=%s", p.Root, p.DockerHost, home),
	)...).Replace(string(text))
	for name, text := range map[string]string{"htcondor.sub": edited, "tasks.txt": list.String()} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	b := &batch{pool: p, dir: dir}
	b.cluster, _, _ = strings.Cut(p.Cmd(t, dir, "condor_submit", "-terse", "htcondor.sub"), ".")
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(dir + "/deckhand-*") // a sound pattern
			for _, name := range logs {
				b, _ := os.ReadFile(name) // what cannot be read has nothing to say
				t.Logf("%s:\n%s", name, b)
			}
		}
	})
	return b
}

// until waits for what is wanted of a job.
func (b *batch) until(t *testing.T, proc int, want func(job map[string]string) bool) map[string]string {
	t.Helper()
	return b.Until(t, fmt.Sprintf("%s.%d", b.cluster, proc), want)
}

// status waits for a job's end, which is to be one of these states.
func (b *batch) status(t *testing.T, proc int, status string) map[string]string {
	t.Helper()
	job := b.until(t, proc, func(job map[string]string) bool {
		return job["JobStatus"] == rig.CondorRemoved || job["JobStatus"] == rig.CondorCompleted
	})
	if job["JobStatus"] != status {
		t.Fatalf("the status of the job is %s, want %s: %v", job["JobStatus"], status, job)
	}
	return job
}

// ends waits for a job to be complete, after so many runs that ended by themselves.
func (b *batch) ends(t *testing.T, proc int, code string, runs int) {
	t.Helper()
	job := b.status(t, proc, rig.CondorCompleted)
	if job["ExitCode"] != code || job["NumJobCompletions"] != strconv.Itoa(runs) {
		t.Errorf("job %d: exit code %s after %s runs, want %s after %d", proc, job["ExitCode"], job["NumJobCompletions"], code, runs)
	}
}

// result fails the test unless the result of a task has come back and names a state.
func (b *batch) result(t *testing.T, task string, want tes.State) (result tes.Task) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, task+".result.json"))
	must(t, err)
	must(t, json.Unmarshal(text, &result))
	if result.State != want {
		t.Errorf("the result of %s is %s, want %s", task, result.State, want)
	}
	return result
}

// completes lets the one task that waits end, whose attempts are to have gone through these
// states, and its last executor to have run once.
func (b *batch) completes(t *testing.T, task string, runs int, states string) {
	t.Helper()
	b.stuck.release(t)
	b.ends(t, 0, "0", runs)
	b.result(t, task, tes.Complete)
	if path := b.Path(t, task); path != states {
		t.Errorf("the task went through %s, want %s", path, states)
	}
	if ran := b.Read(t, task); ran != "ran\n" {
		t.Errorf("the executor wrote %q: a killed run was not gone on with", ran)
	}
	b.Clean(t)
}

// runs waits until the executor of an attempt runs.
func (b *batch) runs(t *testing.T, task string, attempt int) {
	t.Helper()
	b.until(t, 0, func(map[string]string) bool {
		found, _ := filepath.Glob(fmt.Sprintf("%s/tasks/*/%d/dirs/*/ran", b.Root, attempt)) // a sound pattern
		return len(found) == 1 && b.stuck.noted() != ""
	})
}

// signal sends a signal to the process that runs the task, as somebody on the node may.
func (b *batch) signal(t *testing.T, s unix.Signal) {
	t.Helper()
	var owner struct {
		PID int `json:"pid"`
	}
	text, err := os.ReadFile(filepath.Join(b.Root, "owner.json"))
	must(t, err)
	must(t, json.Unmarshal(text, &owner))
	must(t, unix.Kill(owner.PID, s))
}

// waiting is a task whose executor says that it ran, and goes on when it may.
func (p *pool) waiting(id string) tes.Task {
	return tes.Task{
		ID: id, Volumes: []string{"/data"}, Executors: []tes.Executor{Sh(p.image, "echo ran >> /data/ran; until [ -e /data/go ]; do sleep 0.1; done")},
		Outputs: []tes.Output{{Path: "/data/ran", URL: filepath.Join(p.Dir, id)}},
	}
}

// A real HTCondor runs tasks with its example as the page says.
func TestHTCondor(t *testing.T) {
	t.Parallel()
	p := newPool(t, false)

	t.Run("ended", func(t *testing.T) {
		ends := []struct {
			task, command, code string
			state               tes.State
		}{{"one", "true", "0", tes.Complete}, {"other", "true", "0", tes.Complete}, {"failing", "exit 9", "1", tes.ExecutorError}}
		var tasks []tes.Task
		for _, end := range ends {
			tasks = append(tasks, tes.Task{ID: end.task, Executors: []tes.Executor{Sh(p.image, end.command)}})
		}
		b := p.submit(t, tasks)
		for proc, end := range ends {
			b.ends(t, proc, end.code, 1)
			b.result(t, end.task, end.state)
		}
		p.Clean(t)
	})

	// The job's own /tmp goes with it, and what the task has put there.
	t.Run("own directory", func(t *testing.T) {
		out := "/tmp/deckhand-" + filepath.Base(p.Dir)
		b := p.submit(t, []tes.Task{{ID: "lost", Executors: []tes.Executor{Sh(p.image, "echo ran > /out")}, Outputs: []tes.Output{{Path: "/out", URL: "file://" + out}}}})
		b.ends(t, 0, "0", 1)
		if warned := b.result(t, "lost", tes.Complete).Logs[0].SystemLogs; !strings.Contains(strings.Join(warned, "\n"), out+" is on /tmp, ") {
			t.Errorf("nothing in %q says that the output goes with the job", warned)
		}
		if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", out, err)
		}
	})

	// Doctor in a job reads what HTCondor tells of it.
	t.Run("doctor", func(t *testing.T) {
		task := tes.Task{ID: "asked", Executors: []tes.Executor{Sh(p.image, "true")}, Outputs: []tes.Output{{Path: "/out", URL: "/tmp/out"}}}
		b := p.submit(t, []tes.Task{task}, "run $Fnx(TASK) --lock-wait 10m --result $Fn(TASK).result.json", "doctor --json $Fnx(TASK)", "job_max_vacate_time   = 120", "job_max_vacate_time = 5")
		b.ends(t, 0, "0", 1)
		var found []struct{ Check, Result, Found, Fix string }
		text, err := os.ReadFile(filepath.Join(b.dir, "deckhand-"+b.cluster+".0.out"))
		must(t, err)
		must(t, json.Unmarshal(text, &found))
		said := map[string]string{}
		for _, f := range found {
			said[f.Check] = f.Result + " " + f.Found
		}
		for check, want := range map[string]string{
			"launcher": "ok HTCondor (_CONDOR_SLOT=slot1_1)", "job directories": "warn outputs[0].url: /tmp/out is on /tmp, ", "htcondor": "warn JobMaxVacateTime is 5 seconds",
		} {
			if !strings.HasPrefix(said[check], want) {
				t.Errorf("%s: %s, want %s", check, said[check], want)
			}
		}
	})

	t.Run("handed back", func(t *testing.T) {
		b := p.submit(t, []tes.Task{p.waiting("back")})
		b.runs(t, "back", 1)
		b.signal(t, unix.SIGTERM)
		b.runs(t, "back", 2)
		b.completes(t, "back", 2, upTo("Run")+" RollingBack Interrupted "+complete)
	})

	// A kill is the first end of its job: HTCondor keeps the exit code of an earlier one.
	t.Run("killed", func(t *testing.T) {
		b := p.submit(t, []tes.Task{p.waiting("killed")})
		b.runs(t, "killed", 1)
		b.signal(t, unix.SIGKILL)
		b.until(t, 0, func(job map[string]string) bool { return job["NumJobCompletions"] == "1" })
		b.completes(t, "killed", 2, complete)
	})

	// A vacated job is not one that has ended: it does not count for max_retries.
	t.Run("vacated", func(t *testing.T) {
		b := p.submit(t, []tes.Task{p.waiting("vacated")})
		b.runs(t, "vacated", 1)
		p.Cmd(t, b.dir, "condor_vacate_job", b.cluster)
		b.runs(t, "vacated", 2)
		b.completes(t, "vacated", 1, upTo("Run")+" RollingBack Interrupted "+complete)
	})

	// A run that does not end when it is told is killed once job_max_vacate_time is over.
	t.Run("vacated and killed", func(t *testing.T) {
		b := p.submit(t, []tes.Task{p.waiting("stopped")}, "job_max_vacate_time   = 120", "job_max_vacate_time = 1")
		b.runs(t, "stopped", 1)
		b.signal(t, unix.SIGSTOP)
		p.Cmd(t, b.dir, "condor_vacate_job", b.cluster)
		b.until(t, 0, func(job map[string]string) bool { return job["NumShadowStarts"] == "2" })
		b.completes(t, "stopped", 1, complete)
	})

	t.Run("removed", func(t *testing.T) {
		b := p.submit(t, []tes.Task{p.waiting("removed")})
		b.runs(t, "removed", 1)
		p.Cmd(t, b.dir, "condor_rm", b.cluster)
		b.status(t, 0, rig.CondorRemoved)
		eventually(t, "the roll-back", func() bool { return p.Path(t, "removed") == upTo("Run")+" RollingBack Interrupted" })
		p.Clean(t)
	})
}

// What a job asks for bounds the containers of its task, with the setting of the page. Where
// they are killed for it, HTCondor ends the job and holds it; the next one rolls back what it has left.
func TestHTCondorBoundsMemory(t *testing.T) {
	t.Parallel()
	p := newPool(t, true)
	submit := func(task tes.Task) *batch {
		t.Helper()
		return p.submit(t, []tes.Task{task}, `environment           = "`, "request_memory = 100\nenvironment = \"DECKHAND_RUN_CGROUP_PARENT=auto ")
	}
	b := submit(tes.Task{ID: "hog", Executors: []tes.Executor{Sh(p.image, "dd if=/dev/zero of=/dev/null bs=400M count=1")}})
	job := b.until(t, 0, func(job map[string]string) bool { return job["JobStatus"] == rig.CondorHeld })
	if why := job["HoldReason"]; !strings.Contains(why, "gone over cgroup memory limit") {
		t.Errorf("the job is held: %s", why)
	}
	p.Cmd(t, b.dir, "condor_rm", b.cluster)

	b = submit(tes.Task{ID: "next", Volumes: []string{"/data"}, Executors: []tes.Executor{Sh(p.image, "sed -n s/.*:memory://p /proc/self/cgroup > /data/group")},
		Outputs: []tes.Output{{Path: "/data/group", URL: filepath.Join(p.Dir, "group")}}})
	b.ends(t, 0, "0", 1)
	if group := p.Read(t, "group"); !strings.Contains(group, "/condor_") {
		t.Errorf("the container was in the group %s", group)
	}
	p.Clean(t)
}
