package system

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/engines"
	"github.com/deckhand/deckhand/test/rig"
)

// launch prepares a run as an engine starts one: with the command line of its
// example, its variables, and nothing else but where the test has Docker and the root.
func launch(t *testing.T, w *World, e engines.Engine, task tes.Task) *Background {
	t.Helper()
	document := w.Save(t, task)
	work := filepath.Join(w.Dir, "wd")
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	place := document
	switch e.Name {
	case "aws-batch":
		server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(document))))
		t.Cleanup(server.Close)
		place = server.URL + "/" + filepath.Base(document)
	case "azure-batch", "htcondor": // in the directory that the job starts in
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work, filepath.Base(document)), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if e.Name == "azure-batch" { // HTCondor is told where it comes from
			place = filepath.Base(document)
		}
	}
	cmd := exec.Command(Build(t), e.Command(t, place)...)
	cmd.Dir = work
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.Dir, "DECKHAND_DOCKER_HOST=" + w.DockerHost}
	for _, v := range e.Env {
		cmd.Env = append(cmd.Env, strings.Replace(v, "=DIR", "="+w.Dir, 1))
	}
	if e.Name != "azure-batch" { // which says itself where the root is
		cmd.Env = append(cmd.Env, "DECKHAND_ROOT="+w.Root)
	}
	return &Background{Cmd: cmd, lines: make(chan string, 10_000)}
}

// Every engine's example runs a task to its end, tells the end by its exit code,
// hands a stopped task back so that the engine runs it again, and goes on with one
// that was killed.
func TestEngineExamples(t *testing.T) {
	t.Parallel()
	engines.Each(t, func(t *testing.T, e engines.Engine) {
		t.Parallel()
		w := NewWorld(t)
		if e.Name == "azure-batch" {
			w.Root = filepath.Join(w.Dir, "batch", "shared", "deckhand")
		}
		image := w.Image(t, "task:1", rig.Spec{})
		run := func(task tes.Task) *Background {
			b := launch(t, w, e, task)
			b.start(t)
			return b
		}
		ends := func(b *Background, want int, again bool) {
			t.Helper()
			code, log := b.End(t)
			if code != want || e.Retries(code) != again {
				t.Fatalf("the exit code is %d, want %d; the engine runs it again: %t\n%s", code, want, e.Retries(code), log)
			}
		}

		final := 1
		if slices.Contains(e.Command(t, "task.json"), "engine") {
			final = 0
		}
		ends(run(tes.Task{ID: "failing", Executors: []tes.Executor{Sh(image.Tag, "exit 9")}}), final, false)

		s := &stuck{World: w, gate: newGate()}
		task := tes.Task{
			ID: "stopped", Volumes: []string{"/data"}, Executors: []tes.Executor{Sh(image.Tag, "echo ran >> /data/ran; until [ -e /data/go ]; do sleep 0.1; done")},
			Outputs: []tes.Output{{Path: "/data/ran", URL: filepath.Join(w.Dir, "out", "ran")}},
		}
		b := run(task)
		eventually(t, "the executor to run", func() bool { return s.noted() != "" })
		b.signal(t, e.Stop)
		ends(b, 75, true)
		w.Clean(t)

		// Run again, as the engine does, and killed: by the end of its grace, for example.
		b = run(task)
		eventually(t, "the executor to run again", func() bool { return s.noted() != "" })
		b.Kill(t)
		s.release(t)
		ends(run(task), 0, false)
		if got := w.Read(t, "out/ran"); got != "ran\n" {
			t.Errorf("the output is %q: the killed run was not gone on with", got)
		}
		w.Clean(t)
	})
}
