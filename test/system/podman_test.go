package system

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// Tasks on Podman: files in and out, an image that is reused and one that takes
// its place, a kill in the middle, and what is not ours.
func TestPodman(t *testing.T) {
	t.Parallel()
	podman := rig.NewPodman(t)
	w := newWorld(t, podman.Host, podman.Cmd)
	for check, c := range w.complaints(t) {
		if strings.HasPrefix(check, "docker") {
			t.Errorf("doctor says %+v", c)
		}
	}
	a, b := w.Image(t, "a:1", rig.Spec{Marker: "a"}), w.Image(t, "b:1", rig.Spec{Marker: "b"})
	foreign := w.Image(t, "foreign:1", rig.Spec{Marker: "foreign"})
	podman.Cmd(t, "pull", foreign.Tag)
	podman.Cmd(t, "create", "--name", "foreign", foreign.Tag, "true")
	podman.Cmd(t, "volume", "create", "foreign")
	pulled := func(id string, image rig.Ref) string {
		return w.MustRun(t, 0, tes.Task{ID: id, Executors: []tes.Executor{Sh(image.Tag, "true")}}).Log(t).Metadata["deckhand.image_pull"]
	}

	first := Sh(a.Tag, "tr a-z A-Z < /in/f > /work/f; echo said; echo wrong >&2")
	first.Stdout = "/logs/out"
	w.MustRun(t, 0, tes.Task{
		ID: "files", Volumes: []string{"/work"},
		Inputs:    []tes.Input{{URL: w.Write(t, "f", "text"), Path: "/in/f"}},
		Executors: []tes.Executor{first, Sh(a.Digest, "mkdir /own; cat /work/f /logs/out > /own/both")},
		Outputs:   []tes.Output{{URL: w.Dir + "/both", Path: "/own/both"}},
	})
	equal(t, "output", w.Read(t, "both"), "TEXTsaid\n")
	equal(t, "the same image again", pulled("again", a), "reused")

	task := tes.Task{
		ID: "killed", Inputs: []tes.Input{{URL: w.Write(t, "mode", "wait"), Path: "/in/mode"}}, Volumes: []string{"/v"},
		Executors: []tes.Executor{Sh(a.Tag, "echo once >> /v/runs; while [ ! -e /v/go ]; do usleep 10000; done; cat /v/runs")},
	}
	run := w.Start(t, task)
	run.Until(t, "executor started")
	run.Kill(t)
	run = w.Start(t, task)
	run.Until(t, "executor found again")
	at := podman.Cmd(t, "inspect", "--format", `{{range .Mounts}}{{if eq .Destination "/v"}}{{.Source}}{{end}}{{end}}`, w.Containers(t)[0])
	if err := os.WriteFile(filepath.Join(at, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	run.ends(t, 0)
	equal(t, "what it said", w.Deckhand(t, "logs", "killed").Stdout, "once\n")
	equal(t, "its path", w.Path(t, "killed"), complete)

	equal(t, "another image", pulled("other", b), "pulled")
	names := strings.Fields(podman.Cmd(t, "images", "--format", "{{.Repository}}:{{.Tag}}"))
	slices.Sort(names)
	if want := []string{b.Tag, foreign.Tag}; !slices.Equal(names, want) {
		t.Errorf("the images are %v, want %v", names, want)
	}
	// Podman adds up no layers, and writes ids otherwise than in its lists.
	if held := w.Deckhand(t, "status", "last").Stdout; !strings.Contains(held, "\nholds:    images ") || !strings.Contains(held, "\nothers:   images ") {
		t.Errorf("both have an image, and status says %s", held)
	}
	equal(t, "others' containers", podman.Cmd(t, "ps", "--all", "--format", "{{.Names}}"), "foreign")
	equal(t, "others' volumes", podman.Cmd(t, "volume", "ls", "--format", "{{.Name}}"), "foreign")
	w.Clean(t)
}
