package tes

import (
	"errors"
	"strconv"
	"strings"
	"testing"
)

// minimal is the smallest valid task, with more put into it.
func minimal(more string) string {
	if more != "" {
		more = "," + more
	}
	return `{"executors":[{"image":"alpine","command":["true"]}]` + more + `}`
}

// known is a parameter that takes numbers.
var known = Parameter{Key: "Known", Check: func(value string) error {
	if _, err := strconv.Atoi(value); err != nil {
		return errors.New("it must be a number")
	}
	return nil
}}

func executor(more string) string {
	return `{"executors":[{"image":"alpine","command":["true"],` + more + `}]}`
}

func TestValidateErrors(t *testing.T) {
	long := "/" + strings.Repeat("a/", 2100)
	tests := []struct {
		name, text string
		want       []string
	}{
		{"nothing", `{}`, []string{"executors: must not be empty; name at least one image and command to run"}},
		{"no image", `{"executors":[{"command":["true"]}]}`,
			[]string{"executors[0].image: must not be empty; name the image to run"}},
		{"everything wrong", `{"executors":[{},{"image":" ","command":[],"stdout":"out"}],"inputs":[{}],"outputs":[{"type":"file"}],
			"volumes":["v"],"resources":{"cpu_cores":-1,"ram_gb":-0.5,"disk_gb":-2}}`,
			[]string{
				"executors[0].image: must not be empty; name the image to run",
				"executors[0].command: must not be empty; give the program and its arguments",
				"executors[1].image: must not be empty; name the image to run",
				"executors[1].command: must not be empty; give the program and its arguments",
				`executors[1].stdout: must be an absolute path, not "out"`,
				"inputs[0].url: must not be empty; name the source, or give the file as content",
				"inputs[0].path: must not be empty; give an absolute path",
				`outputs[0].type: must be FILE or DIRECTORY, not "file"`,
				"outputs[0].url: must not be empty; name the place to upload to",
				"outputs[0].path: must not be empty; give an absolute path",
				`volumes[0]: must be an absolute path, not "v"`,
				"resources.cpu_cores: must not be negative",
				"resources.ram_gb: must not be negative",
				"resources.disk_gb: must not be negative",
			}},
		{"id", minimal(`"id":"a\nb"`), []string{"id: must not hold the character U+000A, which does not print"}},
		{"relative paths", executor(`"workdir":"w","stdin":"./i","stderr":"e"`), []string{
			`executors[0].workdir: must be an absolute path, not "w"`,
			`executors[0].stdin: must be an absolute path, not "./i"`,
			`executors[0].stderr: must be an absolute path, not "e"`}},
		{"files with a slash at the end", executor(`"stdin":"/","stdout":"/a/"`), []string{
			"executors[0].stdin: must not end with a slash, because it names a file and not a directory",
			"executors[0].stdout: must not end with a slash, because it names a file and not a directory"}},
		{"names of env", executor(`"env":{"":"a","B=C":"b","D\u0000":"d","E":"\u0000"}`), []string{
			`executors[0].env: the name "" must not be empty nor hold = or NUL`,
			`executors[0].env: the name "B=C" must not be empty nor hold = or NUL`,
			`executors[0].env: the name "D\x00" must not be empty nor hold = or NUL`,
			"executors[0].env.E: must not hold a NUL character"}},
		{"NUL", `{"executors":[{"image":"a\u0000","command":["a","\u0000"]}],"inputs":[{"url":"\u0000","path":"/\u0000"}],"outputs":[{"url":"\u0000","path":"/a"}]}`,
			[]string{
				"executors[0].image: must not hold a NUL character",
				"executors[0].command[1]: must not hold a NUL character",
				"inputs[0].url: must not hold a NUL character",
				"inputs[0].path: must not hold a NUL character",
				"outputs[0].url: must not hold a NUL character"}},
		{"parents", minimal(`"inputs":[{"url":"u","path":"/a/../b"},{"url":"u","path":"/.."}],"volumes":["/v/.."],"outputs":[{"url":"u","path":"/*/../*","path_prefix":"/.."}]`),
			[]string{
				`inputs[0].path: must not hold .. as a component, as "/a/../b" does`,
				`inputs[1].path: must not hold .. as a component, as "/.." does`,
				`outputs[0].path: must not hold .. as a component, as "/*/../*" does`,
				`volumes[0]: must not hold .. as a component, as "/v/.." does`}},
		{"quoted parents", minimal(`"outputs":[{"url":"u","path":"/a/\\.\\./b"},{"url":"u","path":"/a/.\\./*","path_prefix":"/a"},{"url":"u","path":"/a\\/"}]`),
			[]string{
				"outputs[0].path: must not quote a slash, nor . or .. as a component",
				"outputs[1].path: must not quote a slash, nor . or .. as a component",
				"outputs[2].path: must not end with a slash, because it names a file and not a directory"}},
		{"deckhand's own directory", minimal(`"inputs":[{"url":"u","path":"/.deckhand/exec"}],"volumes":["//.deckhand/","/.deckhands"],"outputs":[{"url":"u","path":"/.deckhand/gate/*","path_prefix":"/"}]`), []string{
			"inputs[0].path: must not be at or below /.deckhand, where deckhand mounts what it needs itself",
			"outputs[0].path: must not be at or below /.deckhand, where deckhand mounts what it needs itself",
			"volumes[0]: must not be at or below /.deckhand, where deckhand mounts what it needs itself"}},
		{"long path", minimal(`"volumes":["` + long + `"]`), []string{"volumes[0]: must not be longer than 4095 bytes"}},
		{"roots", minimal(`"inputs":[{"url":"u","path":"/","type":"DIRECTORY"}],"volumes":["//"]`), []string{
			"inputs[0].path: must not be /; nothing can be mounted there",
			"volumes[0]: must not be /; nothing can be mounted there"}},
		{"the kernel's own", `{"executors":[{"image":"i","command":["c"],"workdir":"/proc/self","stdin":"/proc/version","stdout":"/sys/x","stderr":"/proc/self/fd/2"}],
			"inputs":[{"url":"u","path":"/proc","type":"DIRECTORY"},{"url":"u","path":"/sys/fs/x"},{"url":"u","path":"/dev/shm/x"},{"url":"u","path":"/processes/x"}],
			"outputs":[{"url":"u","path":"/proc/meminfo"}],"volumes":["/dev","/dev/shm","/sys"]}`, []string{
			"executors[0].stdout: must not be in /sys, which is the kernel's; nothing can be mounted there",
			"executors[0].stderr: must not be in /proc, which is the kernel's; nothing can be mounted there",
			"inputs[0].path: must not be in /proc, which is the kernel's; nothing can be mounted there",
			"inputs[1].path: must not be in /sys, which is the kernel's; nothing can be mounted there",
			"volumes[0]: must not be /dev; nothing can be mounted there",
			"volumes[2]: must not be in /sys, which is the kernel's; nothing can be mounted there"}},
		{"long names", `{"executors":[{"image":"i","command":["c"],"workdir":"/{W}","stdin":"/{W}","stdout":"/a/{W}/b","stderr":"/{W}"}],
			"inputs":[{"url":"u","path":"/a/{W}"},{"url":"u","path":"/{N}"}],"outputs":[{"url":"u","path":"/{W}*","path_prefix":"/"}],"volumes":["/{W}"]}`, []string{
			"executors[0].workdir: must not hold a name that is longer than 255 bytes",
			"executors[0].stdout: must not hold a name that is longer than 255 bytes",
			"executors[0].stderr: must not hold a name that is longer than 255 bytes",
			"inputs[0].path: must not hold a name that is longer than 255 bytes",
			"volumes[0]: must not hold a name that is longer than 255 bytes"}},
		{"long arguments", `{"executors":[{"image":"i","command":["c","{LONG}","{LONG}x"],"env":{"A":"{LONG}","ABCD":"{LONG}x"}}]}`, []string{
			"executors[0].command[2]: must not be longer than 131071 bytes, which is all that Linux takes; give it as the content of an input",
			"executors[0].env.A: must not be longer than 131071 bytes, which is all that Linux takes; give it as the content of an input",
			"executors[0].env.ABCD: must not be longer than 131071 bytes, which is all that Linux takes; give it as the content of an input"}},
		{"below a file", minimal(`"inputs":[{"url":"u","path":"/a/f"},{"url":"u","path":"/a/f/g/h"},{"url":"u","path":"/a/fg"}],"volumes":["/a/f","/a/f/x","/a"]`),
			[]string{
				"inputs[1].path: must not be at or below /a/f, which is the path of a FILE, inputs[0]",
				"volumes[0]: must not be at or below /a/f, which is the path of a FILE, inputs[0]",
				"volumes[1]: must not be at or below /a/f, which is the path of a FILE, inputs[0]"}},
		{"outputs below a file", `{"executors":[{"image":"i","command":["c"],"stdout":"/a/f/out","stderr":"/a/f"}],"inputs":[{"url":"u","path":"/a/f"}],
			"outputs":[{"url":"u","path":"/a/f"},{"url":"u","path":"/a/f/g"},{"url":"u","path":"/a/f","type":"DIRECTORY"},{"url":"u","path":"/a/f/*","path_prefix":"/a"}]}`,
			[]string{
				"outputs[1].path: must not be at or below /a/f, which is the path of a FILE, inputs[0]",
				"outputs[2].path: must not be at or below /a/f, which is the path of a FILE, inputs[0]",
				"outputs[3].path: must not be at or below /a/f, which is the path of a FILE, inputs[0]",
				"executors[0].stdout: must not be at or below /a/f, which is the path of a FILE, inputs[0]"}},
		{"below a stream", `{"executors":[{"image":"i","command":["c"],"stdout":"/s","stderr":"/e/x"},{"image":"i","command":["c"],"stdout":"/s","stderr":"/e"}],
			"inputs":[{"url":"u","path":"/s/in"},{"url":"u","path":"/s","type":"DIRECTORY"},{"url":"u","path":"/t"},{"url":"u","path":"/t","type":"DIRECTORY"},{"url":"u","path":"/t/x"}],
			"outputs":[{"url":"u","path":"/s"},{"url":"u","path":"/s/o","type":"DIRECTORY"},{"url":"u","path":"/s/*","path_prefix":"/s"}],"volumes":["/s/v","/v","/v"]}`,
			[]string{
				"inputs[0].path: must not be at or below /s, which is the path of a FILE, executors[0].stdout",
				"inputs[1].path: must not be at or below /s, which is the path of a FILE, executors[0].stdout",
				"outputs[1].path: must not be at or below /s, which is the path of a FILE, executors[0].stdout",
				"outputs[2].path: must not be at or below /s, which is the path of a FILE, executors[0].stdout",
				"volumes[0]: must not be at or below /s, which is the path of a FILE, executors[0].stdout",
				"executors[0].stderr: must not be at or below /e, which is the path of a FILE, executors[1].stderr"}},
		{"content of a directory", minimal(`"inputs":[{"content":"x","path":"/a","type":"DIRECTORY"}]`),
			[]string{"inputs[0].type: must be FILE, because content is given"}},
		{"file with a slash at the end", minimal(`"outputs":[{"url":"u","path":"/a/"}]`),
			[]string{"outputs[0].path: must not end with a slash, because it names a file and not a directory"}},
		{"wildcards without a prefix", minimal(`"outputs":[{"url":"u","path":"/a/*"}]`),
			[]string{"outputs[0].path_prefix: must be given, because path has wildcards; what a match has after it is appended to url"}},
		{"wrong prefixes", minimal(`"outputs":[{"url":"u","path":"/work/*","path_prefix":"/wor"},{"url":"u","path":"/work/*/x","path_prefix":"/work/*"},{"url":"u","path":"/work/*","path_prefix":"work"}]`),
			[]string{
				"outputs[0].path_prefix: must be the first directories of path, up to its first wildcard at most",
				"outputs[1].path_prefix: must be the first directories of path, up to its first wildcard at most",
				`outputs[2].path_prefix: must be an absolute path, not "work"`}},
		{"strict parameters", minimal(`"resources":{"backend_parameters":{"known":"1","Other":"2"},"backend_parameters_strict":true}`),
			[]string{"resources.backend_parameters.Other: is not supported here, and backend_parameters_strict is set"}},
		{"strict values", minimal(`"resources":{"backend_parameters":{"KNOWN":"SECRET"},"backend_parameters_strict":true}`),
			[]string{"resources.backend_parameters.KNOWN: has a value that is not supported here: it must be a number, and backend_parameters_strict is set"}},
		{"strict, and all is well", minimal(`"resources":{"backend_parameters":{"KNOWN":"1"},"backend_parameters_strict":true}`), nil},
		{"a parameter twice", minimal(`"resources":{"backend_parameters":{"known":"1","KNOWN":"2"}}`),
			[]string{"resources.backend_parameters.known: is given twice, in other upper and lower case; keep one"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			text := strings.NewReplacer("{LONG}", strings.Repeat("l", 131_071), "{W}", strings.Repeat("w", 256), "{N}", strings.Repeat("n", 255)).Replace(test.text)
			_, err := decode(t, text).Validate(known)
			got, want := strings.Join(problems(t, err), "\n"), strings.Join(test.want, "\n")
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name, text string
		warnings   []string
		want       string // the document after Validate
	}{
		{"minimal", minimal(""), nil, minimal("")},
		{"empty program", `{"executors":[{"image":"a","command":[""]}]}`, nil, `{"executors":[{"image":"a","command":[""]}]}`},
		{"clean paths", executor(`"workdir":"/a//b/","stdout":"/./o"`), nil, executor(`"workdir":"/a/b","stdout":"/o"`)},
		{"types", minimal(`"inputs":[{"url":"u","path":"/a"}],"outputs":[{"url":"u","path":"/b/","type":"DIRECTORY"}]`), nil,
			`{"inputs":[{"url":"u","path":"/a","type":"FILE"}],"outputs":[{"url":"u","path":"/b","type":"DIRECTORY"}],"executors":[{"image":"alpine","command":["true"]}]}`},
		{"content and url", inputs(`{"url":"u","path":"/a","content":"x"}`), []string{"inputs[0].url"}, inputs(`{"path":"/a","type":"FILE","content":"x"}`)},
		{"empty content and url", inputs(`{"url":"u","path":"/a","content":""}`), nil, inputs(`{"url":"u","path":"/a","type":"FILE"}`)},
		{"empty content alone", inputs(`{"path":"/a","content":""}`), []string{"inputs[0].content"}, inputs(`{"path":"/a","type":"FILE","content":""}`)},
		{"the same input twice", inputs(`{"url":"u","path":"/a"},{"url":"u","path":"//a","name":"again"}`), nil,
			inputs(`{"name":"again","url":"u","path":"/a","type":"FILE"}`)},
		{"one path, two sources", inputs(`{"url":"u","path":"/a"},{"url":"v","path":"/b"},{"content":"x","path":"/a"}`), []string{"inputs[2].path"},
			inputs(`{"url":"v","path":"/b","type":"FILE"},{"path":"/a","type":"FILE","content":"x"}`)},
		{"one URL, two files", outputs(`{"url":"u","path":"/a"},{"url":"u","path":"/b","type":"DIRECTORY"},{"url":"u","path":"/c"},{"url":"u","path":"/a"}`), []string{"outputs[2].url"},
			outputs(`{"url":"u","path":"/a","type":"FILE"},{"url":"u","path":"/b","type":"DIRECTORY"},{"url":"u","path":"/c","type":"FILE"},{"url":"u","path":"/a","type":"FILE"}`)},
		{"directories of the image", inputs(`{"url":"u","path":"/usr/local/bin","type":"DIRECTORY"},{"url":"u","path":"/usr/local/bin/own","type":"DIRECTORY"},{"url":"u","path":"/opt/x"}`),
			nil,
			inputs(`{"url":"u","path":"/usr/local/bin","type":"DIRECTORY"},{"url":"u","path":"/usr/local/bin/own","type":"DIRECTORY"},{"url":"u","path":"/opt/x","type":"FILE"}`)},
		{"nested directories", inputs(`{"url":"u","path":"/a/b","type":"DIRECTORY"},{"url":"v","path":"/a","type":"DIRECTORY"},{"url":"w","path":"/a/b/c"}`), nil,
			inputs(`{"url":"u","path":"/a/b","type":"DIRECTORY"},{"url":"v","path":"/a","type":"DIRECTORY"},{"url":"w","path":"/a/b/c","type":"FILE"}`)},
		{"volumes", `{"executors":[{"image":"alpine","command":["true"]}],"volumes":["/v/","/a","/v"]}`, nil,
			`{"executors":[{"image":"alpine","command":["true"]}],"volumes":["/v","/a"]}`},
		{"prefix", outputs(`{"url":"u","path":"/a*/b","path_prefix":"/"},{"url":"u","path":"/a/b/*","path_prefix":"/a/"},{"url":"u","path":"/x","path_prefix":"nonsense"}`), nil,
			outputs(`{"url":"u","path":"/a*/b","path_prefix":"/","type":"FILE"},{"url":"u","path":"/a/b/*","path_prefix":"/a","type":"FILE"},{"url":"u","path":"/x","type":"FILE"}`)},
		{"quoted wildcard", outputs(`{"url":"u","path":"/a\\*"}`), nil, outputs(`{"url":"u","path":"/a\\*","type":"FILE"}`)},
		{"parameters", `{"resources":{"backend_parameters":{"KNOWN":"1","Other":"2"}},"executors":[{"image":"alpine","command":["true"]}]}`,
			[]string{"resources.backend_parameters.Other"},
			`{"resources":{"backend_parameters":{"Known":"1"}},"executors":[{"image":"alpine","command":["true"]}]}`},
		{"a value of a parameter", `{"resources":{"backend_parameters":{"known":"x"}},"executors":[{"image":"alpine","command":["true"]}]}`,
			[]string{"resources.backend_parameters.known"}, minimal("")},
		{"read-only fields, one path for everything", `{"id":"foo","state":"COMPLETE","logs":[{"logs":[],"outputs":[]}],
			"executors":[{"image":"alpine@sha256:00","command":["a"],"workdir":"/p","stdin":"/p","stdout":"/p","stderr":"/p"}]}`, nil,
			`{"id":"foo","executors":[{"image":"alpine@sha256:00","command":["a"],"workdir":"/p","stdin":"/p","stdout":"/p","stderr":"/p"}]}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			task := decode(t, test.text)
			warnings, err := task.Validate(known)
			if err != nil {
				t.Fatal(err)
			}
			sameFields(t, "warnings", warnings, test.warnings)
			if got, want := encode(t, task), encode(t, decode(t, test.want)); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func inputs(list string) string {
	return `{"inputs":[` + list + `],"executors":[{"image":"alpine","command":["true"]}]}`
}

func outputs(list string) string {
	return `{"outputs":[` + list + `],"executors":[{"image":"alpine","command":["true"]}]}`
}

func TestFieldErrors(t *testing.T) {
	_, err := decode(t, `{}`).Validate()
	same(t, "error", err.Error(), "executors: must not be empty; name at least one image and command to run")
	var field FieldError
	if !errors.As(err, &field) || field.Field != "executors" {
		t.Errorf("no FieldError in %#v", err)
	}
}

// Warnings and errors go to logs, so they hold no source, no argument and no value.
func TestValidateKeepsSecrets(t *testing.T) {
	warnings, err := decode(t, `{"executors":[{"image":"i","command":["--key","SECRET\u0000"],"env":{"A":"SECRET\u0000"}}],
		"inputs":[{"url":"https://h/f?sig=SECRET","content":"SECRET","path":"/a"},{"url":"https://h/g?sig=SECRET","path":"/a"}],
		"resources":{"backend_parameters":{"k":"SECRET","known":"SECRET"}}}`).Validate(known)
	if err == nil || len(warnings) != 4 {
		t.Fatalf("%v, %q", err, warnings)
	}
	if all := err.Error() + strings.Join(warnings, ""); strings.Contains(all, "SECRET") {
		t.Error(all)
	}
}
