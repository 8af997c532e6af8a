package system

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// An ordinary user of the group that owns Docker's socket.
const (
	userID      = 54321
	dockerGroup = 54322
)

// newUserWorld is NewWorld for an ordinary user, who may use Docker.
func newUserWorld(t *testing.T) *World {
	t.Helper()
	home, err := os.MkdirTemp("/var/tmp", "dkuser")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	// A socket with an owner of its own, in front of the one that all tests use.
	wire := newWire(t, rig.Docker(t))
	socket := strings.TrimPrefix(wire.Host, "unix://")
	w := newWorld(t, wire.Host, rig.DockerCmd)
	w.Root, w.Dir = filepath.Join(home, "root"), filepath.Join(home, "data")
	w.Env = []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home}
	w.User = &syscall.Credential{Uid: userID, Gid: userID, Groups: []uint32{dockerGroup}}
	// By another process: whatever this one starts meanwhile would have the file open for
	// writing for a moment, and nobody could run it.
	err = exec.Command("cp", Build(t), filepath.Join(home, "program")).Run()
	err = errors.Join(err, os.Chmod(filepath.Join(home, "program"), 0o755), os.Mkdir(w.Dir, 0o755),
		os.Chmod(home, 0o755), os.Chown(home, userID, userID), os.Chown(w.Dir, userID, userID),
		os.Chmod(filepath.Dir(socket), 0o755), os.Chown(socket, 0, dockerGroup), os.Chmod(socket, 0o660))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

var deepName = strings.Repeat("d", 180)

// closed leaves what root alone can read: directories and files without any
// permission, links, a long path.
var closed = `set -e
	umask 077; mkdir -p /data/out/dir /data/logs; cd /data/out
	echo mine > dir/file; echo set > setuid; chmod 4700 setuid; ln dir/file dir/hard; ln -s dir/file link; ln -s /etc/shadow away; mkfifo fifo
	mkdir none; echo none > none/file; chmod 0 none/file none; echo other > other; chown 1234:1234 other
	for i in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir ` + deepName + `; cd ` + deepName + `; done; echo deep > file; cd /data/out
	`

// What a container leaves as root's, or as anybody's, is published, and belongs
// to who runs deckhand; nothing of it is left.
func TestFilesOfOthers(t *testing.T) {
	t.Parallel()
	for name, world := range map[string]func(*testing.T) *World{
		"root": func(t *testing.T) *World { return NewWorld(t) }, "user": newUserWorld,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := world(t)
			uid := 0
			if w.User != nil {
				uid = userID
			}
			image := w.Image(t, "others", rig.Spec{})
			closing := Sh(image.Tag, "echo said; chown 99 /.deckhand/*/stdout; chmod 0 /.deckhand/*/stdout; id -u >&2")
			closing.Stdout = "/data/logs/said"
			task := tes.Task{
				ID: "others", Volumes: []string{"/data"}, Executors: []tes.Executor{Sh(image.Tag, closed), closing, Sh(image.Tag, "ls -ld /data/out | cut -c1-10")},
				Outputs: []tes.Output{
					{Path: "/data/out", URL: w.Dir + "/published", Type: tes.Directory}, {Path: "/data/logs/said", URL: w.Dir + "/said"},
				},
			}
			log := runAs(t, w, task)
			if log.Logs[1].Stdout != "said\n" || log.Logs[1].Stderr != "0\n" || log.Logs[2].Stdout != "drwx------\n" {
				t.Errorf("the executors said %+v", log.Logs)
			}
			got := w.tree(t, "published")
			for name, text := range got {
				if filepath.Base(name) == "file" && len(name) > 1000 && text == "deep\n" {
					delete(got, name)
					got["deep"] = text
				}
			}
			same(t, "outputs", got, map[string]string{
				"dir/file": "mine\n", "dir/hard": "mine\n", "link": "mine\n", "setuid": "set\n", "none/file": "none\n", "other": "other\n", "deep": "deep\n",
			})
			if text := w.Read(t, "said"); text != "said\n" {
				t.Errorf("the stream is %q", text)
			}
			belong(t, filepath.Join(w.Dir, "published"), uid)
			belong(t, filepath.Join(w.Dir, "said"), uid)
			w.Clean(t)

			// A process that died leaves it to the next task's scrub.
			task.ID, task.Executors = "dead", []tes.Executor{Sh(image.Tag, closed+"\n: > /data/ready; sleep 1000")}
			b := w.Start(t, task)
			b.Until(t, "executor started")
			for deadline := time.Now().Add(hang); ; time.Sleep(20 * time.Millisecond) {
				if ready, _ := filepath.Glob(w.Root + "/tasks/*/1/dirs/*/ready"); len(ready) == 1 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the executor does not come to its end")
				}
			}
			if err := b.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			b.End(t)
			w.Env = append(w.Env, "DECKHAND_RUN_USER=caller")
			log = runAs(t, w, tes.Task{ID: "next", Executors: []tes.Executor{Sh(image.Tag, "id -u; id -g")}})
			if want := strings.Repeat(strconv.Itoa(uid)+"\n", 2); log.Logs[0].Stdout != want {
				t.Errorf("as the caller the executor is %q, want %q", log.Logs[0].Stdout, want)
			}
			w.Clean(t)
		})
	}
}

// A directory that an executor has closed holds a volume of a later one's image:
// that is mounted when it is still a directory, and nothing else.
func TestVolumeInAClosedDirectory(t *testing.T) {
	t.Parallel()
	w := newUserWorld(t)
	plain := w.Image(t, "plain", rig.Spec{})
	own := w.Image(t, "own", rig.Spec{Marker: "own", Volumes: []string{"/data/a/own"}})
	task := tes.Task{
		ID: "closed", Volumes: []string{"/data"}, Outputs: []tes.Output{{Path: "/data/a", URL: w.Dir + "/published", Type: tes.Directory}},
		Executors: []tes.Executor{
			Sh(plain.Tag, "echo mine > /data/a/own/first; chown 0:0 /data/a; chmod 700 /data/a"),
			Sh(own.Tag, "cat /data/a/own/first; echo more > /data/a/own/second; stat -c %u:%a /data/a"),
		},
	}
	log := runAs(t, w, task)
	// The executor finds what the one before it has left, as it was left.
	if got := log.Logs[1].Stdout; got != "mine\n0:700\n" {
		t.Errorf("the executor saw %q", got)
	}
	same(t, "outputs", w.tree(t, "published"), map[string]string{"own/first": "mine\n", "own/second": "more\n"})
	belong(t, filepath.Join(w.Dir, "published"), userID)
	w.Clean(t)

	secret := filepath.Dir(w.Write(t, "host/secret", "of the node"))
	task.Outputs = nil
	task.Executors[0] = Sh(plain.Tag, "rm -r /data/a/own; ln -s "+secret+" /data/a/own; chown 0:0 /data/a; chmod 700 /data/a")
	task.Executors[1] = Sh(own.Tag, ": > /data/a/own/secret")
	r := w.Deckhand(t, "run", w.Save(t, task), "--fresh")
	if r.Code != 3 || !strings.Contains(r.Stderr, "an earlier executor has replaced that directory") || w.Read(t, "host/secret") != "of the node" {
		t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
	}
	w.Clean(t)

	// Nor are inputs copied through it.
	linked := w.Image(t, "linked", rig.Spec{Marker: "linked", Volumes: []string{"/data/a/own"}, Links: map[string]string{"/opt/tool": "/data/a/own"}})
	w.Write(t, "tool/planted", "of the task")
	task.Inputs = []tes.Input{{Path: "/opt/tool", URL: w.Dir + "/tool", Type: tes.Directory}}
	task.Executors[1].Image = linked.Tag
	r = w.Deckhand(t, "run", w.Save(t, task), "--fresh")
	if _, err := os.Lstat(filepath.Join(secret, "planted")); r.Code != 3 || err == nil || !strings.Contains(r.Stderr, "an earlier executor has replaced that directory") {
		t.Errorf("exit code %d, planted: %v\n%s", r.Code, err == nil, r.Stderr)
	}
	w.Clean(t)
}

// runAs runs a task that is to succeed, as the world's user, and returns its log.
func runAs(t *testing.T, w *World, task tes.Task) tes.TaskLog {
	t.Helper()
	o := Outcome{Result: w.Deckhand(t, "run", w.Save(t, task), "--result", w.Dir+"/result.json")}
	if o.Code != 0 {
		t.Fatalf("exit code %d\n%s", o.Code, o.Stderr)
	}
	if err := json.Unmarshal([]byte(w.Read(t, "result.json")), &o.Task); err != nil {
		t.Fatal(err)
	}
	return o.Log(t)
}

// belong fails the test for everything that does not belong to a user.
func belong(t *testing.T, dir string, uid int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) != uid {
			t.Errorf("%s belongs to %d", p, info.Sys().(*syscall.Stat_t).Uid)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What a run of an ordinary user has left is recovered by that user. Root, as who an epilog
// runs, is told so and leaves it alone.
func TestRecoverOfAUser(t *testing.T) {
	t.Parallel()
	w := newUserWorld(t)
	image := w.Image(t, "left", rig.Spec{})
	b := w.Start(t, tes.Task{ID: "left", Executors: []tes.Executor{Sh(image.Tag, "sleep 1000")}})
	b.Until(t, "executor started")
	b.Kill(t)
	user := w.User
	w.User = nil
	if r := w.recover(t); len(r.RolledBack) > 0 || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "; run as user "+strconv.Itoa(userID)) {
		t.Errorf("as root recover says %+v", r)
	}
	w.User = user
	if r := w.recover(t, "--stop-grace", "1s"); !slices.Equal(r.RolledBack, []string{"left"}) {
		t.Errorf("as the user recover says %+v", r)
	}
	w.Clean(t)
}
