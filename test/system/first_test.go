package system

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/test/rig"
)

// Who follows docs/first-task.md sees what it shows.
func TestFirstTask(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "debian", rig.Spec{Marker: "first task"}).Tag
	text, err := os.ReadFile("../../docs/first-task.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	var shown []string // after each block of commands; empty when it shows nothing
	for _, b := range regexp.MustCompile("(?s)```(sh|text)\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		if b[1] == "sh" {
			script.WriteString("echo '--- block'\n" + strings.ReplaceAll(b[2], "debian:12", image))
			shown = append(shown, "")
		} else {
			shown[len(shown)-1] = b[2]
		}
	}
	if len(shown) < 8 {
		t.Fatalf("only %d blocks of commands were found", len(shown))
	}
	program := w.Command(t)
	bin := t.TempDir()
	if err := os.Symlink(program.Path, bin+"/deckhand"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-e", "-c", "exec 2>&1\nPATH="+bin+":$PATH\n"+script.String())
	cmd.Env, cmd.Dir = append(program.Env, "DECKHAND_ROOT="+w.Root, "DECKHAND_DOCKER_HOST="+w.DockerHost), t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	printed := strings.Split(string(out), "--- block\n")[1:]
	for i, want := range shown {
		rest := printed[i]
		for line := range strings.Lines(want) {
			pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimRight(line, "\n")), "…", ".*")
			at := regexp.MustCompile("(?m)^" + pattern + "$").FindStringIndex(rest)
			if at == nil {
				t.Errorf("the %d. block does not print %q where it is shown, but\n%s", i+1, line, printed[i])
				break
			}
			rest = rest[at[1]:]
		}
	}
}
