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
	Each(t, func(t *testing.T, e Engine) {
		page, err := os.ReadFile(filepath.Join(Dir(), e.Name+".md"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "\n"+e.Text+"```\n") || !strings.Contains(string(page), "("+e.File+")") {
			t.Errorf("%s.md does not show and link %s as it is", e.Name, e.File)
		}
		if out, err := check(t, filepath.Join(Dir(), e.File)); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// A name that an engine does not have is found out, and so is an expression that HTCondor cannot read.
func TestWrongExamples(t *testing.T) {
	for _, wrong := range []struct{ file, was, is string }{
		{"nomad.hcl", "kill_timeout", "kill_timeouts"},
		{"htcondor.sub", "kill_sig", "kill_sigs"},
		{"htcondor.sub", "ExitCode =!= 78", "ExitCode =!! 78"},
		{"kubernetes.yaml", "terminationGracePeriodSeconds", "terminationGracePeriodSecondss"},
		{"azure-batch.json", "maxTaskRetryCount", "maxTaskRetryCounts"},
		{"aws-batch.json", "onExitCode", "onExitCodes"},
	} {
		t.Run(wrong.is, func(t *testing.T) {
			file := filepath.Join(directory(t, wrong.file, wrong.was, wrong.is), wrong.file)
			if out, err := check(t, file); err == nil || !strings.Contains(out, wrong.is) {
				t.Errorf("%s passes with %s: %v\n%s", wrong.file, wrong.is, err, out)
			}
		})
	}
}

// check holds a file against the engine's types.
func check(t *testing.T, file string) (string, error) {
	t.Helper()
	if filepath.Base(file) == "htcondor.sub" {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = submit(t, string(b), "task.json"); err != nil {
			return err.Error(), err
		}
		return "", nil
	}
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
	Each(t, func(t *testing.T, e Engine) {
		zeroForFinal := slices.Contains(e.Command(t, "task.json"), "engine")
		for code, again := range map[int]bool{0: false, 1: false, 3: false, 4: false, 75: true, 78: true, 137: true} {
			if zeroForFinal && code < 5 {
				code = 0
			}
			if e.Retries(code) != again {
				t.Errorf("after %d it runs the task again: %t", code, !again)
			}
		}
		if zeroForFinal != e.Retries(1) {
			t.Errorf("--exit-policy engine is %t, and 1 is retried: %t", zeroForFinal, e.Retries(1))
		}
	})
}

// The jobs of one file of HTCondor find their documents wherever those come from, for it puts
// them into the directory of the job, and their results come back to one directory.
func TestJobsOfOneFile(t *testing.T) {
	results := map[string]bool{}
	places := []string{"one.json", "tasks/two.json", "/else/three.json"}
	for i, job := range jobs(t, example(t, "htcondor.sub"), places...) {
		args := strings.Fields(text(t, job, "Args"))
		document := filepath.Base(places[i])
		if text(t, job, "TransferInput") != places[i] || args[1] != document {
			t.Errorf("of %s %s is put there, and looked for in %q", places[i], job["TransferInput"], args)
		}
		result := args[slices.Index(args, "--result")+1]
		if results[result] || result == document || strings.Contains(result, "/") {
			t.Errorf("the result of %s is %s", places[i], result)
		}
		results[result] = true
	}
}
