package engines

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/test/rig"
)

// Each page shows the whole example, and the engine's own types know all of it.
func TestExamples(t *testing.T) {
	for _, e := range All(t) {
		t.Run(e.Name, func(t *testing.T) {
			page, err := os.ReadFile(filepath.Join(Dir(), e.Name+".md"))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(page), "\n"+e.Text+"```\n") || !strings.Contains(string(page), "("+e.File+")") {
				t.Errorf("%s.md does not show and link %s as it is", e.Name, e.File)
			}
			if e.Name == "htcondor" {
				return // its tools are not to be had; the page says so
			}
			if out, err := check(t, filepath.Join(Dir(), e.File)); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// A name that an engine does not have is found out.
func TestExamplesWithAWrongName(t *testing.T) {
	for file, name := range map[string]string{
		"nomad.hcl": "kill_timeout", "kubernetes.yaml": "terminationGracePeriodSeconds", "azure-batch.json": "maxTaskRetryCount", "aws-batch.json": "onExitCode",
	} {
		if out, err := check(t, filepath.Join(directory(t, file, name), file)); err == nil || !strings.Contains(out, name+"s") {
			t.Errorf("%s passes with %ss: %v\n%s", file, name, err, out)
		}
	}
}

// check holds a file against the engine's types.
func check(t *testing.T, file string) (string, error) {
	t.Helper()
	cmd := exec.Command("go", "run", "-C", "schemas", ".", file)
	if filepath.Base(file) == "azure-batch.json" {
		cmd = exec.Command(rig.Program(t, "node", "nodejs"), "schemas/azure.js", file)
		modules, err := filepath.Abs("../../.tools/azure-batch/node_modules")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(modules); err != nil {
			rig.Lack(t, "this machine has no client of Azure Batch: run `make deps`")
		}
		cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What deckhand ends with, and whether the engine is to run it again. Where it
// retries every code but 0, final ends of tasks have to be 0.
func TestExitCodes(t *testing.T) {
	for _, e := range All(t) {
		zeroForFinal := slices.Contains(e.Args, "engine")
		for code, again := range map[int]bool{0: false, 1: false, 3: false, 4: false, 75: true, 78: true, 137: true} {
			if zeroForFinal && code < 5 {
				code = 0
			}
			if e.Retries(code) != again {
				t.Errorf("%s: after %d it runs the task again: %t", e.Name, code, !again)
			}
		}
		if zeroForFinal != e.Retries(1) {
			t.Errorf("%s: --exit-policy engine is %t, and 1 is retried: %t", e.Name, zeroForFinal, e.Retries(1))
		}
	}
}

// The jobs of one file of HTCondor find their documents wherever those come from, for it puts
// them into the directory of the job, and their results come back to one directory.
func TestJobsOfOneFile(t *testing.T) {
	e := htcondor(t)
	if e.Document != "$Fnx(TASK)" { // a name without its directory
		t.Errorf("a job looks for its document at %s", e.Document)
	}
	one, other := e.Command("one.json"), e.Command("other.json")
	for i, arg := range one {
		if arg == "--result" && (one[i+1] == other[i+1] || slices.Contains([]string{"one.json", "other.json"}, one[i+1])) {
			t.Errorf("the results of two jobs are %s and %s", one[i+1], other[i+1])
		}
	}
}
