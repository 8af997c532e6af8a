package system

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

func TestExecutorsShareFiles(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "share", rig.Spec{Files: map[string]string{"/opt/image/text": "of the image\n"}})
	other := w.Image(t, "share-user", rig.Spec{Marker: "user", User: "1000", Files: map[string]string{"/opt/image/text": "of the other image\n"}})
	with := func(e tes.Executor, change func(*tes.Executor)) tes.Executor { change(&e); return e }
	o := w.MustRun(t, 0, tes.Task{
		ID:      "share",
		Volumes: []string{"/vol/A/", "/scratch"},
		Inputs:  []tes.Input{{Path: "/in/text", Content: pointer("of the input\n")}},
		Outputs: []tes.Output{
			{Path: "/logs/both", URL: w.Dir + "/both"}, {Path: "/logs/second", URL: w.Dir + "/second"},
			{Path: "/root/third", URL: w.Dir + "/third"}, {Path: "/fourth", URL: w.Dir + "/fourth"},
		},
		Executors: []tes.Executor{
			with(Sh(image.Tag, "ls -A /vol/A /scratch; cat; echo 1 > /vol/A/file; echo x > /in/new; for i in 1 2 3; do echo out $i; echo err $i >&2; done"),
				func(e *tes.Executor) { e.Stdin, e.Stdout, e.Stderr = "/in/text", "/logs/both", "/logs/both" }),
			// Another image, and a user who is not root.
			with(Sh(other.Tag, "id -u; cat; cat /vol/A/file /in/new; echo 2 > /vol/A/file2; echo more >> /in/text; echo problem >&2"),
				func(e *tes.Executor) { e.Stdin, e.Stdout, e.Stderr = "/logs/both", "/logs/second", "/logs/errors" }),
			with(Sh(image.Tag, "cat; cat /logs/errors /vol/A/file2 /in/text"),
				func(e *tes.Executor) { e.Stdin, e.Stdout = "/opt/image/text", "/root/third" }),
			with(Sh(other.Tag, "cat; cat /fourth || true"),
				func(e *tes.Executor) { e.Stdin, e.Stderr, e.Workdir = "/root/third", "/fourth", "/tmp" }),
			Sh(image.Tag, "cat /fourth"),
		},
	})
	first := "/scratch:\n\n/vol/A:\nof the input\nout 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"
	second := "1000\n" + first + "1\nx\n"
	third := "of the image\nproblem\n2\nof the input\nmore\n"
	fourth := ""
	logs := o.Log(t).Logs
	for i, want := range []string{first, second, third, third + fourth, fourth} {
		if logs[i].Stdout != want {
			t.Errorf("executor %d wrote %q, want %q", i, logs[i].Stdout, want)
		}
	}
	if logs[1].Stderr != "problem\n" {
		t.Errorf("executor 1 wrote the errors %q", logs[1].Stderr)
	}
	for name, want := range map[string]string{"both": first, "second": second, "third": third, "fourth": fourth} {
		if got := w.Read(t, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	w.Clean(t)
}

// A stream's file has every byte: what is no text, lines without an end, and
// more than any buffer holds.
func TestStreamsAreBytes(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "bytes", rig.Spec{})
	o := w.MustRun(t, 0, tes.Task{
		ID:      "bytes",
		Outputs: []tes.Output{{Path: "/out/x.gz", URL: w.Dir + "/x.gz"}, {Path: "/out/err", URL: w.Dir + "/err"}},
		Executors: []tes.Executor{{
			Image: image.Tag, Stdout: "/out/x.gz", Stderr: "/out/err",
			Command: []string{"sh", "-c", `head -c 100000000 /dev/urandom > /out/random; gzip -1 < /out/random
				head -c 40000 /dev/zero | tr '\0' x >&2; echo >&2; head -c 20000 /dev/zero | tr '\0' y >&2; sha256sum /out/random >&2`},
		}},
	})
	zip, err := os.Open(filepath.Join(w.Dir, "x.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer zip.Close()
	plain, err := gzip.NewReader(zip)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, plain); n != 100_000_000 || err != nil { // it has a checksum
		t.Errorf("standard output has %d bytes, %v", n, err)
	}
	want := strings.Repeat("x", 40_000) + "\n" + strings.Repeat("y", 20_000)
	if got := w.Read(t, "err"); !strings.HasPrefix(got, want) || len(got) != len(want)+64+len("  /out/random\n") {
		t.Errorf("standard error has %d bytes, or others", len(got))
	}
	if log := o.Log(t).Logs[0]; len(log.Stderr) != 10_000 || !strings.HasSuffix(log.Stderr, "  /out/random\n") {
		t.Errorf("the end of standard error is %d bytes: …%q", len(log.Stderr), log.Stderr[len(log.Stderr)-20:])
	}
	w.Clean(t)
}

func TestWhatAnExecutorSees(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	w.Env = append(w.Env, "OF_THE_NODE=secret")
	image := w.Image(t, "sees", rig.Spec{Env: []string{"OF_IMAGE=image", "OVER=image"}, Workdir: "/home", Volumes: []string{"/of-image"}})
	limits := `cd /sys/fs/cgroup
		if [ -e cgroup.controllers ]; then cat memory.max memory.swap.max cpu.max pids.max
		else cat memory/memory.limit_in_bytes; echo 0; echo "$(cat cpu/cpu.cfs_quota_us) $(cat cpu/cpu.cfs_period_us)"; cat pids/pids.max; fi`
	for name, test := range map[string]struct {
		executor  tes.Executor
		resources tes.Resources
		want      string
	}{
		"environment": {executor: tes.Executor{
			Command: []string{"sh", "-c", `echo "$OF_IMAGE|$OVER|$NEW|$EMPTY|$OF_THE_NODE"`},
			Env:     map[string]string{"OVER": "task", "NEW": "$OVER `x` \"q\"\nü", "EMPTY": ""},
		}, want: "image|task|$OVER `x` \"q\"\nü||\n"},
		"the image's workdir": {executor: tes.Executor{Command: []string{"pwd"}}, want: "/home\n"},
		"workdir":             {executor: tes.Executor{Command: []string{"pwd"}, Workdir: "/new/dir"}, want: "/new/dir\n"},
		"arguments": {executor: tes.Executor{
			Command: []string{"sh", "-c", `for a; do echo "[$a]"; done`, "sh", "", "a b", "$HOME", "*", "ü\n'\"", ""},
		}, want: "[]\n[a b]\n[$HOME]\n[*]\n[ü\n'\"]\n[]\n"},
		"limits": {
			executor:  tes.Executor{Command: []string{"sh", "-c", limits}},
			resources: tes.Resources{CPUCores: 0.5, RAMGB: 0.128},
			want:      "128000000\n0\n50000 100000\n16384\n",
		},
		"more cores than there are": {
			executor:  tes.Executor{Command: []string{"echo", "runs"}},
			resources: tes.Resources{CPUCores: 4096},
			want:      "runs\n",
		},
		"no privileges": {executor: tes.Executor{
			Command: []string{"sh", "-c", "grep NoNewPrivs /proc/self/status; ls /var/run/docker.sock /run/docker.sock 2>/dev/null"},
		}, want: "NoNewPrivs:\t1\n"},
		"the image's volume": {executor: tes.Executor{Command: []string{"sh", "-c", "ls -A /of-image; echo > /of-image/x; ls /of-image"}}, want: "x\n"},
	} {
		t.Run(name, func(t *testing.T) {
			test.executor.Image = image.Tag
			o := w.Run(t, tes.Task{ID: "sees", Executors: []tes.Executor{test.executor}, Resources: test.resources}, "--fresh")
			got := o.Log(t).Logs[0].Stdout
			if name == "limits" { // in whole pages
				got = strings.Replace(got, "127995904\n", "128000000\n", 1)
			}
			if got != test.want {
				t.Errorf("the executor saw %q, want %q\n%s", got, test.want, o.Stderr)
			}
		})
	}
	if left := w.Volumes(t); len(left) > 0 {
		t.Errorf("volumes are left: %v", left)
	}
	w.Clean(t)
}

func TestEntrypoint(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "entrypoint", rig.Spec{
		Entrypoint: []string{"/entry", "own argument"},
		Files:      map[string]string{"/entry": "#!/bin/sh\necho entered with \"$1\"\nshift\nexec \"$@\"\n"},
	})
	for _, test := range []struct {
		clear string
		stdin string
		want  string
	}{
		{"false", "", "entered with own argument\nruns\n"},
		{"true", "", "runs\n"},
		{"false", "/in/text", "entered with own argument\nruns\n"},
		{"true", "/in/text", "runs\n"},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			o := w.MustRun(t, 0, tes.Task{
				ID: "entrypoint", Inputs: []tes.Input{{Path: "/in/text", Content: pointer("text")}},
				Executors: []tes.Executor{{Image: image.Tag, Command: []string{"echo", "runs"}, Stdin: test.stdin}},
			}, "--fresh", "--config", w.Write(t, "config.yaml", "run: {clear_entrypoint: "+test.clear+"}\n"))
			if got := o.Log(t).Logs[0].Stdout; got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestExecutorsThatFail(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "fail", rig.Spec{Files: map[string]string{"/text": "no program", "/broken": "#!/no/such/interpreter\n"}})
	stream := func(e tes.Executor) tes.Executor { e.Stdout, e.Stderr = "/out/stdout", "/out/stderr"; return e }
	ignore := func(e tes.Executor) tes.Executor { e.IgnoreError = true; return e }
	command := func(args ...string) tes.Executor { return tes.Executor{Image: image.Tag, Command: args} }
	ok := Sh(image.Tag, "echo ran")
	for name, test := range map[string]struct {
		executors []tes.Executor
		ram       float64
		codes     []int // of the executors that started
		says      string
	}{
		"exit code":                  {[]tes.Executor{ok, Sh(image.Tag, "echo out; echo err >&2; exit 7"), ok}, 0, []int{0, 7}, "executor 1 ended with exit code 7"},
		"ignored":                    {[]tes.Executor{ignore(Sh(image.Tag, "exit 7")), ok}, 0, []int{7, 0}, "executor 0 ended with exit code 7"},
		"the last ignored":           {[]tes.Executor{ok, ignore(Sh(image.Tag, "exit 7"))}, 0, []int{0, 7}, ""},
		"ignored and not":            {[]tes.Executor{ignore(Sh(image.Tag, "exit 7")), Sh(image.Tag, "exit 8"), ok}, 0, []int{7, 8}, ""},
		"signal":                     {[]tes.Executor{Sh(image.Tag, "sh -c 'kill -9 $$'; exit $?"), ok}, 0, []int{137}, ""},
		"not found":                  {[]tes.Executor{command("no-such-command", "x"), ok}, 0, []int{127}, "no-such-command"},
		"not found, ignored":         {[]tes.Executor{ignore(command("no-such-command")), ok}, 0, []int{127, 0}, "no-such-command"},
		"not executable":             {[]tes.Executor{command("/text"), ok}, 0, []int{126}, ""},
		"not executable, ignored":    {[]tes.Executor{ignore(command("/text")), ok}, 0, []int{126, 0}, ""},
		"a directory":                {[]tes.Executor{command("/etc"), ok}, 0, []int{126}, ""},
		"not found, to files":        {[]tes.Executor{stream(command("no-such-command")), ok}, 0, []int{127}, ""},
		"not executable, to files":   {[]tes.Executor{stream(ignore(command("/text"))), ok}, 0, []int{126, 0}, ""},
		"stdin that is not there":    {[]tes.Executor{{Image: image.Tag, Command: []string{"cat"}, Stdin: "/in/none"}, ok}, 0, []int{126}, ""},
		"stdin that is a directory":  {[]tes.Executor{{Image: image.Tag, Command: []string{"cat"}, Stdin: "/etc"}, ok}, 0, []int{1}, ""},
		"out of memory":              {[]tes.Executor{Sh(image.Tag, "echo began; tail /dev/zero"), ok}, 0.03, []int{137}, "out of memory"},
		"out of memory, and ignored": {[]tes.Executor{ignore(Sh(image.Tag, "exec tail /dev/zero")), ok}, 0.03, []int{137, 0}, "out of memory"},
	} {
		t.Run(name, func(t *testing.T) {
			code, state := 0, tes.Complete
			for i, c := range test.codes {
				if c != 0 && !test.executors[i].IgnoreError {
					code, state = 1, tes.ExecutorError
				}
			}
			o := w.MustRun(t, code, tes.Task{ID: "fail", Executors: test.executors, Resources: tes.Resources{RAMGB: test.ram}}, "--fresh")
			if o.Task.State != state {
				t.Errorf("the state is %s, want %s", o.Task.State, state)
			}
			var codes []int
			for i, log := range o.Log(t).Logs {
				codes = append(codes, log.ExitCode)
				if log.StartTime.IsZero() || log.EndTime.Before(log.StartTime) {
					t.Errorf("executor %d ran from %s to %s", i, log.StartTime, log.EndTime)
				}
				if (log.ExitCode == 127 || log.ExitCode == 126) && log.Stderr == "" {
					t.Errorf("the standard error of executor %d does not say why it could not be started", i)
				}
			}
			if fmt.Sprint(codes) != fmt.Sprint(test.codes) {
				t.Errorf("the exit codes are %v, want %v\n%s", codes, test.codes, o.Stderr)
			}
			o.warned(t, test.says)
			w.Clean(t)
		})
	}
}

// What the document asks of its image and cannot have is its author's mistake:
// another node would do no better.
func TestContainersThatCannotBeMade(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "unmade", rig.Spec{Files: map[string]string{"/opt/text": ""}})
	of := func(change func(*tes.Executor)) []tes.Executor {
		e := Sh(image.Tag, "true")
		change(&e)
		return []tes.Executor{e}
	}
	same := func(*tes.Executor) {}
	for name, task := range map[string]tes.Task{
		"workdir is a file":     {Executors: of(func(e *tes.Executor) { e.Workdir = "/opt/text" })},
		"stdout is a directory": {Executors: of(func(e *tes.Executor) { e.Stdout = "/opt" })},
		"volume is a file":      {Executors: of(same), Volumes: []string{"/opt/text"}},
		"input is a directory":  {Executors: of(same), Inputs: []tes.Input{{Path: "/opt", Content: pointer("x")}}},
		"input is below a file": {Executors: of(same), Inputs: []tes.Input{{Path: "/opt/text/x", Content: pointer("x")}}},
	} {
		t.Run(name, func(t *testing.T) {
			task.ID = "unmade"
			o := w.MustRun(t, 3, task, "--fresh")
			if o.Task.State != tes.SystemError || len(o.Log(t).Logs) != 0 {
				t.Errorf("the result is %+v", o.Task)
			}
			o.warned(t, "executor 0: cannot", "/opt")
			w.Clean(t)
		})
	}
}

// The result holds the last 10,000 bytes of a stream, cut at a character.
func TestEndsOfStreams(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "ends", rig.Spec{})
	for name, test := range map[string]struct{ script, want string }{
		"nothing":           {"true", ""},
		"all of it":         {"head -c 10000 /dev/zero | tr '\\0' x", strings.Repeat("x", 10_000)},
		"one byte too many": {"printf y; head -c 10000 /dev/zero | tr '\\0' x", strings.Repeat("x", 10_000)},
		"whole characters":  {"yes ä | head -n 6000 | tr -d '\\n'", strings.Repeat("ä", 5000)},
		"half a character":  {"yes ä | head -n 6000 | tr -d '\\n'; printf y", strings.Repeat("ä", 4999) + "y"},
		"not UTF-8":         {"printf 'a\\377b\\n'", "a\uFFFDb\n"},
	} {
		for _, file := range []string{"", "/out/stream"} {
			t.Run(name+" "+file, func(t *testing.T) {
				e := Sh(image.Tag, "("+test.script+") 2>&1; ("+test.script+") >&2")
				e.Stdout = file
				log := w.MustRun(t, 0, tes.Task{ID: "ends", Executors: []tes.Executor{e}}, "--fresh").Log(t).Logs[0]
				if log.Stdout != test.want || log.Stderr != test.want {
					t.Errorf("%d and %d bytes, want %d; or others", len(log.Stdout), len(log.Stderr), len(test.want))
				}
				r := w.Deckhand(t, "logs", "ends")
				if r.Code != 0 || r.Stdout != test.want {
					t.Errorf("logs afterwards: %d bytes and %d, want %d", len(r.Stdout), r.Code, len(test.want))
				}
			})
		}
	}
}

func TestLogsWhileATaskRuns(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "follow", rig.Spec{})
	for _, file := range []string{"", "/data/stream"} {
		t.Run("to "+file, func(t *testing.T) {
			first := Sh(image.Tag, "echo of the first")
			second := Sh(image.Tag, "echo begun; echo problem >&2; until [ -e /data/go ]; do usleep 10000; done; printf end")
			second.Stdout = file
			b := w.Start(t, tes.Task{ID: "follow", Volumes: []string{"/data"}, Executors: []tes.Executor{first, second}}, "--fresh")
			follow := w.Command(t, "logs", "follow", "--executor", "1", "--follow")
			var problems bytes.Buffer
			follow.Stderr = &problems
			out, err := follow.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			b.Until(t, "executor started")
			b.Until(t, "executor started") // the second
			if err := follow.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			if line, err := lines.ReadString('\n'); line != "begun\n" || err != nil {
				t.Fatalf("while it runs: %q, %v\n%s", line, err, &problems)
			}
			for stream, want := range map[string]string{"--stderr=false": "begun\n", "--stderr": "problem\n"} {
				r := w.Deckhand(t, "logs", "follow", "--executor", "1", stream)
				for r.Code == 0 && r.Stdout == "" { // it is on its way through Docker
					r = w.Deckhand(t, "logs", "follow", "--executor", "1", stream)
				}
				if r.Code != 0 || r.Stdout != want {
					t.Errorf("logs %s: %+v", stream, r)
				}
			}
			if r := w.Deckhand(t, "logs", "follow"); r.Stdout != "of the first\n" {
				t.Errorf("logs of the first executor: %+v", r)
			}
			places, err := filepath.Glob(filepath.Join(w.Root, "tasks/*/*/dirs/0"))
			if err != nil || len(places) != 1 {
				t.Fatalf("the volume is at %v, %v", places, err)
			}
			if err := os.WriteFile(filepath.Join(places[0], "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(lines)
			if string(rest) != "end" || err != nil {
				t.Errorf("at the end: %q, %v\n%s", rest, err, &problems)
			}
			if err := follow.Wait(); err != nil {
				t.Errorf("%v\n%s", err, &problems)
			}
			if code, log := b.End(t); code != 0 {
				t.Errorf("exit code %d\n%s", code, log)
			}
			if r := w.Deckhand(t, "logs", "follow", "--executor", "1"); r.Stdout != "begun\nend" {
				t.Errorf("logs afterwards: %+v", r)
			}
			w.Clean(t)
		})
	}
}
