package system

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/funnel"
	"github.com/deckhand/deckhand/test/rig"
)

// front is a node whose tasks come from a server of Funnel.
type front struct {
	*World
	*funnel.Server
	image string
}

func newFront(t *testing.T) *front {
	t.Helper()
	server := funnel.New(t) // it outlives the node, whose last word is for it
	w := NewWorld(t)
	w.Env = append(w.Env, "DECKHAND_FUNNEL_POLL=100ms", "DECKHAND_EVENTS_DRAIN=100ms")
	return &front{w, server, w.Image(t, "funnel", rig.Spec{}).Digest}
}

// submit gives the server a task.
func (f *front) submit(t *testing.T, task tes.Task) {
	t.Helper()
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	f.Submit(t, task.ID, text)
}

// submitSh submits a task of one executor.
func (f *front) submitSh(t *testing.T, id, script string) {
	t.Helper()
	f.submit(t, tes.Task{ID: id, Executors: []tes.Executor{Sh(f.image, script)}})
}

// submitWaiting submits a task whose executor does not end before letGo lets it, with
// that exit code.
func (f *front) submitWaiting(t *testing.T, id string, code int) {
	t.Helper()
	f.submit(t, tes.Task{
		ID: id, Executors: []tes.Executor{Sh(f.image, fmt.Sprintf("until [ -e /data/go ]; do usleep 10000; done; exit %d", code))}, Volumes: []string{"/data"},
	})
}

func (f *front) args(id string, more ...string) []string {
	return append([]string{"run", "--funnel", f.URL, "--funnel-rpc", f.RPC, "--task-id", id}, more...)
}

// run runs a task of the server that is to end with an exit code.
func (f *front) run(t *testing.T, code int, id string, more ...string) Result {
	t.Helper()
	r := f.Deckhand(t, f.args(id, more...)...)
	if r.Code != code {
		t.Fatalf("exit code is %d, want %d\n%s", r.Code, code, r.Stderr)
	}
	return r
}

func (f *front) background(t *testing.T, id string, more ...string) *Background {
	t.Helper()
	b := &Background{Cmd: f.Command(t, f.args(id, more...)...), lines: make(chan string, 10_000)}
	b.start(t)
	return b
}

// same holds what the server has of a task against what the journal of the node says:
// nothing is missing and nothing is there twice. The states are all that it went through.
func (f *front) same(t *testing.T, id string, states ...string) {
	t.Helper()
	if got := f.States(id); !slices.Equal(got, append([]string{"QUEUED"}, states...)) {
		t.Errorf("on the server the task was %v, want %v", got, states)
	}
	text := f.Deckhand(t, "journal", "inspect", id, "--json").Stdout
	if text == "" {
		t.Fatal("the journal does not know the task")
	}
	for _, problem := range check.OnServer(f.Server, id, f.result(t, id)) {
		t.Error(problem)
	}
}

// result is what the node itself says of a task that has ended.
func (f *front) result(t *testing.T, id string) (task tes.Task) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(f.Dir, id+".result"))
	if err == nil {
		err = json.Unmarshal(text, &task)
	}
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func (f *front) resultFlag(id string) string { return "--result=" + filepath.Join(f.Dir, id+".result") }

// A task comes from the server as a whole, and all that the journal knows of it is on
// the server in the end. Neither password nor token is anywhere on the node.
func TestFunnel(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	f.User, f.Password = "someone", "pass-4711"
	// gRPC by TLS, with a certificate that the node is told of.
	secure := httptest.NewUnstartedServer(nil)
	secure.StartTLS()
	certificate := f.Write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	f.Leave()
	f.TLS = secure.TLS.Clone()
	f.TLS.NextProtos = nil
	secure.Close()
	f.Return(t)
	f.RPC = "https://" + f.RPC
	f.Env = append(f.Env, "SSL_CERT_FILE="+certificate, "DECKHAND_FUNNEL_USER=someone", "DECKHAND_FUNNEL_PASSWORD_FILE="+f.Write(t, "password", "pass-4711\n"))
	out := filepath.Join(f.Dir, "out")
	first := Sh(f.image, "cat /in; echo oops >&2")
	first.Stdout = "/data/first"
	second := Sh(f.image, "exit 3")
	second.IgnoreError = true
	f.submit(t, tes.Task{
		ID: "t", Executors: []tes.Executor{first, second, Sh(f.image, "tr a-z A-Z < /data/first")},
		Inputs:  []tes.Input{{Path: "/in", Content: ptr("content")}},
		Outputs: []tes.Output{{Path: "/data/first", URL: "file://" + out}},
	})
	r := f.run(t, 0, "t", f.resultFlag("t"))
	f.same(t, "t", "INITIALIZING", "RUNNING", "COMPLETE")
	log := f.Log("t")
	if len(log.Logs) != 3 || log.Logs[0].Stdout != "content" || log.Logs[0].Stderr != "oops\n" || log.Logs[1].ExitCode != 3 || log.Logs[2].Stdout != "CONTENT" {
		t.Errorf("the server's executors are %+v", log.Logs)
	}
	if text := f.Read(t, "out"); text != "content" || len(log.Outputs) != 1 {
		t.Errorf("the output is %q, on the server %v", text, log.Outputs)
	}
	if log.Metadata["deckhand.bytes_out"] != "7" || log.Metadata["host"] == "" {
		t.Errorf("the server's metadata are %v", log.Metadata)
	}
	export := f.Deckhand(t, "journal", "export").Stdout
	if said := r.Stdout + r.Stderr + export + strings.Join(log.SystemLogs, ""); strings.Contains(said, "4711") || strings.Contains(said, "c29tZW9uZTpwYXNzLTQ3MTE") {
		t.Errorf("the password is told:\n%s", said)
	}
	if !strings.Contains(export, f.RPC) {
		t.Error("the journal does not say which server the task came from")
	}

	// It is complete: run again it is not run again.
	events := f.Events("t")
	f.run(t, 0, "t", f.resultFlag("t"))
	f.same(t, "t", "INITIALIZING", "RUNNING", "COMPLETE")
	if f.Events("t") != events {
		t.Errorf("the server was told %d more events", f.Events("t")-events)
	}

	wrong := f.Env
	f.Env = append(f.Env, "DECKHAND_FUNNEL_PASSWORD_FILE="+f.Write(t, "wrong", "x"))
	if r := f.run(t, 2, "t", "--fresh"); !strings.Contains(r.Stderr, "funnel.password_file") {
		t.Errorf("a wrong password is told as\n%s", r.Stderr)
	}
	f.Env = wrong
	if r := f.run(t, 2, "other"); !strings.Contains(r.Stderr, "does not know the task") {
		t.Errorf("an unknown task is told as\n%s", r.Stderr)
	}
}

func ptr[T any](v T) *T { return &v }

// A command that fails, a document that is not valid, and a node that cannot run
// anything are told, each in its own way.
func TestFunnelFailures(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	f.submitSh(t, "fails", "echo why >&2; exit 7")
	f.run(t, 1, "fails", f.resultFlag("fails"))
	f.same(t, "fails", "INITIALIZING", "RUNNING", "EXECUTOR_ERROR")
	if x := f.Log("fails").Logs; len(x) != 1 || x[0].ExitCode != 7 || x[0].Stderr != "why\n" {
		t.Errorf("the server's executors are %+v", x)
	}
	// Run again it is another attempt, as the server allows.
	f.run(t, 1, "fails", f.resultFlag("fails"))
	f.same(t, "fails", "INITIALIZING", "RUNNING", "EXECUTOR_ERROR", "INITIALIZING", "RUNNING", "EXECUTOR_ERROR")

	closed := func(id string, code int, why string) {
		t.Helper()
		for range 2 { // to be told twice is to be told once
			f.run(t, code, id)
		}
		told := 0
		for _, line := range f.Log(id).SystemLogs {
			if strings.Contains(line, why) {
				told++
			}
		}
		if f.State(id) != "SYSTEM_ERROR" || told != 1 {
			t.Errorf("%s is %s on the server, which was told why %d times:\n%s", id, f.State(id), told, strings.Join(f.Log(id).SystemLogs, "\n"))
		}
	}
	f.submit(t, tes.Task{ID: "invalid", Executors: []tes.Executor{{Image: f.image, Command: []string{"true"}, Workdir: "relative"}}})
	closed("invalid", 2, "executors[0].workdir")
	f.submit(t, tes.Task{ID: "missing", Executors: []tes.Executor{Sh(f.image, "true")}, Inputs: []tes.Input{{Path: "/in", URL: "file:///not/there"}}})
	f.run(t, 3, "missing", f.resultFlag("missing"))
	f.same(t, "missing", "INITIALIZING", "SYSTEM_ERROR")
	f.submitSh(t, "unfit", "true")
	host := f.DockerHost
	f.DockerHost = "unix:///not/there"
	f.Env = append(f.Env, "DECKHAND_ENGINE_WAIT=0")
	closed("unfit", 78, "/not/there")
	// The engine runs it again when the node is well.
	f.DockerHost = host
	f.run(t, 0, "unfit")
	if want := []string{"QUEUED", "SYSTEM_ERROR", "INITIALIZING", "RUNNING", "COMPLETE"}; !slices.Equal(f.States("unfit"), want) {
		t.Errorf("on the server the task was %v, want %v", f.States("unfit"), want)
	}
}

// The user cancels on the server: while the task runs, while no process has it, and
// before anything has begun.
func TestFunnelCancel(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	f.Env = append(f.Env, "DECKHAND_EVENTS_DRAIN=1h") // the server is there: it is told as soon as the machine can
	f.submitSh(t, "running", "sleep 1000")
	b := f.background(t, "running", f.resultFlag("running"))
	b.Until(t, " Run (")
	f.Cancel(t, "running")
	if code, log := b.End(t); code != 4 {
		t.Fatalf("exit code is %d\n%s", code, log)
	}
	if states := f.States("running"); states[len(states)-1] != "CANCELED" || f.result(t, "running").State != tes.Canceled {
		t.Errorf("on the server the task was %v, in the result it is %s", states, f.result(t, "running").State)
	}

	f.submitSh(t, "down", "sleep 1000")
	b = f.background(t, "down")
	b.Until(t, "executor started")
	b.Kill(t)
	f.Cancel(t, "down")
	f.run(t, 4, "down", f.resultFlag("down"))
	if list := f.Docker(t, "ps", "-aq", "--filter", "label=deckhand.task=down"); strings.TrimSpace(list) != "" {
		t.Errorf("containers are left: %s", list)
	}
	if last := f.result(t, "down"); f.State("down") != "CANCELED" || last.State != tes.Canceled {
		t.Errorf("the task is %s on the server and %s in the result", f.State("down"), last.State)
	}

	f.submitSh(t, "early", "true")
	f.Cancel(t, "early")
	r := f.run(t, 4, "early")
	if strings.Contains(r.Stderr, " Accepted") || f.Events("early") != 0 {
		t.Errorf("a task that was canceled before it began was begun:\n%s", r.Stderr)
	}

	// Here the user stops it on the node.
	f.submitSh(t, "here", "sleep 1000")
	b = f.background(t, "here", f.resultFlag("here"))
	b.Until(t, "executor started")
	if err := b.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code, log := b.End(t); code != 4 {
		t.Fatalf("exit code is %d\n%s", code, log)
	}
	f.run(t, 4, "here") // with whatever it was not told in the little time
	f.same(t, "here", "INITIALIZING", "RUNNING", "CANCELED")
}

// The server goes away at any time and comes back. A run does not end before it was
// told; one that may not wait so long is run again, and then only tells.
func TestFunnelOutage(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	f.submitWaiting(t, "start", 0)
	f.Leave()
	b := f.background(t, "start", f.resultFlag("start"))
	b.Until(t, "does not answer")
	f.Return(t)
	b.Until(t, "executor started")
	f.Leave()
	f.letGo(t)
	b.Until(t, " Complete (")
	b.Until(t, "cannot deliver")
	f.Return(t)
	if code, log := b.End(t); code != 0 {
		t.Fatalf("exit code is %d\n%s", code, log)
	}
	f.same(t, "start", "INITIALIZING", "RUNNING", "COMPLETE")

	f.submitWaiting(t, "away", 5)
	f.Env = append(f.Env, "DECKHAND_FUNNEL_RETRY_FOR=100ms")
	b = f.background(t, "away")
	b.Until(t, "executor started")
	f.Leave()
	f.letGo(t)
	if code, log := b.End(t); code != 75 {
		t.Fatalf("exit code is %d\n%s", code, log)
	}
	if r := f.Deckhand(t, f.args("away")...); r.Code != 75 {
		t.Errorf("without a server a run ends with %d\n%s", r.Code, r.Stderr)
	}
	f.Return(t)
	f.Env = append(f.Env, "DECKHAND_FUNNEL_RETRY_FOR=15m")
	f.run(t, 1, "away", f.resultFlag("away"))
	f.same(t, "away", "INITIALIZING", "RUNNING", "EXECUTOR_ERROR")
	if n := len(f.result(t, "away").Logs); n != 1 {
		t.Errorf("the task was run %d times", n)
	}

	// Whatever process has the root next tells what is left, if it is not told of a server itself.
	f.submitWaiting(t, "later", 0)
	f.Env = append(f.Env, "DECKHAND_FUNNEL_RETRY_FOR=100ms")
	b = f.background(t, "later", f.resultFlag("later"))
	b.Until(t, "executor started")
	f.Leave()
	f.letGo(t)
	if code, log := b.End(t); code != 75 {
		t.Fatalf("exit code is %d\n%s", code, log)
	}
	f.Return(t)
	f.Env = append(f.Env, "DECKHAND_EVENTS_DRAIN=1m")
	if r := f.Deckhand(t, "recover"); r.Code != 0 {
		t.Errorf("recover: %+v", r)
	}
	f.same(t, "later", "INITIALIZING", "RUNNING", "COMPLETE")
}

// A process is killed in each state, also when the server has taken what it was told
// and the process does not know; the next one goes on, and the server's record is whole.
func TestFunnelKilled(t *testing.T) {
	t.Parallel()
	for i, at := range []string{" Accepted", " Scrub", " ImageCheck (", " Download (", " Run (", "executor started", " Upload (", " Complete ("} {
		lose := []int{1, 1000, 0}[i%3]
		t.Run(strings.Trim(at, " ("), func(t *testing.T) {
			t.Parallel()
			f := newFront(t)
			f.submit(t, tes.Task{
				ID: "t", Executors: []tes.Executor{Sh(f.image, "echo one > /data/f; cat /data/f")}, Volumes: []string{"/data"},
				Outputs: []tes.Output{{Path: "/data/f", URL: "file://" + filepath.Join(f.Dir, "f")}, {Path: "/data/none", URL: "file://" + filepath.Join(f.Dir, "g")}},
			})
			b := f.background(t, "t")
			b.Until(t, " Accepted")
			f.Lose(lose)
			if at != " Accepted" {
				b.Until(t, at)
			}
			b.Kill(t)
			f.Lose(0)
			f.run(t, 0, "t", f.resultFlag("t"))
			f.same(t, "t", "INITIALIZING", "RUNNING", "COMPLETE")
		})
	}
}

// A line of the system logs that the server has taken, and of which no answer came, is
// not told again, whether the process goes on or another one does.
func TestFunnelTellsLinesOnce(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	f.LoseLines(4)
	f.submit(t, tes.Task{
		ID: "t", Executors: []tes.Executor{Sh(f.image, "true")}, Volumes: []string{"/data"},
		Outputs: []tes.Output{{Path: "/data/none", URL: "file://" + filepath.Join(f.Dir, "f")}, {Path: "/data/nothing", URL: "file://" + filepath.Join(f.Dir, "g")}},
	})
	b := f.background(t, "t")
	until(t, "the server has a line about an output", func() bool { return len(f.Log("t").SystemLogs) > 1 })
	b.Kill(t)
	f.run(t, 0, "t", f.resultFlag("t"))
	f.same(t, "t", "INITIALIZING", "RUNNING", "COMPLETE")
	if n := len(f.Log("t").SystemLogs); n < 3 {
		t.Errorf("only %d lines were told", n)
	}
}

// A task that a node gives up ends on the server, and one that another node has taken
// over since is left to that.
func TestFunnelRecover(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	f.Env = append(f.Env, "DECKHAND_EVENTS_DRAIN=1m")
	lost := func(id string) {
		t.Helper()
		f.submitSh(t, id, "sleep 1000")
		b := f.background(t, id)
		b.Until(t, "executor started")
		b.Kill(t)
	}
	lost("given-up")
	if r := f.Deckhand(t, "recover"); r.Code != 0 || !strings.Contains(r.Stdout, "given-up") {
		t.Errorf("recover: %+v", r)
	}
	if f.State("given-up") != "SYSTEM_ERROR" || !strings.Contains(strings.Join(f.Log("given-up").SystemLogs, "\n"), "rolled back by recover") {
		t.Errorf("the task is %s on the server:\n%s", f.State("given-up"), strings.Join(f.Log("given-up").SystemLogs, "\n"))
	}

	// The next task of the node rolls it back as well.
	lost("given-up-too")
	f.submitSh(t, "next", "true")
	f.run(t, 0, "next")
	if f.State("given-up-too") != "SYSTEM_ERROR" || f.State("next") != "COMPLETE" {
		t.Errorf("the tasks are %s and %s on the server", f.State("given-up-too"), f.State("next"))
	}

	// An engine that runs it again later runs it well.
	f.submitSh(t, "again", "exec sleep ${N:-0}")
	b := f.background(t, "again")
	b.Until(t, " Run (")
	b.Kill(t)
	f.Deckhand(t, "recover")
	f.run(t, 0, "again", f.resultFlag("again"))
	f.same(t, "again", "INITIALIZING", "RUNNING", "SYSTEM_ERROR", "INITIALIZING", "RUNNING", "COMPLETE")

	// Another node has it: what this one does with its remains is not told.
	lost("moved")
	other := NewNode(t, f.DockerHost)
	other.Env = append(other.Env, f.Env[2:]...)
	there := &front{&World{Node: other, Registry: f.Registry, Dir: t.TempDir(), Docker: f.Docker}, f.Server, f.image}
	t.Cleanup(func() {
		there.Deckhand(t, "recover")
		there.Deckhand(t, "scrub")
	})
	b = there.background(t, "moved")
	b.Until(t, "executor started")
	until(t, "all that the other node has to say", func() bool { return there.told(t) })
	if by := f.Log("moved").Metadata["deckhand.owner"]; !strings.HasPrefix(by, there.RootID(t)+" ") || f.State("moved") != "RUNNING" {
		t.Fatalf("the task is %s on the server, of %q", f.State("moved"), by)
	}
	before := len(f.Log("moved").SystemLogs)
	f.Deckhand(t, "recover")
	if log := f.Log("moved"); f.State("moved") != "RUNNING" || len(log.SystemLogs) != before {
		t.Errorf("the task is %s on the server:\n%s", f.State("moved"), strings.Join(log.SystemLogs, "\n"))
	}
	b.Kill(t)
	there.Deckhand(t, "recover")
	if f.State("moved") != "SYSTEM_ERROR" {
		t.Errorf("the task is %s on the server", f.State("moved"))
	}

	// A task that was handed back is for the engine to run again, here or elsewhere.
	f.submitSh(t, "handed", "sleep 1000")
	b = f.background(t, "handed")
	b.Until(t, "executor started")
	if err := b.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, log := b.End(t); code != 75 || f.State("handed") != "RUNNING" {
		t.Errorf("exit code is %d, the task is %s on the server\n%s", code, f.State("handed"), log)
	}
}

// told says whether the server has been told all that the journal holds for it.
func (f *front) told(t *testing.T) bool {
	t.Helper()
	view, err := journal.OpenView(filepath.Join(f.Root, "journal"))
	must(t, err)
	left, err := view.Undelivered("funnel "+f.URL+" "+f.RPC, 1)
	must(t, err, view.Close())
	return len(left) == 0
}

// A task that was handed back to a job of Slurm is ended on the server when Slurm will not
// run that job again, and not before.
func TestFunnelJobGone(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	bin := filepath.Join(f.Dir, "bin")
	slurm := func(script string) {
		t.Helper()
		err := os.MkdirAll(bin, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(bin, "scontrol"), []byte("#!/bin/sh\n[ \"$*\" = 'show job -o 7' ] || exit 3\n"+script), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f.Env = append(f.Env, "SLURM_JOB_ID=7", "PATH="+bin+":"+os.Getenv("PATH"), "DECKHAND_EVENTS_DRAIN=1m")
	slurm("echo JobId=7 JobState=PENDING Reason=BeginTime")
	f.handedBack(t, "first")
	for _, script := range []string{"echo JobId=7 JobState=COMPLETING", "echo JobId=7 JobState=RUNNING", "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1"} {
		slurm(script)
		if r := f.recover(t); len(r.Closed) > 0 || len(r.Problems) > 0 != strings.Contains(script, "exit 1") || f.State("first") != "RUNNING" {
			t.Errorf("%s: recover says %+v, and the task is %s on the server", script, r, f.State("first"))
		}
	}
	slurm("echo JobId=7 JobState=CANCELLED Reason=None")
	if r := f.recover(t); !slices.Equal(r.Closed, []string{"first"}) || f.State("first") != "SYSTEM_ERROR" {
		t.Errorf("recover says %+v, and the task is %s on the server", r, f.State("first"))
	}
	log := f.Log("first")
	if said := strings.Join(log.SystemLogs, "\n"); strings.Count(said, "job 7 of Slurm, which is gone") != 1 || log.EndTime == "" {
		t.Errorf("the server has %+v", log)
	}
	events := f.Events("first")
	if r := f.recover(t); len(r.Closed) > 0 || f.Events("first") != events {
		t.Errorf("recover says again %+v, and the server was told %d more events", r, f.Events("first")-events)
	}

	slurm("echo JobId=7 JobState=PENDING")
	f.handedBack(t, "second")
	f.handedBack(t, "third")
	slurm("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
	// Without a server they are for the next time, and it is asked once.
	f.Leave()
	if r := f.recover(t); len(r.Closed) > 0 || strings.Count(strings.Join(r.Problems, "\n"), "is run again") != 1 {
		t.Errorf("without a server recover says %+v", r)
	}
	f.Return(t)
	if r := f.recover(t); !slices.Equal(r.Closed, []string{"third", "second"}) || f.State("second") != "SYSTEM_ERROR" || f.State("third") != "SYSTEM_ERROR" {
		t.Errorf("recover says %+v, and the tasks are %s and %s on the server", r, f.State("second"), f.State("third"))
	}
}

// handedBack is a task that was handed back to its engine while it ran.
func (f *front) handedBack(t *testing.T, id string) {
	t.Helper()
	f.submitSh(t, id, "exec sleep 1000")
	b := f.background(t, id)
	b.Until(t, "executor started")
	b.signal(t, unix.SIGTERM)
	b.ends(t, 75)
	if f.State(id) != "RUNNING" {
		t.Errorf("%s is %s on the server", id, f.State(id))
	}
}

// A task that was handed back to an engine that cannot be asked is given up by recover when
// nobody has run it again for long, here or elsewhere. The engine may still run it.
func TestFunnelGivenUp(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	f.Env = append(f.Env, "DECKHAND_EVENTS_DRAIN=1m")
	recovers := func(patience string, closed ...string) {
		t.Helper()
		was := f.Env
		f.Env = append(slices.Clone(f.Env), "DECKHAND_FUNNEL_GIVE_UP_AFTER="+patience)
		if r := f.recover(t); !slices.Equal(r.Closed, closed) || len(r.Problems) > 0 {
			t.Errorf("with %q recover says %+v, want %q closed", patience, r, closed)
		}
		f.Env = was
	}
	f.handedBack(t, "t")
	for _, patience := range []string{"", "none", "1h"} {
		if recovers(patience); f.State("t") != "RUNNING" {
			t.Errorf("with %q the task is %s on the server", patience, f.State("t"))
		}
	}
	recovers("1ms", "t")
	log := f.Log("t")
	if said := strings.Join(log.SystemLogs, "\n"); f.State("t") != "SYSTEM_ERROR" || strings.Count(said, "nobody has run it again") != 1 || log.EndTime == "" {
		t.Errorf("the task is %s on the server, which has %+v", f.State("t"), log)
	}
	events := f.Events("t")
	if recovers("1ms"); f.Events("t") != events {
		t.Errorf("the server was told %d more events", f.Events("t")-events)
	}

	// Its user has canceled it meanwhile.
	f.handedBack(t, "canceled")
	f.Cancel(t, "canceled")
	if recovers("1ms"); f.State("canceled") != "CANCELED" {
		t.Errorf("the task is %s on the server", f.State("canceled"))
	}

	// Another node has it now.
	f.handedBack(t, "moved")
	other := NewNode(t, f.DockerHost)
	other.Env = append(other.Env, f.Env[2:]...)
	there := &front{&World{Node: other, Registry: f.Registry, Dir: t.TempDir(), Docker: f.Docker}, f.Server, f.image}
	t.Cleanup(func() {
		there.Deckhand(t, "recover")
		there.Deckhand(t, "scrub")
	})
	b := there.background(t, "moved")
	b.Until(t, "executor started")
	until(t, "all that the other node has to say", func() bool { return there.told(t) })
	if recovers("1ms"); f.State("moved") != "RUNNING" {
		t.Errorf("the task is %s on the server", f.State("moved"))
	}
	b.Kill(t)

	// The engine has run it again after all.
	b = f.background(t, "t")
	b.Until(t, "executor started")
	f.Cancel(t, "t")
	b.ends(t, 4)
	if want := []string{"QUEUED", "INITIALIZING", "RUNNING", "SYSTEM_ERROR", "INITIALIZING", "RUNNING", "CANCELED"}; !slices.Equal(f.States("t"), want) {
		t.Errorf("on the server the task was %v, want %v", f.States("t"), want)
	}
}
