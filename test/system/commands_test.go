package system

import (
	"cmp"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// documentation returns the text of every document that tells what to do, by its
// path from the top.
func documentation(t *testing.T) map[string]string {
	t.Helper()
	const top = "../../"
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/engines/*.md"} {
		files, err := filepath.Glob(top + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts[strings.TrimPrefix(file, top)] = string(text)
		}
	}
	delete(texts, "CHANGELOG.md") // tells what was done
	if len(texts) < 20 {
		t.Fatalf("only %d documents were found", len(texts))
	}
	return texts
}

// shell runs lines in the directory of w, where deckhand is on the path.
func (w *World) shell(t *testing.T, lines string) (string, error) {
	t.Helper()
	program := w.Command(t)
	bin := t.TempDir()
	if err := os.Symlink(program.Path, bin+"/deckhand"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-e", "-c", "exec 2>&1\nPATH="+bin+":$PATH\n"+lines)
	cmd.Env, cmd.Dir = append(program.Env, "DECKHAND_ROOT="+w.Root, "DECKHAND_DOCKER_HOST="+w.DockerHost), w.Dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Every command in the running text of the documentation does what it says on a node
// with a task.
func TestDocumentedCommandsRun(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "said", rig.Spec{Marker: "said"}).Tag
	task := tes.Task{ID: "t1", Executors: []tes.Executor{Sh(image, "echo done")}}
	w.MustRun(t, 0, task)
	for name, task := range map[string]tes.Task{
		"task.json": task, "slow.json": {ID: "slow", Executors: []tes.Executor{Sh(image, "sleep 1h")}},
	} {
		if err := os.Rename(w.Save(t, task), filepath.Join(w.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	// A task runs when it is cancelled.
	const slow = "rm -f ended; { deckhand run slow.json >/dev/null || echo $? >ended; } & until deckhand status slow | grep -q 'Run since'; do sleep 0.1; done; "
	lines := map[string]string{
		// Named for what they do, these stand without their argument.
		"deckhand run": "deckhand run task.json", "deckhand run --dry-run": "deckhand run --dry-run task.json", "deckhand validate": "deckhand validate task.json",
		"deckhand cancel":        slow + "deckhand cancel slow; wait; grep -x 4 ended",
		"deckhand cancel TASK":   slow + "deckhand cancel slow; wait; grep -x 4 ended",
		"deckhand man DIRECTORY": "mkdir pages; deckhand man pages",
	}
	commands := map[string]bool{}
	for _, text := range documentation(t) {
		for _, m := range regexp.MustCompile("`(deckhand [^`\n]+)`").FindAllStringSubmatch(text, -1) {
			commands[m[1]] = true
		}
	}
	if len(commands) < 25 {
		t.Errorf("only %d commands were found", len(commands))
	}
	// After a cancel, the last task is one that was cancelled.
	late := func(command string) int { return strings.Count(command, "cancel") }
	for _, command := range slices.SortedFunc(maps.Keys(commands), func(a, b string) int {
		return cmp.Or(late(a)-late(b), strings.Compare(a, b))
	}) {
		line := cmp.Or(lines[command], strings.ReplaceAll(command, "TASK", "t1"))
		if out, err := w.shell(t, line); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
}
