package engines

import (
	"encoding/json"
	"io"
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

// directory has the example of an engine under its own name, with one name of it misspelt if misspelt
// is not empty.
func directory(t *testing.T, file, misspelt string) string {
	t.Helper()
	dir := t.TempDir()
	text := example(t, file)
	if misspelt != "" {
		text = strings.Replace(text, misspelt, misspelt+"s", 1)
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// service keeps what is sent to it, by method and path, and answers each with what answer has for that.
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
	s.arrived[what] = string(body)
	w.Header().Set("Content-Type", "application/json")
	answer, ok := s.answer[what]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		answer = "{}"
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
	aws := func(misspelt string) (arrived map[string]string, out string, err error) {
		s := &service{arrived: map[string]string{}, answer: map[string]string{
			"POST /v1/registerjobdefinition": `{"jobDefinitionName": "tes", "jobDefinitionArn": "arn:aws:batch:::job-definition/tes:1", "revision": 1}`,
			"POST /v1/submitjob":             `{"jobName": "sort", "jobId": "8b2b5f2c-0000-4000-8000-000000000001"}`,
		}}
		server := httptest.NewServer(s)
		defer server.Close()
		out, err = run(t, directory(t, "aws-batch.json", misspelt), `aws() { command aws --endpoint-url `+server.URL+` "$@"; }`, commands(t, "aws-batch.md"),
			"AWS_ACCESS_KEY_ID=none", "AWS_SECRET_ACCESS_KEY=none", "AWS_DEFAULT_REGION=eu-west-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=")
		return s.arrived, out, err
	}
	arrived, out, err := aws("")
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
	if arrived, out, err := aws("onExitCode"); err == nil || !strings.Contains(out, `"onExitCodes", must be one of`) || len(arrived) != 0 {
		t.Errorf("of a wrong name it says (%v)\n%s\nand sends %v", err, out, arrived)
	}
}
