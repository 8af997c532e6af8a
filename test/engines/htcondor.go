package engines

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/deckhand/deckhand/test/rig"
)

// HTCondor takes a job out of the queue when its OnExitRemove says so, which is made of
// retry_until and max_retries.
func htcondor(t *testing.T) Engine {
	e := Engine{File: "htcondor.sub", Env: []string{
		"_CONDOR_SCRATCH_DIR=DIR/scratch", "_CONDOR_JOB_AD=DIR/scratch/.job.ad", "_CONDOR_MACHINE_AD=DIR/scratch/.machine.ad", "_CONDOR_SLOT=slot1_1",
	}}
	e.Text = example(t, e.File)
	e.Command = func(t *testing.T, place string) []string {
		t.Helper()
		return strings.Fields(text(t, jobs(t, e.Text, place)[0], "Args"))
	}
	job := jobs(t, e.Text, "task.json")[0]
	if text(t, job, "KillSig") == "SIGTERM" {
		e.Stop = syscall.SIGTERM
	}
	again := retried(t, job)
	e.Retries = func(code int) bool { return again[code] }
	return e
}

// jobs are the jobs of a submit file for some documents, as condor_submit describes them.
func jobs(t *testing.T, file string, places ...string) []map[string]string {
	t.Helper()
	found, err := submit(t, file, places...)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// submit is jobs; what condor_submit warns of is an error too.
func submit(t *testing.T, file string, places ...string) ([]map[string]string, error) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "htcondor.sub"), file)
	write(t, filepath.Join(dir, "tasks.txt"), strings.Join(places, "\n")+"\n")
	cmd := rig.HTCondorCommand(t, "condor_submit", "-dry-run", "jobs", "htcondor.sub")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CONDOR_CONFIG=/dev/null")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Run(); err != nil || complaints.Len() > 0 {
		return nil, errors.Join(fmt.Errorf("condor_submit: %s", complaints.Bytes()), err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "jobs"))
	if err != nil {
		t.Fatal(err)
	}
	var found []map[string]string
	for description := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n\n") {
		job := map[string]string{}
		if len(found) > 0 {
			maps.Copy(job, found[0]) // of which the others only have what differs
		}
		for line := range strings.SplitSeq(description, "\n") {
			name, value, _ := strings.Cut(line, "=")
			job[name] = value
		}
		found = append(found, job)
	}
	if len(found) != len(places) {
		t.Fatalf("there are %d jobs of %q:\n%s", len(found), places, b)
	}
	return found, nil
}

// retried are the codes after which HTCondor runs a job again that has ended for the first
// time. It is HTCondor that works out the expression.
func retried(t *testing.T, job map[string]string) map[int]bool {
	t.Helper()
	var ended strings.Builder
	for code := range 256 {
		end := maps.Clone(job)
		end["ProcId"], end["NumJobCompletions"] = strconv.Itoa(code), "1"
		if code > 128 { // then it has no ExitCode
			end["ExitBySignal"], end["ExitSignal"] = "true", strconv.Itoa(code-128)
		} else {
			end["ExitBySignal"], end["ExitCode"] = "false", strconv.Itoa(code)
		}
		for name, value := range end {
			fmt.Fprintf(&ended, "%s=%s\n", name, value)
		}
		ended.WriteString("\n")
	}
	file := filepath.Join(t.TempDir(), "ended")
	write(t, file, ended.String())
	cmd := rig.HTCondorCommand(t, "condor_q", "-jobads", file, "-allusers", "-af", "ProcId", "OnExitRemove")
	cmd.Env = append(os.Environ(), "CONDOR_CONFIG=/dev/null")
	out, err := cmd.CombinedOutput()
	words := strings.Fields(string(out))
	if err != nil || len(words) != 2*256 {
		t.Fatalf("condor_q: %v\n%s", err, out)
	}
	again := map[int]bool{}
	for end := range slices.Chunk(words, 2) {
		if end[1] != "true" && end[1] != "false" {
			t.Fatalf("OnExitRemove is %s after %s", end[1], end[0])
		}
		again[number(t, end[0])] = end[1] == "false"
	}
	return again
}

// text is the text that an attribute of a job is.
func text(t *testing.T, job map[string]string, name string) string {
	t.Helper()
	s, err := strconv.Unquote(job[name])
	if err != nil {
		t.Fatalf("%s is %s", name, job[name])
	}
	return s
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
