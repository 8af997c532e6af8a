// Package engines knows the examples of docs/engines as their batch engines read
// them: the command that they start, with which variables and signal, and the exit
// codes after which they start it again.
package engines

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Engine is one batch engine, set up as its example says.
type Engine struct {
	Name string // of its page
	File string // the example
	Text string // what is in it
	// Command are the arguments of deckhand in a job whose document is at that place, as the
	// engine starts it.
	Command func(t *testing.T, place string) []string
	// Env are variables that the engine sets; DIR in them is a directory of the task.
	Env []string
	// Stop is sent before SIGKILL.
	Stop syscall.Signal
	// Retries says whether the engine runs a job again that ends with a code; above 128
	// it was ended by a signal.
	Retries func(code int) bool
}

// with makes a Command of arguments in which text stands for the document.
func with(args []string, text string) func(*testing.T, string) []string {
	return func(t *testing.T, place string) []string {
		t.Helper()
		line := strings.Join(args, "\x00")
		if !strings.Contains(line, text) {
			t.Fatalf("there is no %s in %q", text, args)
		}
		return strings.Split(strings.ReplaceAll(line, text, place), "\x00")
	}
}

// Dir is where the pages and examples are.
func Dir() string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(here), "..", "..", "docs", "engines")
}

// Each reads every example, and gives each to a test of its own.
func Each(t *testing.T, test func(t *testing.T, e Engine)) {
	t.Helper()
	for name, read := range map[string]func(*testing.T) Engine{
		"nomad": nomad, "htcondor": htcondor, "kubernetes": kubernetes, "azure-batch": azure, "aws-batch": aws,
	} {
		t.Run(name, func(t *testing.T) {
			e := read(t)
			e.Name = name
			test(t, e)
		})
	}
}

func example(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Dir(), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// field is what a pattern has in its parentheses; it is to match once.
func field(t *testing.T, text, pattern string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)`+pattern).FindAllStringSubmatch(text, -1)
	if len(found) != 1 {
		t.Fatalf("%q is there %d times in\n%s", pattern, len(found), text)
	}
	return found[0][1]
}

func fromJSON(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// Nomad restarts in place, then elsewhere, after every code but 0.
func nomad(t *testing.T) Engine {
	e := Engine{File: "nomad.hcl", Retries: notZero, Env: []string{
		"NOMAD_JOB_ID=tes/dispatch-1700000000-0a1b2c3d", "NOMAD_JOB_NAME=tes", "NOMAD_ALLOC_ID=5c7b1d9e-0000-4000-8000-000000000001",
		"NOMAD_TASK_NAME=deckhand", "NOMAD_ALLOC_DIR=DIR/alloc", "NOMAD_TASK_DIR=DIR/local", "NOMAD_SECRETS_DIR=DIR/secrets",
	}}
	e.Text = example(t, e.File)
	var args []string
	fromJSON(t, field(t, e.Text, `^ *args += (\[.*\])$`), &args)
	e.Command = with(args, "${NOMAD_TASK_DIR}/task.json")
	if field(t, e.Text, `^ *kill_signal += "(.*)"$`) == "SIGTERM" {
		e.Stop = syscall.SIGTERM
	} else {
		e.Stop = syscall.SIGINT
	}
	return e
}

// Kubernetes replaces a failed pod unless a rule fails the job.
func kubernetes(t *testing.T) Engine {
	e := Engine{File: "kubernetes.yaml", Stop: syscall.SIGTERM, Env: []string{
		"KUBERNETES_SERVICE_HOST=10.0.0.1", "KUBERNETES_PORT=tcp://10.0.0.1:443", "HOSTNAME=tes-sort-x7k2p",
		"DECKHAND_SERVICE_HOST=10.0.0.7", "DECKHAND_SERVICE_PORT=80", "DECKHAND_PORT_80_TCP_ADDR=10.0.0.7", // of a service called deckhand
	}}
	e.Text = example(t, e.File)
	var args []string
	for _, arg := range strings.Split(field(t, e.Text, `^ *args: \[(.*)\]$`), ", ") {
		args = append(args, strings.Trim(arg, `"`))
	}
	e.Command = with(args, "/task/task.json")
	var again []int
	for _, code := range strings.Split(field(t, e.Text, `action: FailJob\s+onExitCodes:\s+containerName: deckhand\s+operator: NotIn\s+values: \[(.*)\]$`), ", ") {
		again = append(again, number(t, code))
	}
	e.Retries = func(code int) bool { return code != 0 && slices.Contains(again, code) }
	return e
}

// Azure Batch retries after every code but 0.
func azure(t *testing.T) Engine {
	e := Engine{File: "azure-batch.json", Stop: syscall.SIGTERM, Retries: notZero, Env: []string{
		"AZ_BATCH_JOB_ID=tes", "AZ_BATCH_TASK_ID=sort", "AZ_BATCH_NODE_ROOT_DIR=DIR/batch", "AZ_BATCH_NODE_SHARED_DIR=DIR/batch/shared",
		"AZ_BATCH_TASK_DIR=DIR", "AZ_BATCH_TASK_WORKING_DIR=DIR/wd",
	}}
	e.Text = example(t, e.File)
	var task struct{ CommandLine string }
	fromJSON(t, e.Text, &task)
	e.Command = with(strings.Fields(task.CommandLine)[1:], "task.json")
	return e
}

// AWS Batch does what the first condition says that fits, else it tries again.
func aws(t *testing.T) Engine {
	e := Engine{File: "aws-batch.json", Stop: syscall.SIGTERM, Env: []string{
		"AWS_BATCH_JOB_ID=8b2b5f2c-0000-4000-8000-000000000001", "AWS_BATCH_JOB_ATTEMPT=1", "AWS_BATCH_JQ_NAME=tes", "AWS_BATCH_CE_NAME=nodes",
	}}
	e.Text = example(t, e.File)
	var definition struct {
		RetryStrategy struct {
			EvaluateOnExit []struct{ OnStatusReason, OnExitCode, OnReason, Action string }
		}
		ContainerProperties struct{ Command []string }
	}
	fromJSON(t, e.Text, &definition)
	e.Command = with(definition.ContainerProperties.Command, "Ref::task")
	e.Retries = func(code int) bool {
		for _, c := range definition.RetryStrategy.EvaluateOnExit {
			if code != 0 && (c.OnExitCode == strconv.Itoa(code) || c.OnReason == "*") {
				return c.Action == "RETRY"
			}
		}
		return code != 0
	}
	return e
}

func notZero(code int) bool { return code != 0 }

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
