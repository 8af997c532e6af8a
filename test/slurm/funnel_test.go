package slurm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	client "github.com/deckhand/deckhand/internal/funnel"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/funnel"
)

// front is a cluster to which a server of Funnel gives its tasks.
type front struct {
	*Cluster
	*funnel.Server
	template *template.Template
}

func newFront(t *testing.T) *front {
	t.Helper()
	server := funnel.New(t) // it outlives the cluster
	f := &front{Cluster: newCluster(t), Server: server}
	page, err := os.ReadFile(pages + "funnel.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "```yaml\nSlurm:\n  Template: |\n")
	text, _, closed := strings.Cut(text, "```")
	if !ok || !closed {
		t.Fatal("funnel.md shows no template")
	}
	text = strings.ReplaceAll("\n"+text, "\n    ", "\n")[1:]
	text = strings.NewReplacer("http://tes:8000", f.URL, "tes:9090", f.RPC, "/usr/bin/deckhand", f.dir+"/deckhand", "/var/lib/deckhand", f.roots).Replace(text)
	f.template = template.Must(template.New("").Parse(text))
	return f
}

// send submits a task as Funnel does: as the template rendered in a directory of its own.
func (f *front) send(t *testing.T, task tes.Task) *Job {
	t.Helper()
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	f.Submit(t, task.ID, text)
	work := filepath.Join(f.dir, task.ID)
	var script strings.Builder
	err = f.template.Execute(&script, map[string]string{"TaskId": task.ID, "WorkDir": work})
	if err == nil {
		err = os.MkdirAll(work, 0o755)
	}
	submit := filepath.Join(work, "slurm.submit")
	if err == nil {
		err = os.WriteFile(submit, []byte(script.String()), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.Atoi(f.Cmd(t, "sbatch", "--parsable", "--chdir", work, "--mem", "500", submit))
	if err != nil {
		t.Fatal(err)
	}
	f.Root = f.root(id)
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(work, "deckhand.log")) // none of a job that did not run
			t.Logf("job %d:\n%s", id, b)
		}
	})
	c := client.New(client.Server{URL: f.URL, RPC: f.RPC}, client.Credentials{}, "Funnel")
	if err := c.Write(t.Context(), task.ID, client.Metadata(time.Now(), map[string]string{"of_server": strconv.Itoa(id)})); err != nil {
		t.Fatal(err)
	}
	return &Job{Cluster: f.Cluster, ID: id}
}

// told holds what the server has of a task against what its node has: its states, and all
// that the result says of it.
func (f *front) told(t *testing.T, j *Job, task string, states ...string) {
	t.Helper()
	if got := f.States(task); !slices.Equal(got, append([]string{"QUEUED"}, states...)) {
		t.Errorf("on the server %s was %v, want %v", task, got, states)
	}
	if refused := f.Refused(task); len(refused) > 0 {
		t.Errorf("the server has refused %v", refused)
	}
	log := f.Log(task)
	if log.Metadata["slurm_id"] != strconv.Itoa(j.ID) || log.Metadata["of_server"] != strconv.Itoa(j.ID) {
		t.Errorf("the metadata of job %d are %v", j.ID, log.Metadata)
	}
}

// result is that of a task that is Complete: a run of it prints it again.
func (f *front) result(t *testing.T, j *Job, task string) (result tes.Task) {
	t.Helper()
	f.Root = f.root(j.ID)
	r := f.Deckhand(t, "run", "--funnel", f.URL, "--funnel-rpc", f.RPC, "--task-id", task, "--result", "-")
	if err := json.Unmarshal([]byte(r.Stdout), &result); err != nil {
		t.Fatalf("%v\n%s", err, r.Stderr)
	}
	return result
}

// A task of the server runs as a job of the template, is run again when it was handed
// back, and all that came of it is on the server, from both attempts.
func TestFunnel(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	task := f.waiting("sent")
	task.Executors[0].Command[2] += "; echo said; echo why >&2; echo made > /out/file"
	task.Volumes = []string{"/out"}
	task.Outputs = []tes.Output{{Path: "/out/file", URL: filepath.Join(f.Dir, "file")}}
	j := f.send(t, task)
	first := j.running(t, "")
	if err := unix.Kill(j.process(t), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	j.requeued(t, 1)
	if state := f.State("sent"); state != "RUNNING" {
		t.Errorf("a task that will be run again is %s on the server", state)
	}
	j.hasten(t)
	j.let(t, j.running(t, first))
	j.state(t, "COMPLETED")
	j.gone(t)
	f.told(t, j, "sent", "INITIALIZING", "RUNNING", "COMPLETE")
	for _, problem := range check.OnServer(f.Server, "sent", f.result(t, j, "sent")) {
		t.Error(problem)
	}
	log := f.Log("sent")
	if len(log.Logs) != 1 || log.Logs[0].Stdout != "said\n" || log.Logs[0].Stderr != "why\n" || len(log.Outputs) != 1 || log.Outputs[0].SizeBytes != "5" {
		t.Errorf("the server has %+v", log)
	}
	if text := f.Read(t, "file"); text != "made\n" {
		t.Errorf("the output is %q", text)
	}
}

// A task that its user cancels on the server ends, whether the server cancels its job too
// or not; one that was handed back to a job that somebody cancels is ended by recover, and one whose process is killed is ended on the server by the epilog.
func TestFunnelEnds(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	f.Env = append(f.Env, "SLURM_CONF="+f.Conf())
	jobs := map[string]*Job{}
	for _, name := range []string{"cancelled", "cancelled-job", "handed", "killed"} {
		j := f.send(t, f.waiting(name))
		j.running(t, "")
		jobs[name] = j
	}
	at := func(name string) *Job {
		f.Root = f.root(jobs[name].ID)
		return jobs[name]
	}
	j := at("cancelled")
	f.Cancel(t, "cancelled")
	if job := j.state(t, "FAILED"); job["ExitCode"] != "4:0" {
		t.Errorf("the job is %v", job)
	}
	j.gone(t)
	j.ended(t, "cancelled", "Canceled")
	f.told(t, j, "cancelled", "INITIALIZING", "RUNNING", "CANCELED")

	j = at("cancelled-job")
	f.Cancel(t, "cancelled-job")
	f.Cmd(t, "scancel", strconv.Itoa(j.ID))
	j.state(t, "CANCELLED")
	j.gone(t)
	f.told(t, j, "cancelled-job", "INITIALIZING", "RUNNING", "CANCELED")

	// It was to be run again, and its job was cancelled by somebody else than the server.
	j = at("handed")
	if err := unix.Kill(j.process(t), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	j.requeued(t, 1)
	j.gone(t)
	f.Deckhand(t, "recover")
	f.told(t, j, "handed", "INITIALIZING", "RUNNING")
	f.Cmd(t, "scancel", strconv.Itoa(j.ID))
	j.state(t, "CANCELLED")
	if r := f.Deckhand(t, "recover"); !strings.Contains(r.Stdout, "handed") {
		t.Errorf("recover says %+v", r)
	}
	f.told(t, j, "handed", "INITIALIZING", "RUNNING", "SYSTEM_ERROR")

	j = at("killed")
	if err := unix.Kill(j.process(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	j.state(t, "FAILED")
	j.gone(t)
	f.told(t, j, "killed", "INITIALIZING", "RUNNING", "SYSTEM_ERROR")
	lines := strings.Join(f.Log("killed").SystemLogs, "\n")
	if !strings.Contains(lines, "its process is gone") {
		t.Errorf("the system logs do not say what has become of it:\n%s", lines)
	}
}
