package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// complaint is what doctor has against a check.
type complaint struct{ Check, Result, Found, Fix string }

// complaints runs doctor and returns what is wrong, by check; every one has a mend.
func (n *Node) complaints(t *testing.T, args ...string) map[string]complaint {
	t.Helper()
	r := n.Deckhand(t, append([]string{"doctor", "--json"}, args...)...)
	var all []complaint
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	wrong, failed := map[string]complaint{}, false
	for _, c := range all {
		if c.Result == "ok" {
			continue
		}
		failed = failed || c.Result == "fail"
		if c.Fix == "" {
			t.Errorf("%+v has no mend", c)
		}
		wrong[c.Check] = c
	}
	if want := map[bool]int{false: 0, true: 1}[failed]; r.Code != want {
		t.Errorf("exit code %d, want %d: %s", r.Code, want, r.Stdout)
	}
	return wrong
}

// expect compares what is wrong with what was wrong before: only check may be new, and
// has to say something and offer a mend.
func expect(t *testing.T, before, after map[string]complaint, check, result, says, mend string) {
	t.Helper()
	want, got := map[string]string{check: result}, map[string]string{}
	for name, c := range before {
		if name != check {
			want[name] = c.Result
		}
	}
	for name, c := range after {
		got[name] = c.Result
	}
	c := after[check]
	if !maps.Equal(got, want) || !strings.Contains(c.Found, says) || !strings.Contains(c.Fix, mend) {
		t.Errorf("complaints are %+v, want %v: %s that says %q and offers %q", after, want, check, says, mend)
	}
}

// useUp leaves a mebibyte of a small filesystem.
func useUp(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(1<<20)); err != nil {
		t.Fatal(err)
	}
}

// A root on a filesystem that is full, has no inodes, takes no changes, cannot keep a journal,
// or is on a disk that fails.
func TestDoctorOnFilesystems(t *testing.T) {
	t.Parallel()
	n := NewNode(t, rig.Docker(t))
	n.Env = append(n.Env, "DECKHAND_DISK_FLOOR=8MiB", "DECKHAND_DISK_INODE_FLOOR=100")
	before := n.complaints(t)
	for _, test := range []struct {
		kind, check string
		breaks      func(dir string)
		says, mend  string
	}{
		{"ext4", "space", func(dir string) { useUp(t, dir) }, "free for the root", "8MiB must stay free"},
		{"ext4", "inodes", func(dir string) {
			for i := 0; ; i++ {
				if os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600) != nil {
					return
				}
			}
		}, "0 free for the root", "100 inodes must stay free"},
		{"ext4", "disk", func(dir string) {
			if out, err := exec.Command("chattr", "+a", dir).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}, ": rename /", "dmesg"},
		{"btrfs", "root", func(string) {}, "btrfs", "--root"},
	} {
		dir := rig.Filesystem(t, test.kind, 128<<20)
		test.breaks(dir)
		n.Root = filepath.Join(dir, "root")
		expect(t, before, n.complaints(t), test.check, "fail", test.says, test.mend)
	}
	n.Env = append(n.Env, "DECKHAND_DISK_ANY_FILESYSTEM=true")
	expect(t, before, n.complaints(t), "root", "warn", "btrfs", "takes the risk")
	n.Root = filepath.Join(failingDisk(t), "root")
	expect(t, before, n.complaints(t), "disk", "fail", ": sync /", "dmesg")
}

// failingDisk is a filesystem with room, on a disk that fails when it is written to: the one
// that holds its image has none left.
func failingDisk(t *testing.T) string {
	t.Helper()
	outer := rig.Filesystem(t, "tmpfs", 64<<20)
	inner := rig.FilesystemAt(t, outer, "ext4", 128<<20)
	fill, err := os.Create(filepath.Join(outer, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for err == nil {
		_, err = fill.Write(make([]byte, 64<<10))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return inner
}

// A daemon whose data are on a full disk, that copies layers, and whose runtime is not
// there.
func TestDoctorOnADaemon(t *testing.T) {
	t.Parallel()
	data := rig.Filesystem(t, "ext4", 256<<20)
	d := rig.NewDaemon(t, data)
	n := NewNode(t, d.Host)
	n.Env = append(n.Env, "DECKHAND_DISK_FLOOR=8MiB", "DECKHAND_DISK_INODE_FLOOR=100")
	before := n.complaints(t)
	restart := func(options ...string) {
		d.Stop(t)
		d.Options = options
		d.Start(t)
	}
	restart("--storage-driver=vfs")
	expect(t, before, n.complaints(t), "docker storage", "warn", "vfs", "overlay2")
	restart("--add-runtime=broken=/nowhere/runc", "--default-runtime=broken")
	expect(t, before, n.complaints(t), "docker runtime", "fail", "broken: there is no program /nowhere/runc", "daemon.json")
	restart()
	if err := unix.Kill(d.Pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := n.complaints(t)
	if err := unix.Kill(d.Pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if c := stopped["docker"]; c.Result != "fail" || !strings.Contains(c.Fix, "start it again") {
		t.Errorf("of a daemon that is stopped it says %+v", c)
	}
	useUp(t, data)
	expect(t, before, n.complaints(t), "space", "fail", "free for Docker's data at "+data, "docker system df")
}

// A user whom the socket of Docker does not let in, and a root of somebody else.
func TestDoctorOfAUser(t *testing.T) {
	t.Parallel()
	w := newUserWorld(t)
	before := w.complaints(t)
	w.User.Groups = nil
	c := w.complaints(t)["docker"]
	if c.Result != "fail" || !strings.Contains(c.Fix, fmt.Sprintf("usermod -aG %d", dockerGroup)) {
		t.Errorf("without the group it says %+v", c)
	}
	w.User.Groups = []uint32{dockerGroup}
	// Nobody is to be made a member of root's group because the socket cannot be looked at.
	socket := strings.TrimPrefix(w.DockerHost, "unix://")
	if err := os.Chmod(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	c = w.complaints(t)["docker"]
	if c.Result != "fail" || strings.Contains(c.Fix, "usermod") || !strings.Contains(c.Fix, socket+": permission denied") {
		t.Errorf("without a way to the socket it says %+v", c)
	}
	if err := os.Chmod(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	expect(t, before, w.complaints(t), "root", "fail", "not writable", "--root")
	if err := os.Remove(w.Root); err != nil {
		t.Fatal(err)
	}
}

// What an earlier task left in Docker is told, and what the unfinished one has is not
// called left over; the images of a task are looked for.
func TestDoctorOnLeftovers(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "doctor", rig.Spec{})
	task := tes.Task{ID: "doctor", Executors: []tes.Executor{Sh(image.Tag, "exit 0")}}
	if got := w.complaints(t, w.Save(t, task))["image"]; got.Result != "" {
		t.Errorf("of an image in its registry it says %+v", got)
	}
	if o := w.Run(t, task); o.Code != 0 {
		t.Fatalf("%+v", o.Result)
	}
	before := w.complaints(t)
	raw, err := os.ReadFile(filepath.Join(w.Root, "journal", "ROOT_ID"))
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(raw))
	w.Docker(t, "create", "--label", "deckhand.root="+id, "--label", "deckhand.task=old", "--name", "deckhand-"+id+"-old", image.Tag, "true")
	expect(t, before, w.complaints(t), "leftovers", "warn", "1 of kind container", "deckhand scrub")
	if r := w.Deckhand(t, "scrub"); r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	expect(t, before, w.complaints(t, w.Save(t, tes.Task{ID: "none", Executors: []tes.Executor{Sh(w.Registry.Addr()+"/nope:1", "true")}})),
		"image", "fail", "/nope:1", "docker login")

	waiting := w.Command(t, "run", w.Save(t, tes.Task{ID: "dies", Executors: []tes.Executor{Sh(image.Tag, "sleep 600")}}))
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the container", func() bool {
		return len(strings.Fields(w.Docker(t, "ps", "-q", "--filter", "label=deckhand.root="+id))) == 1
	})
	if wrong := w.complaints(t); len(wrong) != len(before) {
		t.Errorf("while a task runs it says %+v", wrong)
	}
	_ = waiting.Process.Kill() // it runs
	_ = waiting.Wait()
	after := w.complaints(t)
	if lock := after["lock"]; lock.Result != "warn" || !strings.Contains(lock.Found, "stale") {
		t.Errorf("of a lock that a dead process left it says %+v", lock)
	}
	delete(after, "lock")
	expect(t, before, after, "unfinished task", "warn", "task dies, attempt 1", "deckhand recover")
}
