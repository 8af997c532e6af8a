package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/tes/conformance"
	"github.com/deckhand/deckhand/test/rig"
)

const documentsDir = "../../internal/tes/testdata"

// bash is what the scripts of clients begin with; the images of tests have
// another shell.
const bash = "#!/bin/sh\nexec /bin/sh \"$@\"\n"

const (
	cromwellTask1 = "/cromwell-executions/workflow1/0fbdb535-4afd-45e3-a8a8-c8e50585ee4e/call-Task1/"
	cromwellMerge = "/cromwell-executions/wf/5f0f2d0c-0000-4000-8000-000000000001/call-merge/"
	cromwellHello = "/cromwell-executions/myWorkflow/00000000-0000-4000-8000-000000000002/call-myTask/"
	nextflowWork  = "/home/user/nf/work/3f/8a1c2d4e5f60718293a4b5c6d7e8f9/"
)

// cromwellScript is what Cromwell would have a task run; the files of its pattern
// become hard links.
const cromwellScript = `cd ` + cromwellMerge + `execution
mkdir glob-6db4e2f7c0b2a1
cat ../inputs/bucket/shards/shard-*/sample.bam > merged.bam
echo 0 > part-0; echo 1 > part-1
( ln -L part-* glob-6db4e2f7c0b2a1 2> /dev/null ) || ( ln part-* glob-6db4e2f7c0b2a1 )
ls -1 glob-6db4e2f7c0b2a1 > glob-6db4e2f7c0b2a1.list
echo merged; echo 0 > rc
`

// A document of a client and what becomes of it. Sources and results are named by
// their URLs: the scheme, file for a bare path, and the rest of it.
type clientTask struct {
	image   map[string]string // files that its images have
	sources map[string]string
	code    int // of the program; 0 when the task is Complete
	exits   []int
	stdout  []string // of the executors, where it matters
	results map[string]string
	says    []string // in the system logs, or on standard error when there is no result
}

// clientTasks says for every document that clients of TES send how it ends.
var clientTasks = map[string]clientTask{
	"funnel-md5sum": {
		sources: map[string]string{"file/tmp/md5sum_input": "hello\n"}, exits: []int{0},
		results: map[string]string{"file/tmp/md5sum_output": "b1946ac92492d2347c6235b4d2611184  /tmp/in\n"},
	},
	"funnel-input-content": {exits: []int{0}, results: map[string]string{"file/tmp/cat_output": "Hello World\n"}},
	"funnel-capture-stdout-stderr": {
		sources: map[string]string{"file/tmp/input": "hello\n"}, exits: []int{0},
		results: map[string]string{
			"file/tmp/stdout": "b1946ac92492d2347c6235b4d2611184  /tmp/in\n", "file/tmp/stderr": "b1946ac92492d2347c6235b4d2611184  /tmp/in\n",
		},
	},
	"funnel-full-hello": {
		exits: []int{0}, results: map[string]string{
			"file/Users/buchanae/src/github.com/ohsu-comp-bio/funnel/_scratch/full-output/foo": "foo\n",
			"file/Users/buchanae/src/github.com/ohsu-comp-bio/funnel/_scratch/full-output/bar": "bar\n",
		},
	},
	// It says that it fails; but there is no shell that would see the &&.
	"funnel-error":            {exits: []int{0}, stdout: []string{"error! && exit 1\n"}},
	"funnel-resource-request": {exits: []int{0}},
	"funnel-nextflow-canary": {
		image: map[string]string{
			"/bin/nextflow":      "#!/bin/sh\n[ -f \"$3\" ] && [ \"$PWD\" = /root ] && echo launched > .nextflow.log && echo cached > /.nextflow/history\n",
			"/nf-canary/main.nf": "workflow {}", "/root/.profile": "of the image",
		},
		exits: []int{0}, results: map[string]string{"file/tmp/.nextflow.log": "launched\n", "file/tmp/.profile": "of the image", "file/tmp/history": "cached\n"},
	},
	"funnel-multi-executor": {
		image: map[string]string{"/bin/bash": bash}, sources: map[string]string{"gs/tes-batch-integration/input-data/sample.txt": "one two\nthree\n"},
		exits: []int{0, 0}, results: map[string]string{
			"gs/tes-batch-integration/output/executor1-output.txt": "ONE TWO\nTHREE\n",
			"gs/tes-batch-integration/output/executor2-output.txt": "        2         3        14 /data/input.txt\n",
		},
	},
	"funnel-empty-arg": {exits: []int{0}, stdout: []string{"\n"}},
	"ga4gh-tes-cromwell": {
		image: map[string]string{"/bin/bash": bash}, sources: map[string]string{"file/storageaccount1/container1/file1.txt": "text"},
		exits: []int{0}, results: map[string]string{
			"file" + cromwellTask1 + "execution/rc": "0\n", "file" + cromwellTask1 + "execution/stdout": "", "file" + cromwellTask1 + "execution/stderr": "",
			"file" + cromwellTask1 + "execution/script":              "content of the input",
			"file" + cromwellTask1 + "execution/OutputFromTask1.vcf": "Hello World from Task1.\n",
		},
	},
	"tesk-output-volume": {
		exits: []int{0, 0}, results: map[string]string{
			"ftp/ftp-private.ebi.ac.uk/upload/examples/existing1/file1.txt": "This goes to file1\n",
			"ftp/ftp-private.ebi.ac.uk/upload/examples/file1.txt":           "This goes to file1\n",
			"ftp/ftp-private.ebi.ac.uk/upload/examples/file2.txt":           "This goes to file2\n",
		},
	},
	"tesk-error-stops": {
		code: 1, exits: []int{0, 1}, stdout: []string{"You will see this in the logs (stdout).\n", ""}, says: []string{"executor 1 ended with exit code 1"},
	},
	"tesk-bad-input": {code: 3, says: []string{"input /somewhere/file", "404"}},
	"tesk-env":       {exits: []int{0, 0}, stdout: []string{"$SECRET_PROJECT_NAME $PROJECT_STATUS\n", "TESK rocks!\n"}},
	"tesk-with-io": {
		sources: map[string]string{"ftp/ftp/home/tesk/input.txt": "of the input\n"}, exits: []int{0}, results: map[string]string{
			"ftp/ftp/home/tesk/output/input": "of the input\n", "ftp/ftp/home/tesk/output/output": "of the input\nHello TESK\n", "ftp/ftp/home/tesk/output/err": "",
		},
	},
	"compliance-ignore-error-false":    {code: 1, exits: []int{127}, says: []string{`"ERROR"`}},
	"compliance-backend-params-strict": {code: 2, says: []string{"resources.backend_parameters.INVALID: is not supported here, and backend_parameters_strict is set"}},
	"compliance-backend-params": {
		exits: []int{0}, stdout: []string{"hello\n"},
		says: []string{"resources.backend_parameters.Caching: is not supported here; ignored", "resources.backend_parameters.VmSize: is not supported here; ignored"},
	},
	"compliance-streamable": {sources: map[string]string{"s3/my-object-store/file1": "streamed"}, exits: []int{0}, stdout: []string{"hello\n"}},
	"compliance-optional-filetype": {
		sources: map[string]string{"s3/my-object-store/file-1": "one"}, exits: []int{0}, says: []string{"output /data/outfile was not made"},
	},
	"nextflow-globs": {
		image: map[string]string{"/bin/bash": bash}, exits: []int{0}, stdout: []string{"wrapped\n"},
		sources: map[string]string{
			"file" + nextflowWork + ".command.sh": "echo of the command > .command.out; touch versions.yml S1_fastqc.html other.html .hidden.html S1_fastqc.zip x.zip",
			"file" + nextflowWork + ".command.run": "set -e\npython() { sh \"$@\"; }\ncat GRCh38/chr/1.fa S1_R1.fastq.gz S1_R2.fastq.gz > /dev/null\n" +
				"python /home/user/nf/bin/helper.py\nsh .command.sh\necho wrapped\necho -n 0 > .exitcode\n",
			"file/home/user/nf/bin/helper.py": "exit 0", "file/refs/GRCh38/chr/1.fa": ">1", "file/refs/GRCh38/index": "i",
			"s3/reads/run 7/S1_R1.fastq.gz": "r1", "s3/reads/run 7/S1_R2.fastq.gz": "r2",
		},
		results: map[string]string{
			"file" + nextflowWork + ".command.out": "of the command\n", "file" + nextflowWork + ".command.log": "wrapped\n", "file" + nextflowWork + ".exitcode": "0",
			"file" + nextflowWork + "S1_fastqc.html": "", "file" + nextflowWork + "other.html": "", "file" + nextflowWork + "S1_fastqc.zip": "", "file" + nextflowWork + "versions.yml": "",
		},
		says: []string{"output /work/.command.err was not made"},
	},
	"cromwell-granular-200-inputs": {
		image: map[string]string{"/bin/bash": bash}, exits: []int{0},
		sources: shards(map[string]string{"file" + cromwellMerge + "execution/script": cromwellScript}),
		results: map[string]string{
			"file" + cromwellMerge + "execution/rc": "0\n", "file" + cromwellMerge + "execution/stdout": "merged\n", "file" + cromwellMerge + "execution/stderr": "",
			"file" + cromwellMerge + "execution/script": cromwellScript, "file" + cromwellMerge + "execution/merged.bam": strings.Repeat("BAM\n", 200),
			"file" + cromwellMerge + "execution/glob-6db4e2f7c0b2a1/part-0": "0\n", "file" + cromwellMerge + "execution/glob-6db4e2f7c0b2a1/part-1": "1\n",
			"file" + cromwellMerge + "execution/glob-6db4e2f7c0b2a1.list": "part-0\npart-1\n",
		},
		says: []string{"resources.backend_parameters.internal_path_prefix: is not supported here; ignored"},
	},
	"pulsar-coexecution": {
		image: map[string]string{
			"/bin/pulsar-submit": "#!/bin/sh\nmkdir -p /pulsar_staging/42 && echo 'pwd; echo ran > /pulsar_staging/42/result' > /pulsar_staging/42/command.sh\n",
			"/bin/pulsar-finish": "#!/bin/sh\ncat /pulsar_staging/42/result; echo \"$@\"\n",
		},
		exits: []int{0, 0, 0}, stdout: []string{"", "/pulsar_staging\n", "ran\n--base64 eyJ9\n"},
	},
	// Its working directory is one of its files.
	"py-tes-full": {code: 1, exits: []int{127}, says: []string{"inputs[0] has the same path and another source", "/abs/path"}, results: map[string]string{"s3/some/path": ""}},
	"cromwell-hello-digest": {
		image: map[string]string{"/bin/bash": bash}, exits: []int{0}, stdout: []string{"hello\n"},
		sources: map[string]string{"file/tmp" + cromwellHello + "execution/script": "echo hello; echo 0 > " + cromwellHello + "execution/rc"},
		results: map[string]string{"file/tmp" + cromwellHello + "execution/rc": "0\n"},
	},
}

// shards adds the 200 inputs of one name to others.
func shards(sources map[string]string) map[string]string {
	for i := range 200 {
		sources[fmt.Sprintf("gs/bucket/shards/shard-%d/sample.bam", i)] = "BAM\n"
	}
	return sources
}

// Every document that clients send runs to the state that it should reach.
func TestDocumentsOfClients(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(documentsDir, "*.json"))
	if err != nil || len(files) != len(clientTasks) {
		t.Fatalf("%d documents and %d expectations (%v)", len(files), len(clientTasks), err)
	}
	w := NewWorld(t)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			want, ok := clientTasks[name]
			if !ok {
				t.Fatal("nothing is expected of this document")
			}
			d := w.mapped(t, file, want)
			result := filepath.Join(t.TempDir(), "result.json")
			o := Outcome{Result: w.Deckhand(t, "run", d.name, "--result", result)}
			if o.Code != want.code {
				t.Fatalf("exit code %d, want %d\n%s", o.Code, want.code, o.Stderr)
			}
			text, err := os.ReadFile(result)
			if want.code == 2 {
				if !errors.Is(err, os.ErrNotExist) || !strings.Contains(o.Stderr, strings.Join(want.says, "")) {
					t.Errorf("%v, %s\n%s", err, text, o.Stderr)
				}
				return
			}
			if err := errors.Join(err, json.Unmarshal(text, &o.Task), conformance.Check(text)); err != nil {
				t.Fatalf("the result is not what TES says: %v\n%s", err, text)
			}
			o.warned(t, want.says...)
			checkLogs(t, o, want)
			d.checkStored(t, want)
			w.Clean(t)
		})
	}
}

// checkLogs compares state, exit codes and what executors said.
func checkLogs(t *testing.T, o Outcome, want clientTask) {
	t.Helper()
	states := map[int]tes.State{0: tes.Complete, 1: tes.ExecutorError, 3: tes.SystemError}
	var exits []int
	for i, log := range o.Log(t).Logs {
		exits = append(exits, log.ExitCode)
		if i < len(want.stdout) && log.Stdout != want.stdout[i] {
			t.Errorf("executor %d says %q, want %q", i, log.Stdout, want.stdout[i])
		}
	}
	if o.Task.State != states[want.code] || !slices.Equal(exits, want.exits) {
		t.Errorf("the task is %s with exit codes %v, want %s with %v\n%s", o.Task.State, exits, states[want.code], want.exits, o.Stderr)
	}
	if n := len(o.Task.Resources.BackendParameters); n != 0 {
		t.Errorf("%d parameters that are not supported are in the result", n)
	}
	if len(o.Log(t).Outputs) != len(want.results) {
		t.Errorf("%d outputs are logged, want %d: %+v", len(o.Log(t).Outputs), len(want.results), o.Log(t).Outputs)
	}
}

// mappedTask is a document whose images and URLs are those of this machine.
type mappedTask struct {
	name string // of the file
	top  string // of what the URLs lead to
	w    *World
}

// mapped copies a document and leads its images to the registry, file URLs and
// paths to a directory, and all other URLs to an http server on the same directory.
func (w *World) mapped(t *testing.T, file string, want clientTask) mappedTask {
	t.Helper()
	d := mappedTask{top: filepath.Join("stored", filepath.Base(file)), w: w}
	for name, content := range want.sources {
		w.Write(t, filepath.Join(d.top, name), content)
	}
	if err := os.MkdirAll(filepath.Join(w.Dir, d.top), 0o755); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(storage(filepath.Join(w.Dir, d.top)))
	t.Cleanup(server.Close)

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if id, given := doc["id"]; !given {
		doc["id"] = strings.TrimSuffix(filepath.Base(file), ".json")
	} else if id == "" {
		t.Fatal("the document has an empty id")
	}
	for _, kind := range []string{"inputs", "outputs"} {
		objects, _ := doc[kind].([]any)
		for _, o := range objects {
			if url, ok := o.(map[string]any)["url"].(string); ok {
				o.(map[string]any)["url"] = mappedURL(url, filepath.Join(w.Dir, d.top), server.URL)
			}
		}
	}
	images := map[string]string{}
	for _, e := range doc["executors"].([]any) {
		e := e.(map[string]any)
		image := e["image"].(string)
		if images[image] == "" {
			images[image] = w.mappedImage(t, image, want.image)
		}
		e["image"] = images[image]
	}
	// No machine need have as much space as they ask for.
	if r, ok := doc["resources"].(map[string]any); ok {
		for _, key := range []string{"disk_gb", "diskGb"} {
			if r[key] != nil {
				r[key] = 0.1
			}
		}
	}
	changed, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	d.name = w.Write(t, filepath.Join("documents", filepath.Base(file)), string(changed))
	return d
}

func mappedURL(url, dir, server string) string {
	scheme, rest, found := strings.Cut(url, ":")
	switch {
	case strings.HasPrefix(url, "/"):
		return dir + "/file" + url
	case scheme == "file":
		return "file://" + dir + "/file" + strings.TrimPrefix(rest, "//")
	case found:
		return server + "/" + scheme + "/" + strings.TrimLeft(rest, "/")
	}
	return url
}

// mappedImage pushes an image of this name and returns a reference that is
// written alike: with a tag, a digest or neither.
func (w *World) mappedImage(t *testing.T, image string, files map[string]string) string {
	t.Helper()
	name, _, byDigest := strings.Cut(image, "@")
	repository, tag, tagged := strings.Cut(path.Base(name), ":")
	if repository = strings.ToLower(repository); tagged { // as a registry has them
		repository += ":" + tag
	}
	ref := w.Image(t, repository, rig.Spec{Marker: t.Name(), Files: files})
	switch {
	case byDigest:
		return ref.Digest
	case !tagged:
		return strings.TrimSuffix(ref.Tag, ":latest")
	}
	return ref.Tag
}

// storage serves a directory, which takes uploads too.
func storage(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := filepath.Join(dir, filepath.Clean("/"+r.URL.Path))
		if r.Method != http.MethodPut {
			http.ServeFile(w, r, name)
			return
		}
		content, err := io.ReadAll(r.Body)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, content, 0o644)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

// checkStored compares what is at the URLs: sources as they were, and results.
func (d mappedTask) checkStored(t *testing.T, want clientTask) {
	t.Helper()
	expected := maps.Clone(want.sources)
	if expected == nil {
		expected = map[string]string{}
	}
	for name, content := range want.results {
		if strings.HasSuffix(name, "execution/script") && content == "content of the input" {
			content = d.inputContent(t)
		}
		expected[name] = content
	}
	got := d.w.tree(t, d.top)
	delete(got, "./") // nothing is there at all
	same(t, "what is at the URLs", got, expected)
}

// inputContent is the content of the document's input that has one.
func (d mappedTask) inputContent(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(d.name)
	if err != nil {
		t.Fatal(err)
	}
	task, err := tes.Decode(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range task.Inputs {
		if in.Content != nil {
			return *in.Content
		}
	}
	t.Fatal("no input has content")
	return ""
}
