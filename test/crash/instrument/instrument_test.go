package instrument

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/deckhand/deckhand/test/crash/point"
)

const top = "../../.."

// trail is what a program with effects of all shapes passes.
var trail = []string{
	"work/os.Mkdir before#1", "work/os.Mkdir after#1", "work/os.Mkdir~2 before#1", "work/os.Mkdir~2 after#1",
	"work/os.Rename before#1", "made/os.Mkdir before#1", "made/os.Mkdir after#1", "made/os.Mkdir before#2", "made/os.Mkdir after#2", "work/os.Rename after#1",
	"work/os.OpenFile before#1", "work/os.OpenFile after#1",
	"work/io.Copy before#1", "work/io.Copy after#1",
	"work/Docker.Start before#1", "docker.Start/os.Mkdir before#1", "docker.Start/os.Mkdir after#1", "work/Docker.Start after#1",
	"work/Docker.Stop before#1", "work/Docker.Stop after#1",
	"work/Docker.Pull before#1", "work/Docker.Pull called#1", "work/Docker.Pull called#2", "work/Docker.Pull after#1",
	"work/File.Sync before#1", "work/File.Sync after#1",
}

// Every effect of a program is between two points, which are passed in order, and
// the program ends at the one that it is told.
func TestPoints(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	r, err := instrument(top, out, []string{"./test/crash/instrument/testdata/good"})
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(out, "good")
	cmd := exec.Command("go", "build", "-overlay", r.Overlay, "-o", program, "./test/crash/instrument/testdata/good")
	cmd.Dir = top
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	run := func(t *testing.T, at string) (dir string, passed []string, err error) {
		t.Helper()
		dir = t.TempDir()
		file := filepath.Join(t.TempDir(), "trace")
		cmd := exec.Command(program, dir)
		cmd.Env = []string{point.TraceVariable + "=" + file, point.AtVariable + "=" + at}
		err = cmd.Run()
		text, readErr := os.ReadFile(file)
		if readErr != nil {
			t.Fatal(readErr)
		}
		for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
			passed = append(passed, strings.TrimPrefix(line, "test/crash/instrument/testdata/good."))
		}
		return dir, passed, err
	}
	_, passed, err := run(t, "")
	if err != nil || !slices.Equal(passed, trail) {
		t.Errorf("the program has passed (%v)\n%s\nwant\n%s", err, strings.Join(passed, "\n"), strings.Join(trail, "\n"))
	}
	for i, at := range trail {
		_, passed, err := run(t, "test/crash/instrument/testdata/good."+at)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("%s: the program ended with %v", at, err)
		}
		if !slices.Equal(passed, trail[:i+1]) {
			t.Errorf("%s: the program has passed %v", at, passed)
		}
	}
	dir, _, _ := run(t, "test/crash/instrument/testdata/good.work/os.OpenFile before#1")
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 3 || filepath.Base(names[2]) != "d" {
		t.Errorf("before the file was made there is %v", names)
	}
}

// What cannot be put between two points, and what nobody has judged, is refused:
// no effect is without points because it was forgotten.
func TestRefused(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"deferred":  "main.go:6:21: the effect os.Remove is deferred",
		"goroutine": "main.go:6:18: the effect os.Remove is begun as a goroutine",
		"value":     "main.go:6:52: the effect os.Remove is used as a value",
		"unknown":   "main.go:6:28: package net/smtp is in none of the lists: does smtp.SendMail change the world?",
	} {
		_, err := instrument(top, t.TempDir(), []string{"./test/crash/instrument/testdata/" + name})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// The product has points at its effects; what ships has no trace of them.
func TestProduct(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	program, effects, err := Build(top, out, "./cmd/deckhand")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d effects:\n%s", len(effects), strings.Join(effects, "\n"))
	for _, want := range []string{
		"journal.(*Journal).commit/Txn.Commit", "machine.(*attempt).append/Journal.Append", "steps/run.(*Step).execute/Engine.Start",
		"steps/imagecheck.(*Step).pullOnce/Engine.Pull", "steps/upload.(*Step).send/Storage.Put", "internal/worktree.(*Tree).Prepare/os.MkdirAll",
		"internal/outbox.(*File).Deliver/File.Write", "internal/outbox.(*Webhook).Deliver/Client.Do", "internal/outbox.(*Exec).Deliver/Cmd.Run",
	} {
		if !slices.Contains(effects, want) {
			t.Errorf("%s has no points", want)
		}
	}
	shipped := filepath.Join(out, "shipped")
	cmd := exec.Command("go", "build", "-o", shipped, "./cmd/deckhand")
	cmd.Dir = top
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for file, want := range map[string]bool{program: true, shipped: false} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, trace := range []string{point.AtVariable, "deckhand/test/crash"} {
			if got := strings.Contains(string(text), trace); got != want {
				t.Errorf("%s holds %q: %t", filepath.Base(file), trace, got)
			}
		}
	}
}
