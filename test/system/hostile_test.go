package system

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// Docker follows links in the path of what it mounts, and it does so when a
// container is started: an earlier executor must not be able to leave one there.
func TestVolumeTurnedIntoALink(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	plain := w.Image(t, "plain", rig.Spec{})
	own := w.Image(t, "own", rig.Spec{Marker: "own", Volumes: []string{"/data/a/own"}})
	secret := filepath.Dir(w.Write(t, "host/secret", "of the node"))
	for name, attack := range map[string]string{
		"the volume itself": "rm -r /data/a/own; ln -s %s /data/a/own",
		"one above it":      "rm -r /data/a; ln -s %s/.. /data/a; ls /data",
		"nothing there":     "rm -r /data/a; : %s",
	} {
		t.Run(name, func(t *testing.T) {
			o := w.Run(t, tes.Task{
				ID: "volume-link", Volumes: []string{"/data"},
				Executors: []tes.Executor{
					Sh(plain.Tag, fmt.Sprintf(attack, secret)),
					Sh(own.Tag, "cat /data/a/own/secret; echo x > /data/a/own/new; : > /data/a/own/secret"),
				},
			}, "--fresh")
			if o.Code != 3 || o.Task.State != tes.SystemError {
				t.Errorf("exit code %d, state %s, want 3 and SYSTEM_ERROR\n%s", o.Code, o.Task.State, o.Stderr)
			}
			if !strings.Contains(o.Stderr, "/data/a/own") {
				t.Errorf("standard error does not name the volume:\n%s", o.Stderr)
			}
			if strings.Contains(fmt.Sprint(o.Log(t)), "of the node") {
				t.Errorf("the task read a file of the node: %+v", o.Log(t))
			}
			if text := w.Read(t, "host/secret"); text != "of the node" {
				t.Errorf("the task changed a file of the node: %q", text)
			}
			if _, err := os.Lstat(filepath.Join(secret, "new")); err == nil {
				t.Error("the task made a file on the node")
			}
			w.Clean(t)
		})
	}
}

// A later executor puts a link to the node in the place of a volume of an ended
// container, from whose own files an output is taken: Docker mounts it for that.
func TestOutputThroughAVolumeTurnedIntoALink(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	plain := w.Image(t, "plain", rig.Spec{})
	own := w.Image(t, "own", rig.Spec{Marker: "own", Volumes: []string{"/data/own"}})
	secret := filepath.Dir(w.Write(t, "host/secret", "of the node"))
	o := w.Run(t, tes.Task{
		ID: "taken", Volumes: []string{"/data"},
		Executors: []tes.Executor{
			Sh(own.Tag, "mkdir -p /opt; ln -s /data/own /opt/out"), Sh(plain.Tag, "rmdir /data/own; ln -s "+secret+" /data/own"),
		},
		Outputs: []tes.Output{{Path: "/opt/out/secret", URL: w.Dir + "/published"}},
	})
	if text, err := os.ReadFile(w.Dir + "/published"); err == nil {
		t.Errorf("a file of the node was published: %q", text)
	}
	if o.Code != 3 || !strings.Contains(o.Stderr, "its image has a volume at /data/own, and that directory was replaced") {
		t.Errorf("exit code %d, want 3\n%s", o.Code, o.Stderr)
	}
	w.Clean(t)
}

// An earlier executor puts links to the node where a later one's streams are to
// go, and in the place of the files themselves.
func TestStreamsTurnedIntoLinks(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "streams", rig.Spec{})
	secret := w.Write(t, "host/secret", "of the node")
	at := filepath.Dir(secret)
	attack := Sh(image.Tag, fmt.Sprintf("mkdir -p /data/a; ln -s %s /data/a/dir; ln -s %[1]s/secret /data/a/out; ln -s %[1]s/secret /data/a/err", at))
	// A link in the last place is replaced by the stream.
	next := Sh(image.Tag, "echo out; echo err >&2")
	next.Stdout, next.Stderr = "/data/a/out", "/data/a/err"
	o := w.MustRun(t, 0, tes.Task{
		ID: "stream-link", Volumes: []string{"/data"}, Executors: []tes.Executor{attack, next},
		Outputs: []tes.Output{{Path: "/data/a/out", URL: w.Dir + "/published"}},
	})
	if text := w.Read(t, "published"); text != "out\n" {
		t.Errorf("the stream is %q\n%s", text, o.Stderr)
	}
	// One that leads to a directory of the node leads nowhere.
	for _, name := range []string{"dir/secret", "dir/new"} {
		next.Stdout, next.Stderr = "/data/a/"+name, ""
		o := w.Run(t, tes.Task{ID: "stream-link", Volumes: []string{"/data"}, Executors: []tes.Executor{attack, next}}, "--fresh")
		if o.Code != 3 || !strings.Contains(o.Stderr, "cannot write the stdout of executor 1") {
			t.Errorf("%s: exit code %d\n%s", name, o.Code, o.Stderr)
		}
	}
	entries, err := os.ReadDir(at)
	if text := w.Read(t, "host/secret"); err != nil || text != "of the node" || len(entries) != 1 {
		t.Errorf("the task changed the node: %q, %v, %v", text, entries, err)
	}
	w.Clean(t)
}

// A container leaves everything that a directory can hold: what is the task's is
// published, byte for byte; nothing else is opened, waited for or followed.
func TestHostileOutputs(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "hostile", rig.Spec{})
	secret := w.Write(t, "host/secret", "of the node")
	var disk unix.Stat_t
	if err := unix.Stat(w.Dir, &disk); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -e
		mkdir -p /out/t/dir /root/t; cd /out/t
		echo file > file; ln file hard; ln file dir/hard; echo locked > locked; chmod 0 locked; mkdir closed; echo in > closed/file; chmod 0 closed
		mkfifo fifo dir/fifo; mknod zero c 1 5; mknod kmsg c 1 11; mknod disk b %d %d
		ln -s file link; ln -s /out/t/dir/hard absolute; ln -s %s leak; ln -s ../../../../../../..%[3]s climb; ln -s /proc/1/root/etc/passwd proc
		ln -s . self; ln -s /dev/zero dev; ln -s /dev/stdin stdin
		printf x > "$(printf 'no\377text')"; printf y > "$(printf 'no\376text')"; printf z > 'back\slash "quote" %%41 *?[a]'; printf n > 'new
line'
		dd if=/dev/zero of=sparse bs=1 count=1 seek=100000000000 2>/dev/null; dd if=/dev/zero of=/root/t/sparse bs=1 count=1 seek=300000000 2>/dev/null
		ln -s %[3]s /root/t/leak; mkfifo /root/t/fifo; echo root > /root/t/file; chmod 0 /root/t/file
		i=0; while [ $i -lt 300 ]; do : > dir/$i; i=$((i+1)); done
		p=.; i=0; while [ $i -lt 14 ]; do p=$p/%[4]s; i=$((i+1)); done; mkdir -p $p; echo deep > $p/f
	`, unix.Major(disk.Dev), unix.Minor(disk.Dev), secret, strings.Repeat("d", 250))
	o := w.MustRun(t, 0, tes.Task{
		ID: "hostile", Executors: []tes.Executor{Sh(image.Tag, script)},
		Outputs: []tes.Output{
			{Path: "/out/t", URL: w.Dir + "/out", Type: tes.Directory}, {Path: "/root/t", URL: w.Dir + "/root", Type: tes.Directory},
			{Path: "/out/t/disk", URL: w.Dir + "/named/disk"}, {Path: "/out/t/leak", URL: w.Dir + "/named/leak"}, {Path: "/out/t/fifo", URL: w.Dir + "/named/fifo"},
		},
	})
	for _, dir := range []string{"out", "root"} {
		var st unix.Stat_t
		sparse := filepath.Join(w.Dir, dir, "sparse")
		if err := unix.Stat(sparse, &st); err != nil || st.Size < 300_000_000 || st.Blocks > 1<<11 {
			t.Errorf("%s has %d bytes in %d blocks, %v", sparse, st.Size, st.Blocks, err)
		}
		if err := os.Remove(sparse); err != nil {
			t.Error(err)
		}
	}
	want := map[string]string{
		"file": "file\n", "hard": "file\n", "dir/hard": "file\n", "locked": "locked\n", "closed/file": "in\n", "link": "file\n", "absolute": "file\n",
		"no\xfftext": "x", "no\xfetext": "y", `back\slash "quote" %41 *?[a]`: "z", "new\nline": "n", strings.Repeat(strings.Repeat("d", 250)+"/", 14) + "f": "deep\n",
	}
	for i := range 300 {
		want[fmt.Sprintf("dir/%d", i)] = ""
	}
	same(t, "outputs", w.tree(t, "out"), want)
	same(t, "captured outputs", w.tree(t, "root"), map[string]string{"file": "root\n"})
	if _, err := os.Lstat(filepath.Join(w.Dir, "named")); err == nil {
		t.Error("a device, a link to the node or a FIFO was published")
	}
	o.warned(t, "/out/t/disk is not", "/out/t/leak is a link", "/out/t/fifo is not", "/out/t/zero", "/out/t/self is a link", "/root/t/leak is a link")
	w.Clean(t)

	o = w.Run(t, tes.Task{
		ID: "endless", Executors: []tes.Executor{Sh(image.Tag, "cd /out; for i in 0 1 2 3 4 5 6 7 8; do mkdir $i; for j in 0 1 2 3 4 5 6 7; do ln -s ../$((i+1)) $i/$j; done; done; echo > 9")},
		Outputs: []tes.Output{{Path: "/out", URL: w.Dir + "/endless", Type: tes.Directory}},
	}, "--config", w.Write(t, "config.yaml", "outputs: {max_files: 20000}\n"))
	if o.Code != 3 || o.Task.State != tes.SystemError || !strings.Contains(o.Stderr, "outputs.max_files allows 20000") {
		t.Errorf("exit code %d, state %s\n%s", o.Code, o.Task.State, o.Stderr)
	}
	w.Clean(t)
}

// Whatever a task does to its inputs, their sources stay as they are: no source
// is mounted or linked to, and blocks that a copy shares with it are copied when
// the task writes to them.
func TestSourcesOfInputsAreProtected(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "protected", rig.Spec{Files: map[string]string{"/etc/kept": "of the image"}})
	w.Dir = rig.Filesystem(t, "xfs", 400*mib) // it can share blocks
	w.Root = filepath.Join(w.Dir, "root")
	w.Env = append(w.Env, "DECKHAND_DISK_FLOOR=0")
	large := w.Write(t, "src/large", strings.Repeat("0123456789abcde\n", 6*mib))
	var inputs []tes.Input
	for to, from := range map[string]string{"/data/large": large, "/data/file": w.Write(t, "src/file", "a file"), "/etc/file": w.Write(t, "src/etc", "in /etc")} {
		inputs = append(inputs, tes.Input{Path: to, URL: from})
	}
	w.Write(t, "src/dir/sub/deep", "in a directory")
	inputs = append(inputs, tes.Input{Path: "/dir", URL: "file://" + w.Dir + "/src/dir", Type: tes.Directory})
	before := w.sources(t, "src")
	var disk unix.Stat_t
	var space unix.Statfs_t
	if err := errors.Join(unix.Stat(w.Dir, &disk), unix.Statfs(w.Dir, &space)); err != nil {
		t.Fatal(err)
	}
	o := w.MustRun(t, 0, tes.Task{ID: "protected", Inputs: inputs, Volumes: []string{"/vol"}, Executors: []tes.Executor{
		Sh(image.Tag, fmt.Sprintf(`
			inputs="/data/large /data/file /etc/file /dir/sub/deep"
			stat -c '%%d:%%i' $inputs /data /dir /dir/sub; df -k /data | awk 'END {print $3}'
			grep -F %s/src /proc/self/mountinfo && echo a source is mounted
			for f in $inputs; do ln $f $f.hard && echo by the hard link >> $f.hard; ln -s $f /vol/$(basename $f); echo by the link >> /vol/$(basename $f); done 2>/vol/no
			for f in $inputs; do
				printf changed | dd of=$f conv=notrunc bs=1 2>/dev/null; echo more >> $f; chmod 4777 $f; chown 7:7 $f; touch -d 2001-01-01 $f
			done
			truncate -s 1 /data/file; : > /etc/file; dd if=/dev/zero of=/data/large conv=notrunc bs=1M seek=3 count=20 2>/dev/null
			mkdir /m; mount --bind /data /m 2>/dev/null && echo mounts; mount -o remount,rw /data 2>/dev/null && echo mounts again
			mknod /vol/disk b %d %d; dd if=/dev/zero of=/vol/disk bs=512 count=1 conv=notrunc 2>/dev/null && echo writes to the disk
			mount -t xfs /vol/disk /m 2>/dev/null && echo mounts the disk
			mv /dir/sub /dir/other; rm -r /dir/other /data/large; mkdir /data/large; cat /etc/kept
		`, w.Dir, unix.Major(disk.Dev), unix.Minor(disk.Dev))),
		Sh(image.Tag, "cat /etc/file; rm -rf /data/* /dir/* /vol/*"),
	}})
	same(t, "sources", w.sources(t, "src"), before)
	lines := strings.Split(o.Log(t).Logs[0].Stdout, "\n")
	if len(lines) != 9 || lines[8] != "of the image" {
		t.Fatalf("the task could do this:\n%s", strings.Join(lines, "\n"))
	}
	for _, inode := range lines[:7] {
		for name, source := range before {
			if strings.HasPrefix(source, inode+" ") {
				t.Errorf("an input is its source %s itself", name)
			}
		}
		if !strings.HasPrefix(inode, fmt.Sprint(disk.Dev)+":") {
			t.Errorf("an input is %s, on another filesystem than its source, which proves nothing", inode)
		}
	}
	used := int64(space.Blocks-space.Bfree) * space.Bsize
	if after, err := strconv.ParseInt(lines[7], 10, 64); err != nil || after<<10-used > 64*mib {
		t.Errorf("%d bytes were used before, and then %s KiB (%v): the input of 96 MiB does not share its blocks, which proves nothing", used, lines[7], err)
	}
	w.Clean(t)
}

// sources describes all files and directories below a directory of the world:
// what they are, whose, since when, and the content of files.
func (w *World) sources(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(filepath.Join(w.Dir, dir), func(p string, e os.DirEntry, err error) error {
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(p, &st)); err != nil {
			return err
		}
		text := ""
		if !e.IsDir() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text = fmt.Sprintf("%x", sha256.Sum256(b))
		}
		all[p] = fmt.Sprintf("%d:%d mode %o, %d links, owner %d:%d, %d bytes, modified %d, changed %d, %s",
			st.Dev, st.Ino, st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Mtim.Nano(), st.Ctim.Nano(), text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A million outputs, and a hundred thousand long names in a directory of the
// image, are found to be too many. The memory that it takes does not grow with
// what a task makes, but with outputs.max_files alone.
func TestMillionOutputs(t *testing.T) {
	t.Parallel()
	// In memory, where a million files are made and removed soon. It goes after the
	// world, which ends with a scrub of its root.
	memory := rig.Filesystem(t, "tmpfs", 4<<30)
	w := NewWorld(t)
	w.Root = filepath.Join(memory, "root")
	w.Env = append(w.Env, "DECKHAND_OUTPUTS_MAX_FILES=10000", "DECKHAND_DISK_ANY_FILESYSTEM=true")
	image := w.Image(t, "million", rig.Spec{})
	long := "sed s/^/" + strings.Repeat("n", 200) + "/"
	base := 0
	for _, c := range []struct {
		names  string // a command that prints them
		output tes.Output
	}{
		{"seq 10", tes.Output{Path: "/usr/out/*", PathPrefix: "/usr/out"}},
		{"seq 100000 | " + long, tes.Output{Path: "/usr/out/*", PathPrefix: "/usr/out"}},
		{"seq 1000000", tes.Output{Path: "/data/out", Type: tes.Directory}},
	} {
		dir := strings.TrimSuffix(c.output.Path, "/*")
		c.output.URL = w.Dir + "/published"
		document := w.Save(t, tes.Task{
			ID: "million", Volumes: []string{"/data"}, Outputs: []tes.Output{c.output},
			Executors: []tes.Executor{Sh(image.Tag, "mkdir -p "+dir+"; cd "+dir+"; "+c.names+" | xargs touch")},
		})
		r, peak := w.peak(t, "run", document, "--fresh")
		if base == 0 {
			if base = peak; r.Code != 0 || base == 0 {
				t.Fatalf("exit code %d, with %d KiB\n%s", r.Code, base, r.Stderr)
			}
			continue
		}
		if r.Code != 3 || !strings.Contains(r.Stderr, "cannot look for output "+c.output.Path) || !strings.Contains(r.Stderr, "outputs.max_files allows 10000") {
			t.Errorf("%s: exit code %d\n%s", c.names, r.Code, r.Stderr)
		}
		if more := peak - base; more > 12<<10 {
			t.Errorf("%s: it took %d KiB more than ten outputs, which take %d", c.names, more, base)
		}
		w.Clean(t)
	}
}

// peak runs the program to its end and returns the most memory that it has had,
// in KiB.
func (n *Node) peak(t *testing.T, args ...string) (r Result, kib int) {
	t.Helper()
	cmd := n.Command(t, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	status := fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)
	for {
		select {
		case <-ended:
			return Result{Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}, kib
		case <-time.After(5 * time.Millisecond):
		}
		// It forgets its peak only when it ends.
		text, _ := os.ReadFile(status)
		if _, after, ok := strings.Cut(string(text), "VmHWM:"); ok {
			fmt.Sscan(after, &kib)
		}
	}
}
