package system

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/tes/conformance"
	"github.com/deckhand/deckhand/test/rig"
)

// tree reads all files below a directory of the world: name to content.
// Directories that are empty end with a slash, links have their target.
func (w *World) tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	top := filepath.Join(w.Dir, dir)
	err := filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		if e.IsDir() {
			entries, err := os.ReadDir(p)
			if len(entries) == 0 {
				files[name+"/"] = ""
			}
			return err
		}
		if e.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(p)
			files[name] = "-> " + target
			return err
		}
		content, err := os.ReadFile(p)
		files[name] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// same fails the test for each difference of two maps.
func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if text, ok := got[name]; !ok {
			t.Errorf("%s: %q is missing", what, name)
		} else if text != want[name] {
			t.Errorf("%s: %q is %.200q, want %.200q", what, name, text, want[name])
		}
	}
	for name, text := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %q (%.200q) was not to be there", what, name, text)
		}
	}
}

// warned fails the test unless the newest attempt's system logs hold each text.
func (o Outcome) warned(t *testing.T, texts ...string) {
	t.Helper()
	all := strings.Join(o.Log(t).SystemLogs, "\n")
	for _, text := range texts {
		if !strings.Contains(all, text) {
			t.Errorf("the system logs do not say %q:\n%s", text, all)
		}
	}
}

func pointer[T any](v T) *T { return &v }

func TestInputs(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "inputs", rig.Spec{Files: map[string]string{"/usr/share/own/kept": "of the image", "/opt/kept": "of the image"}})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/over/http" || r.URL.Query().Get("sig") != "s3cr3t" {
			http.NotFound(rw, r)
			return
		}
		fmt.Fprint(rw, "by http")
	}))
	defer server.Close()

	mib := strings.Repeat("0123456789abcde\n", 1<<16)
	want := map[string]string{}
	var inputs []tes.Input
	content := func(path, text string) {
		want[path] = text
		inputs = append(inputs, tes.Input{Path: path, Content: &text})
	}
	from := func(path, url, text string) {
		want[path] = text
		inputs = append(inputs, tes.Input{Path: path, URL: url})
	}
	content("/data/empty", "")
	content("/data/text", "line\nätsch\x01 & <b>\n")
	content("/data/mib", mib)
	content("/data/sub dir/ü 'q' $x.txt", "odd name")
	from("/data/encoded", "file://"+filepath.ToSlash(w.Write(t, "src/a b%20", "by URL"))[:len(w.Dir)]+"/src/a%20b%2520", "by URL")
	from("/data/raw-url", "file://"+w.Write(t, "src/c d ö?#", "by raw URL"), "by raw URL")
	from("/data/raw-path", w.Write(t, "src/e f ü%41?#", "by raw path"), "by raw path")
	from("/data/http", server.URL+"/over/http?sig=s3cr3t", "by http")
	for i := range 5 {
		from(fmt.Sprintf("/many/%d/name", i), w.Write(t, fmt.Sprintf("src/%d/name", i), fmt.Sprint("number ", i)), fmt.Sprint("number ", i))
	}
	// In the image's own directories, which keep what the image has there. A
	// name that is a number must not be taken for one of the tree's own.
	for _, path := range []string{"/in.txt", "/etc/x", "/etc/0", "/etc/1", "/usr/share/own/x", "/usr/share/new/dir/x", "/opt/x", "/root/x", "/bin/x"} {
		from(path, w.Write(t, "src"+path, "for "+path), "for "+path)
	}
	// Twice the same, and another one for the same path: the last wins.
	inputs = append(inputs, inputs[4], tes.Input{Path: "/data/again", Content: pointer("first")})
	content("/data/again", "last")

	w.Write(t, "src/dir/file", "in a directory")
	w.Write(t, "src/dir/deep/er/file", "deep")
	w.Write(t, "src/dir/.hidden", "hidden")
	tool := w.Write(t, "src/dir/tool", "#!/bin/sh\necho a tool of the directory\n")
	for _, dir := range []string{"src/dir/empty/nested", "src/no files"} {
		if err := os.MkdirAll(filepath.Join(w.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(tool, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("deep/er", filepath.Join(w.Dir, "src/dir/link")); err != nil {
		t.Fatal(err)
	}
	inputs = append(inputs,
		tes.Input{Path: "/dir", URL: "file://" + w.Dir + "/src/dir", Type: tes.Directory},
		tes.Input{Path: "/usr/share/own/dir", URL: w.Dir + "/src/dir/deep", Type: tes.Directory},
		tes.Input{Path: "/dir/deep/merged", Content: pointer("merged into a directory input")},
		tes.Input{Path: "/data/none", URL: w.Dir + "/src/no files/", Type: tes.Directory})
	for name, text := range w.tree(t, "src/dir") {
		if !strings.HasSuffix(name, "/") && name != "link" {
			want["/dir/"+name] = text
		}
	}
	want["/dir/link/file"], want["/usr/share/own/dir/er/file"] = "deep", "deep"
	want["/dir/deep/merged"] = "merged into a directory input"
	sources := w.tree(t, "src")

	var script strings.Builder
	for _, path := range slices.Sorted(maps.Keys(want)) {
		fmt.Fprintf(&script, "f='%s'; [ -f \"$f\" ] && sha256sum < \"$f\" && echo \"$f\"\n", strings.ReplaceAll(path, "'", `'\''`))
	}
	script.WriteString("/dir/tool; [ -x /dir/file ] || echo not executable; ls -A /data/none /dir/empty /dir/empty/nested\n")
	script.WriteString("cat /usr/share/own/kept /opt/kept; echo; grep -c root /etc/passwd\n")
	// Whatever the task does to its inputs stays here.
	script.WriteString("for f in /data/* /dir/* /many/*/* /etc/x /in.txt; do [ -f \"$f\" ] && echo changed >> \"$f\"; done; rm -r /dir/deep; echo new > /dir/new\n")
	script.WriteString("for f in /data/* /etc/0; do [ -f \"$f\" ] && : > \"$f\"; done; chmod 000 /dir/file\n")

	o := w.MustRun(t, 0, tes.Task{ID: "inputs", Inputs: inputs, Executors: []tes.Executor{Sh(image.Tag, script.String())}})
	var expect strings.Builder
	bytes := 0
	for _, path := range slices.Sorted(maps.Keys(want)) {
		fmt.Fprintf(&expect, "%x  -\n%s\n", sha256.Sum256([]byte(want[path])), path)
		bytes += len(want[path])
	}
	expect.WriteString("a tool of the directory\nnot executable\n/data/none:\n\n/dir/empty:\nnested\n\n/dir/empty/nested:\nof the imageof the image\n1\n")
	if got := o.Log(t).Logs[0]; got.Stdout != expect.String() || got.Stderr != "" {
		t.Errorf("the executor saw\n%s%s\nwant\n%s", got.Stdout, got.Stderr, &expect)
	}
	if got := o.Log(t).Metadata["deckhand.bytes_in"]; got != strconv.Itoa(bytes) {
		t.Errorf("%s bytes in, want %d", got, bytes)
	}
	o.warned(t, "inputs[0].content: is empty", "has the same path and another source")
	same(t, "sources", w.tree(t, "src"), sources)
	if info, err := os.Stat(filepath.Join(w.Dir, "src/dir/file")); err != nil || info.Mode() != 0o644 {
		t.Errorf("the mode of a source is %v now, %v", info.Mode(), err)
	}
	if text := w.everything(t, "inputs") + o.Stderr; strings.Contains(text, "s3cr3t") {
		t.Errorf("a signature is in the journal, the log or the result:\n%s", text)
	}
	w.Clean(t)
}

// A thousand inputs of one name, each in a directory of its own, and content that
// no command line would hold.
func TestManyInputs(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "many", rig.Spec{})
	const many = 1000
	long := strings.Repeat("0123456789abcde\n", 1<<16)                                   // 1 MiB
	inputs := []tes.Input{{Path: "/many/content", Content: &long, URL: w.Dir + "/none"}} // the URL counts for nothing
	sum := 0
	for i := range many {
		sum += i
		in := tes.Input{Path: fmt.Sprintf("/many/%d/sample.bam", i), URL: w.Write(t, fmt.Sprintf("shards/%d/sample.bam", i), fmt.Sprintln(i))}
		inputs = append(inputs, in)
	}
	o := w.MustRun(t, 0, tes.Task{ID: "many", Inputs: inputs, Executors: []tes.Executor{
		Sh(image.Tag, "cat /many/*/sample.bam | awk '{s += $1} END {print NR, s}'; sha256sum < /many/content"),
	}})
	want := fmt.Sprintf("%d %d\n%x  -\n", many, sum, sha256.Sum256([]byte(long)))
	if got := o.Log(t).Logs[0].Stdout; got != want {
		t.Errorf("the executor saw %q, want %q", got, want)
	}
	o.warned(t, "inputs[0].url: ignored, because content is given too")
	w.Clean(t)
}

// Without a common directory each of a thousand inputs is in a mount of its own.
func TestManyMounts(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "mounts", rig.Spec{})
	var inputs []tes.Input
	for i := range 1000 {
		inputs = append(inputs, tes.Input{Path: fmt.Sprintf("/many/%d/sample.bam", i), Content: pointer(fmt.Sprintln(i))})
	}
	o := w.MustRun(t, 0, tes.Task{ID: "mounts", Inputs: inputs, Executors: []tes.Executor{Sh(image.Tag, "cat /many/*/sample.bam | wc -l")}})
	if got := o.Log(t).Logs[0].Stdout; got != "1000\n" {
		t.Errorf("the executor saw %q", got)
	}
	w.Clean(t)
}

// everything is what the journal tells about a task.
func (w *World) everything(t *testing.T, task string) string {
	t.Helper()
	return w.Deckhand(t, "journal", "inspect", task, "--json").Stdout
}

func TestInputsThatCannotBeStaged(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "none", rig.Spec{})
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	if err := os.MkdirAll(filepath.Join(w.Dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(w.Dir, "out/link")); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		input tes.Input
		says  string
		code  int
	}{
		"no such file":     {tes.Input{URL: "file:///no/such/file"}, "no such file", 3},
		"a directory":      {tes.Input{URL: w.Dir}, "DIRECTORY", 3},
		"not a directory":  {tes.Input{URL: w.Write(t, "file", ""), Type: tes.Directory}, "no directory", 3},
		"a device":         {tes.Input{URL: "/dev/zero"}, "a device", 3},
		"not there":        {tes.Input{URL: server.URL + "/x"}, "404", 3},
		"no such scheme":   {tes.Input{URL: "gopher://host/x"}, "gopher", 2},
		"another host":     {tes.Input{URL: "file://elsewhere/x"}, "elsewhere", 2},
		"a link out of it": {tes.Input{URL: w.Dir + "/out", Type: tes.Directory}, "leads out of it", 3},
	} {
		t.Run(name, func(t *testing.T) {
			test.input.Path = "/data/x"
			o := w.MustRun(t, test.code, tes.Task{
				ID: "unstaged", Inputs: []tes.Input{test.input}, Executors: []tes.Executor{Sh(image.Tag, "true")},
			}, "--fresh")
			if test.code == 3 {
				o.warned(t, "input /data/x", test.says)
				if o.Task.State != tes.SystemError || len(o.Log(t).Logs) != 0 {
					t.Errorf("the result is %+v", o.Task)
				}
			}
			if !strings.Contains(o.Stderr, test.says) {
				t.Errorf("standard error does not say %q:\n%s", test.says, o.Stderr)
			}
			w.Clean(t)
		})
	}
}

func TestOutputs(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "outputs", rig.Spec{Files: map[string]string{"/opt/image/own": "of the image", "/root/image.log": "of the image"}})
	secret := w.Write(t, "secret", "of the node")
	w.Write(t, "out/replaced", strings.Repeat("a longer file ", 1000))
	script := `
		set -e
		mkdir -p /out/tree/a/b /out/tree/empty /out/g/.d /out/g/sub /out/n/1 /out/n/2 /opt/res/in /deep/er
		echo file > /out/file
		echo short > /out/replaced
		echo 1 > /out/tree/one; echo 2 > /out/tree/a/b/two; echo h > /out/tree/.hidden
		printf '' > "/out/tree/odd ü %41 #?'"
		echo x > /out/g/x.txt; echo y > /out/g/y.txt; echo z > /out/g/z.log; echo h > /out/g/.h.txt; echo s > /out/g/sub/s.txt
		for i in 1 2; do echo $i > /out/n/$i/res-$i.csv; echo $i > /out/n/$i/res-$i.tsv; echo no > /out/n/$i/res-$i.usv; done
		echo 'literal *' > '/out/lit*eral'
		echo root > /root/out; echo top > /out.txt; echo res > /opt/res/in/file; echo l1 > /root/a.log; echo l2 > /root/b.log; echo t1 > /t1.dat
		echo deep > /deep/er/file
		ln -s /out/file /out/absolute; ln -s file /out/relative; ln -s /root/out /out/to-root; ln -s /out/tree /out/to-tree
		ln -s ` + secret + ` /out/leak; ln -s ../../../../../../../../..` + secret + ` /out/tree/leak; ln -s /proc/self/environ /out/proc; ln -s / /out/tree/slash
		ln -s /nowhere /out/dangling; ln -s loop /out/loop; ln -s .. /out/tree/up
		ln -s /opt/res/in/file /root/link
		echo hard > /out/hard1; ln /out/hard1 /out/hard2
		mkfifo /out/fifo /out/tree/fifo
		mkdir /out/directory
		head -c 3000000 /dev/zero > /out/zeros
	`
	var outputs []tes.Output
	add := func(path, url string, more ...string) {
		out := tes.Output{Path: path, URL: url}
		for _, m := range more {
			if m == string(tes.Directory) {
				out.Type = tes.Directory
			} else {
				out.PathPrefix = m
			}
		}
		outputs = append(outputs, out)
	}
	url := "file://" + w.Dir + "/out/"
	for _, name := range []string{
		"file", "replaced", "absolute", "relative", "to-root", "leak", "proc", "dangling", "loop", "hard1", "hard2",
		"fifo", "directory", "zeros", "missing",
	} {
		add("/out/"+name, url+name)
	}
	add("/out/file", w.Dir+"/out/bare")
	add("/out/file", "file://"+w.Dir+"/out/new%20dir/enc%20ode%25d")
	add("/out/file", w.Dir+"/out/new dir/ra%20w")
	add("/out/tree", w.Dir+"/out/tree", "DIRECTORY")
	add("/out/to-tree", url+"linked-tree/", "DIRECTORY")
	add("/out/g/*.txt", url+"glob", "/out/g")
	add("/out/g/*", url+"all", "/out/g")
	add("/out/n/*/res-?.[ct]sv", url+"nested/", "/out/n")
	add("/out/no/*.such", url+"none", "/out")
	add(`/out/lit\*eral`, url+"literal")
	add("/root/out", url+"system/out")
	add("/out.txt", url+"system/top")
	add("/opt/res", url+"system/res", "DIRECTORY")
	add("/root/*.log", url+"system/logs", "/root")
	add("/root/link", url+"system/link")
	add("/t?.dat", url+"system/dat", "/")
	add("/root/missing", url+"system/missing")
	add("/deep/er/file", url+"deep")

	o := w.MustRun(t, 0, tes.Task{ID: "outputs", Outputs: outputs, Executors: []tes.Executor{Sh(image.Tag, script)}})
	want := map[string]string{
		"file": "file\n", "replaced": "short\n", "absolute": "file\n", "relative": "file\n", "to-root": "root\n",
		"hard1": "hard\n", "hard2": "hard\n", "zeros": strings.Repeat("\x00", 3_000_000),
		"bare": "file\n", "new dir/enc ode%d": "file\n", "new dir/ra%20w": "file\n",
		"glob/x.txt": "x\n", "glob/y.txt": "y\n",
		"all/x.txt": "x\n", "all/y.txt": "y\n", "all/z.log": "z\n", "all/sub/s.txt": "s\n",
		"nested/1/res-1.csv": "1\n", "nested/1/res-1.tsv": "1\n", "nested/2/res-2.csv": "2\n", "nested/2/res-2.tsv": "2\n",
		"literal": "literal *\n", "system/out": "root\n", "system/top": "top\n", "system/res/in/file": "res\n",
		"system/logs/a.log": "l1\n", "system/logs/b.log": "l2\n", "system/link": "res\n",
		"system/dat/t1.dat": "t1\n", "deep": "deep\n",
	}
	for _, top := range []string{"tree", "linked-tree"} {
		want[top+"/one"], want[top+"/a/b/two"], want[top+"/.hidden"] = "1\n", "2\n", "h\n"
		want[top+"/odd ü %41 #?'"] = ""
	}
	got := w.tree(t, "out")
	same(t, "outputs", got, want)
	for name, text := range got {
		if strings.Contains(text, "of the node") {
			t.Errorf("%s leaks a file of the node", name)
		}
	}
	o.warned(t, "output /out/missing was not made", "output /out/dangling is a link that leads to none", "output /out/fifo is not a file",
		"output /out/leak is a link", "output /out/proc is a link", "output /out/loop cannot be read", "output /out/directory is not a file", "output /out/no/*.such was not made", "output /root/missing was not made", "/out/tree/up", "/out/tree/fifo")

	var bytes int64
	published := map[string]string{}
	for _, f := range o.Log(t).Outputs {
		name := strings.TrimPrefix(strings.TrimPrefix(f.URL, "file://"), w.Dir+"/out/")
		published[name] = fmt.Sprint(f.SizeBytes)
		bytes += f.SizeBytes
		if !strings.HasPrefix(f.Path, "/") {
			t.Errorf("the path of an output is %q", f.Path)
		}
	}
	sizes := map[string]string{}
	for name, text := range want {
		switch name {
		case "new dir/enc ode%d":
			name = "new%20dir/enc%20ode%25d"
		case "linked-tree/odd ü %41 #?'":
			name = "linked-tree/odd%20%C3%BC%20%2541%20%23%3F%27"
		}
		sizes[name] = strconv.Itoa(len(text))
	}
	same(t, "logged outputs", published, sizes)
	if got := o.Log(t).Metadata["deckhand.bytes_out"]; got != fmt.Sprint(bytes) {
		t.Errorf("%s bytes out, want %d", got, bytes)
	}
	w.Clean(t)
}

func TestMissingOutput(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "missing", rig.Spec{})
	for _, test := range []struct {
		missing string
		script  string
		code    int
		state   tes.State
		says    string
	}{
		{"warn", "true", 0, tes.Complete, "warning: output /out/x was not made"},
		{"error", "true", 3, tes.SystemError, "output /out/x was not made"},
		{"error", "false", 1, tes.ExecutorError, "output /out/x was not made"}, // does not hide the executor's
		{"error", "echo > /out/x", 0, tes.Complete, ""},
	} {
		t.Run(test.missing+" "+test.script, func(t *testing.T) {
			o := w.MustRun(t, test.code, tes.Task{
				ID: "missing", Outputs: []tes.Output{{Path: "/out/x", URL: w.Dir + "/out/x"}}, Executors: []tes.Executor{Sh(image.Tag, test.script)},
			}, "--fresh", "--missing-outputs", test.missing)
			if o.Task.State != test.state {
				t.Errorf("the state is %s, want %s", o.Task.State, test.state)
			}
			o.warned(t, test.says)
			w.Clean(t)
		})
	}
}

// What is there at an output's place and cannot be replaced is said, and stays.
func TestOutputsThatCannotBePublished(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "unpublished", rig.Spec{})
	w.Write(t, "out/dir/file", "stays")
	w.Write(t, "out/file", "stays")
	for url, says := range map[string]string{
		w.Dir + "/out/dir":       "there is a directory",
		w.Dir + "/out/file/x":    "is a file",
		"/dev/null":              "a device",
		"http://127.0.0.1:1/x":   "127.0.0.1:1",
		"gopher://host/x":        "gopher",
		"file://elsewhere/a/b/c": "elsewhere",
	} {
		t.Run(says, func(t *testing.T) {
			o := w.Run(t, tes.Task{
				ID: "unpublished", Outputs: []tes.Output{{Path: "/out/x", URL: url}}, Executors: []tes.Executor{Sh(image.Tag, "echo x > /out/x")},
			}, "--fresh", "--config", w.Write(t, "config.yaml", "transfer: {retry_for: 1ms}\n"))
			if o.Code == 0 || !strings.Contains(o.Stderr, says) {
				t.Errorf("exit code %d, and standard error does not say %q:\n%s", o.Code, says, o.Stderr)
			}
			w.Clean(t)
		})
	}
	same(t, "targets", w.tree(t, "out"), map[string]string{"dir/file": "stays", "file": "stays"})
}

// Sizes are strings in the document itself, and nothing that TES requires is null.
func TestResultDocument(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "document", rig.Spec{})
	other := w.Image(t, "document-other", rig.Spec{Marker: "other"})
	r := w.Deckhand(t, "run", w.Save(t, tes.Task{
		ID: "document", Name: "n", Description: "d", Tags: map[string]string{"k": "<v>"},
		Outputs:   []tes.Output{{Path: "/out/x", URL: w.Dir + "/x"}},
		Executors: []tes.Executor{Sh(image.Tag, "echo 12345 > /out/x"), Sh(other.Tag, "true"), Sh(image.Tag, "true")},
	}), "--result", "-")
	if r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	var doc struct {
		ID, Name, Description, State string
		Created                      string `json:"creation_time"`
		Tags                         map[string]string
		Logs                         []struct {
			Logs     []map[string]any
			Outputs  []map[string]any
			Metadata map[string]string
		}
	}
	decoder := json.NewDecoder(strings.NewReader(r.Stdout))
	if err := decoder.Decode(&doc); err != nil {
		t.Fatalf("%v\n%s", err, r.Stdout)
	}
	if decoder.More() || strings.Contains(r.Stdout, "null") || !strings.Contains(r.Stdout, `"<v>"`) {
		t.Errorf("standard output is not one plain document:\n%s", r.Stdout)
	}
	if doc.ID != "document" || doc.Name != "n" || doc.Description != "d" || doc.State != "COMPLETE" || doc.Created == "" || len(doc.Logs) != 1 {
		t.Fatalf("the document is\n%s", r.Stdout)
	}
	log := doc.Logs[0]
	if len(log.Outputs) != 1 || log.Outputs[0]["size_bytes"] != "6" || log.Outputs[0]["path"] != "/out/x" {
		t.Errorf("the outputs are %v", log.Outputs)
	}
	if len(log.Logs) != 3 || log.Logs[0]["exit_code"] != 0.0 {
		t.Errorf("the executors' logs are %v", log.Logs)
	}
	for _, key := range []string{
		"host", "deckhand.version", "deckhand.docker_version", "deckhand.image_pull", "deckhand.bytes_in", "deckhand.bytes_out", "deckhand.resumed",
		"deckhand.seconds.Accepted", "deckhand.seconds.Scrub", "deckhand.seconds.ImageCheck", "deckhand.seconds.Download",
		"deckhand.seconds.Run", "deckhand.seconds.Upload",
	} {
		if log.Metadata[key] == "" {
			t.Errorf("the metadata lack %s: %v", key, log.Metadata)
		}
	}
	ids := map[string]string{}
	for key, value := range log.Metadata {
		if strings.HasPrefix(key, "deckhand.image_") && key != "deckhand.image_pull" {
			ids[key] = value
		}
	}
	same(t, "images", ids, map[string]string{
		"deckhand.image_id": image.ID, "deckhand.image_digest": image.Digest, "deckhand.image_id.1": other.ID, "deckhand.image_digest.1": other.Digest,
	})
	if host, err := os.Hostname(); err != nil || log.Metadata["host"] != host {
		t.Errorf("the host is %s, not %s (%v)", log.Metadata["host"], host, err)
	}
	if docker := w.Docker(t, "version", "--format", "{{.Server.Version}}"); log.Metadata["deckhand.docker_version"] != docker {
		t.Errorf("the engine is %s, not %s", log.Metadata["deckhand.docker_version"], docker)
	}
	if err := conformance.Check([]byte(r.Stdout)); err != nil {
		t.Errorf("the result is not what TES says: %v", err)
	}
	again := w.Deckhand(t, "run", filepath.Join(w.Dir, "documents/document.json"), "--result", "-")
	if again.Code != 0 || again.Stdout != r.Stdout {
		t.Errorf("the repeated run says %d\n%s\nwant\n%s", again.Code, again.Stdout, r.Stdout)
	}
	w.Clean(t)
}
