package system

import (
	"cmp"
	"fmt"
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

// saveTasks makes task.json, of t1, and slow.json, of a task that does not end.
func (w *World) saveTasks(t *testing.T) {
	t.Helper()
	image := w.Image(t, "documented", rig.Spec{Marker: "documented"}).Tag
	for name, task := range map[string]tes.Task{
		"task.json": {ID: "t1", Executors: []tes.Executor{Sh(image, "echo done")}}, "slow.json": {ID: "slow", Executors: []tes.Executor{Sh(image, "sleep 1h")}},
	} {
		if err := os.Rename(w.Save(t, task), filepath.Join(w.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// Between slow and cancelled a task is in Run. It ends with the script, whatever that
// comes to.
const (
	slow      = "trap 'kill $! || :' EXIT; deckhand run slow.json >/dev/null & until deckhand status slow | grep -q 'Run since'; do sleep 0.1; done; "
	cancelled = "deckhand cancel slow; wait $! || [ $? = 4 ]"
)

// Every command in the running text of the documentation does what it says on a node
// with a task.
func TestDocumentedCommandsRun(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	w.saveTasks(t)
	if out, err := w.shell(t, "deckhand run task.json"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := map[string]string{
		// Named for what they do, these stand without their argument.
		"deckhand run": "deckhand run task.json", "deckhand run --dry-run": "deckhand run --dry-run task.json", "deckhand validate": "deckhand validate task.json",
		"deckhand cancel":        slow + cancelled,
		"deckhand cancel TASK":   slow + cancelled,
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

// blocksElsewhere says by which test the commands of a block are run, and what it has of
// them; by document and number. Nobody starts a unit here: what it starts is run.
var blocksElsewhere = map[string]struct{ test, has string }{
	"docs/install.md 0":             {"test/packages/packages_test.go", ` -i /mnt/" + packaged`},
	"docs/install.md 1":             {"test/packages/packages_test.go", "dpkg -i --force-confold"},
	"docs/install.md 2":             {"test/packages/packages_test.go", "systemctl enable --quiet deckhand-recover.service"},
	"docs/install.md 3":             {"test/system/units_test.go", `unitCommand(t, "deckhand@.service")`},
	"docs/install.md 4":             {"test/system/units_test.go", `"run", "--rm", "--pid", "host", "--network", "host"`},
	"docs/events.md 0":              {"internal/outbox/docs_test.go", `block(t, "sh", 0)`},
	"docs/events.md 1":              {"internal/outbox/docs_test.go", `block(t, "sh", 1)`},
	"docs/engines/aws-batch.md 0":   {"test/engines/commands_test.go", `"aws-batch.md"`},
	"docs/engines/azure-batch.md 0": {"test/engines/commands_test.go", `"azure-batch.md"`},
	"docs/engines/kubernetes.md 0":  {"test/engines/commands_test.go", `"kubernetes.md"`},
	"docs/engines/slurm.md 0":       {"test/slurm/page_test.go", `"slurm.md"`},
	"docs/engines/slurm.md 1":       {"test/slurm/page_test.go", `"slurm.md"`},
}

// So does every block of commands.
func TestDocumentedBlocks(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	w.saveTasks(t)
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	makes, others := regexp.MustCompile(`^make( \w+)+`), 0
	for name, text := range documentation(t) {
		if name == "docs/first-task.md" {
			continue // TestFirstTask follows it
		}
		for i, m := range regexp.MustCompile("(?s)```(?:sh|console)\n(.*?)```").FindAllStringSubmatch(text, -1) {
			block := fmt.Sprint(name, " ", i)
			if by, ok := blocksElsewhere[block]; ok {
				others++
				if code, err := os.ReadFile("../../" + by.test); err != nil || !strings.Contains(string(code), by.has) {
					t.Errorf("%s has no %s, as for block %s (%v)", by.test, by.has, block, err)
				}
				continue
			}
			var lines strings.Builder
			for line := range strings.Lines(m[1]) {
				if target := makes.FindString(line); target != "" {
					line = "make -C " + top + " --dry-run " + strings.TrimPrefix(target, "make") + " >/dev/null\n" // this is one of them
				}
				lines.WriteString(strings.ReplaceAll(line, "/var/lib/deckhand", w.Root))
			}
			script := lines.String()
			if name == "docs/metrics.md" { // asks a process that runs
				script = slow + script + cancelled
			}
			if out, err := w.shell(t, script); err != nil {
				t.Errorf("block %s: %v\n%s", block, err, out)
			}
		}
	}
	if others != len(blocksElsewhere) {
		t.Errorf("%d blocks are run elsewhere, not %d", others, len(blocksElsewhere))
	}
}

// othersElsewhere says the same of the commands of others in the running text of docs/engines.
// For some it says why no test runs them.
var othersElsewhere = map[string]struct{ test, has string }{
	"kubectl logs job/tes-sort":                     {"test/engines/commands_test.go", `"kubectl logs job/tes-sort"`},
	"systemctl edit deckhand-recover.service":       {"test/system/units_test.go", `"override.conf") // where systemctl edit puts it`}, // it needs a terminal and a running systemd
	"sbatch job.sh /shared/tasks/t1.json":           {"test/slurm/cluster_test.go", `"sbatch", append(line, c.dir+"/job.sh", document)`},
	"scontrol requeue":                              {"test/slurm/events_test.go", `"scontrol", "requeue"`},
	"scontrol show job":                             {"test/rig/slurm.go", `"scontrol", "show", "job"`},
	"scontrol release":                              {"test/slurm/events_test.go", `"scontrol", "release"`},
	"condor_submit -dry-run":                        {"test/engines/htcondor.go", `"condor_submit", "-dry-run"`},
	"scontrol suspend":                              {"", "the page says that it is of no use"},
	"nomad job dispatch tes task.json":              {"", "Nomad's program is in no registry"},
	"nomad job validate":                            {"", "the same"},
	"funnel task cancel ID":                         {"", "Funnel's own"},
	"systemctl enable --now podman.socket":          {"", "Podman's own, and no systemd runs here"},
	"podman login":                                  {"", "the page says that it is of no use"},
	"podman login --authfile ~/.docker/config.json": {"", "Podman's own"},
}

// Who writes a command of others into a page says which test runs it.
func TestDocumentedCommandsOfOthers(t *testing.T) {
	found := map[string]bool{}
	for name, text := range documentation(t) {
		if !strings.HasPrefix(name, "docs/engines/") {
			continue
		}
		for _, m := range regexp.MustCompile("`((?:aws|az|condor_\\w+|funnel|kubectl|nomad|podman|sbatch|scontrol|systemctl) [^`\n]+)`").FindAllStringSubmatch(text, -1) {
			found[m[1]] = true
			by, ok := othersElsewhere[m[1]]
			if !ok {
				t.Errorf("%s shows %q, of which nothing is known here", name, m[1])
			}
			if by.test == "" {
				continue
			}
			if code, err := os.ReadFile("../../" + by.test); err != nil || !strings.Contains(string(code), by.has) {
				t.Errorf("%s has no %s, as for %q (%v)", by.test, by.has, m[1], err)
			}
		}
	}
	if len(found) != len(othersElsewhere) {
		t.Errorf("%d commands of others were found, not %d", len(found), len(othersElsewhere))
	}
}
