package tes

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDecode(t *testing.T) {
	one := "x"
	empty := ""
	tests := []struct {
		name, text string
		want       Task
	}{
		{"names in both styles", `{"resources":{"cpuCores":2,"ram_gb":1.5,"diskGb":3,"backendParametersStrict":true},
			"executors":[{"ignoreError":true}],"outputs":[{"pathPrefix":"/a"}]}`,
			Task{Resources: Resources{CPUCores: 2, RAMGB: 1.5, DiskGB: 3, BackendParametersStrict: true},
				Executors: []Executor{{IgnoreError: true}}, Outputs: []Output{{PathPrefix: "/a"}}}},
		{"one of two spellings is null", `{"resources":{"ram_gb":null,"ramGb":2}}`, Task{Resources: Resources{RAMGB: 2}}},
		{"null is absent", `{"id":null,"name":null,"inputs":null,"outputs":[null],"volumes":[null,"/v"],"resources":null,
			"tags":{"a":null},"executors":[{"env":null,"command":null,"ignore_error":null},{"env":{"A":null,"B":"b"}}]}`,
			Task{Volumes: []string{"/v"}, Executors: []Executor{{}, {Env: map[string]string{"B": "b"}}}}},
		{"numbers as strings", `{"resources":{"cpu_cores":"4","ram_gb":"1e1","disk_gb":"0.5"}}`,
			Task{Resources: Resources{CPUCores: 4, RAMGB: 10, DiskGB: 0.5}}},
		{"fractional cpu_cores", `{"resources":{"cpu_cores":0.25}}`, Task{Resources: Resources{CPUCores: 0.25}}},
		{"zones as a bare string", `{"resources":{"zones":"us-west-1"}}`, Task{Resources: Resources{Zones: Zones{"us-west-1"}}}},
		{"keys of the client stay", `{"tags":{"camelCase":"x","snake_case":""}}`,
			Task{Tags: map[string]string{"camelCase": "x", "snake_case": ""}}},
		{"content empty and not", `{"inputs":[{"content":""},{"content":"x"},{}]}`,
			Task{Inputs: []Input{{Content: &empty}, {Content: &one}, {}}}},
		{"unknown fields", `{"executors":[{"image":"i","cmd":["a"]}],"status":{"a":[1]}}`, Task{Executors: []Executor{{Image: "i"}}}},
		{"what a server sets", `{"id":"t","state":7,"logs":{"x":1},"creation_time":"yesterday","creationTime":[]}`, Task{ID: "t"}},
		{"empty lists and maps", `{"tags":{},"volumes":[],"executors":[{"command":[],"env":{}}]}`, Task{Executors: []Executor{{}}}},
		{"space around", "\n\t{} \r\n", Task{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := decode(t, test.text); !reflect.DeepEqual(*got, test.want) {
				t.Errorf("got  %#v\nwant %#v", *got, test.want)
			}
		})
	}
}

func TestDecodeErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty", " \n", "it is empty"},
		{"no object", `["a"]`, "must be a JSON object, not a list"},
		{"cut", "{\n  \"name\": \"a", "line 2, column 13: the document ends too soon"},
		{"missing comma", "{\n  \"name\": \"é\" \"b\"\n}", "line 2, column 15: invalid character '\"' after object key:value pair"},
		{"comma at the end", "{\"a\": 1,}", "line 1, column 9: "},
		{"not JSON", "name: x", "line 1, column 2: "},
		{"something after", "{}\n\n  {}", "line 3, column 3: something follows"},
		{"not UTF-8", "{\"name\":\n\"\xff\"}", "line 2, column 2: a byte that is not UTF-8"},
		{"too deep", strings.Repeat("[", 20000), "exceeded max depth"},
		{"twice", `{"resources":{"ram_gb":1,"ramGb":2}}`, "resources.ram_gb: is given twice, as ram_gb and as ramGb"},
		{"string for a list", `{"executors":[{"command":"echo hi"}]}`, "executors[0].command: must be a list, not a string"},
		{"null argument", `{"executors":[{"command":["a",null]}]}`, "executors[0].command[1]: must be a string, not null"},
		{"number in a map", `{"executors":[{},{"env":{"A":5}}]}`, "executors[1].env.A: must be a string, not a number"},
		{"string for an object", `{"resources":"big"}`, "resources: must be an object, not a string"},
		{"list for a map", `{"tags":[]}`, "tags: must be an object, not a list"},
		{"string for a truth", `{"resources":{"preemptible":"yes"}}`, "resources.preemptible: must be true or false, not a string"},
		{"word for a number", `{"resources":{"ram_gb":"4GB"}}`, `resources.ram_gb: must be a number, not the string "4GB"`},
		{"hexadecimal", `{"resources":{"ram_gb":"0x10"}}`, "must be a number"},
		{"infinite", `{"resources":{"ram_gb":"Infinity"}}`, "must be a number"},
		{"too large", `{"resources":{"ram_gb":1e999}}`, "must be a number that fits a double, not 1e999"},
		{"list for a number", `{"resources":{"ram_gb":[1]}}`, "resources.ram_gb: must be a number, not a list"},
		{"several", `{"name":1,"inputs":[{"path":2}],"volumes":[{}]}`,
			"name: must be a string, not a number\ninputs[0].path: must be a string, not a number\nvolumes[0]: must be a string, not an object"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Decode(strings.NewReader(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestDecodeReader(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Decode(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	long := strings.NewReader(strings.Repeat(" ", MaxBytes+1))
	if _, err := Decode(long); err == nil || !strings.Contains(err.Error(), "longer than 64 MiB") {
		t.Errorf("got %v", err)
	}
}

// FuzzDecode holds that what was read and found valid is written and read back
// the same.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		if len(text) < 4096 {
			f.Add(string(text))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		task, err := Decode(strings.NewReader(text))
		if err != nil {
			return
		}
		same(t, "document read back", DocumentHash(decode(t, encode(t, task)), nil), DocumentHash(task, nil))
		if _, err := task.Validate(known); err != nil {
			return
		}
		before := encode(t, task)
		if _, err := task.Validate(known); err != nil {
			t.Errorf("a second Validate fails: %v", err)
		}
		same(t, "task after a second Validate", encode(t, task), before)
		sound(t, task)
	})
}

// sound holds what Validate promises of a task that it lets pass.
func sound(t *testing.T, task *Task) {
	t.Helper()
	paths := append([]string{}, task.Volumes...)
	seen := map[string]bool{}
	for _, in := range task.Inputs {
		paths = append(paths, in.Path)
		if (in.URL == "") == (in.Content == nil) || in.Type != File && in.Type != Directory || seen[in.Path] {
			t.Errorf("input %+v", in)
		}
		seen[in.Path] = true
	}
	for _, out := range task.Outputs {
		paths = append(paths, out.LiteralPath())
		if out.URL == "" || out.Type != File && out.Type != Directory || out.Wildcard() != (out.PathPrefix != "") {
			t.Errorf("output %+v", out)
		}
	}
	for _, e := range task.Executors {
		if e.Image == "" || len(e.Command) == 0 {
			t.Errorf("executor %+v", e)
		}
		for _, p := range []string{e.Workdir, e.Stdin, e.Stdout, e.Stderr} {
			if p != "" {
				paths = append(paths, p)
			}
		}
	}
	for _, p := range paths {
		if path.Clean(p) != p || !path.IsAbs(p) || strings.Contains(p, "\x00") {
			t.Errorf("path %q", p)
		}
	}
	if r := task.Resources; len(task.Executors) == 0 || r.RAMBytes() < 0 || r.DiskBytes() < 0 || r.CPUCores < 0 {
		t.Errorf("%d executors, resources %+v", len(task.Executors), r)
	}
}
