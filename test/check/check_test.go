package check_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/rig"
	"github.com/deckhand/deckhand/test/system"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

// A real node after a real task: nothing is wrong with it, and each thing that a
// test then does to it is found.
func TestNode(t *testing.T) {
	t.Parallel()
	d := rig.NewDaemon(t)
	w := system.NewWorldOn(t, d)
	theirs, ours := w.Image(t, "theirs", rig.Spec{Marker: "theirs"}), w.Image(t, "ours", rig.Spec{Marker: "ours"})
	d.Cmd(t, "pull", "--quiet", theirs.Tag)
	d.Cmd(t, "run", "--detach", "--name=theirs", "--network=none", theirs.Tag, "sleep", "1h")
	d.Cmd(t, "volume", "create", "theirs")
	watch, err := check.NewWatch(d.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Close)
	place := check.Place{Root: w.Root, Docker: d.Host, DataRoot: d.DataRoot(), Outputs: filepath.Join(w.Dir, "out")}
	look := func() check.Node {
		t.Helper()
		n, err := place.Look()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := look()
	task := tes.Task{
		ID: "t",
		Executors: []tes.Executor{
			system.Sh(ours.Tag, "echo one > /data/one"), system.Sh(ours.Tag, "echo said; echo two > /data/two"),
		},
		Inputs:  []tes.Input{{URL: w.Write(t, "in", "in"), Path: "/in"}},
		Outputs: []tes.Output{{Path: "/data", URL: filepath.Join(w.Dir, "out"), Type: tes.Directory}},
		Volumes: []string{"/data"},
	}
	w.MustRun(t, 0, task)
	c := check.Case{Task: task.ID, Before: before, After: look()}
	if c.Events, err = watch.Events(c.After.Journal.RootID); err != nil {
		t.Fatal(err)
	}
	twin := c.After
	c.Twin = &twin
	if got := c.Problems(); len(got) > 0 {
		t.Fatalf("after an ordinary run: %s", strings.Join(got, "\n"))
	}
	if len(c.Events) != 4 || len(twin.Outputs) != 2 || twin.Layers.Entries == 0 {
		t.Errorf("the checker has seen %d events, %d outputs and layers of %+v", len(c.Events), len(twin.Outputs), twin.Layers)
	}

	label := "--label=deckhand.root=" + c.After.Journal.RootID
	d.Cmd(t, "create", label, "--name=left", "--network=none", ours.Tag, "true")
	d.Cmd(t, "volume", "create", label, "left")
	d.Cmd(t, "network", "create", label, "left")
	d.Cmd(t, "volume", "rm", "theirs")
	d.Cmd(t, "rm", "--force", "theirs")
	d.Cmd(t, "tag", ours.Tag, "other:1")
	d.Cmd(t, "rmi", theirs.Tag)
	w.Write(t, "out/.part", "")
	w.Write(t, "out/two", "three")
	for _, name := range []string{"tasks/t", "journal/EVIDENCE", "bin/deckhand-1-2", "bin/deckhand-1-3.part"} {
		if err := os.MkdirAll(filepath.Join(w.Root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c.After = look()
	if c.Events, err = watch.Events(c.After.Journal.RootID); err != nil {
		t.Fatal(err)
	}
	got := c.Problems()
	for _, want := range []string{
		"container left", "volume left", "network left", "missing: container theirs", "missing: volume theirs",
		"image " + theirs.ID, "too many: image " + ours.ID, "too many: output file .part", "too many: output file two", "missing: output file two",
		"tasks/t is left", "bin/deckhand-1-3.part is left", "EVIDENCE is left", "the engine's layers",
	} {
		if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("%q is not found among\n%s", want, strings.Join(got, "\n"))
		}
	}
}

// Each thing that can be wrong with a node is told, and nothing else.
func TestProblems(t *testing.T) {
	t.Parallel()
	good := func() check.Case {
		result := check.Result{Stdout: "said\n"}
		node := func() check.Node {
			return check.Node{
				Engine: check.Engine{Images: []check.Image{{ID: "theirs", Names: []string{"theirs:1"}}, {ID: "ours", Names: []string{"ours:1"}}}},
				Journal: check.Journal{
					Images: []machine.ImageRecord{{Reference: "ours:1", ImageID: "ours", PulledByUs: true, Phase: machine.Present, Last: true}},
					Tasks: map[string]check.Task{"t": {State: machine.Complete, Attempts: []check.Attempt{{
						Number: 1, Executors: map[string][]check.Result{"0": {result}, "1": {result}},
					}}}},
				},
			}
		}
		twin := node()
		return check.Case{
			Task: "t", Before: check.Node{Engine: check.Engine{Images: twin.Images[:1]}}, After: node(), Twin: &twin,
			Events: []check.Event{
				{Action: check.Start, Container: "c0", Task: "t", Attempt: 1, Executor: "0"},
				{Action: check.Die, Container: "c0", Task: "t", Attempt: 1, Executor: "0"},
				{Action: check.Start, Container: "c1", Task: "t", Attempt: 1, Executor: "1"},
				{Action: check.Die, Container: "c1", Task: "t", Attempt: 1, Executor: "1"},
			},
		}
	}
	if got := good().Problems(); len(got) > 0 {
		t.Fatalf("a node with nothing wrong: %v", got)
	}
	task := func(c *check.Case, change func(*check.Task)) {
		t := c.After.Journal.Tasks["t"]
		change(&t)
		c.After.Journal.Tasks["t"] = t
	}
	executor := func(c *check.Case, results ...check.Result) {
		c.After.Journal.Tasks["t"].Attempts[0].Executors["1"] = results
	}
	for _, test := range []struct {
		name   string
		change func(*check.Case)
		want   string
	}{
		{"at a time", func(c *check.Case) { c.Events[1], c.Events[2] = c.Events[2], c.Events[1] }, "2 containers of the task ran at a time"},
		{"twice", func(c *check.Case) { c.Events = append(c.Events, c.Events[2:]...) }, "executor 1 was started 2 times"},
		{"never", func(c *check.Case) { c.Events = c.Events[:2] }, "executor 1 was started 0 times in attempt 1, want 1"},
		{"unknown", func(c *check.Case) { delete(c.After.Journal.Tasks["t"].Attempts[0].Executors, "1") }, "the journal has no end of it"},
		{"runs", func(c *check.Case) { c.Events = c.Events[:3] }, "still run"},
		{"another attempt", func(c *check.Case) { c.Events[2].Attempt, c.Events[3].Attempt = 2, 2 }, "executor 1 was started 0 times in attempt 1"},
		{"two ends", func(c *check.Case) { executor(c, check.Result{}, check.Result{}) }, "the journal has 2 ends of executor 1"},
		{"refused", func(c *check.Case) { executor(c, check.Result{ExitCode: 127, Reason: "no", Stderr: "no\n"}) }, "executor 1 was started 1 times in attempt 1, want 0"},
		{"another end", func(c *check.Case) { executor(c, check.Result{ExitCode: 1}) }, "too many: end of executor 1: exit code 1"},
		{"state", func(c *check.Case) { task(c, func(t *check.Task) { t.State = machine.SystemError }) }, "ended SystemError, want Complete"},
		{"unfinished", func(c *check.Case) { task(c, func(t *check.Task) { t.State = machine.Run }) }, "is unfinished"},
		{"active", func(c *check.Case) { c.After.Journal.Active = &machine.TaskRef{Task: "t"} }, "an active task"},
		{"verify", func(c *check.Case) { c.After.Journal.Problems = []string{"altered"} }, "journal verify: altered"},
		{"owed", func(c *check.Case) { c.After.Journal.Debts = []machine.Debt{{Task: "dead"}} }, "what task dead has left is still owed"},
		{"no ledger", func(c *check.Case) { c.After.Journal.Images = nil }, "is on the node and in no ledger"},
		{"not on disk", func(c *check.Case) { c.After.Images = c.After.Images[:1] }, "of the ledger is not on the node"},
		{"other name", func(c *check.Case) { c.After.Images[1].Names = nil }, "which has the names []"},
		{"pulling", func(c *check.Case) { c.After.Journal.Images[0].Phase = machine.Pulling }, "a pull under way"},
		{"removing", func(c *check.Case) { c.After.Journal.Images[0].Phase = machine.Removing }, "the last-image record ours:1 is removing"},
		{"claimed", func(c *check.Case) {
			c.After.Journal.Images = append(c.After.Journal.Images, machine.ImageRecord{Reference: "theirs:1", ImageID: "theirs", PulledByUs: true, Phase: machine.Present})
		}, "was there before"},
		{"theirs gone", func(c *check.Case) { c.After.Images = c.After.Images[1:] }, "of others has gone"},
		{"theirs renamed", func(c *check.Case) { c.After.Images[0].Names = nil }, "has lost its name"},
		{"layers", func(c *check.Case) { c.After.Layers.Entries++ }, "the engine's layers"},
		{"warning", func(c *check.Case) { c.After.Journal.Tasks["t"].Attempts[0].Warnings = []string{"left behind"} }, "too many: warning left behind"},
		{"anonymous volume", func(c *check.Case) { c.After.Volumes = []check.Volume{{Name: "abc"}} }, "too many: volume abc"},
	} {
		c := good()
		test.change(&c)
		if got := strings.Join(c.Problems(), "\n"); !strings.Contains(got, test.want) {
			t.Errorf("%s: %q does not tell %q", test.name, got, test.want)
		}
	}
}
