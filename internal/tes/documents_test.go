package tes

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// documents says what becomes of every document in testdata.
var documents = map[string]struct {
	warnings []string // the field that each is about
	errs     []string
	check    func(*testing.T, *Task)
}{
	"compliance-backend-params-strict": {errs: []string{"resources.backend_parameters.INVALID"}},
	"compliance-backend-params": {
		warnings: []string{"resources.backend_parameters.Caching", "resources.backend_parameters.VmSize"},
		check: func(t *testing.T, task *Task) {
			same(t, "backend_parameters", len(task.Resources.BackendParameters), 0)
		},
	},
	"compliance-ignore-error-false": {check: func(t *testing.T, task *Task) {
		same(t, "ignore_error", task.Executors[0].IgnoreError, false)
	}},
	"compliance-optional-filetype": {check: func(t *testing.T, task *Task) {
		same(t, "input type", task.Inputs[0].Type, File)
		same(t, "output type", task.Outputs[0].Type, File)
	}},
	"compliance-streamable": {check: func(t *testing.T, task *Task) {
		same(t, "streamable", task.Inputs[0].Streamable, true)
	}},
	"cromwell-granular-200-inputs": {
		warnings: []string{"resources.backend_parameters.internal_path_prefix"}, // vm_size is null
		check: func(t *testing.T, task *Task) {
			same(t, "inputs", len(task.Inputs), 201)
			glob := task.Outputs[len(task.Outputs)-2]
			same(t, "type", glob.Type, Directory)
			same(t, "slash at the end", strings.HasSuffix(glob.Path, "/"), false)
			same(t, "tags", len(task.Tags), 2) // the third is null
			same(t, "ram", task.Resources.RAMBytes(), 7_500_000_000)
		},
	},
	"funnel-capture-stdout-stderr": {check: func(t *testing.T, task *Task) {
		same(t, "stderr", task.Executors[0].Stderr, "/tmp/err")
	}},
	"funnel-empty-arg": {check: func(t *testing.T, task *Task) {
		same(t, "command", strings.Join(task.Executors[0].Command, "|"), "echo|")
	}},
	"funnel-error": {check: func(t *testing.T, task *Task) {
		same(t, "command", strings.Join(task.Executors[0].Command, "|"), "echo|error!|&&|exit|1")
	}},
	"funnel-full-hello": {check: func(t *testing.T, task *Task) {
		same(t, "volumes", strings.Join(task.Volumes, " "), "/vol1 /vol2")
		same(t, "env", task.Executors[0].Env["THREE"], "FOUR")
		same(t, "url", strings.HasSuffix(task.Outputs[0].URL, "/full-output/"), true)
	}},
	"funnel-input-content": {check: func(t *testing.T, task *Task) {
		same(t, "content", *task.Inputs[0].Content, "Hello World\n")
	}},
	"funnel-md5sum": {check: func(t *testing.T, task *Task) {
		same(t, "url", task.Inputs[0].URL, "file:///tmp/md5sum_input")
	}},
	"funnel-multi-executor": {check: func(t *testing.T, task *Task) {
		same(t, "executors", len(task.Executors), 2)
		same(t, "images", len(task.Images()), 1)
	}},
	"funnel-nextflow-canary": {check: func(t *testing.T, task *Task) {
		same(t, "path", task.Outputs[0].Path, "/.nextflow")
		same(t, "path", task.Outputs[1].Path, "/root")
	}},
	"funnel-resource-request": {check: func(t *testing.T, task *Task) {
		same(t, "cpus", task.Resources.CPUCores, 4)
		same(t, "ram", task.Resources.RAMBytes(), 15_000_000_000)
		same(t, "disk", task.Resources.DiskBytes(), 100_000_000_000)
	}},
	"ga4gh-tes-cromwell": {check: func(t *testing.T, task *Task) {
		same(t, "id", task.ID, "0fbdb535_ffb23efdd27144fb9013b11a9e32398d")
		same(t, "state", task.State, "")
		same(t, "url of the script", task.Inputs[1].URL, "")
		same(t, "script", strings.HasPrefix(*task.Inputs[1].Content, "#!/bin/bash"), true)
		same(t, "workdir", task.Executors[0].Workdir, "")
		same(t, "cpus", task.Resources.CPUCores, 0)
	}},
	"cromwell-hello-digest": {check: func(t *testing.T, task *Task) {
		same(t, "image", task.Executors[0].Image, "ubuntu@sha256:186072bba1b2f436cbb91ef2567abca677337cfc786c86e107d25b7072feef0c")
		same(t, "tags", len(task.Tags), 1) // the other is null
	}},
	"nextflow-globs": {check: func(t *testing.T, task *Task) {
		out, html := task.Outputs[0], task.Outputs[4]
		same(t, "wildcard", out.Wildcard(), false)
		same(t, "literal", out.LiteralPath(), "/work/.command.out")
		same(t, "type", out.Type, File)
		same(t, "wildcard", html.Wildcard(), true)
		same(t, "relative", html.Relative("/work/a.html"), "a.html")
		same(t, "url", task.Inputs[3].URL, "s3://reads/run 7/S1_R1.fastq.gz")
	}},
	"pulsar-coexecution": {check: func(t *testing.T, task *Task) {
		same(t, "volumes", strings.Join(task.Volumes, " "), "/pulsar_staging")
		same(t, "images", len(task.Images()), 2)
		same(t, "workdir", task.Executors[1].Workdir, "/pulsar_staging")
	}},
	"py-tes-full": {
		warnings: []string{"inputs[1].path"},
		check: func(t *testing.T, task *Task) {
			same(t, "id", task.ID, "foo")
			same(t, "state", task.State, "")
			same(t, "logs", len(task.Logs), 0)
			same(t, "created", task.CreationTime.IsZero(), true)
			same(t, "inputs", len(task.Inputs), 1)
			same(t, "content", *task.Inputs[0].Content, "foo")
			same(t, "zones", strings.Join(task.Resources.Zones, " "), "us-east-1 us-west-1")
			same(t, "preemptible", task.Resources.Preemptible, true)
		},
	},
	"tesk-bad-input":     {},
	"tesk-env":           {},
	"tesk-error-stops":   {check: func(t *testing.T, task *Task) { same(t, "executors", len(task.Executors), 3) }},
	"tesk-output-volume": {check: func(t *testing.T, task *Task) { same(t, "outputs", len(task.Outputs), 2) }},
	"tesk-with-io": {check: func(t *testing.T, task *Task) {
		same(t, "disk", task.Resources.DiskBytes(), 100_000_000)
		same(t, "workdir", task.Executors[0].Workdir, "/tes")
	}},
}

func TestDocuments(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) != len(documents) {
		t.Fatalf("%d documents and %d expectations (%v)", len(files), len(documents), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			want, ok := documents[name]
			if !ok {
				t.Fatal("nothing is expected of this document")
			}
			task := decodeFile(t, file)
			hash := DocumentHash(task, nil)
			warnings, err := task.Validate()
			sameFields(t, "warnings", warnings, want.warnings)
			sameFields(t, "errors", problems(t, err), want.errs)
			if want.check != nil {
				want.check(t, task)
			}
			if err == nil {
				again(t, task)
			}
			// The same document in another dress.
			other := decode(t, disguise(t, file))
			same(t, "hash of a reformatted document", DocumentHash(other, nil), hash)
		})
	}
}

// again holds that a valid task is a fixed point of Validate and of encoding.
func again(t *testing.T, task *Task) {
	t.Helper()
	before := encode(t, task)
	warnings, err := task.Validate()
	if err != nil || len(warnings) > 0 {
		// An empty file stays worth a warning; no document here has one.
		t.Errorf("a second Validate says %v, %q", err, warnings)
	}
	same(t, "task after a second Validate", encode(t, task), before)
	same(t, "task read back", encode(t, decode(t, before)), before)
}

// disguise writes the document with camelCase names, other spacing and order,
// and as a server would send it back.
func disguise(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	tree["id"], tree["state"], tree["logs"] = "another", "RUNNING", []any{map[string]any{"logs": nil}}
	tree["creation_time"], tree["from_the_future"] = "2026-01-02T03:04:05Z", map[string]any{}
	renamed := rename(tree).(map[string]any)
	renamed["tags"] = tree["tags"] // keys of the client
	out, err := json.MarshalIndent(renamed, " ", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// rename turns the names of TES fields into camelCase; maps of the client stay.
func rename(tree any) any {
	switch v := tree.(type) {
	case map[string]any:
		m := map[string]any{}
		for key, value := range v {
			if key != "env" && key != "backend_parameters" {
				value = rename(value)
			}
			m[camelCase(key)] = value
		}
		return m
	case []any:
		for i := range v {
			v[i] = rename(v[i])
		}
	}
	return tree
}

func decode(t *testing.T, text string) *Task {
	t.Helper()
	task, err := Decode(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func decodeFile(t *testing.T, file string) *Task {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, string(text))
}

func encode(t *testing.T, task *Task) string {
	t.Helper()
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// problems lists the problems of an error, which must be FieldErrors.
func problems(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	var errs FieldErrors
	if !errors.As(err, &errs) {
		t.Fatalf("%T is not FieldErrors: %v", err, err)
	}
	var list []string
	for _, e := range errs {
		list = append(list, e.Error())
	}
	return list
}

// sameFields compares sentences with the fields that they should begin with.
func sameFields(t *testing.T, what string, sentences, fields []string) {
	t.Helper()
	if len(sentences) != len(fields) {
		t.Errorf("%s: %q, want those about %q", what, sentences, fields)
		return
	}
	for i, s := range sentences {
		if !strings.HasPrefix(s, fields[i]+": ") {
			t.Errorf("%s: %q, want one about %s", what, s, fields[i])
		}
	}
}

func same[V comparable](t *testing.T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
