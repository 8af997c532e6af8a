package engines

import (
	"cmp"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/deckhand/deckhand/test/rig"
)

// commands are those that a page has its readers run, as they stand in its one block of them.
func commands(t *testing.T, page string) string {
	t.Helper()
	return field(t, example(t, page), "(?s)^```sh\n(.*?)^```$")
}

// run runs lines of a page in a directory, after some that send what they do to a fake service.
// Nothing of this machine's own accounts is seen by them.
func run(t *testing.T, dir, before, lines string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("bash", "-e", "-c", before+"\n"+lines)
	cmd.Dir, cmd.Env = dir, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// directory has the example of an engine under its own name, with a text in it changed.
func directory(t *testing.T, file, was, is string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, file), strings.Replace(example(t, file), was, is, 1))
	return dir
}

// service keeps what is sent to it, the body or else the query, by method and path, and answers
// each with what answer has for that.
type service struct {
	answer  map[string]string
	mu      sync.Mutex
	arrived map[string]string
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	what := r.Method + " " + r.URL.Path
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrived[what] += cmp.Or(string(body), r.URL.RawQuery)
	w.Header().Set("Content-Type", "application/json")
	answer, ok := s.answer[what]
	switch {
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		answer = "{}"
	case r.Method == http.MethodPost:
		w.WriteHeader(http.StatusCreated) // Azure's client takes no other
	}
	_, _ = io.WriteString(w, answer)
}

// same says whether a text is the JSON of a value.
func same(t *testing.T, text string, value any) bool {
	t.Helper()
	b, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var is, should any
	fromJSON(t, text, &is)
	fromJSON(t, string(b), &should)
	return reflect.DeepEqual(is, should)
}

// AWS's command line sends the whole example, and the job with the URL of its document.
func TestAWSCommands(t *testing.T) {
	rig.Program(t, "aws", "awscli")
	aws := func(was, is string) (arrived map[string]string, out string, err error) {
		s := &service{arrived: map[string]string{}, answer: map[string]string{
			"POST /v1/registerjobdefinition": `{"jobDefinitionName": "tes", "jobDefinitionArn": "arn:aws:batch:::job-definition/tes:1", "revision": 1}`,
			"POST /v1/submitjob":             `{"jobName": "sort", "jobId": "8b2b5f2c-0000-4000-8000-000000000001"}`,
		}}
		server := httptest.NewServer(s)
		defer server.Close()
		out, err = run(t, directory(t, "aws-batch.json", was, is), `aws() { command aws --endpoint-url `+server.URL+` "$@"; }`, commands(t, "aws-batch.md"),
			"AWS_ACCESS_KEY_ID=none", "AWS_SECRET_ACCESS_KEY=none", "AWS_DEFAULT_REGION=eu-west-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=")
		return s.arrived, out, err
	}
	arrived, out, err := aws("", "")
	if err != nil || !strings.Contains(out, `"revision": 1`) || !strings.Contains(out, `"jobId": "8b2b5f2c`) {
		t.Fatalf("%v\n%s", err, out)
	}
	if sent := arrived["POST /v1/registerjobdefinition"]; !same(t, sent, json.RawMessage(example(t, "aws-batch.json"))) {
		t.Errorf("of the example is sent\n%s", sent)
	}
	job, url := arrived["POST /v1/submitjob"], regexp.MustCompile(`task=([^' ]+)`).FindStringSubmatch(commands(t, "aws-batch.md"))
	var definition struct{ JobDefinitionName string }
	fromJSON(t, example(t, "aws-batch.json"), &definition)
	if url == nil || !strings.Contains(url[1], "&") || !same(t, job, map[string]any{
		"jobName": "sort", "jobQueue": "tes", "jobDefinition": definition.JobDefinitionName, "parameters": map[string]string{"task": url[1]},
	}) {
		t.Errorf("the job is %s, of the document %q", job, url)
	}
	if arrived, out, err := aws("onExitCode", "onExitCodes"); err == nil || !strings.Contains(out, `"onExitCodes", must be one of`) || len(arrived) != 0 {
		t.Errorf("of a wrong name it says (%v)\n%s\nand sends %q", err, out, arrived)
	}
}

// What an API server answers to kubectl, but for the schema. The job has had two pods.
var apiServer = map[string]string{
	"GET /api":  `{"kind": "APIVersions", "versions": ["v1"]}`,
	"GET /apis": `{"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": "batch", "versions": [{"groupVersion": "batch/v1", "version": "v1"}]}]}`,
	"GET /api/v1": `{"kind": "APIResourceList", "groupVersion": "v1", "resources": [
		{"name": "configmaps", "namespaced": true, "kind": "ConfigMap", "verbs": ["create"]}, {"name": "pods", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"]}]}`,
	"GET /apis/batch/v1":                          `{"kind": "APIResourceList", "groupVersion": "batch/v1", "resources": [{"name": "jobs", "namespaced": true, "kind": "Job", "verbs": ["create"]}]}`,
	"POST /api/v1/namespaces/default/configmaps":  `{"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "tes-sort"}}`,
	"POST /apis/batch/v1/namespaces/default/jobs": `{"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "tes-sort"}}`,
	"GET /api/v1/namespaces/default/pods": `{"kind": "PodList", "apiVersion": "v1", "items": [
		{"metadata": {"name": "last", "namespace": "default", "creationTimestamp": "2026-01-01T00:01:00Z"}, "spec": {"containers": [{"name": "deckhand"}]}},
		{"metadata": {"name": "first", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": [{"name": "deckhand"}]}}]}`,
	"GET /api/v1/namespaces/default/pods/last":            `{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "last", "namespace": "default"}, "spec": {"containers": [{"name": "deckhand"}]}}`,
	"GET /api/v1/namespaces/default/pods/last/log":        "the result",
	"GET /apis/batch/v1/namespaces/default/jobs/tes-sort": `{"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "tes-sort", "namespace": "default"}, "spec": {"selector": {}}}`,
	"GET /api/v1/namespaces/default/pods/first/log":       "the first result",
}

// kubectl finds the whole example right by the schema of an API server and sends it, with the
// document beside it; it shows the result of the last pod, or of the first.
func TestKubernetesCommands(t *testing.T) {
	const ofFirst = "kubectl logs job/tes-sort"
	if !strings.Contains(example(t, "kubernetes.md"), "`"+ofFirst+"` shows that of the first one") {
		t.Errorf("kubernetes.md does not say what %s does", ofFirst)
	}
	rig.Program(t, "kubectl", "kubernetes-client")
	schema, err := exec.Command("go", "run", "-C", "schemas", "./openapi").Output()
	if err != nil {
		t.Fatal(err)
	}
	document := "the document"
	kubectl := func(was, is string) (arrived map[string]string, out string, err error) {
		s := &service{arrived: map[string]string{}, answer: maps.Clone(apiServer)}
		s.answer["GET /openapi/v2"] = string(schema)
		server := httptest.NewServer(s)
		defer server.Close()
		dir := directory(t, "kubernetes.yaml", was, is)
		write(t, filepath.Join(dir, "task.json"), document)
		out, err = run(t, dir, `kubectl() { command kubectl --server `+server.URL+` "$@"; }`, commands(t, "kubernetes.md")+"echo\n"+ofFirst)
		return s.arrived, out, err
	}
	arrived, out, err := kubectl("", "")
	if err != nil || !strings.Contains(out, "\nthe result\n") || !strings.HasSuffix(out, "\nthe first result") || !strings.Contains(arrived["GET /api/v1/namespaces/default/pods"], "labelSelector=job-name%3Dtes-sort") {
		t.Fatalf("%v\n%s\n%q", err, out, arrived)
	}
	// Protobuf, or JSON from an older kubectl.
	for _, has := range []string{"tes-sort", "task.json", document} {
		if sent := arrived["POST /api/v1/namespaces/default/configmaps"]; !strings.Contains(sent, has) {
			t.Errorf("the ConfigMap has no %q: %q", has, sent)
		}
	}
	written, err := exec.Command("go", "run", "-C", "schemas", ".", filepath.Join(Dir(), "kubernetes.yaml")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var job map[string]any
	fromJSON(t, string(written), &job)
	job["metadata"].(map[string]any)["namespace"] = "default" // kubectl's
	sent := arrived["POST /apis/batch/v1/namespaces/default/jobs"]
	if !same(t, sent, job) || !strings.Contains(sent, `"configMap":{"name":"tes-sort"}`) {
		t.Errorf("of the example is sent\n%s", sent)
	}
	arrived, out, err = kubectl("terminationGracePeriodSeconds", "terminationGracePeriodSecondss")
	if _, sent := arrived["POST /apis/batch/v1/namespaces/default/jobs"]; err == nil || !strings.Contains(out, `unknown field "terminationGracePeriodSecondss" in`) || sent {
		t.Errorf("of a wrong name it says (%v)\n%s\nand sends %q", err, out, arrived)
	}
}

// Azure's command line sends the whole example, but says nothing of a name that it does not know.
func TestAzureCommands(t *testing.T) {
	rig.Program(t, "az", "azure-cli")
	az := func(was, is string) string {
		s := &service{arrived: map[string]string{}, answer: map[string]string{
			"POST /jobs/tes/tasks": "", "GET /jobs/tes/tasks/sort": `{"id": "sort", "state": "active"}`,
		}}
		server := httptest.NewServer(s)
		defer server.Close()
		out, err := run(t, directory(t, "azure-batch.json", was, is), "", commands(t, "azure-batch.md"),
			"AZURE_BATCH_ACCOUNT=none", "AZURE_BATCH_ACCESS_KEY=bm9uZQ==", "AZURE_BATCH_ENDPOINT="+server.URL, "AZURE_CORE_COLLECT_TELEMETRY=no")
		if err != nil || !strings.Contains(out, `"state": "active"`) {
			t.Fatalf("%v\n%s", err, out)
		}
		return s.arrived["POST /jobs/tes/tasks"]
	}
	if sent := az("", ""); !same(t, sent, json.RawMessage(example(t, "azure-batch.json"))) {
		t.Errorf("of the example is sent\n%s", sent)
	}
	if sent := az("maxTaskRetryCount", "maxTaskRetryCounts"); strings.Contains(sent, "maxTaskRetryCount") {
		t.Errorf("with a wrong name is sent\n%s", sent)
	}
}
