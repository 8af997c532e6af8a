package system

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// A run that is killed in any state is taken up by the same command and ends as
// it would have ended.
func TestKilledInEachState(t *testing.T) {
	t.Parallel()
	for _, state := range stuckStates {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, state, "")
			b := s.begin(t)
			is := s.Status(t, 3, s.task.ID)
			if !is.Running || is.State != state || is.Owner == nil || is.Owner.PID != b.Process.Pid || is.Owner.BootID == "" {
				t.Errorf("status of the run: %+v", is)
			}
			b.Kill(t)
			is = s.Status(t, 3, s.task.ID)
			if is.Running || is.State != state || is.Owner != nil || is.Next != "will resume at "+state || is.ResultState != "" {
				t.Errorf("status after the crash: %+v", is)
			}
			if left := s.Read(t, "mode"); state == "Run" && left != "wait" {
				t.Fatalf("the executor was not to go on yet: %q", left)
			}
			if state != "Run" {
				s.release(t)
			}
			result := filepath.Join(s.Dir, "result.json")
			b = s.Start(t, s.task, "--result", result)
			if state == "Run" {
				b.Until(t, "executor found again")
				s.release(t)
			}
			b.ends(t, 0)
			s.whole(t)
			if got := s.Path(t, s.task.ID); got != complete {
				t.Errorf("the task went through %s, want %s", got, complete)
			}
			var task tes.Task
			if err := json.Unmarshal([]byte(s.Read(t, "result.json")), &task); err != nil {
				t.Fatal(err)
			}
			if task.State != tes.Complete || len(task.Logs) != 1 || task.Logs[0].Metadata["deckhand.resumed"] != "1" {
				t.Errorf("the result is %+v", task)
			}
			if is := s.Status(t, 0, s.task.ID); is.Running || is.ResultState != "COMPLETE" {
				t.Errorf("status at the end: %+v", is)
			}
		})
	}
}

// A panic in a transfer, which has its own goroutine, is told as the defect that
// it is, and the task is taken up as after any crash.
func TestPanicInATransfer(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Upload", "")
	broken := filepath.Join(t.TempDir(), "deckhand")
	build := exec.Command("go", "build", "-trimpath", "-o", broken, "-overlay",
		rig.Overlay(t, "internal/storage/fill.go", "	for p.end < 0 || p.at < p.end {\n", "	panic(\"broken on purpose\")\n	for false {\n"),
		"github.com/deckhand/deckhand/cmd/deckhand")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := s.prepare(t, s.task)
	b.Path = broken
	b.start(t)
	log := b.ends(t, 70)
	for _, words := range []string{"this is a defect in deckhand: broken on purpose", "storage.(*workers).copyPart", "The journal is intact"} {
		if !strings.Contains(log, words) {
			t.Errorf("%q is not in:\n%s", words, log)
		}
	}
	s.release(t)
	s.MustRun(t, 0, s.task)
	if got := s.Path(t, s.task.ID); got != complete {
		t.Errorf("the task went through %s, want %s", got, complete)
	}
	s.whole(t)
}

// A roll-back that is killed goes on, and ends as it was going to.
func TestKilledRollingBack(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		signal   unix.Signal
		code     int
		path     string
		complete bool
	}{
		{unix.SIGINT, 4, upTo("Run") + " RollingBack Canceled", false},
		// The same command is the run that the task was handed back for.
		{unix.SIGTERM, 0, upTo("Run") + " RollingBack Interrupted " + complete, true},
	} {
		t.Run(test.signal.String(), func(t *testing.T) {
			t.Parallel()
			s := newStuck(t, "Run", "")
			b := s.begin(t, "--stop-grace", "10m")
			b.signal(t, test.signal)
			b.entered(t, "RollingBack")
			b.Kill(t)
			if is := s.Status(t, 3, s.task.ID); is.Running || is.State != "RollingBack" {
				t.Errorf("status after the crash: %+v", is)
			}
			if ids := s.running(t); len(ids) != 1 {
				t.Fatalf("%d containers run, want the one that was being stopped", len(ids))
			}
			s.goOn(t)
			s.MustRun(t, test.code, s.task, "--stop-grace", "1s")
			if got := s.Path(t, s.task.ID); got != test.path {
				t.Errorf("the task went through %s, want %s", got, test.path)
			}
			if test.complete {
				s.whole(t)
			} else {
				s.Clean(t)
			}
		})
	}
}

// What the container did while nobody watched it counts.
func TestExecutorEndsWhileDead(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "dead", rig.Spec{})
	task := tes.Task{
		ID: "ends-while-dead",
		Executors: []tes.Executor{
			{Image: image.Digest, Stdout: "/data/out", Stderr: "/data/err", Command: []string{"sh", "-c",
				`echo begin; echo begin >&2; echo 0 >> /data/ran; until [ -e /data/go ]; do sleep 0.1; done; echo end; echo end >&2; exit 7`}},
			Sh(image.Digest, "echo 1 >> /data/ran"),
		},
		Outputs: []tes.Output{{Path: "/data", URL: filepath.Join(w.Dir, "out"), Type: tes.Directory}},
		Volumes: []string{"/data"},
	}
	s := &stuck{World: w, gate: newGate()}
	b := w.Start(t, task)
	eventually(t, "the executor to run", func() bool { return s.noted() != "" })
	b.Kill(t)
	s.release(t)
	eventually(t, "the container to end", func() bool { return len(w.running(t)) == 0 })
	o := w.MustRun(t, 1, task)
	l := o.Log(t)
	if o.Task.State != tes.ExecutorError || len(l.Logs) != 1 || l.Logs[0].ExitCode != 7 ||
		l.Logs[0].Stdout != "begin\nend\n" || l.Logs[0].Stderr != "begin\nend\n" {
		t.Errorf("the result is %s with %+v", o.Task.State, l.Logs)
	}
	for name, want := range map[string]string{"out": "begin\nend\n", "err": "begin\nend\n", "ran": "0\n"} {
		if got := w.Read(t, "out/"+name); got != want {
			t.Errorf("output %s is %q, want %q", name, got, want)
		}
	}
	w.Clean(t)
}

// However often the program is killed, the executor goes on, and its output
// comes whole and once: a hundred megabytes at least on each stream, of bytes that are no text.
func TestOutputOverManyKills(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "blocks", rig.Spec{})
	random, seed := seeded()
	t.Logf("seed %d", seed)
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(random.Uint32())
	}
	// It writes until there were enough kills, however long those take.
	const script = `echo ran >> /data/ran
		i=0; until [ $i -ge 100 ] && [ -e /data/enough ]; do i=$((i+1)); usleep 50000
		echo "out $i"; cat /in/block; echo "err $i" >&2; cat /in/block >&2; done
		echo $i > /data/.done; mv /data/.done /data/done; until [ -e /data/go ]; do sleep 0.1; done`
	last := "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done"
	task := tes.Task{
		ID:     "many-kills",
		Inputs: []tes.Input{{URL: w.Write(t, "block", string(block)), Path: "/in/block"}},
		Executors: []tes.Executor{
			{Image: image.Digest, Command: []string{"sh", "-c", script}, Stdout: "/data/out", Stderr: "/data/err"},
			Sh(image.Digest, last),
		},
		Outputs: []tes.Output{{Path: "/data", URL: filepath.Join(w.Dir, "out"), Type: tes.Directory}},
		Volumes: []string{"/data"},
	}
	s := &stuck{World: w, gate: newGate()}
	b := w.Start(t, task)
	b.Until(t, "executor started")
	started := s.started(t)
	within := 0 // kills while the executor wrote
	for s.inTree("done") == "" {
		if within >= 3 && s.inTree("enough") == "" {
			must(t, os.WriteFile(filepath.Join(filepath.Dir(s.inTree("ran")), "enough"), nil, 0o644))
		}
		time.Sleep(time.Duration(random.Int64N(int64(800 * time.Millisecond))))
		b.Kill(t)
		wrote, err := filepath.Glob(filepath.Join(w.Root, "tasks/*/*/logs/0.stdout"))
		if err != nil || len(wrote) != 1 {
			t.Fatalf("the executor's output is in %v (%v)", wrote, err)
		}
		if info, err := os.Stat(wrote[0]); err == nil && info.Size() > 0 && s.inTree("done") == "" {
			within++
			t.Logf("killed after %d bytes", info.Size())
		}
		b = w.Start(t, task)
	}
	b.Kill(t)
	if now := s.started(t); now != started {
		t.Errorf("the container was restarted: %s, was %s", now, started)
	}
	s.release(t)
	o := w.MustRun(t, 0, task)
	var blocks int
	if _, err := fmt.Sscan(w.Read(t, "out/done"), &blocks); err != nil || blocks < 100 {
		t.Fatalf("it wrote %d blocks (%v)", blocks, err)
	}
	tails := o.Log(t).Logs[0]
	for _, stream := range []struct{ name, tail string }{{"out", tails.Stdout}, {"err", tails.Stderr}} {
		got, want := w.Read(t, "out/"+stream.name), new(strings.Builder)
		for i := 1; i <= blocks; i++ {
			fmt.Fprintf(want, "%s %d\n%s", stream.name, i, block)
		}
		if got != want.String() {
			t.Errorf("%s has %d bytes, want %d; they differ", stream.name, len(got), want.Len())
		}
		if stream.tail == "" {
			t.Errorf("the result has nothing of %s", stream.name)
		}
	}
	if got := w.Read(t, "out/ran"); got != "ran\n" {
		t.Errorf("the executor ran: %q", got)
	}
	var lines strings.Builder
	for i := 1; i <= 20000; i++ {
		fmt.Fprintln(&lines, "line", i)
	}
	if tail := o.Log(t).Logs[1].Stdout; tail == "" || !strings.HasSuffix(lines.String(), tail) {
		t.Errorf("the second executor's output does not end as it did: %q", tail)
	}
	if got := w.Path(t, task.ID); got != complete {
		t.Errorf("the task went through %s, want %s", got, complete)
	}
	w.Clean(t)
}

// seeded returns a source of random numbers, and the seed that repeats it:
// DECKHAND_TEST_SEED.
func seeded() (*rand.Rand, uint64) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("DECKHAND_TEST_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			panic(err)
		}
	}
	return rand.New(rand.NewPCG(seed, 0)), seed
}

// A task of two executors, killed at any instant, some of them twice. Every
// other task has another image, so that pulls and deletions are hit too.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	const rounds = 15
	w := logged(NewWorld(t))
	random, seed := seeded()
	t.Logf("seed %d", seed)
	images := []rig.Ref{
		w.Image(t, "random-a", rig.Spec{Marker: "a", Volumes: []string{"/scratch"}}),
		w.Image(t, "random-b", rig.Spec{Marker: "b"}),
	}
	content := "of the document"
	input := w.Write(t, "in/file", strings.Repeat("input\n", 1000))
	w.Write(t, "in/dir/a", "a")
	w.Write(t, "in/dir/b/c", "c")
	task := func(i int) tes.Task {
		image := images[i%len(images)].Digest
		return tes.Task{
			ID: fmt.Sprint("random-", i),
			Inputs: []tes.Input{
				{URL: input, Path: "/in/file"},
				{URL: filepath.Join(w.Dir, "in/dir"), Path: "/in/dir", Type: tes.Directory},
				{Content: &content, Path: "/in/content"},
			},
			Executors: []tes.Executor{
				{Image: image, Command: []string{"sh", "-c", "echo one >> /data/ran; cat /in/file; sleep 0.2"}, Stdout: "/data/stdout"},
				Sh(image, "echo two >> /data/ran; sleep 0.2; cat /in/content /in/dir/a /in/dir/b/c > /data/all"),
			},
			Outputs: []tes.Output{{Path: "/data", URL: filepath.Join(w.Dir, "out", fmt.Sprint(i)), Type: tes.Directory}},
			Volumes: []string{"/data"},
		}
	}
	want := map[string]string{
		"ran": "one\ntwo\n", "stdout": strings.Repeat("input\n", 1000), "all": content + "ac",
	}
	check := func(i int) {
		t.Helper()
		id := fmt.Sprint("random-", i)
		for name, content := range want {
			if got := w.Read(t, filepath.Join("out", fmt.Sprint(i), name)); got != content {
				t.Errorf("round %d: output %s is %q, want %q", i, name, got, content)
			}
		}
		if names, _ := filepath.Glob(filepath.Join(w.Dir, "out", fmt.Sprint(i), "*")); len(names) != len(want) {
			t.Errorf("round %d: published are %v", i, names)
		}
		if hidden, _ := filepath.Glob(filepath.Join(w.Dir, "out", fmt.Sprint(i), ".*")); len(hidden) > 0 {
			t.Errorf("round %d: unfinished outputs are left: %v", i, hidden)
		}
		if got := w.Path(t, id); got != complete {
			t.Errorf("round %d: the task went through %s", i, got)
		}
		last := w.Images(t).Last
		if wanted := images[i%len(images)]; len(last) != 1 || last[0].Reference != wanted.Digest || last[0].Phase != "present" || !last[0].PulledByUs {
			t.Errorf("round %d: the last-image record is %+v", i, last)
		}
		if !HasImage(t, images[i%len(images)].ID) || HasImage(t, images[(i+1)%len(images)].ID) {
			t.Errorf("round %d: the images on the node are not the ledger's", i)
		}
		w.Clean(t)
	}
	w.MustRun(t, 0, task(1)) // brings the image that the first round replaces
	began := time.Now()
	w.MustRun(t, 0, task(0))
	whole := time.Since(began)
	check(0)
	for i := 1; i <= rounds; i++ {
		task := task(i + 1)
		var where, logs []string
		for range 1 + random.IntN(2) {
			// Any instant of the whole, or shortly after a state was entered:
			// most states are short.
			b, after := w.Start(t, task), "the start"
			delay := time.Duration(random.Int64N(int64(whole)))
			if states := strings.Fields(complete); random.IntN(2) == 0 {
				after, delay = states[random.IntN(len(states))], time.Duration(random.Int64N(int64(100*time.Millisecond)))
				b.passed(`"state":"` + after + `"`)
			}
			time.Sleep(delay)
			_ = b.Process.Kill() // it may have ended
			_, log := b.End(t)
			logs = append(logs, log)
			state := "before it began"
			if r := w.Deckhand(t, "status", task.ID, "--json"); r.Code != 4 {
				var s taskStatus
				if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
					t.Fatalf("status: %v: %+v", err, r)
				}
				state = s.State
			}
			where = append(where, fmt.Sprintf("%s after %s (%s)", delay.Round(time.Millisecond), after, state))
		}
		w.MustRun(t, 0, task)
		check(i + 1)
		t.Logf("round %d: killed %s", i, strings.Join(where, " and "))
		if t.Failed() {
			t.Fatalf("what the killed ones said:\n%s", strings.Join(logs, "\n"))
		}
	}
}

// Another task that comes to the node first rolls back what a dead one left.
// What was published stays, and what was half published goes.
func TestAnotherTaskRollsBack(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "other", rig.Spec{Volumes: []string{"/scratch"}})
	task := tes.Task{
		ID:        "dead",
		Executors: []tes.Executor{Sh(image.Digest, "echo small > /data/1; head -c 4194304 /dev/zero > /data/2")},
		Outputs: []tes.Output{ // published in the order of their paths
			{Path: "/data/1", URL: filepath.Join(w.Dir, "out/small")},
			{Path: "/data/2", URL: filepath.Join(w.Dir, "out/large")},
		},
		Volumes: []string{"/data"},
	}
	env := w.Env
	w.Env = append(env[:len(env):len(env)], "DECKHAND_TRANSFER_BANDWIDTH=65536", "DECKHAND_TRANSFER_PARALLEL=1")
	b := w.Start(t, task)
	eventually(t, "a published output and a half-published one", func() bool {
		hidden, _ := filepath.Glob(filepath.Join(w.Dir, "out/.*"))
		_, err := os.Stat(filepath.Join(w.Dir, "out/small"))
		return len(hidden) == 1 && err == nil
	})
	b.Kill(t)
	w.Env = env
	if len(w.Containers(t)) != 1 || len(w.TaskDirs(t)) != 1 {
		t.Fatal("the dead task has left nothing to roll back")
	}

	next := tes.Task{ID: "next", Executors: []tes.Executor{Sh(image.Digest, "true")}}
	w.MustRun(t, 0, next)
	if got, want := w.Path(t, "dead"), working+" RollingBack Interrupted"; got != want {
		t.Errorf("the dead task went through %s, want %s", got, want)
	}
	if got := w.Path(t, "next"); got != complete {
		t.Errorf("the next task went through %s", got)
	}
	ended, began := w.Records(t, "dead"), w.Records(t, "next")
	if last := ended[len(ended)-1]; !last.Time.Before(began[0].Time) || !strings.Contains(last.Reason, "next") {
		t.Errorf("the roll-back ended at %s (%s), the next task began at %s", last.Time, last.Reason, began[0].Time)
	}
	if got := w.Read(t, "out/small"); got != "small\n" {
		t.Errorf("the published output is %q", got)
	}
	if _, err := os.Stat(filepath.Join(w.Dir, "out/large")); err == nil {
		t.Error("the half-published output has its name")
	}
	w.tidy(t)
	w.Clean(t)
	if is := w.Status(t, 1, "dead"); is.State != "Interrupted" || is.ResultState != "" {
		t.Errorf("status of the dead task: %+v", is)
	}

	o := w.MustRun(t, 0, task)
	if len(o.Task.Logs) != 2 || w.Read(t, "out/large") != strings.Repeat("\x00", 4194304) {
		t.Errorf("the dead task's next attempt has %d logs", len(o.Task.Logs))
	}
	w.Clean(t)
}

// A container that somebody removed while nobody watched is lost: its task
// starts over in a pristine work tree, so often as the settings allow.
func TestContainerRemovedWhileDead(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	s.Env = append(s.Env, "DECKHAND_RUN_MAX_ATTEMPTS=2")
	lose := func(b *Background) {
		t.Helper()
		eventually(t, "a container to run", func() bool { return len(s.running(t)) > 0 })
		b.Kill(t)
		s.Docker(t, "rm", "--force", "--volumes", s.running(t)[0])
	}
	lose(s.begin(t))
	b := s.Start(t, s.task)
	b.Until(t, `"attempt":2`)
	s.still(t, b)
	if dirs, _ := filepath.Glob(filepath.Join(s.Root, "tasks/*/*")); len(dirs) != 1 {
		t.Errorf("the second attempt did not begin with a pristine work tree: %v", dirs)
	}
	if is := s.Status(t, 3, s.task.ID); is.Attempt != 2 {
		t.Errorf("status: %+v", is)
	}
	lose(b)
	o := s.MustRun(t, 78, s.task)
	if o.Task.State != tes.SystemError || len(o.Task.Logs) != 2 || !strings.Contains(o.Stderr, "run.max_attempts") {
		t.Errorf("the result is %s with %d logs:\n%s", o.Task.State, len(o.Task.Logs), o.Stderr)
	}
	lost := upTo("Run") + " RollingBack "
	if got, want := s.Path(t, s.task.ID), lost+"Interrupted "+lost+"SystemError"; got != want {
		t.Errorf("the task went through %s, want %s", got, want)
	}
	s.Clean(t)
	// What was asked for anew is not held back by what was lost before.
	s.release(t)
	s.MustRun(t, 0, s.task)
	s.whole(t)
}

// An unfinished task is not taken up under another document.
func TestOtherDocument(t *testing.T) {
	t.Parallel()
	s := newStuck(t, "Run", "")
	s.begin(t).Kill(t)
	id := s.running(t)[0]
	other := tes.Task{
		ID:        s.task.ID,
		Executors: []tes.Executor{{Image: s.task.Executors[0].Image, Command: []string{"echo", "other"}}},
	}
	before := len(s.Records(t, other.ID))
	o := s.MustRun(t, 2, other)
	if !strings.Contains(o.Stderr, "--fresh") || !strings.Contains(o.Stderr, other.ID) {
		t.Errorf("the refusal does not say what to do: %s", o.Stderr)
	}
	if now := s.running(t); len(now) != 1 || now[0] != id {
		t.Errorf("the container was touched: %v runs, want %s", now, id)
	}
	if after := len(s.Records(t, other.ID)); after != before {
		t.Errorf("the refused run has written %d records", after-before)
	}
	o = s.MustRun(t, 0, other, "--fresh", "--stop-grace", "1s")
	if got := o.Log(t).Logs; len(o.Task.Logs) != 2 || len(got) != 1 || got[0].Stdout != "other\n" {
		t.Errorf("the fresh run's logs are %+v", o.Task.Logs)
	}
	if got, want := s.Path(t, other.ID), upTo("Run")+" RollingBack Interrupted "+complete; got != want {
		t.Errorf("the task went through %s, want %s", got, want)
	}
	s.Clean(t)
}

// A Complete task is not run again, unless --fresh asks for it.
func TestCompleteIsRepeated(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "repeat", rig.Spec{})
	input := w.Write(t, "in", "input")
	task := tes.Task{
		ID:        "repeat",
		Inputs:    []tes.Input{{URL: input, Path: "/in/file"}},
		Executors: []tes.Executor{Sh(image.Tag, "cat /in/file")},
	}
	first := w.MustRun(t, 0, task)
	records := len(w.Records(t, task.ID))
	w.Registry.Reset()
	w.Write(t, "in", "changed")
	again := w.MustRun(t, 0, task)
	a, _ := json.Marshal(first.Task)
	b, _ := json.Marshal(again.Task)
	if string(a) != string(b) {
		t.Errorf("the repeated result is\n%s\nand was\n%s", b, a)
	}
	if now := len(w.Records(t, task.ID)); now != records {
		t.Errorf("the repetition wrote %d records", now-records)
	}
	if asked := w.Registry.Requests(); len(asked) > 0 {
		t.Errorf("the repetition asked the registry: %v", asked)
	}
	fresh := w.MustRun(t, 0, task, "--fresh")
	if l := fresh.Log(t); len(fresh.Task.Logs) != 2 || l.Logs[0].Stdout != "changed" {
		t.Errorf("the fresh run's logs are %+v", fresh.Task.Logs)
	}
	w.Clean(t)
}

// A power cut may bring back what was removed before the task's end was
// journaled: the repetition in the next boot of the node removes it.
func TestCompleteIsRepeatedAfterARestart(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "restarted", rig.Spec{})
	task := tes.Task{ID: "restarted", Executors: []tes.Executor{Sh(image.Digest, "true")}}
	w.MustRun(t, 0, task)
	w.bringBack(t, task)
	// Docker may bring back a volume's files without its labels.
	forgotten := "deckhand-" + w.RootID(t) + "-restarted-1-0-v1"
	w.Docker(t, "volume", "create", forgotten)
	records := len(w.Records(t, task.ID))
	w.MustRun(t, 0, task) // in the same boot nothing comes back by itself
	if len(w.Containers(t)) != 1 || len(w.TaskDirs(t)) != 1 {
		t.Fatal("there is nothing to remove: this test tests nothing")
	}
	w.restart(t)
	b := w.Start(t, task)
	if code, log := b.End(t); code != 0 || !strings.Contains(log, "complete already") {
		t.Errorf("it ended with %d:\n%s", code, log)
	}
	if now := len(w.Records(t, task.ID)); now != records {
		t.Errorf("the repetition wrote %d records of the task", now-records)
	}
	if left := w.Docker(t, "volume", "ls", "--quiet", "--filter", "name="+forgotten); left != "" {
		t.Errorf("left is a volume without labels: %s", left)
	}
	w.Clean(t)
}

// bringBack makes what was removed of the first attempt at a task, as a power cut may bring it
// back: a volume, a container and the work directory.
func (w *World) bringBack(t *testing.T, task tes.Task) {
	t.Helper()
	label := []string{"--label", "deckhand.root=" + w.RootID(t), "--label", "deckhand.task=" + task.ID, "--label", "deckhand.attempt=1"}
	w.Docker(t, append([]string{"volume", "create"}, label...)...)
	w.Docker(t, append(append([]string{"create", "--network=none"}, label...), task.Executors[0].Image, "true")...)
	must(t, os.MkdirAll(filepath.Join(w.Root, "tasks", task.ID, "1/dirs/0"), 0o700))
}

// restart makes it another boot of the node for the program.
func (w *World) restart(t *testing.T) {
	t.Helper()
	w.Under = []string{
		"unshare", "--mount", "sh", "-c", `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`,
		w.Write(t, "boot_id", "00000000-0000-4000-8000-000000000000\n"),
	}
}

// The same at boot, also when no task comes to the root for long.
func TestRecoverAfterARestart(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "restarted", rig.Spec{})
	task := tes.Task{ID: "restarted", Executors: []tes.Executor{Sh(image.Digest, "exit 1")}}
	w.MustRun(t, 1, task)
	w.bringBack(t, task)
	if r := w.recover(t); len(r.Removed) > 0 {
		t.Errorf("in the same boot it removes %+v", r.Removed)
	}
	w.restart(t)
	if r := w.recover(t); len(r.Removed) != 3 || len(r.RolledBack)+len(r.Problems) > 0 {
		t.Errorf("in the next boot it does %+v", r)
	}
	w.Clean(t)
}

// What the tasks of a lost journal left is found by its labels, also by
// `recover`: the root's id lies beside the journal as well.
func TestLostJournal(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"recover", "run", "scrub"} {
		t.Run(by, func(t *testing.T) {
			w := NewWorld(t)
			image := w.Image(t, "task:1", rig.Spec{Volumes: []string{"/data"}})
			run := w.Start(t, tes.Task{ID: "t", Executors: []tes.Executor{Sh(image.Tag, "sleep 1000")}})
			run.Until(t, "executor started")
			if err := run.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			run.End(t)
			id := w.RootID(t)
			if err := os.RemoveAll(filepath.Join(w.Root, "journal")); err != nil {
				t.Fatal(err)
			}
			switch by {
			case "scrub":
				before := entriesOf(t, w.Root)
				would := w.scrub(t, 0, "--dry-run")
				if after := entriesOf(t, w.Root); !slices.Equal(before, after) {
					t.Errorf("a dry scrub has left %q, before were %q", after, before)
				}
				did := w.scrub(t, 0)
				if a, b := names(would.Removed), names(did.Removed); !slices.Equal(a, b) || len(a) < 3 {
					t.Errorf("a dry scrub says\n %q, a scrub\n %q", a, b)
				}
			case "recover":
				out := w.Deckhand(t, "recover", "--stop-grace", "1s")
				for _, kind := range []string{"container", "volume", "directory"} {
					if out.Code != 0 || !strings.Contains(out.Stdout, "removed "+kind+" ") {
						t.Errorf("recover does not tell of a %s: %+v", kind, out)
					}
				}
			default:
				w.MustRun(t, 0, tes.Task{ID: "next", Executors: []tes.Executor{{Image: image.Tag, Command: []string{"true"}}}}, "--stop-grace", "1s")
			}
			equal(t, "root id", w.RootID(t), id)
			w.Clean(t)
		})
	}
}

// Of a task whose journal is lost nothing is taken up by the next run of the same
// task, whose first attempt has the names of the one before.
func TestLostJournalOfTheSameTask(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "lost", rig.Spec{})
	task := tes.Task{ID: "t", Volumes: []string{"/vol"}, Executors: []tes.Executor{Sh(image.Digest, "echo > /vol/first; sleep 1000")}}
	run := w.Start(t, task)
	run.Until(t, "executor started")
	if err := run.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	run.End(t)
	if err := os.RemoveAll(filepath.Join(w.Root, "journal")); err != nil {
		t.Fatal(err)
	}
	task.Executors = []tes.Executor{Sh(image.Digest, "ls /vol; echo second")}
	run = w.Start(t, task, "--stop-grace", "1s", "--result", filepath.Join(w.Dir, "result"))
	stuck := time.AfterFunc(time.Minute, func() { _ = run.Process.Kill() })
	defer stuck.Stop()
	code, log := run.End(t)
	if code != 0 {
		t.Fatalf("it ended with %d:\n%s", code, log)
	}
	var o Outcome
	if err := json.Unmarshal([]byte(w.Read(t, "result")), &o.Task); err != nil {
		t.Fatal(err)
	}
	if said := o.Log(t).Logs[0].Stdout; said != "second\n" {
		t.Errorf("the executor says %q", said)
	}
	w.Clean(t)
}

// entriesOf lists what is in a directory.
func entriesOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// recovery is what recover --json prints.
type recovery struct {
	RolledBack []string `json:"rolled_back"`
	Running    []string `json:"running"`
	Closed     []string `json:"closed"`
	Problems   []string `json:"problems"`
	Removed    []scrubItem
}

func (w *World) recover(t *testing.T, args ...string) (r recovery) {
	t.Helper()
	out := w.Deckhand(t, append([]string{"recover", "--json"}, args...)...)
	if out.Code != 0 {
		t.Fatalf("recover: %+v", out)
	}
	if err := json.Unmarshal([]byte(out.Stdout), &r); err != nil {
		t.Fatalf("recover: %v: %+v", err, out)
	}
	return r
}

func TestRecover(t *testing.T) {
	t.Parallel()
	nothing := func(t *testing.T, r recovery) {
		t.Helper()
		if len(r.RolledBack)+len(r.Running)+len(r.Problems) > 0 {
			t.Errorf("recover found %+v, want nothing", r)
		}
	}
	t.Run("never used", func(t *testing.T) {
		t.Parallel()
		w := NewWorld(t)
		nothing(t, w.recover(t))
		if _, err := os.Stat(w.Root); err == nil {
			t.Error("recover has made the root")
		}
	})
	t.Run("killed in each state", func(t *testing.T) {
		t.Parallel()
		for _, state := range stuckStates {
			t.Run(state, func(t *testing.T) {
				t.Parallel()
				s := newStuck(t, state, "trap 'exit 9' TERM")
				s.begin(t).Kill(t)
				if r := s.recover(t, "--stop-grace", "1s"); len(r.RolledBack) != 1 || r.RolledBack[0] != s.task.ID || len(r.Problems) > 0 {
					t.Errorf("recover: %+v", r)
				}
				if got, want := s.Path(t, s.task.ID), upTo(state)+" RollingBack Interrupted"; got != want {
					t.Errorf("the task went through %s, want %s", got, want)
				}
				nothing(t, s.recover(t))
				s.release(t)
				if state == "Scrub" {
					// Only what the task made is rolled back; the next scrub meets the rest.
					s.Deckhand(t, "scrub")
				}
				s.tidyUnlessPublished(t)
				s.Clean(t)
				s.MustRun(t, 0, s.task)
				s.whole(t)
			})
		}
	})
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		s := newStuck(t, "Run", "")
		b := s.begin(t, "--stop-grace", "10m")
		b.signal(t, unix.SIGINT)
		b.entered(t, "RollingBack")
		b.Kill(t)
		s.recover(t, "--stop-grace", "1s")
		if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Canceled"; got != want {
			t.Errorf("the task went through %s, want %s", got, want)
		}
		s.Clean(t)
	})
	t.Run("running", func(t *testing.T) {
		t.Parallel()
		s := newStuck(t, "Run", "")
		b := s.begin(t)
		if r := s.recover(t); len(r.Running) != 1 || r.Running[0] != s.task.ID || len(r.RolledBack) > 0 {
			t.Errorf("recover: %+v", r)
		}
		s.release(t)
		b.ends(t, 0)
		s.whole(t)
		nothing(t, s.recover(t))
	})
	t.Run("Docker is down", func(t *testing.T) {
		t.Parallel()
		s := newStuck(t, "Run", "")
		s.begin(t).Kill(t)
		host, env := s.DockerHost, s.Env
		s.DockerHost, s.Env = "unix:///nowhere.sock", append(env[:len(env):len(env)], "DECKHAND_ENGINE_WAIT=0s")
		if r := s.recover(t); len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "nowhere.sock") {
			t.Errorf("recover: %+v", r)
		}
		if is := s.Status(t, 3, s.task.ID); is.State != "Run" {
			t.Errorf("status: %+v", is)
		}
		s.DockerHost, s.Env = host, env
		s.release(t)
		s.MustRun(t, 0, s.task)
		s.whole(t)
	})
	t.Run("unusable journal", func(t *testing.T) {
		t.Parallel()
		w := NewWorld(t)
		if err := os.MkdirAll(w.Root, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(w.Root, "journal"), []byte("no directory"), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := w.Deckhand(t, "recover"); r.Code != 78 || !strings.Contains(r.Stderr, "journal") {
			t.Errorf("recover: %+v", r)
		}
	})
}

// tidyUnlessPublished checks that nothing unfinished lies where outputs go.
func (s *stuck) tidyUnlessPublished(t *testing.T) {
	t.Helper()
	s.tidy(t)
	if s.state == "Upload" {
		return // what was published stays
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "out")); err == nil {
		t.Error("something was published")
	}
}

func TestStatusOfUnknownTask(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	for _, when := range []string{"before anything ran", "after a run"} {
		if r := w.Deckhand(t, "status", "unheard-of"); r.Code != 4 || !strings.Contains(r.Stderr, "unheard-of") {
			t.Errorf("%s: %+v", when, r)
		}
		w.MustRun(t, 0, tes.Task{ID: "known", Executors: []tes.Executor{Sh(w.Image(t, "known", rig.Spec{}).Digest, "true")}})
	}
}
