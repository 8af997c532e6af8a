package system

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// scrubbed is what scrub --json prints.
type scrubbed struct {
	Removed, Kept, Failed []scrubItem
	Before                *uint64 `json:"free_bytes_before"`
	After                 *uint64 `json:"free_bytes_after"`
}

type scrubItem struct {
	Kind, Name, Why string
	Bytes           *int64
}

// names lists items by kind and name, sorted.
func names(items []scrubItem) []string {
	lines := []string{}
	for _, i := range items {
		lines = append(lines, i.Kind+" "+i.Name)
	}
	slices.Sort(lines)
	return lines
}

// scrub runs deckhand scrub --json, which is to end with that code.
func (w *World) scrub(t *testing.T, code int, args ...string) (s scrubbed) {
	t.Helper()
	r := w.Deckhand(t, append([]string{"scrub", "--json"}, args...)...)
	if r.Code != code {
		t.Fatalf("scrub %v: exit code %d, want %d\n%s", args, r.Code, code, r.Stderr)
	}
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		t.Fatalf("scrub --json: %v\n%s", err, r.Stdout)
	}
	if s.Removed == nil || s.Kept == nil || s.Failed == nil || s.Before == nil || s.After == nil {
		t.Errorf("scrub --json lacks a key: %s", r.Stdout)
	}
	for _, i := range slices.Concat(s.Removed, s.Kept, s.Failed) {
		if i.Kind == "" || i.Name == "" || i.Why == "" || i.Bytes == nil {
			t.Errorf("an item lacks something: %+v", i)
		}
	}
	return s
}

// labels are those that deckhand gives what it makes for a task.
func labels(root, task string) []string {
	return []string{
		"--label", "deckhand.root=" + root, "--label", "deckhand.task=" + task,
		"--label", "deckhand.attempt=1", "--label", "deckhand.executor=0",
	}
}

// do runs the docker command line; the words may be lists.
func do(t *testing.T, words ...any) string {
	t.Helper()
	var args []string
	for _, w := range words {
		switch w := w.(type) {
		case []string:
			args = append(args, w...)
		default:
			args = append(args, fmt.Sprint(w))
		}
	}
	return rig.DockerCmd(t, args...)
}

// littered is a node with leftovers of this root and with things of others.
type littered struct {
	*World
	image   rig.Ref
	ours    []string // as names has them
	outside string   // a file that a hostile task points to
	hidden  string   // the anonymous volume of one of our containers
	theirs  map[string][]string
}

func newLittered(t *testing.T) *littered {
	t.Helper()
	t.Parallel()
	w := &littered{World: NewWorld(t)}
	w.image = w.Image(t, "task:1", rig.Spec{})
	w.MustRun(t, 0, tes.Task{ID: "first", Executors: []tes.Executor{{Image: w.image.Tag, Command: []string{"true"}}}})
	root := w.RootID(t)
	if root == "" {
		t.Fatal("the root has no id")
	}
	tag := strings.ReplaceAll(filepath.Base(w.Dir)+root, "/", "-")
	name := func(s string) string { return "scrub-" + s + "-" + tag }

	do(t, "run", "-d", "--name", name("running"), labels(root, "old"), "-v", name("volume")+":/data", w.image.Tag, "sleep", "1000")
	do(t, "run", "--name", name("stopped"), labels(root, "old"), "-v", "/anonymous", w.image.Tag, "true")
	w.hidden = do(t, "inspect", "--format", "{{(index .Mounts 0).Name}}", name("stopped"))
	do(t, "volume", "create", labels(root, "old"), name("labelled"))
	w.outside = w.Write(t, "outside/file", "precious")
	old := filepath.Join(w.Root, "tasks", "old")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(old, "1", "deep"), 0o755),
		os.WriteFile(filepath.Join(old, "1", "deep", "bad\xff\nname"), make([]byte, 8192), 0),
		os.Symlink(filepath.Dir(w.outside), filepath.Join(old, "1", "link")),
		os.Symlink(w.outside, filepath.Join(old, "1", "file")),
		os.Symlink(filepath.Dir(w.outside), filepath.Join(w.Root, "tasks", "swapped")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w.ours = []string{
		"container " + name("running"), "container " + name("stopped"), "volume " + name("labelled"),
		"directory " + old, "directory " + filepath.Join(w.Root, "tasks", "swapped"),
	}
	slices.Sort(w.ours)

	do(t, "run", "--name", name("other-root"), labels(root+"x", "old"), "-v", "/anonymous", w.image.Tag, "true")
	do(t, "run", "-d", "--name", name("scanner"), "-v", name("theirs")+":/data", "-v", "/anonymous", w.image.Tag, "sleep", "1000")
	do(t, "volume", "create", labels(root+"x", "old"), name("other-root"))
	t.Cleanup(func() {
		do(t, "rm", "-f", "-v", name("other-root"), name("scanner"))
		do(t, "volume", "rm", "-f", name("other-root"), name("theirs"), name("volume"))
	})
	dangling := w.Image(t, "dangling:1", rig.Spec{Marker: "1"})
	do(t, "pull", "-q", dangling.Tag)
	w.Image(t, "dangling:1", rig.Spec{Marker: "2"})
	do(t, "pull", "-q", dangling.Tag)
	volumes := strings.Fields(do(t, "inspect", "--format", `{{range .Mounts}}{{.Name}} {{end}}`, name("other-root"), name("scanner")))
	w.theirs = map[string][]string{
		"container": {name("other-root"), name("scanner")},
		"volume":    append(volumes, name("other-root"), name("volume")), // the last is nobody's by its labels
		"image":     {dangling.ID, w.image.ID},
	}
	return w
}

// foreign checks that what others have is there, and runs.
func (w *littered) foreign(t *testing.T) {
	t.Helper()
	for kind, all := range w.theirs {
		for _, name := range all {
			do(t, kind, "inspect", name) // fails the test when it is gone
		}
	}
	if slices.Contains(strings.Fields(do(t, "volume", "ls", "-q")), w.hidden) {
		t.Error("the anonymous volume of a container of ours is left")
	}
	equal(t, "the scanner runs", do(t, "inspect", "--format", "{{.State.Running}}", w.theirs["container"][1]), "true")
	if b, err := os.ReadFile(w.outside); err != nil || string(b) != "precious" {
		t.Errorf("a file outside: %q, %v", b, err)
	}
}

func TestScrubRemovesWhatIsOursAlone(t *testing.T) {
	w := newLittered(t)
	before := w.Deckhand(t, "journal", "export").Stdout
	would := w.scrub(t, 0, "--dry-run")
	if got := names(would.Removed); !slices.Equal(got, w.ours) {
		t.Errorf("a dry scrub would remove\n %q, want\n %q", got, w.ours)
	}
	if kept := names(would.Kept); !slices.Equal(kept, []string{"image " + w.image.Tag}) {
		t.Errorf("a dry scrub would keep %q", kept)
	}
	if again := w.scrub(t, 0, "--dry-run"); !slices.Equal(names(again.Removed), w.ours) {
		t.Errorf("a dry scrub has removed something: %q", names(again.Removed))
	}
	if after := w.Deckhand(t, "journal", "export").Stdout; after != before {
		t.Errorf("a dry scrub wrote to the journal:\n%s", after)
	}

	did := w.scrub(t, 0)
	if got := names(did.Removed); !slices.Equal(got, w.ours) || len(did.Failed) > 0 {
		t.Errorf("scrub removed\n %q, want\n %q; failed: %q", got, w.ours, names(did.Failed))
	}
	for _, i := range did.Removed {
		if strings.HasSuffix(i.Name, "tasks/old") && *i.Bytes < 8192 {
			t.Errorf("%s freed %d bytes", i.Name, *i.Bytes)
		}
	}
	w.foreign(t)
	w.Clean(t)
	if again := w.scrub(t, 0); len(again.Removed)+len(again.Failed) > 0 {
		t.Errorf("another scrub found more: %+v", again)
	}
}

func TestRunScrubsFirst(t *testing.T) {
	w := newLittered(t)
	log := w.MustRun(t, 0, tes.Task{ID: "next", Executors: []tes.Executor{{Image: w.image.Tag, Command: []string{"true"}}}}).Log(t)
	said := strings.Join(log.SystemLogs, "\n")
	for _, line := range []string{
		"removed directory " + filepath.Join(w.Root, "tasks", "old") + " (",
		"bytes): the directory of an earlier task", "bytes): left by task old, attempt 1",
	} {
		if !strings.Contains(said, line) {
			t.Errorf("the result does not say %q:\n%s", line, said)
		}
	}
	equal(t, "removed", log.Metadata["deckhand.removed"], strconv.Itoa(len(w.ours)))
	if freed, err := strconv.ParseInt(log.Metadata["deckhand.bytes_freed"], 10, 64); err != nil || freed < 8192 {
		t.Errorf("%d bytes were freed, %v", freed, err)
	}
	var removed []string
	for _, r := range w.Records(t, "next") {
		if r.From == "Scrub" && r.Kind == "done" && r.Detail["what"] == "removed" {
			removed = append(removed, fmt.Sprint(r.Detail["kind"], " ", r.Detail["name"]))
		}
	}
	slices.Sort(removed)
	if !slices.Equal(removed, w.ours) {
		t.Errorf("journaled as removed\n %q, want\n %q", removed, w.ours)
	}
	w.foreign(t)
	w.Clean(t)
}

// A dry scrub after a crash lists what the roll-back takes along, and leaves
// the task to be resumed.
func TestScrubAfterACrash(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{Volumes: []string{"/data"}})
	task := tes.Task{ID: "t", Executors: []tes.Executor{Sh(image.Tag, "sleep 1000")}}
	run := w.Start(t, task)
	run.Until(t, "executor started")

	for _, args := range [][]string{{"scrub"}, {"scrub", "--dry-run"}} {
		if r := w.Deckhand(t, args...); r.Code != 75 || !strings.Contains(r.Stderr, "task t") {
			t.Errorf("%v while a run holds the root: %+v", args, r)
		}
	}
	if err := run.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	run.End(t)
	want := []string{"directory " + filepath.Join(w.Root, "tasks", "t")}
	for _, c := range w.Containers(t) {
		want = append(want, "container "+c)
	}
	for _, v := range w.Volumes(t) {
		want = append(want, "volume "+v)
	}
	slices.Sort(want)
	if len(want) != 3 {
		t.Errorf("the dead task has %q", want)
	}
	if got := names(w.scrub(t, 0, "--dry-run").Removed); !slices.Equal(got, want) {
		t.Errorf("a dry scrub would remove\n %q, want\n %q", got, want)
	}
	equal(t, "path after a dry scrub", w.Path(t, "t"), "Accepted Scrub ImageCheck Download Run")
	if got := names(w.scrub(t, 0).Removed); !slices.Equal(got, want) {
		t.Errorf("scrub removed\n %q, want\n %q", got, want)
	}
	equal(t, "path after a scrub", w.Path(t, "t"), "Accepted Scrub ImageCheck Download Run RollingBack Interrupted")
	w.Clean(t)
}

// The task that comes after a dead one tells in its result what went with it.
func TestRollBackIsTold(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{Volumes: []string{"/data"}})
	run := w.Start(t, tes.Task{ID: "dies", Executors: []tes.Executor{Sh(image.Tag, "sleep 1000")}})
	run.Until(t, "executor started")
	run.Kill(t)
	dir := filepath.Join(w.Root, "tasks", "dies")
	must(t, os.WriteFile(filepath.Join(dir, "data"), make([]byte, 100_000), 0o644))
	want := []string{"removed directory " + dir + " ("}
	for _, c := range w.Containers(t) {
		want = append(want, "removed container "+c+" (")
	}
	for _, v := range w.Volumes(t) {
		want = append(want, "removed volume "+v+" (")
	}
	log := w.MustRun(t, 0, tes.Task{ID: "next", Executors: []tes.Executor{Sh(image.Tag, "true")}}).Log(t)
	said := strings.Join(log.SystemLogs, "\n")
	for _, what := range want {
		if strings.Count(said, what) != 1 {
			t.Errorf("the result does not tell once of %q:\n%s", what, said)
		}
	}
	if freed, err := strconv.ParseInt(log.Metadata["deckhand.bytes_freed"], 10, 64); err != nil || freed < 100_000 || len(want) != 3 {
		t.Errorf("%d bytes were freed, %v; %q", freed, err, want)
	}
}

// What a dry scrub lists is what goes, whatever kind it is of, and what it says
// stays does stay: once while others use some of it, and once when they do not.
func TestDryScrubIsExact(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	first, second := w.Image(t, "first:1", rig.Spec{Marker: "1", Volumes: []string{"/data"}}), w.Image(t, "second:1", rig.Spec{Marker: "2", Volumes: []string{"/data"}})
	w.MustRun(t, 0, tes.Task{ID: "first", Executors: []tes.Executor{Sh(first.Tag, "true")}})
	root := w.RootID(t)
	name := func(s string) string { return "exact-" + s + "-" + root }
	do(t, "run", "--name", name("user"), "--entrypoint", "true", first.ID) // keeps the first image, as pending
	t.Cleanup(func() { do(t, "rm", "-f", "-v", name("user"), name("other")) })

	other := do(t, "image", "inspect", "--format", "{{.ID}}", first.ID)
	for _, users := range []bool{true, false} {
		run := w.Start(t, tes.Task{ID: fmt.Sprint("dies-", users), Executors: []tes.Executor{Sh(second.Tag, "sleep 1000")}})
		run.Until(t, "executor started")
		run.Kill(t)
		must(t, os.WriteFile(filepath.Join(w.Root, "tasks", fmt.Sprint("dies-", users), "data"), make([]byte, 100_000), 0o644))
		for _, free := range []string{"free", "used"} {
			do(t, "volume", "create", labels(root, "old"), name(free))
			do(t, "network", "create", labels(root, "old"), name(free))
		}
		do(t, "run", "--name", name("stopped"), labels(root, "old"), "-v", "/anonymous", other, "true")
		do(t, "run", "-d", "--name", name("running"), labels(root, "old"), "--network", name("free"), "-v", name("free")+":/data", other, "sleep", "1000")
		if users {
			do(t, "run", "-d", "--name", name("other"), "--network", name("used"), "-v", name("used")+":/data", other, "sleep", "1000")
		} else {
			do(t, "rm", "-f", "-v", name("user"))
		}
		bin := filepath.Join(w.Root, "bin")
		must(t,
			os.MkdirAll(filepath.Join(w.Root, "tasks", "old", "1"), 0o755),
			os.WriteFile(filepath.Join(w.Root, "tasks", "old", "1", "data"), make([]byte, 100_000), 0o644),
			os.Link(filepath.Join(w.Root, "tasks", "old", "1", "data"), filepath.Join(w.Root, "tasks", "old", "linked")),
			os.WriteFile(filepath.Join(w.Root, "tasks", "file"), nil, 0o644),
			os.Symlink("/", filepath.Join(w.Root, "tasks", "link")),
			os.MkdirAll(bin, 0o700),
			os.WriteFile(filepath.Join(bin, "deckhand-of-another-version"), make([]byte, 1000), 0o755),
			os.WriteFile(filepath.Join(bin, "deckhand.part"), make([]byte, 1000), 0o755),
		)
		would := w.scrub(t, 0, "--dry-run")
		did := w.scrub(t, 0)
		for _, c := range []struct {
			what        string
			would, did  []scrubItem
			least, most int
		}{
			{"removed", would.Removed, did.Removed, 12, 20}, {"kept", would.Kept, did.Kept, 1, 4}, {"failed", would.Failed, did.Failed, 0, 0},
		} {
			if a, b := names(c.would), names(c.did); !slices.Equal(a, b) || len(a) < c.least || len(a) > c.most {
				t.Errorf("users %v, %s: a dry scrub says\n %q, a scrub\n %q", users, c.what, a, b)
			}
		}
		for _, i := range did.Removed {
			at := slices.IndexFunc(would.Removed, func(x scrubItem) bool { return x.Kind == i.Kind && x.Name == i.Name })
			if at >= 0 && *would.Removed[at].Bytes != *i.Bytes {
				t.Errorf("users %v: a dry scrub says %d bytes of %s %s, a scrub %d", users, *would.Removed[at].Bytes, i.Kind, i.Name, *i.Bytes)
			}
			if sized := i.Kind == "image" || strings.HasSuffix(i.Name, "/tasks/old") || strings.Contains(i.Name, "/tasks/dies-"); sized && *i.Bytes < 100_000 {
				t.Errorf("users %v: %s %s gave back %d bytes", users, i.Kind, i.Name, *i.Bytes)
			}
		}
		for _, kind := range []string{"container", "volume", "network", "directory", "program"} {
			if !slices.ContainsFunc(did.Removed, func(i scrubItem) bool { return i.Kind == kind }) {
				t.Errorf("users %v: no %s was removed", users, kind)
			}
		}
		isUsed := func(i scrubItem) bool { return i.Name == name("used") || i.Kind == "image" && i.Name == first.Tag }
		if users == slices.ContainsFunc(did.Removed, isUsed) {
			t.Errorf("users %v: removed %q", users, names(did.Removed))
		}
		if users {
			do(t, "rm", "-f", "-v", name("other"))
		}
	}
	if again := w.scrub(t, 0, "--dry-run"); len(again.Removed) > 0 {
		t.Errorf("left: %q", names(again.Removed))
	}
	w.Clean(t)
}

func TestDryScrubOfNothing(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	if s := w.scrub(t, 0, "--dry-run"); len(s.Removed)+len(s.Kept)+len(s.Failed) > 0 {
		t.Errorf("%+v", s)
	}
	if _, err := os.Lstat(w.Root); !os.IsNotExist(err) {
		t.Errorf("a dry scrub made the root: %v", err)
	}
}

func TestVolumesOfAnImageGo(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{Volumes: []string{"/data", "/more"}, Files: map[string]string{"/data/from-image": "yes"}})
	o := w.MustRun(t, 0, tes.Task{ID: "t", Executors: []tes.Executor{Sh(image.Tag, "cat /data/from-image; echo x > /data/x; echo x > /more/x; mount | grep -c ' /data \\| /more '")}})
	if out := o.Log(t).Logs[0].Stdout; out != "yes2\n" {
		t.Errorf("in the container: %q", out)
	}
	for _, v := range strings.Fields(rig.DockerCmd(t, "volume", "ls", "-q", "--filter", "dangling=true")) {
		if strings.Contains(v, w.RootID(t)) {
			t.Errorf("volume %s is left", v)
		}
	}
	w.Clean(t)
}

func TestImmutableLeftover(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{})
	task := tes.Task{ID: "t", Executors: []tes.Executor{{Image: image.Tag, Command: []string{"true"}}}}
	w.MustRun(t, 0, task)
	file := filepath.Join(w.Root, "tasks", "old", "1", "immutable")
	for _, err := range []error{os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chattr", "+i", file).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("chattr +i: %v: %s", err, out)
		}
		t.Skipf("this filesystem has no immutable files: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("chattr", "-i", file).Run() })

	task.ID = "next"
	o := w.MustRun(t, 0, task)
	if said := strings.Join(o.Log(t).SystemLogs, "\n"); !strings.Contains(said, "warning") || !strings.Contains(said, file) || !strings.Contains(said, "immutable") {
		t.Errorf("no warning that names the file and the reason: %q", said)
	}
	mounted := filepath.Join(w.Root, "tasks", "mounted", "here")
	must(t, os.MkdirAll(mounted, 0o755), unix.Mount("none", mounted, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
	would, did := w.scrub(t, 0, "--dry-run"), w.scrub(t, 3)
	if !reflect.DeepEqual(would.Failed, did.Failed) || len(did.Failed) != 2 || len(would.Removed)+len(did.Removed) > 0 {
		t.Errorf("a dry scrub says %+v, a scrub %+v", would, did)
	}
	must(t, unix.Unmount(mounted, 0), os.RemoveAll(filepath.Dir(mounted)))
	s := w.scrub(t, 3)
	if got := names(s.Failed); !slices.Equal(got, []string{"directory " + filepath.Join(w.Root, "tasks", "old")}) || !strings.Contains(s.Failed[0].Why, file) {
		t.Errorf("failed: %+v", s.Failed)
	}
	if out, err := exec.Command("chattr", "-i", file).CombinedOutput(); err != nil {
		t.Fatalf("chattr -i: %v: %s", err, out)
	}
	if s := w.scrub(t, 0); len(s.Removed) != 1 {
		t.Errorf("removed: %+v", s.Removed)
	}
	w.Clean(t)
}

func TestNotEnoughDisk(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "task:1", rig.Spec{})
	var fs unix.Statfs_t
	if err := unix.Statfs(w.Dir, &fs); err != nil {
		t.Fatal(err)
	}
	for _, gb := range []float64{float64(fs.Blocks) * float64(fs.Bsize) / 1e9, 1e9, 1e300} {
		id := fmt.Sprintf("t%g", gb)
		o := w.MustRun(t, 78, tes.Task{
			ID: id, Resources: tes.Resources{DiskGB: gb}, Executors: []tes.Executor{{Image: image.Tag, Command: []string{"true"}}},
		})
		for _, word := range []string{"resources.disk_gb", "disk.floor", "are free"} {
			if !strings.Contains(o.Stderr, word) {
				t.Errorf("%g GB: the message has no %q:\n%s", gb, word, o.Stderr)
			}
		}
		equal(t, "state", o.Task.State, tes.SystemError)
	}
	if asked := w.Registry.Requests(); len(asked) > 0 {
		t.Errorf("the registry was asked though there is no room: %v", asked)
	}
	w.Clean(t)
}
