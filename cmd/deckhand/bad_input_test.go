package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// task makes a document with one executor and more fields.
func task(fields string) string {
	return `{` + fields + `"executors":[{"image":"alpine","command":["true"]}]}`
}

// Whatever is wrong with a document is told by its field, before anything runs.
func TestBadDocuments(t *testing.T) {
	for _, test := range []struct {
		name, document string
		says           string // a regular expression
	}{
		{"empty", "", `cannot read the task document DOC: it is empty`},
		{"no JSON", "executors:\n- image", `DOC: line 1, column 1: invalid character 'e'`},
		{"malformed", "{\n  \"executors\": [,]\n}", `DOC: line 2, column 17: invalid character ','`},
		{"cut", `{"executors": [`, `DOC: line 1, column 16: the document ends too soon`},
		{"two", smallTask + "\n{}", `DOC: line 2, column 1: something follows the end of the document; give one task only`},
		{"not UTF-8", "{\"name\": \"\xff\"}", `DOC: line 1, column 11: a byte that is not UTF-8`},
		{"a list", `[]`, `DOC: it must be a JSON object, not a list`},
		{"wrong type", `{"name": 7, "executors": {}}`, `DOC is not valid:\n  name: must be a string, not a number\n  executors: must be a list, not an object`},
		{"no executor", `{"executors": []}`, `DOC is not valid:\n  executors: must not be empty; name at least one image and command`},
		{"no image", `{"executors": [{"command": ["true"]}]}`, `executors\[0\]\.image: must not be empty; name the image to run`},
		{"empty command", `{"executors": [{"image": "a", "command": []}]}`, `executors\[0\]\.command: must not be empty; give the program`},
		{"relative input", task(`"inputs": [{"content": "x", "path": "data/in"}],`), `inputs\[0\]\.path: must be an absolute path, not "data/in"`},
		{"relative output", task(`"outputs": [{"url": "/out", "path": "data/out"}],`), `outputs\[0\]\.path: must be an absolute path`},
		{"relative volume", task(`"volumes": ["scratch"],`), `volumes\[0\]: must be an absolute path, not "scratch"`},
		{"relative workdir", `{"executors": [{"image": "a", "command": ["b"], "workdir": "tmp"}]}`, `executors\[0\]\.workdir: must be an absolute path`},
		{"relative stdout", `{"executors": [{"image": "a", "command": ["b"], "stdout": "log"}]}`, `executors\[0\]\.stdout: must be an absolute path`},
		{"dots in an input", task(`"inputs": [{"content": "x", "path": "/data/../etc/passwd"}],`), `inputs\[0\]\.path: must not hold \.\. as a component`},
		{"dots in an output", task(`"outputs": [{"url": "/out", "path": "/data/.."}],`), `outputs\[0\]\.path: must not hold \.\. as a component`},
		{"wildcards alone", task(`"outputs": [{"url": "/out", "path": "/data/*.txt"}],`), `outputs\[0\]\.path_prefix: must be given, because path has wildcards`},
		{"another prefix", task(`"outputs": [{"url": "/out", "path": "/data/*.txt", "path_prefix": "/other"}],`), `outputs\[0\]\.path_prefix: must be the first directories of path`},
		{"no source", task(`"inputs": [{"path": "/in"}],`), `inputs\[0\]\.url: must not be empty; name the source, or give the file as content`},
		{"no target", task(`"outputs": [{"path": "/out"}],`), `outputs\[0\]\.url: must not be empty; name the place to upload to`},
		{"scheme of an input", task(`"inputs": [{"url": "sftp://host/key", "path": "/in"}],`), `inputs\[0\]\.url: scheme "sftp" is not supported; supported: .*file.*http, https.* and absolute paths`},
		{"scheme of an output", task(`"outputs": [{"url": "irods://bucket/key", "path": "/out"}],`), `outputs\[0\]\.url: scheme "irods" is not supported`},
		{"directory for a file", task(`"outputs": [{"url": "file:///out/", "path": "/out"}],`), `outputs\[0\]\.url: it names a directory; a file needs a name`},
		{"directory of a bucket for a file", task(`"outputs": [{"url": "s3://b/out/", "path": "/out"}],`), `outputs\[0\]\.url: it names a directory; a file needs a name`},
		{"bucket for a file", task(`"inputs": [{"url": "az://c", "path": "/in"}], "outputs": [{"url": "s3://b", "path": "/out"}],`),
			`inputs\[0\]\.url: it names a directory; a file needs a name\n  outputs\[0\]\.url: it names a directory; a file needs a name`},
		{"no scheme", task(`"inputs": [{"url": "data.txt", "path": "/in"}],`), `inputs\[0\]\.url: it has no scheme and is no absolute path`},
		{"file of another host", task(`"inputs": [{"url": "file://data/in.txt", "path": "/in"}],`), `inputs\[0\]\.url: it names a file on the host "data"; a file URL has three slashes`},
		{"no host", task(`"inputs": [{"url": "https:///in.txt", "path": "/in"}],`), `inputs\[0\]\.url: it is no valid URL: it names no host`},
		{"directory by http", task(`"inputs": [{"url": "https://h/dir", "path": "/in", "type": "DIRECTORY"}],`), `inputs\[0\]\.url: http has no directories; name each file`},
		{"two URLs", task(`"inputs": [{"url": "sftp://a/b", "path": "/a"}], "outputs": [{"url": "ftp://a/b", "path": "b"}],`),
			`DOC is not valid:\n  outputs\[0\]\.path: must be an absolute path, not "b"\n  inputs\[0\]\.url: scheme "sftp".*\n  outputs\[0\]\.url: scheme "ftp"`},
		{"type", task(`"inputs": [{"url": "/in", "path": "/in", "type": "LINK"}],`), `inputs\[0\]\.type: must be FILE or DIRECTORY, not "LINK"`},
		{"resources", task(`"resources": {"cpu_cores": -1},`), `resources\.cpu_cores: must not be negative`},
		{"id of the node", task(`"id": "@node",`), `id: must not begin with @`},
		{"id that does not print", task(`"id": "a\u001b[2Jb",`), `id: must not hold the character U\+001B, which does not print`},
		{"id with a space", task(`"id": " a",`), `id: must not begin or end with a space`},
		{"long id", task(`"id": "` + strings.Repeat("x", 256) + `",`), `id: must not be longer than 255 bytes`},
		{"secret in a URL", task(`"inputs": [{"url": "azure://h/f?sig=SECRET", "path": "/in"}],`), `scheme "azure" is not supported`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			name := filepath.Join(n.dir, "task.json")
			if err := os.WriteFile(name, []byte(test.document), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, command := range []string{"validate", "run"} {
				r := n.deckhand(t, command, name)
				r.want(t, exitUsage, strings.ReplaceAll(test.says, "DOC", regexp.QuoteMeta(name)))
				if strings.Contains(r.stderr, "SECRET") {
					t.Errorf("a secret is told: %s", r.stderr)
				}
			}
			n.untouched(t)
		})
	}
}

// Whatever is wrong with a command line, with where a document comes from or
// with the node is one sentence that names it and the mend.
func TestBadCommandLines(t *testing.T) {
	server := documentServer(t)
	dir := t.TempDir()
	good := filepath.Join(dir, "good.json")
	if err := os.WriteFile(good, []byte(smallTask), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		env  string
		code int
		says string
	}{
		{"no task", []string{"run"}, "", 2, `no task given; name a file, a URL or - for standard input`},
		{"two tasks", []string{"run", good, good}, "", 2, `"deckhand run" takes at most one TASK and got 2; see "deckhand run --help"`},
		{"a task twice", []string{"run", good, "--task-base64", "e30="}, "", 2, `as an argument or with --task-base64, not both`},
		{"empty name", []string{"run", ""}, "", 2, `"deckhand run" takes at most one TASK and got an empty one`},
		{"no such file", []string{"run", dir + "/none"}, "", 2, `cannot read the task document .*/none: no such file or directory`},
		{"a directory", []string{"run", dir}, "", 2, `cannot read the task document .*: is a directory`},
		{"no base64", []string{"run", "--task-base64", "{}"}, "", 2, `cannot read --task-base64: it is no standard base64 text: .*base64 -w0`},
		{"base64 of nothing good", []string{"run", "--task-base64", "e30="}, "", 2, `the task document of --task-base64 is not valid:\n  executors`},
		{"empty standard input", []string{"run", "-"}, "", 2, `the task document of standard input: it is empty`},
		{"404", []string{"run", server + "/none?sig=SECRET"}, "", 2, `cannot fetch the task document http://[^?]*/none.*: the server answered 404`},
		{"500", []string{"run", server + "/failing"}, "", 75, `/failing: the server answered 500`},
		{"429", []string{"run", server + "/busy"}, "", 75, `/busy: the server answered 429`},
		{"nobody there", []string{"run", "http://127.0.0.1:1/task"}, "", 75, `cannot fetch the task document http://127.0.0.1:1/task: .*connection refused`},
		{"no URL", []string{"run", "http://%zz/"}, "", 2, `cannot read the task document .*: it is no valid URL`},
		{"unknown command", []string{"ruin"}, "", 2, `there is no command "deckhand ruin" \(did you mean "run"\?\)`},
		{"unknown flag", []string{"run", good, "--resalt", "x"}, "", 2, `unknown flag: --resalt; see "deckhand run --help"`},
		{"flag of another command", []string{"status", "--fresh"}, "", 2, `unknown flag: --fresh; see "deckhand status --help"`},
		{"flag without value", []string{"run", good, "--result"}, "", 2, `flag needs an argument: --result; see "deckhand run --help"`},
		{"argument too many", []string{"graph", "x"}, "", 2, `"deckhand graph" takes no arguments and got "x"; see "deckhand graph --help"`},
		{"graph of nothing", []string{"graph", "--format", "svg"}, "", 2, `--format is "svg"; it can be mermaid or dot`},
		{"result in a place that is none", []string{"run", good, "--result", dir + "/none/r.json"}, "", 2, `cannot write the result to .*/none/r.json: .*/none: no such file or directory; name a file in a directory`},
		{"result over a directory", []string{"run", good, "--result", dir}, "", 2, `cannot write the result to .*: it is a directory`},
		{"bad choice", []string{"run", good, "--keep-workdir", "sometimes"}, "", 2, `workdir\.keep is "sometimes" \(flag --keep-workdir\): not allowed; write never, on-failure, always`},
		{"bad duration", []string{"run", good, "--stop-grace", "10"}, "", 2, `run\.stop_grace is "10" \(flag --stop-grace\): not allowed; write a duration such as 10s`},
		{"bad size", []string{"run", good}, "DECKHAND_DISK_FLOOR=much", 2, `disk\.floor is "much" \(environment DECKHAND_DISK_FLOOR\): not allowed; write a size`},
		{"bad host", []string{"run", good, "--docker-host", "docker.sock"}, "", 2, `docker\.host is "docker.sock" \(flag --docker-host\): not allowed; write unix://PATH`},
		{"unknown variable", []string{"run", good}, "DECKHAND_ROOTS=/x", 2, `environment variable DECKHAND_ROOTS is no setting; did you mean DECKHAND_ROOT\?`},
		{"no Docker", []string{"run", good}, "", 78, `cannot reach Docker at unix:///.*no-docker.sock.*; start it, or name it with --docker-host`},
		{"no Docker to scrub", []string{"scrub"}, "", 78, `cannot reach Docker at .*; start it, or name it with --docker-host`},
		{"root below a file", []string{"run", good, "--root", file + "/root"}, "", 78, `cannot use .*/file/root as root: .*not a directory`},
		{"root with a long name", []string{"run", good, "--root", "/" + strings.Repeat("x", 300)}, "", 2, `cannot use /x+ as root: its name is too long; choose a shorter one \(--root\)`},
		{"scrub of a long name", []string{"scrub", "--root", "/" + strings.Repeat("x", 300)}, "", 2, `its name is too long; choose a shorter one \(--root\)`},
		{"prune of nothing", []string{"journal", "prune"}, "", 2, `say what to keep: --keep, --older-than or both`},
		{"prune of all", []string{"journal", "prune", "--keep", "0"}, "", 2, `--keep is 0; it must be at least 1`},
		{"prune by a bad age", []string{"journal", "prune", "--older-than", "old"}, "", 2, `--older-than is "old"; write a duration such as 12h or 30d`},
		{"since a bad time", []string{"journal", "inspect", "--since", "noon"}, "", 2, `--since is "noon"; it can be a time such as .* or a duration such as 2h or 7d`},
		{"fewer than no lines", []string{"journal", "inspect", "-n", "-1"}, "", 2, `--lines is -1; it must not be negative`},
		{"both ways", []string{"journal", "inspect", "--follow", "--reverse"}, "", 2, `--follow and --reverse exclude each other`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			if test.env != "" {
				n.env = append(n.env, test.env)
			}
			r := n.deckhand(t, test.args...)
			r.want(t, test.code, test.says)
			if strings.Contains(r.stderr, "SECRET") {
				t.Errorf("a secret is told: %s", r.stderr)
			}
			n.untouched(t)
		})
	}
}

// A run that cannot even begin says so in its result, for a front end that
// reads nothing else.
func TestResultOfARunThatCannotBegin(t *testing.T) {
	n := newNode(t)
	result := filepath.Join(n.dir, "result.json")
	n.save(t, "task.json", smallTask)
	n.deckhand(t, "run", n.dir+"/task.json", "--result", result).want(t, 78, "cannot reach Docker")
	text, err := os.ReadFile(result)
	if err != nil || !strings.Contains(string(text), `"state": "SYSTEM_ERROR"`) || !strings.Contains(string(text), "cannot reach Docker") {
		t.Errorf("%v: %s", err, text)
	}
}

func TestRootThatIsNotWritable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a filesystem read-only")
	}
	n := newNode(t)
	n.save(t, "task.json", smallTask)
	at := t.TempDir()
	if err := unix.Mount("test", at, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		lack(t, "tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	for _, args := range [][]string{{"run", n.dir + "/task.json"}, {"scrub"}} {
		n.deckhand(t, append(args, "--root", at+"/a/root")...).
			want(t, 78, `cannot use .*/a/root as root: .* is not writable: read-only file system; choose another directory \(--root\)`)
	}
}

// An unfit filesystem is the command line's fault: another node would meet it
// too. A FUSE mount that nobody serves tells its type to whoever may not use it.
func TestRootOnAnUnfitFilesystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a filesystem")
	}
	n := newNode(t)
	n.save(t, "task.json", smallTask)
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		lack(t, "/dev/fuse")
	}
	defer dev.Close()
	at := t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=65534,group_id=65534", dev.Fd())
	if err := unix.Mount("test", at, "fuse.sshfs", 0, options); err != nil {
		lack(t, "FUSE: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	for _, args := range [][]string{{"run", n.dir + "/task.json"}, {"scrub"}} {
		n.deckhand(t, append(args, "--root", at)...).
			want(t, 2, `cannot use .*: it is on FUSE: what is below it is not known, often a network; choose a directory on ext4 or xfs \(--root\), or take the risk with disk\.any_filesystem`)
	}
	// With the risk taken, the next check is that of the mount that nobody serves.
	n.env = append(n.env, "DECKHAND_DISK_ANY_FILESYSTEM=true")
	n.deckhand(t, "scrub", "--root", at).want(t, 78, `cannot use .* as root: `)
}

// lack skips a test that the machine cannot hold, and fails it in CI.
func lack(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("needs %s", what)
	}
	t.Skipf("needs %s", what)
}

// bareNode is a node without Docker, for tests that are no scripts.
type bareNode struct {
	dir string
	env []string
}

func newNode(t *testing.T) *bareNode {
	dir := t.TempDir()
	return &bareNode{dir, append(settings(dir), "PATH="+os.Getenv("PATH"), "TMPDIR="+os.TempDir())}
}

func (n *bareNode) save(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (n *bareNode) command(args ...string) *exec.Cmd {
	cmd := exec.Command("deckhand", args...)
	cmd.Env, cmd.Dir = n.env, n.dir
	return cmd
}

// ended is how a command ended.
type ended struct {
	code           int
	stdout, stderr string
}

func (n *bareNode) deckhand(t *testing.T, args ...string) ended {
	t.Helper()
	cmd := n.command(args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return ended{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// want checks a refusal: its code, nothing on standard output, and one message
// on standard error that says something.
func (e ended) want(t *testing.T, code int, says string) {
	t.Helper()
	if e.code != code || e.stdout != "" || !regexp.MustCompile(says).MatchString(e.stderr) || strings.Count(e.stderr, "deckhand: ") != 1 {
		t.Errorf("exit code %d, want %d; on standard error want %q\nstderr: %s\nstdout: %s", e.code, code, says, e.stderr, e.stdout)
	}
}

// untouched fails the test when the root was made.
func (n *bareNode) untouched(t *testing.T) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(n.dir, "root")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the root was made although nothing ran (%v)", err)
	}
}
