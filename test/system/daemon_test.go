package system

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/rig"
)

func TestDockerDownAtStart(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	host := w.DockerHost
	w.DockerHost = "unix:///nowhere.sock"
	w.Env = append(w.Env, "DECKHAND_ENGINE_WAIT=300ms")
	task := tes.Task{ID: "down", Executors: []tes.Executor{Sh("example.org/none:1", "true")}}
	o := w.MustRun(t, 78, task)
	if o.Task.State != tes.SystemError || !strings.Contains(o.Stderr, "nowhere.sock") || !strings.Contains(o.Stderr, "--docker-host") {
		t.Errorf("the run does not say what is wrong: %s with %s", o.Task.State, o.Stderr)
	}
	if _, err := os.Stat(w.Root); err == nil {
		t.Error("the run has made the root")
	}
	w.DockerHost = host
	if r := w.Deckhand(t, "status", "down"); r.Code != 4 {
		t.Errorf("status of a task that never began: %+v", r)
	}
}

// spoils makes an executor spoil its input in an attempt that is to be lost, and
// end well when it is told to stop, as a daemon does that goes: what looks like
// an exit code of 0 is none.
const spoils = `grep -q go /in/mode || echo spoiled >> /in/file; trap 'exit 0' TERM`

// newCheck looks at a node that has an engine of its own and returns what does
// so again and tells what is wrong by then.
func newCheck(t *testing.T, w *World, d *rig.Daemon) func() {
	t.Helper()
	place := check.Place{Root: w.Root, Docker: d.Host, Outputs: filepath.Join(w.Dir, "out")}
	before, err := place.Look()
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		after, err := place.Look()
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range check.Clean(before, after) {
			t.Error(problem)
		}
	}
}

// The daemon is killed while an executor runs, with or without the run itself.
// Its container is lost with it: another attempt begins as if there had been none.
func TestContainerLostWithDocker(t *testing.T) {
	t.Parallel()
	d := rig.NewDaemon(t)
	for _, when := range []string{"running", "starting"} {
		for _, with := range []string{"daemon", "both"} {
			t.Run(when+"/"+with, func(t *testing.T) {
				s := newStuckIn(t, NewWorldOn(t, d), "Run", spoils)
				clean := newCheck(t, s.World, d)
				b := s.Start(t, s.task)
				if when == "running" {
					b.Until(t, "executor started")
				}
				// The command runs before Docker says that it has started it.
				eventually(t, "the executor to run", func() bool { return s.noted() != "" })
				fetched := s.asked()
				d.Kill(t)
				if with == "both" {
					b.Kill(t)
					b = s.Start(t, s.task)
				}
				b.Until(t, "waiting") // for Docker
				s.goOn(t)             // read by the next attempt only
				d.Start(t)
				b.ends(t, 0)
				if got, want := s.Path(t, s.task.ID), upTo("Run")+" RollingBack Interrupted "+complete; got != want {
					t.Errorf("the task went through %s, want %s", got, want)
				}
				// Once less in the same process, which knows the size already.
				if all := s.asked(); all <= fetched {
					t.Errorf("the input was asked for %d times by the first attempt and %d times by the second", fetched, all-fetched)
				}
				s.whole(t)
				clean()
			})
		}
	}
}

// With live-restore the container outlives the daemon, and nothing is lost: not
// when it runs on, and not when it ends while nobody watches.
func TestContainerOutlivesDocker(t *testing.T) {
	t.Parallel()
	d := rig.NewDaemon(t)
	d.Options = append(d.Options, "--live-restore")
	d.Restart(t)
	for _, when := range []string{"running", "ended"} {
		for _, with := range []string{"daemon", "both"} {
			t.Run(when+"/"+with, func(t *testing.T) {
				s := newStuckIn(t, NewWorldOn(t, d), "Run", "")
				clean := newCheck(t, s.World, d)
				b := s.begin(t)
				started := s.started(t)
				d.Kill(t)
				if with == "both" {
					b.Kill(t)
				}
				if when == "ended" {
					s.release(t)
					eventually(t, "the executor's last words", func() bool { return s.inTree("copy") != "" })
				}
				if with == "both" {
					b = s.Start(t, s.task)
				}
				b.Until(t, "waiting") // for Docker
				d.Start(t)
				if when == "running" {
					if now := s.started(t); now != started {
						t.Errorf("the container was restarted: %s, was %s", now, started)
					}
					s.release(t)
				}
				b.ends(t, 0)
				if got := s.Path(t, s.task.ID); got != complete {
					t.Errorf("the task went through %s, want %s", got, complete)
				}
				s.whole(t)
				clean()
			})
		}
	}
}

// underDocker is a run that Docker dies under, and how it then ends.
type underDocker struct {
	name   string
	state  string // in which it stands still
	script string // what its executor does first
	signal unix.Signal
	// away is what happens while Docker is away; the run is released by it, or
	// when Docker is back.
	away func(t *testing.T, s *stuck)
	code int
	path string
	// left and gone are the state and the path when Docker does not come back
	// while the run waits for it.
	left, gone string

	*stuck
	run *Background
}

// underDockerRuns has every state, and each way to meet a Docker that is away.
func underDockerRuns() []*underDocker {
	release := func(t *testing.T, s *stuck) { s.release(t) }
	lost := upTo("Run") + " RollingBack Interrupted " + complete
	failed := func(state string) string { return upTo(state) + " RollingBack SystemError " + complete }
	return []*underDocker{
		{
			name: "Scrub", state: "Scrub", path: complete, left: "SystemError", gone: failed("Scrub"),
			away: func(_ *testing.T, s *stuck) { s.old = "" }, // it dies with its daemon
		},
		{name: "ImageCheck", state: "ImageCheck", path: complete, left: "RollingBack", gone: failed("ImageCheck")},
		{name: "Download", state: "Download", path: complete, left: "RollingBack", gone: failed("Run")},
		{name: "Run, before the start", state: "Download", away: release, path: complete, left: "RollingBack", gone: failed("Run")},
		{
			name: "Run", state: "Run", script: spoils, path: lost, left: "RollingBack", gone: failed("Run"),
			away: func(t *testing.T, s *stuck) { s.goOn(t) }, // for the next attempt
		},
		{
			name: "Run, at the end", state: "Run", path: lost, left: "RollingBack", gone: failed("Run"),
			away: func(t *testing.T, s *stuck) {
				s.release(t)
				eventually(t, "the executor's last words", func() bool { return s.inTree("copy") != "" })
			},
		},
		{name: "Upload", state: "Upload", path: complete, left: "Upload", gone: complete},
		{name: "Upload, at the end", state: "Upload", away: release, path: complete, left: "Upload", gone: complete},
		{
			name: "RollingBack", state: "Run", signal: unix.SIGTERM, code: 75, path: upTo("Run") + " RollingBack Interrupted",
			left: "RollingBack", gone: lost,
		},
	}
}

// standStill makes runs stand still under one daemon, each in its state.
func standStill(t *testing.T, d *rig.Daemon, runs []*underDocker, env ...string) {
	t.Helper()
	for _, r := range runs {
		r.stuck = newStuckIn(t, NewWorldOn(t, d), r.state, r.script)
		r.Env = append(r.Env, env...)
		// A container that does not heed SIGTERM keeps a roll-back waiting.
		r.run = r.Start(t, r.task, "--stop-grace", "10m")
	}
	for _, r := range runs {
		r.still(t, r.run)
		if r.signal != 0 {
			r.run.signal(t, r.signal)
			r.run.entered(t, "RollingBack")
		}
	}
}

// Docker dies under a run in each state and comes back: the run waits for it and
// goes on. A container that was running is lost with it.
func TestDockerDies(t *testing.T) {
	t.Parallel()
	for _, away := range []time.Duration{time.Minute, 10 * time.Second, time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			t.Parallel()
			d := rig.NewDaemon(t)
			runs := underDockerRuns()
			standStill(t, d, runs, "DECKHAND_ENGINE_WAIT=10m") // also for a daemon that takes its time to start
			d.Kill(t)
			for _, r := range runs {
				if r.away != nil {
					r.away(t, r.stuck)
				}
			}
			time.Sleep(away)
			d.Start(t)
			for _, r := range runs {
				t.Run(r.name, func(t *testing.T) {
					if r.signal == 0 {
						r.release(t)
					}
					r.run.ends(t, r.code)
					if got := r.Path(t, r.task.ID); got != r.path {
						t.Errorf("the task went through %s, want %s", got, r.path)
					}
					if r.code == 0 {
						r.whole(t)
					}
					r.Clean(t)
				})
			}
		})
	}
}

// Docker dies for good: each run gives up when its time is over and says why, in
// the journal too. When Docker is back after all, the same command goes on.
func TestDockerIsGone(t *testing.T) {
	t.Parallel()
	d := rig.NewDaemon(t)
	runs := underDockerRuns()
	standStill(t, d, runs, "DECKHAND_ENGINE_WAIT=15s")
	d.Kill(t)
	for _, r := range runs {
		if r.away != nil {
			r.away(t, r.stuck)
		}
		if r.signal == 0 {
			r.release(t)
		}
	}
	for _, r := range runs {
		if log := r.run.ends(t, 78); !strings.Contains(log, "cannot reach Docker") {
			t.Errorf("%s: the log does not name Docker:\n%s", r.name, log)
		}
		unfinished := 3
		if r.left == "SystemError" { // it had made nothing yet
			unfinished = 1
		}
		if is := r.Status(t, unfinished, r.task.ID); is.Running || is.State != r.left {
			t.Errorf("%s: status: %+v", r.name, is)
		}
		if said := r.Deckhand(t, "journal", "inspect", r.task.ID).Stdout; !strings.Contains(said, "cannot reach Docker at "+d.Host) {
			t.Errorf("%s: the journal does not tell of it:\n%s", r.name, said)
		}
	}
	first := runs[0]
	first.Env = append(first.Env, "DECKHAND_ENGINE_WAIT=1s")
	if o := first.MustRun(t, 78, first.task); o.Task.State != tes.SystemError {
		t.Errorf("the result while it is still gone is %q", o.Task.State)
	}
	d.Start(t)
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			r.release(t)
			r.MustRun(t, 0, r.task, "--stop-grace", "1s")
			if got := r.Path(t, r.task.ID); got != r.gone {
				t.Errorf("the task went through %s, want %s", got, r.gone)
			}
			r.whole(t)
		})
	}
}

// Docker dies while an output comes out of a container: the copy is begun again.
func TestDockerDiesWhileAnOutputIsCopied(t *testing.T) {
	t.Parallel()
	const blocks = 256
	d := rig.NewDaemon(t)
	w := logged(NewWorldOn(t, d))
	block := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	task := tes.Task{
		ID:     "copied",
		Inputs: []tes.Input{{URL: w.Write(t, "block", string(block)), Path: "/in/block"}},
		Executors: []tes.Executor{Sh(w.Image(t, "copied", rig.Spec{}).Digest,
			fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; cat /in/block; done > /root/big", blocks))},
		Outputs: []tes.Output{{Path: "/root/big", URL: filepath.Join(w.Dir, "out/big")}},
	}
	b := w.Start(t, task)
	b.entered(t, "Upload")
	copied := func() int64 {
		found, _ := filepath.Glob(filepath.Join(w.Root, "tasks/*/*/captured/root/big")) // the pattern is well-formed
		if len(found) == 0 {
			return 0
		}
		info, err := os.Stat(found[0])
		if err != nil {
			return 0
		}
		return info.Size()
	}
	for deadline := time.Now().Add(2 * time.Minute); copied() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for the copy to begin")
		}
	}
	d.Kill(t)
	if n := copied(); n >= blocks<<20 {
		t.Fatalf("all of the output had been copied before the daemon died: %d bytes", n)
	}
	b.Until(t, "waiting")
	d.Start(t)
	b.ends(t, 0)
	var want strings.Builder
	for i := 1; i <= blocks; i++ {
		fmt.Fprintf(&want, "%d\n%s", i, block)
	}
	if got := w.Read(t, "out/big"); got != want.String() {
		t.Errorf("the output has %d bytes, want %d; they differ", len(got), want.Len())
	}
	if got := w.Path(t, task.ID); got != complete {
		t.Errorf("the task went through %s, want %s", got, complete)
	}
	w.Clean(t)
}
