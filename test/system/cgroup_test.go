package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// A batch engine's limit on the memory of its job holds for the containers of the
// task, whatever the task asks for, and no empty group of theirs is left.
func TestJobsMemoryLimitHolds(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	if version := w.Docker(t, "info", "--format", "{{.CgroupVersion}} {{.CgroupDriver}}"); version != "1 cgroupfs" {
		rig.Lack(t, "a Docker Engine with cgroup v1 by cgroupfs is needed, this one has "+version)
	}
	top := fmt.Sprintf("/deckhand-test-%d", os.Getpid())
	job := top + "/uid_0/job_1"
	memory := "/sys/fs/cgroup/memory"
	if err := os.MkdirAll(memory+job+"/step", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, mount := range hierarchies(t) {
			for _, dir := range []string{job + "/step", job, top + "/uid_0", top} {
				_ = os.Remove(mount + dir) // most of them are not there
			}
		}
	})
	if err := os.WriteFile(memory+job+"/memory.limit_in_bytes", []byte("200M"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.Env = append(w.Env, "SLURM_JOB_ID=1")
	w.Under = []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, memory + job + "/step"}

	image := w.Image(t, "hog", rig.Spec{}).Tag
	w.MustRun(t, 0, tes.Task{ID: "group", Executors: []tes.Executor{Sh(image, "sed -n s/.*:memory://p /proc/self/cgroup >/out/group")},
		Volumes: []string{"/out"}, Outputs: []tes.Output{{URL: filepath.Join(w.Dir, "group"), Path: "/out/group"}}})
	if got := strings.TrimSpace(w.Read(t, "group")); !strings.HasPrefix(got, job+"/step/") {
		t.Errorf("the container was in the group %s, want one below %s/step", got, job)
	}

	o := w.MustRun(t, 1, tes.Task{ID: "hog", Resources: tes.Resources{RAMGB: 1}, Executors: []tes.Executor{
		Sh(image, "dd if=/dev/zero of=/dev/null bs=400M count=1"),
	}})
	if code := o.Log(t).Logs[0].ExitCode; code != 137 {
		t.Errorf("exit code of the executor is %d, want that of a command that was killed", code)
	}

	for _, mount := range hierarchies(t) {
		if mount == memory {
			continue // where the job is
		}
		if _, err := os.Stat(mount + job); err == nil {
			t.Errorf("%s is left", mount+job)
		}
	}
	w.Under = nil
	w.Clean(t)
}

// hierarchies are where the control groups of version 1 are mounted.
func hierarchies(t *testing.T) []string {
	t.Helper()
	mounts, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}
