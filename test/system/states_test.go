package system

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/tes/conformance"
	"github.com/deckhand/deckhand/test/rig"
)

// Every final state has its exit code and its document.
func TestFinalStates(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "final", rig.Spec{})
	waits := "trap 'echo told to stop; exit 0' TERM; echo begun; while :; do usleep 10000; done"
	for _, test := range []struct {
		name   string
		task   tes.Task
		signal os.Signal // once the executor has started
		args   []string
		code   int
		state  tes.State // empty: no document
		runs   int       // executors that started
		says   string
		path   string
	}{
		{
			name: "Complete", task: tes.Task{Executors: []tes.Executor{Sh(image.Tag, "echo")}},
			state: tes.Complete, runs: 1, path: "Accepted Scrub ImageCheck Download Run Upload Complete",
		},
		{
			name: "ExecutorError", task: tes.Task{Executors: []tes.Executor{Sh(image.Tag, "exit 3"), Sh(image.Tag, "true")}},
			code: 1, state: tes.ExecutorError, runs: 1, says: "executor 0 ended with exit code 3",
			path: "Accepted Scrub ImageCheck Download Run Upload ExecutorError",
		},
		{
			name: "SystemError", task: tes.Task{
				Inputs: []tes.Input{{Path: "/in/x", URL: w.Dir + "/none"}}, Executors: []tes.Executor{Sh(image.Tag, "true")},
			},
			code: 3, state: tes.SystemError, says: "no such file",
			path: "Accepted Scrub ImageCheck Download RollingBack SystemError",
		},
		{
			name: "SystemError by image", task: tes.Task{Executors: []tes.Executor{Sh(w.Registry.Addr()+"/none:1", "true")}},
			code: 3, state: tes.SystemError, says: "none:1", path: "Accepted Scrub ImageCheck RollingBack SystemError",
		},
		{
			name: "Canceled", task: tes.Task{Executors: []tes.Executor{Sh(image.Tag, waits)}}, signal: unix.SIGINT,
			code: 4, state: tes.Canceled, runs: 1, says: "canceled", path: "Accepted Scrub ImageCheck Download Run RollingBack Canceled",
		},
		{
			name: "Interrupted", task: tes.Task{Executors: []tes.Executor{Sh(image.Tag, waits)}}, signal: unix.SIGTERM,
			code: 75, path: "Accepted Scrub ImageCheck Download Run RollingBack Interrupted",
		},
		{
			name: "ExecutorError for an engine", task: tes.Task{Executors: []tes.Executor{Sh(image.Tag, "exit 3")}},
			args: []string{"--exit-policy", "engine"}, state: tes.ExecutorError, runs: 1, path: "Accepted Scrub ImageCheck Download Run Upload ExecutorError",
		},
		{
			name: "SystemError for an engine", task: tes.Task{
				Inputs: []tes.Input{{Path: "/in/x", URL: w.Dir + "/none"}}, Executors: []tes.Executor{Sh(image.Tag, "true")},
			},
			args: []string{"--exit-policy", "engine"}, state: tes.SystemError, path: "Accepted Scrub ImageCheck Download RollingBack SystemError",
		},
		{
			name: "Canceled for an engine", task: tes.Task{Executors: []tes.Executor{Sh(image.Tag, waits)}}, signal: unix.SIGINT,
			args: []string{"--exit-policy", "engine"}, state: tes.Canceled, runs: 1, path: "Accepted Scrub ImageCheck Download Run RollingBack Canceled",
		},
		{
			name: "Interrupted for an engine", task: tes.Task{Executors: []tes.Executor{Sh(image.Tag, waits)}}, signal: unix.SIGTERM,
			args: []string{"--exit-policy", "engine"}, code: 75, path: "Accepted Scrub ImageCheck Download Run RollingBack Interrupted",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.task.ID = strings.ReplaceAll(test.name, " ", "-")
			result := filepath.Join(t.TempDir(), "result.json")
			b := w.Start(t, test.task, append(test.args, "--result", result, "--stop-grace", "10m")...)
			if test.signal != nil {
				b.Until(t, "executor started")
				w.says(t, test.task.ID, "begun\n") // it minds signals from here on
				if err := b.Process.Signal(test.signal); err != nil {
					t.Fatal(err)
				}
			}
			code, log := b.End(t)
			if code != test.code {
				t.Errorf("exit code %d, want %d\n%s", code, test.code, log)
			}
			if got := w.Path(t, test.task.ID); got != test.path {
				t.Errorf("the task went through %s, want %s", got, test.path)
			}
			w.Clean(t)
			text, err := os.ReadFile(result)
			if test.state == "" {
				if !os.IsNotExist(err) {
					t.Errorf("there is a result of an interrupted attempt: %s, %v", text, err)
				}
				return
			}
			o := Outcome{Result: Result{Stderr: log}}
			if err := errors.Join(json.Unmarshal(text, &o.Task), conformance.Check(text)); err != nil {
				t.Fatalf("the result is not what TES says: %v\n%s", err, text)
			}
			if o.Task.State != test.state || len(o.Task.Logs) != 1 || o.Task.CreationTime.IsZero() || strings.Contains(string(text), "null") {
				t.Errorf("the result is\n%s", text)
			}
			attempt := o.Log(t)
			if len(attempt.Logs) != test.runs || attempt.StartTime.IsZero() || attempt.EndTime.Before(attempt.StartTime) {
				t.Errorf("the attempt is %+v", attempt)
			}
			if test.signal != nil && (attempt.Logs[0].Stdout != "begun\ntold to stop\n" || attempt.Logs[0].ExitCode != 0) {
				t.Errorf("the executor's log is %+v", attempt.Logs[0])
			}
			o.warned(t, test.says)
			for i, line := range attempt.SystemLogs {
				_, said, _ := strings.Cut(line, " ") // after the time
				for j, other := range attempt.SystemLogs {
					if i != j && strings.HasSuffix(other, said[strings.Index(said, ": ")+1:]) {
						t.Errorf("the system logs tell one reason twice:\n%s\n%s", line, other)
					}
				}
			}
		})
	}
}

// says waits until the first executor of a running task has written a text.
func (w *World) says(t *testing.T, task, text string) {
	t.Helper()
	for {
		r := w.Deckhand(t, "logs", task)
		if r.Code != 0 {
			t.Fatalf("logs: %+v", r)
		}
		if r.Stdout == text {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A task that ended otherwise than well, or was handed back, runs again; the
// result tells of every attempt.
func TestAttempts(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "attempts", rig.Spec{})
	input := w.Write(t, "script", "exit 5")
	task := tes.Task{
		ID: "attempts", Inputs: []tes.Input{{Path: "/in/script", URL: input}}, Volumes: []string{"/vol"},
		Executors: []tes.Executor{Sh(image.Tag, "ls /vol; echo > /vol/left; . /in/script")},
	}
	node := w.Env
	job := func(id string) { w.Env = append(node[:len(node):len(node)], "SLURM_JOB_ID="+id) }
	job("1")
	w.MustRun(t, 1, task)
	job("2")
	w.Write(t, "script", "echo begun; exec sleep 1000")
	b := w.Start(t, task)
	b.Until(t, "executor started")
	if err := b.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, log := b.End(t); code != 75 {
		t.Fatalf("exit code %d\n%s", code, log)
	}
	job("3")
	w.Write(t, "script", "echo well")
	o := w.MustRun(t, 0, task)
	if len(o.Task.Logs) != 3 || o.Task.State != tes.Complete {
		t.Fatalf("the result is %+v", o.Task)
	}
	for i, want := range []int{5, -1, 0} {
		log := o.Task.Logs[i].Logs
		if len(log) != 1 || want >= 0 && log[0].ExitCode != want {
			t.Errorf("attempt %d has %+v, want exit code %d", i+1, log, want)
		}
		if got := o.Task.Logs[i].Metadata["slurm_id"]; got != fmt.Sprint(i+1) {
			t.Errorf("attempt %d is of job %s", i+1, got)
		}
	}
	if got := o.Log(t).Logs[0].Stdout; got != "well\n" {
		t.Errorf("the last attempt saw %q", got) // its volume is empty
	}
	if !o.Task.CreationTime.Equal(o.Task.Logs[0].StartTime) {
		t.Errorf("created %s, first started %s", o.Task.CreationTime, o.Task.Logs[0].StartTime)
	}
	job("4")
	again := w.MustRun(t, 0, task)
	a, errA := json.Marshal(o.Task)
	b2, errB := json.Marshal(again.Task)
	if string(a) != string(b2) || errA != nil || errB != nil {
		t.Errorf("the repeated run says\n%s\nwant\n%s", b2, a)
	}
	w.Clean(t)
}

func TestSourcesOfADocument(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "sources", rig.Spec{})
	file := w.Save(t, tes.Task{ID: "sources", Executors: []tes.Executor{Sh(image.Tag, "echo ran")}})
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/task":
			_, _ = rw.Write(text) // the client sees what is missing
		case "/busy":
			http.Error(rw, "busy", http.StatusServiceUnavailable)
		default:
			http.NotFound(rw, r)
		}
	}))
	defer server.Close()
	for name, test := range map[string]struct {
		args  []string
		stdin string
		code  int
	}{
		"file":              {[]string{file}, "", 0},
		"standard input":    {[]string{"-"}, string(text), 0},
		"base64":            {[]string{"--task-base64", base64.StdEncoding.EncodeToString(text)}, "", 0},
		"http":              {[]string{server.URL + "/task?sig=s3cr3t"}, "", 0},
		"http, not there":   {[]string{server.URL + "/none?sig=s3cr3t"}, "", 2},
		"http, busy":        {[]string{server.URL + "/busy?sig=s3cr3t"}, "", 75},
		"bad base64":        {[]string{"--task-base64", "%"}, "", 2},
		"no document":       {[]string{"-"}, "", 2},
		"two documents":     {[]string{file, "--task-base64", base64.StdEncoding.EncodeToString(text)}, "", 2},
		"none":              {nil, "", 2},
		"file not there":    {[]string{w.Dir + "/none"}, "", 2},
		"more than the one": {[]string{"-"}, string(text) + string(text), 2},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := w.Command(t, append([]string{"run", "--result", "-", "--fresh"}, test.args...)...)
			var stdout, stderr strings.Builder
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(test.stdin), &stdout, &stderr
			err := cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != test.code {
				t.Fatalf("exit code %d, want %d: %v\n%s", code, test.code, err, &stderr)
			}
			if strings.Contains(stderr.String(), "s3cr3t") {
				t.Errorf("standard error holds the signature:\n%s", &stderr)
			}
			if test.code != 0 {
				if stdout.Len() > 0 || !strings.HasPrefix(stderr.String(), "deckhand: ") {
					t.Errorf("standard output %q, standard error %q", &stdout, &stderr)
				}
				return
			}
			var task tes.Task
			if err := json.Unmarshal([]byte(stdout.String()), &task); err != nil || task.State != tes.Complete || task.ID != "sources" {
				t.Errorf("the result is %v\n%s", err, &stdout)
			}
		})
	}
	w.Clean(t)
}

// A result that could not be written is an error before the work is done.
func TestResultThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "unwritten", rig.Spec{})
	file := w.Save(t, tes.Task{ID: "unwritten", Executors: []tes.Executor{Sh(image.Tag, "true")}})
	for name, result := range map[string]string{
		"missing directory": w.Dir + "/none/result.json",
		"a directory":       w.Dir,
		"below a file":      w.Write(t, "file", "") + "/result.json",
	} {
		t.Run(name, func(t *testing.T) {
			r := w.Deckhand(t, "run", file, "--result", result)
			if r.Code != 2 || !strings.Contains(r.Stderr, "result") || !strings.Contains(r.Stderr, result) {
				t.Errorf("%+v", r)
			}
			if r := w.Deckhand(t, "status", "unwritten"); r.Code != 4 {
				t.Errorf("the task has begun: %+v", r)
			}
		})
	}
}

// apart is the world with a root and a directory of its own, for runs at the same time.
func (w *World) apart(t *testing.T) *World {
	t.Helper()
	n, own := *w.Node, *w
	n.Root, own.Node, own.Dir = filepath.Join(t.TempDir(), "root"), &n, t.TempDir()
	t.Cleanup(func() {
		own.Deckhand(t, "recover")
		own.Deckhand(t, "scrub")
	})
	return &own
}

func TestTimeLimit(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "limit", rig.Spec{})
	for name, test := range map[string]struct {
		script string
		grace  string
		code   int // of the executor
		runs   int
	}{
		"stops":       {"exec sleep 1000", "10m", 143, 1},
		"ignores it":  {"trap '' TERM; sleep 1000", "1s", 137, 1},
		"ends well":   {"trap 'exit 0' TERM; while :; do usleep 10000; done", "10m", 143, 1},
		"in time":     {"true", "1s", 0, 2},
		"with a code": {"trap 'exit 9' TERM; while :; do usleep 10000; done", "10m", 9, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limit := "20s" // by then the command has said what it does with a signal
			if test.code == 0 {
				limit = "1h"
			}
			own := w.apart(t)
			code := min(1, test.code)
			id := "limit-" + strings.ReplaceAll(name, " ", "-")
			o := own.MustRun(t, code, tes.Task{
				ID: id, Executors: []tes.Executor{Sh(image.Tag, test.script), Sh(image.Tag, "true")},
			}, "--stop-grace", test.grace, "--config", own.Write(t, "config.yaml", "run: {time_limit: "+limit+"}\n"))
			logs := o.Log(t).Logs
			if len(logs) != test.runs || logs[0].ExitCode != test.code {
				t.Errorf("the executors' logs are %+v\n%s", logs, o.Stderr)
			}
			if code != 0 {
				o.warned(t, "the time limit of "+limit+" was reached")
			}
			own.Clean(t)
		})
	}
}

func TestKeepWorkdir(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "keep", rig.Spec{})
	for keep, kept := range map[string]map[string]bool{
		"never":      {"true": false, "false": false},
		"on-failure": {"true": false, "false": true},
		"always":     {"true": true, "false": true},
	} {
		for command, want := range kept {
			t.Run(keep+" "+command, func(t *testing.T) {
				id := fmt.Sprintf("keep-%s-%s", keep, command)
				w.Run(t, tes.Task{ID: id, Executors: []tes.Executor{Sh(image.Tag, command)}}, "--keep-workdir", keep)
				_, err := os.Stat(filepath.Join(w.Root, "tasks", id))
				if got := err == nil; got != want {
					t.Errorf("the directory is there: %t, want %t (%v)", got, want, err)
				}
				if left := w.Containers(t); len(left) > 0 {
					t.Errorf("containers are left: %v", left)
				}
			})
		}
	}
	// The next task begins on a clean node all the same.
	w.MustRun(t, 0, tes.Task{ID: "next", Executors: []tes.Executor{Sh(image.Tag, "true")}})
	w.Clean(t)
}
