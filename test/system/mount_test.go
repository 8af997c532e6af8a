package system

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// reference makes a world in which a directory is declared.
func reference(t *testing.T) (w *World, dir, genome string) {
	t.Helper()
	w = NewWorld(t)
	dir, genome = declare(t, w)
	return w, dir, genome
}

// declare declares a directory of another filesystem than the root's, with a file of
// 16 MiB in it that everybody may read.
func declare(t *testing.T, w *World) (dir, genome string) {
	t.Helper()
	at := rig.Filesystem(t, "tmpfs", 64*mib)
	dir = filepath.Join(at, "ref")
	genome = filepath.Join(dir, "genome.fa")
	if err := errors.Join(os.Chmod(filepath.Dir(at), 0o755), os.Mkdir(dir, 0o755), os.WriteFile(genome, []byte(strings.Repeat("ACGTACGTACGTACG\n", mib)), 0o644)); err != nil {
		t.Fatal(err)
	}
	w.Env = append(w.Env, "DECKHAND_STORAGE_FILE_MOUNT="+dir)
	return dir, genome
}

// identity is everything that a task could have changed of a file, and its content's size.
func identity(t *testing.T, name string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(st.Dev, st.Ino, st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Mtim, st.Ctim)
}

// An input of a declared directory is mounted: it takes no space, every executor reads it,
// and none can change it, as root or by what it leaves.
func TestMountedInput(t *testing.T) {
	t.Parallel()
	for name, world := range map[string]func(*testing.T) *World{
		"root": func(t *testing.T) *World { return NewWorld(t) },
		"user": newUserWorld,
		"podman": func(t *testing.T) *World {
			podman := rig.NewPodman(t)
			return newWorld(t, podman.Host, podman.Cmd)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mountedInput(t, world(t))
		})
	}
}

func mountedInput(t *testing.T, w *World) {
	dir, genome := declare(t, w)
	image := w.Image(t, "mounted", rig.Spec{})
	before := identity(t, genome)
	count := `for f in /data/ref/genome.fa /opt/genome.fa; do stat -c '%i %a' $f; head -c 4 $f; echo; tail -c 16 $f; done; `
	log := runAs(t, w, tes.Task{
		ID: "mounted", Volumes: []string{"/data"},
		// More than the root's filesystem could take besides: nothing of it is needed.
		Inputs: []tes.Input{{Path: "/data/ref/genome.fa", URL: "file://" + genome}, {Path: "/opt/genome.fa", URL: genome}, {Path: "/data/list", Content: pointer("list")}},
		Executors: []tes.Executor{
			Sh(image.Tag, count+`
				for f in /data/ref/genome.fa /opt/genome.fa; do
					{ true > $f && echo emptied; echo x >> $f && echo longer; printf X | dd of=$f conv=notrunc bs=1 && echo written
					truncate -s 1 $f && echo cut; chmod 777 $f && echo mode; chown 7:7 $f && echo owner; touch $f && echo touched
					rm -f $f && echo removed; mv $f $f.2 && echo moved; ln $f /data/hard && echo linked; echo new > /data/new; mv /data/new $f && echo replaced
					mount -o remount,rw,bind $f && echo remounted; umount $f && echo unmounted; } 2>/dev/null
				done
				grep -E ' (/data/ref|/opt)/genome.fa ' /proc/self/mountinfo | grep -cE 'shared:|master:|propagate_from:'
				du -sk -x /data | cut -f1; ln -s ref/genome.fa /data/link`),
			Sh(image.Tag, count),
		},
		Outputs: []tes.Output{{Path: "/data/link", URL: w.Dir + "/out"}, {Path: "/data/list", URL: w.Dir + "/list"}},
	})
	var st unix.Stat_t
	if err := unix.Stat(genome, &st); err != nil {
		t.Fatal(err)
	}
	saw := strings.Repeat(fmt.Sprintf("%d 644\nACGT\nACGTACGTACGTACG\n", st.Ino), 2)
	if got, want := log.Logs[1].Stdout, saw; got != want {
		t.Errorf("the second executor saw %q, want %q", got, want)
	}
	rest, ok := strings.CutPrefix(log.Logs[0].Stdout, saw+"0\n")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); !ok || err != nil || kib > 64 {
		t.Errorf("the first executor saw, and could do, this; /data took %d KiB:\n%s", kib, log.Logs[0].Stdout)
	}
	if after := identity(t, genome); after != before {
		t.Errorf("the source is %s, it was %s", after, before)
	}
	// What the executor read by its link is what is published.
	if text := w.Read(t, "out"); len(text) != 16*mib || !strings.HasPrefix(text, "ACGT") {
		t.Errorf("the output has %d bytes, %.8q", len(text), text)
	}
	if in := log.Metadata["deckhand.bytes_in"]; in != "4" {
		t.Errorf("%s bytes are said to have been copied", in)
	}
	for _, p := range []string{"/data/ref/genome.fa", "/opt/genome.fa"} {
		if all := strings.Join(log.SystemLogs, "\n"); !strings.Contains(all, fmt.Sprintf("input %s (%d bytes) is mounted, not copied", p, 16*mib)) {
			t.Errorf("the result does not say that %s is mounted:\n%s", p, all)
		}
	}
	if _, err := os.Lstat(dir + "/genome.fa.2"); err == nil {
		t.Error("the task made a file beside the source")
	}
	w.Clean(t)
}

// What a task may write to, or what leads out of the declared directory, is copied as
// everywhere else.
func TestNotMounted(t *testing.T) {
	t.Parallel()
	w, dir, genome := reference(t)
	image := w.Image(t, "notmounted", rig.Spec{})
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := errors.Join(os.WriteFile(outside, []byte(strings.Repeat("outside\n", mib)), 0o644), os.Symlink(outside, dir+"/out")); err != nil {
		t.Fatal(err)
	}
	write := Sh(image.Tag, "echo end >> /data/in; tail -n 1 /data/in; grep -c ' /data/in ' /proc/self/mountinfo; true")
	for name, test := range map[string]struct {
		source string
		output tes.Output
		env    string
	}{
		"an output of the same path":  {genome, tes.Output{Path: "/data/in", URL: w.Dir + "/out"}, ""},
		"in an output directory":      {genome, tes.Output{Path: "/data", URL: w.Dir + "/dir", Type: tes.Directory}, ""},
		"a link out of the directory": {dir + "/out", tes.Output{}, ""},
		"containers may mount":        {genome, tes.Output{}, "DECKHAND_RUN_CAP_ADD=SYS_ADMIN"},
	} {
		task := tes.Task{ID: "notmounted", Inputs: []tes.Input{{Path: "/data/in", URL: test.source}}, Executors: []tes.Executor{write}}
		if test.output.URL != "" {
			task.Outputs = []tes.Output{test.output}
		}
		before, env := identity(t, test.source), w.Env
		if test.env != "" {
			w.Env = append(w.Env[:len(w.Env):len(w.Env)], test.env)
		}
		o := w.MustRun(t, 0, task, "--fresh")
		w.Env = env
		if got := o.Log(t).Logs[0].Stdout; got != "end\n0\n" {
			t.Errorf("%s: the executor could not write to its input: %.99q", name, got)
		}
		if after := identity(t, test.source); after != before {
			t.Errorf("%s: the source is %s, it was %s", name, after, before)
		}
	}
	for _, out := range []string{"out", "dir/in"} {
		if text := w.Read(t, out); !strings.HasSuffix(text, "ACGTACG\nend\n") || len(text) != 16*mib+4 {
			t.Errorf("%s has %d bytes", out, len(text))
		}
	}
	w.Clean(t)
}

// Docker follows links on the way to the place of a mount: an executor must not be able
// to leave one there for the next.
func TestMountedInputTurnedIntoALink(t *testing.T) {
	t.Parallel()
	w, _, genome := reference(t)
	image := w.Image(t, "mountlink", rig.Spec{})
	before := identity(t, genome)
	for name, attack := range map[string]string{
		"a link":        "mv /data/ref /data/old; ln -s /etc /data/ref",
		"a link beside": "mv /data/ref /data/old; ln -s old /data/ref",
		"nothing":       "mv /data/ref /data/old",
	} {
		o := w.Run(t, tes.Task{
			ID: "mountlink", Volumes: []string{"/data"}, Inputs: []tes.Input{{Path: "/data/ref/passwd", URL: genome}},
			Executors: []tes.Executor{Sh(image.Tag, attack+" && head -c 4 /data/old/passwd"), Sh(image.Tag, "head -c 4 /etc/passwd")},
		}, "--fresh")
		logs := o.Log(t).Logs
		if o.Code != 3 || o.Task.State != tes.SystemError || len(logs) != 1 || logs[0].Stdout != "ACGT" {
			t.Errorf("%s: exit code %d, state %s, want 3 and SYSTEM_ERROR after the first executor: %+v\n%s", name, o.Code, o.Task.State, logs, o.Stderr)
		}
		if !strings.Contains(o.Stderr, "cannot start executor 1: an executor has replaced what leads to input /data/ref/passwd") {
			t.Errorf("%s: standard error does not say why:\n%s", name, o.Stderr)
		}
		w.Clean(t)
	}
	if after := identity(t, genome); after != before {
		t.Errorf("the source is %s, it was %s", after, before)
	}
}

// letGo lets the first executor of a task end.
func (w *World) letGo(t *testing.T) {
	t.Helper()
	all := w.Containers(t)
	first := slices.IndexFunc(all, func(name string) bool { return strings.HasSuffix(name, "-1-0") })
	if first < 0 {
		t.Fatalf("the containers are %v", all)
	}
	w.Docker(t, "exec", all[first], "touch", "/data/go")
}

// A source that changes between executors ends the task: the second would see other bytes
// than the first.
func TestMountedInputChanges(t *testing.T) {
	t.Parallel()
	w, _, genome := reference(t)
	image := w.Image(t, "mountchange", rig.Spec{})
	task := tes.Task{
		ID: "mountchange", Volumes: []string{"/data"}, Inputs: []tes.Input{{Path: "/in/genome.fa", URL: genome}},
		Executors: []tes.Executor{Sh(image.Tag, "echo begun; until [ -e /data/go ]; do usleep 10000; done"), Sh(image.Tag, "head -c 4 /in/genome.fa")},
	}
	b := w.Start(t, task)
	b.Until(t, "executor started")
	if err := os.Chtimes(genome, time.Time{}, time.Unix(1_000_000_000, 0)); err != nil {
		t.Fatal(err)
	}
	w.letGo(t)
	code, log := b.End(t)
	if code != 3 || !strings.Contains(log, "cannot start executor 1") || !strings.Contains(log, "it changed since the task began") || !strings.Contains(log, genome) {
		t.Errorf("exit code %d\n%s", code, log)
	}
	if path := w.Path(t, "mountchange"); !strings.HasSuffix(path, " Run RollingBack SystemError") {
		t.Errorf("its states are %s", path)
	}
	w.Clean(t)
}

// A run that dies takes its mounted inputs up again.
func TestMountedInputResumed(t *testing.T) {
	t.Parallel()
	w, _, genome := reference(t)
	image := w.Image(t, "mountresume", rig.Spec{})
	task := tes.Task{
		ID: "mountresume", Volumes: []string{"/data"}, Inputs: []tes.Input{{Path: "/data/genome.fa", URL: genome}},
		Executors: []tes.Executor{Sh(image.Tag, "until [ -e /data/go ]; do usleep 10000; done; tail -c 4 /data/genome.fa"), Sh(image.Tag, "head -c 4 /data/genome.fa")},
	}
	b := w.Start(t, task)
	b.Until(t, "executor started")
	if err := b.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.End(t)
	w.letGo(t)
	// The setting may be another by now: what counts is what was chosen.
	w.Env = append(w.Env, "DECKHAND_STORAGE_FILE_MOUNT=none")
	o := w.MustRun(t, 0, task)
	logs := o.Log(t).Logs
	if len(logs) != 2 || logs[0].Stdout != "ACG\n" || logs[1].Stdout != "ACGT" {
		t.Errorf("the executors saw %+v", logs)
	}
	w.Clean(t)
}

// What was chosen counts also for a run that dies before anything of it was done.
func TestMountedInputChosenOnce(t *testing.T) {
	t.Parallel()
	w, _, genome := reference(t)
	image := w.Image(t, "mountchosen", rig.Spec{})
	pulling, gate := make(chan struct{}), make(chan struct{})
	pull := sync.OnceFunc(func() { close(pulling) })
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	w.Registry.Intercept(func(http.ResponseWriter, *http.Request) bool {
		pull()
		<-gate
		return false
	})
	task := tes.Task{
		ID: "mountchosen", Inputs: []tes.Input{{Path: "/data/genome.fa", URL: genome}},
		Executors: []tes.Executor{Sh(image.Tag, "stat -c %i /data/genome.fa")},
	}
	b := w.Start(t, task)
	<-pulling
	if err := b.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.End(t)
	open()
	w.Env = append(w.Env, "DECKHAND_STORAGE_FILE_MOUNT=none")
	log := w.MustRun(t, 0, task).Log(t)
	var st unix.Stat_t
	if err := unix.Stat(genome, &st); err != nil {
		t.Fatal(err)
	}
	if got, want := log.Logs[0].Stdout, fmt.Sprintln(st.Ino); got != want || log.Metadata["deckhand.bytes_in"] != "0" {
		t.Errorf("the executor saw inode %s, the source is %s; %q bytes were copied", got, want, log.Metadata["deckhand.bytes_in"])
	}
	w.Clean(t)
}

// An input on a mount that only the job has is copied, also when its directory is declared: Docker
// would mount what the node has at that path.
func TestInputOnAMountOfTheJob(t *testing.T) {
	t.Parallel()
	w, dir, genome := reference(t)
	image := w.Image(t, "mounted", rig.Spec{})
	own := filepath.Join(w.Dir, "own")
	if err := errors.Join(os.Mkdir(own, 0o755), os.WriteFile(filepath.Join(own, filepath.Base(genome)), []byte(strings.Repeat("T", 16*mib)), 0o644)); err != nil {
		t.Fatal(err)
	}
	w.Under = []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" "$1" && shift && exec "$@"`, own, dir}
	log := w.MustRun(t, 0, tes.Task{
		ID: "own", Inputs: []tes.Input{{Path: "/data/genome.fa", URL: genome}}, Executors: []tes.Executor{Sh(image.Tag, "head -c 4 /data/genome.fa")},
	}).Log(t)
	equal(t, "what the executor saw", log.Logs[0].Stdout, "TTTT")
	if found := w.complaints(t)["mounted inputs"]; !strings.Contains(found.Found, "is on "+dir+", a mount that the node does not have") {
		t.Errorf("doctor says %+v", found)
	}
	w.Under = nil
	w.Clean(t)
}
