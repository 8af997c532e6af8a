package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// must ends a test at the first of its errors.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// chain makes a path of that many directories below dir, with a file in each.
// It is far too long to be named.
func chain(t *testing.T, dir string, levels int) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range levels {
		must(t, unix.Mkdirat(at, "deeper", 0o755), unix.Mknodat(at, "file", unix.S_IFREG|0o644, 0))
		next, err := unix.Openat(at, "deeper", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err, unix.Close(at))
		at = next
	}
	must(t, unix.Close(at))
}

// attribute sets or takes an attribute of chattr(1), or skips where the filesystem has none.
func attribute(t *testing.T, change, file string) {
	t.Helper()
	if out, err := exec.Command("chattr", change, file).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("chattr %s: %v: %s", change, err, out)
		}
		t.Skipf("this filesystem has no such attribute: %s", out)
	}
}

// Whatever a task has left is gone, or reported when it cannot go, before the
// next one asks for its input; what lies outside of it stays as it is.
func TestHostileLeftovers(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{})
	task := tes.Task{ID: "first", Executors: []tes.Executor{{Image: image.Tag, Command: []string{"true"}}}}
	w.MustRun(t, 0, task)

	outside := filepath.Dir(w.Write(t, "outside/file", "precious"))
	w.Write(t, "outside/linked", "precious")
	tasks := filepath.Join(w.Root, "tasks")
	old, locked, mounted := filepath.Join(tasks, "old", "1"), filepath.Join(tasks, "locked", "1"), filepath.Join(tasks, "mounted", "1")
	for _, dir := range []string{old, locked, filepath.Join(mounted, "mount"), filepath.Join(old, "read-only"), filepath.Join(old, "\xff\xfe"), filepath.Join(old, "deep")} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	chain(t, filepath.Join(old, "deep"), 10_000)
	must(t,
		os.WriteFile(filepath.Join(old, "\xff\xfe", "\x80\n\x1b[31m"), nil, 0),
		os.WriteFile(filepath.Join(old, "-rf"), make([]byte, 100_000), 0o644),
		os.Link(filepath.Join(old, "-rf"), filepath.Join(old, "read-only", "link")),
		os.Link(filepath.Join(outside, "linked"), filepath.Join(old, "outside")),
		os.WriteFile(filepath.Join(old, "sparse"), nil, 0o644),
		os.Truncate(filepath.Join(old, "sparse"), 1<<40),
		os.Chmod(filepath.Join(old, "read-only"), 0o500),
		os.Symlink(outside, filepath.Join(old, "out")),
		os.Symlink("/", filepath.Join(old, "root")),
		os.Symlink("../../../../outside/file", filepath.Join(old, "relative")),
		os.WriteFile(filepath.Join(locked, "immutable"), nil, 0o644),
		os.WriteFile(filepath.Join(locked, "free"), nil, 0o644),
		os.WriteFile(filepath.Join(mounted, "free"), nil, 0o644),
		unix.Mount(outside, filepath.Join(mounted, "mount"), "", unix.MS_BIND, ""),
	)
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(mounted, "mount"), unix.MNT_DETACH) }) // it may be gone
	immutable := filepath.Join(locked, "immutable")
	attribute(t, "+i", immutable)
	t.Cleanup(func() { _ = exec.Command("chattr", "-i", immutable).Run() })

	left := func() string {
		var names []string
		must(t, filepath.WalkDir(tasks, func(path string, d fs.DirEntry, err error) error {
			if d.Name() == "next" {
				return fs.SkipDir // the task's own
			}
			if rel, _ := filepath.Rel(tasks, path); !d.IsDir() || strings.HasSuffix(rel, "mount") {
				names = append(names, rel)
			}
			return err
		}))
		return strings.Join(names, " ")
	}
	const want = "locked/1/immutable mounted/1/mount mounted/1/mount/file mounted/1/mount/linked"
	found := "nothing was asked for"
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if found == "nothing was asked for" {
			found = left()
		}
		_, _ = rw.Write([]byte("input")) // the client tells
	}))
	defer server.Close()
	task.ID, task.Inputs = "next", []tes.Input{{URL: server.URL + "/input", Path: "/in/input"}}
	o := w.MustRun(t, 0, task)
	equal(t, "left when the input was asked for", found, want)
	said := strings.Join(o.Log(t).SystemLogs, "\n")
	for _, line := range []string{
		"warning: .* cannot remove .*" + regexp.QuoteMeta(immutable) + ": immutable",
		"warning: .* cannot remove .*" + regexp.QuoteMeta(filepath.Join(mounted, "mount")) + ": .*mounted there",
	} {
		if !regexp.MustCompile(line).MatchString(said) {
			t.Errorf("the result has no line like %q:\n%s", line, said)
		}
	}
	if n := strings.Count(said, "warning: "); n != 2 {
		t.Errorf("%d warnings, want 2:\n%s", n, said)
	}
	for _, name := range []string{"file", "linked"} {
		if b, err := os.ReadFile(filepath.Join(outside, name)); err != nil || string(b) != "precious" {
			t.Errorf("%s outside: %q, %v", name, b, err)
		}
	}
	attribute(t, "-i", immutable)
	must(t, unix.Unmount(filepath.Join(mounted, "mount"), 0))
	if s := w.scrub(t, 0); len(s.Removed) != 2 || len(s.Failed) > 0 {
		t.Errorf("with the obstacles away: %+v", s)
	}
	w.Clean(t)
}

// leftover makes a leftover of that many files, which takes a while to remove.
func (w *World) leftover(t *testing.T, files int) {
	t.Helper()
	const each = 1000
	for i := range files / each {
		dir := filepath.Join(w.Root, "tasks", "old", "1", fmt.Sprint(i))
		must(t, os.MkdirAll(dir, 0o755))
		for j := range each {
			must(t, unix.Mknod(filepath.Join(dir, fmt.Sprint(j)), unix.S_IFREG|0o644, 0))
		}
	}
}

// How far the removal of leftovers is shows on the terminal and in status.
func TestScrubShowsProgress(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{})
	task := tes.Task{ID: "first", Executors: []tes.Executor{{Image: image.Tag, Command: []string{"true"}}}}
	w.MustRun(t, 0, task)

	const files = 60_000
	w.leftover(t, files)
	drawn, code := w.onTerminal(t, "scrub")
	if code != 0 || !regexp.MustCompile(`\r\x1b\[Knode Scrub leftovers, [0-9]+ files, `).MatchString(drawn) {
		t.Errorf("exit code %d, and no line tells how far it is: %q", code, drawn)
	}

	w.leftover(t, files)
	task.ID = "next"
	run := w.Start(t, task)
	run.Until(t, "next Scrub")
	for {
		var s struct {
			State     string
			Transfers struct {
				Phase string
				Files int64 `json:"files_done"`
			}
		}
		r := w.Deckhand(t, "status", "next", "--json")
		must(t, json.Unmarshal([]byte(r.Stdout), &s))
		if s.Transfers.Phase == "leftovers" && s.Transfers.Files > 0 {
			break
		}
		if s.State != "Scrub" {
			t.Errorf("status never told how far the scrub was; last %s", r.Stdout)
			break
		}
	}
	if code, log := run.End(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, log)
	}
	w.Clean(t)
}

// What takes space on the node is told: this root's, and everybody else's.
func TestHoldings(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	const size = 8 << 20
	image := w.Image(t, "task:1", rig.Spec{Size: size})
	w.MustRun(t, 0, tes.Task{ID: "first", Executors: []tes.Executor{Sh(image.Tag, "true")}})
	root := w.RootID(t)
	name := func(s string) string { return "holdings-" + s + "-" + root }
	for who, more := range map[string][]string{"ours": labels(root, "old"), "theirs": {}} {
		do(t, "volume", "create", more, name(who))
		do(t, "run", "--name", name(who), more, "-v", name(who)+":/data", image.Tag, "sh", "-c",
			fmt.Sprintf("head -c %d /dev/zero > /data/file; head -c %d /dev/zero > /file", size, size))
		t.Cleanup(func() { do(t, "rm", "-f", "-v", name(who)); do(t, "volume", "rm", "-f", name(who)) })
	}
	old := filepath.Join(w.Root, "tasks", "old", "1")
	must(t, os.MkdirAll(old, 0o755), os.WriteFile(filepath.Join(old, "file"), make([]byte, size), 0o644))
	must(t, os.Mkdir(filepath.Join(w.Root, "journal.damaged-1"), 0o700), os.WriteFile(filepath.Join(w.Root, "journal.damaged-1", "file"), make([]byte, size), 0o600))

	// A busy node does not count it in the time of status, and Docker for one at a time.
	counted := func(args ...string) (said string) {
		t.Helper()
		for deadline := time.Now().Add(hang); ; {
			said = w.Deckhand(t, args...).Stdout
			if !strings.Contains(said, "not counted in full") && (!strings.Contains(said, `"unknown"`) || regexp.MustCompile(`"unknown": *\[\]`).MatchString(said)) {
				return said
			}
			if time.Now().After(deadline) {
				t.Fatalf("not counted: %s", said)
			}
		}
	}
	var s struct {
		Node struct{ Deckhand, Others map[string]int64 }
	}
	said := counted("status", "first", "--json")
	must(t, json.Unmarshal([]byte(said), &s))
	for side, kinds := range map[string][]string{
		"deckhand": {"images", "containers", "volumes", "tasks", "damaged_journals"}, "others": {"containers", "volumes"},
	} {
		for _, kind := range kinds {
			bytes := map[string]map[string]int64{"deckhand": s.Node.Deckhand, "others": s.Node.Others}[side][kind]
			if bytes < size || side == "deckhand" && bytes > 4*size {
				t.Errorf("%s of %s take %d bytes, want about %d", kind, side, bytes, size)
			}
		}
	}
	for _, kind := range []string{"journal", "reserve"} {
		if s.Node.Deckhand[kind] <= 0 {
			t.Errorf("%s takes nothing: %s", kind, said)
		}
	}
	for _, command := range []string{"status", "doctor"} {
		said := counted(command)
		for _, words := range []string{"images ", "containers ", "volumes ", "task directories ", "journal ", "reserve ", "damaged journals ", " in Docker"} {
			if !strings.Contains(said, words) {
				t.Errorf("%s does not tell %q:\n%s", command, words, said)
			}
		}
	}
	if code := w.Deckhand(t, "scrub").Code; code != 0 {
		t.Errorf("scrub ends with %d", code)
	}
}
