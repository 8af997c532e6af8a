package system

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// verifiedUnit is a unit of the packages with what a site adds to it by systemctl edit. It
// fails the test when systemd has something against that.
func verifiedUnit(t *testing.T, name, added string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "internal", "packaging", "systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), strings.Replace(name, "@", "@instance", 1))
	dropIn := filepath.Join(unit+".d", "override.conf") // where systemctl edit puts it
	if err := os.Mkdir(filepath.Dir(dropIn), 0o755); err != nil {
		t.Fatal(err)
	}
	var here string
	for _, part := range []struct{ file, text string }{{unit, string(raw)}, {dropIn, added}} {
		text := strings.ReplaceAll(part.text, "/usr/bin/deckhand", Build(t))
		if err := os.WriteFile(part.file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		here += text
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	return here
}

// unitCommand is what a unit of the packages runs, as arguments of deckhand. It
// fails the test when its root is another.
func unitCommand(t *testing.T, name string) []string {
	t.Helper()
	program, root := Build(t), "/var/lib/deckhand"
	line := regexp.MustCompile(`(?m)^ExecStart=` + program + ` (.*)$`).FindStringSubmatch(verifiedUnit(t, name, ""))
	if line == nil || !strings.Contains(line[1], " --root "+root) {
		t.Fatalf("the unit does not run %s on %s", program, root)
	}
	return strings.Fields(strings.Replace(line[1], " --root "+root, "", 1))
}

// The unit for recovery at boot is one that systemd takes without a word, and its
// command rolls back what a crash left.
func TestRecoverUnit(t *testing.T) {
	t.Parallel()
	command := unitCommand(t, "deckhand-recover.service")
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{})
	run := w.Start(t, tes.Task{ID: "t", Executors: []tes.Executor{Sh(image.Tag, "sleep 1000")}})
	run.Until(t, "executor started")
	if err := run.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	run.End(t)
	r := w.Deckhand(t, append(command, "--stop-grace", "1s")...)
	if r.Code != 0 || !strings.Contains(r.Stdout, "rolled back task t") {
		t.Errorf("%s: %+v", command, r)
	}
	w.Clean(t)
}

// With the lines for several roots the unit rolls back what a crash left in each, and says
// of the worst what it was.
func TestRecoverUnitOfSeveralRoots(t *testing.T) {
	t.Parallel()
	dropIn, err := os.ReadFile("../../docs/engines/slurm/recover.conf")
	if err != nil {
		t.Fatal(err)
	}
	w := NewWorld(t)
	unit := verifiedUnit(t, "deckhand-recover.service", string(dropIn))
	lines := regexp.MustCompile(`(?m)^ExecStart=/bin/sh -c '(.*)'$`).FindStringSubmatch(unit)
	if lines == nil || strings.Count(unit, "\nExecStart=\n") != 1 {
		t.Fatalf("the unit is\n%s", unit)
	}
	image := w.Image(t, "task:1", rig.Spec{})
	top := w.Root
	for _, id := range []string{"1", "3"} {
		w.Root = filepath.Join(top, id)
		run := w.Start(t, tes.Task{ID: "t" + id, Executors: []tes.Executor{Sh(image.Tag, "sleep 1000")}})
		run.Until(t, "executor started")
		run.Kill(t)
	}
	script := strings.NewReplacer("$$", "$", "/var/lib/deckhand", top).Replace(lines[1])
	recovers := func() (string, error) {
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Env = append(w.Command(t).Env, "DECKHAND_DOCKER_HOST="+w.DockerHost, "DECKHAND_RUN_STOP_GRACE=1s")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := recovers(); err != nil || !strings.Contains(out, "rolled back task t1") || !strings.Contains(out, "rolled back task t3") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, id := range []string{"1", "3"} {
		w.Root = filepath.Join(top, id)
		w.Clean(t)
	}
	// A newer deckhand has written the first journal, and the second one is looked at all the same.
	if err := os.WriteFile(filepath.Join(top, "1", "journal", "CURRENT"), []byte(`{"schema":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := recovers(); err == nil || !strings.Contains(out, "nothing to recover") {
		t.Errorf("%v\n%s", err, out)
	}
}

// The unit of one task runs the document of its instance and leaves the result
// beside it; a task that is complete is not run again when the unit starts at boot.
func TestTaskUnit(t *testing.T) {
	t.Parallel()
	command := unitCommand(t, "deckhand@.service")
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{})
	w.Save(t, tes.Task{ID: "t", Executors: []tes.Executor{Sh(image.Tag, "true")}})
	for i, arg := range command {
		command[i] = strings.Replace(arg, "/var/spool/deckhand/%i", filepath.Join(w.Dir, "documents", "t"), 1)
	}
	for _, start := range []string{"first", "second"} {
		if r := w.Deckhand(t, command...); r.Code != 0 {
			t.Fatalf("the %s start of %s: %+v", start, command, r)
		}
		if result := w.Read(t, "documents/t.result.json"); !strings.Contains(result, `"COMPLETE"`) {
			t.Errorf("the result is %s", result)
		}
	}
	var attempts int
	for _, r := range w.Records(t, "t") {
		attempts = max(attempts, r.Attempt)
	}
	if attempts != 1 {
		t.Errorf("%d attempts", attempts)
	}
}

// The container image, made without any registry, runs a task on the engine of
// its host.
func TestContainerImage(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	context := t.TempDir()
	for name, from := range map[string]string{"deckhand": Build(t), "ca-certificates.crt": "/etc/ssl/certs/ca-certificates.crt"} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(context, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	name := "deckhand:" + filepath.Base(w.Dir) + filepath.Base(filepath.Dir(context))
	name = strings.ToLower(name)
	w.Docker(t, "build", "-q", "-f", "../../internal/packaging/Dockerfile", "-t", name, context)
	t.Cleanup(func() { w.Docker(t, "rmi", name) })

	image := w.Image(t, "task:1", rig.Spec{})
	document := w.Save(t, tes.Task{
		ID: "t", Executors: []tes.Executor{Sh(image.Tag, "cp /in/put /out/put")},
		Inputs:  []tes.Input{{URL: w.Write(t, "put", "of the host\n"), Path: "/in/put"}},
		Outputs: []tes.Output{{URL: filepath.Join(w.Dir, "out"), Path: "/out/put"}},
	})
	socket := strings.TrimPrefix(w.DockerHost, "unix://")
	program, err := exec.LookPath("docker")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-H", w.DockerHost, "run", "--rm", "--pid", "host", "--network", "host",
		"-v", socket+":/var/run/docker.sock", "-v", w.Root+":"+w.Root, "-v", w.Dir+":"+w.Dir,
		name, "run", "--root", w.Root, "--result", filepath.Join(w.Dir, "result.json"), document)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if got := w.Read(t, "out"); got != "of the host\n" || !strings.Contains(w.Read(t, "result.json"), `"COMPLETE"`) {
		t.Errorf("the output is %q, the result %s\n%s", got, w.Read(t, "result.json"), stderr.String())
	}
}
