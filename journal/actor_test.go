package journal

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// long says whether the campaigns run in full length.
var long = os.Getenv("DECKHAND_LONG") != ""

// campaign chooses how often an experiment is done.
func campaign(short, full int) int {
	if long {
		return full
	}
	return short
}

// need skips the test where the machine lacks something, and fails it in CI.
func need(t testing.TB, what string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s: %v", what, err)
	}
	t.Skipf("this test needs %s: %v", what, err)
}

const (
	actorVariable  = "JOURNAL_TEST_ACTOR"
	unsyncVariable = "JOURNAL_TEST_UNSYNCED"
	anyVariable    = "JOURNAL_TEST_ANY_FILESYSTEM"
	filesVariable  = "JOURNAL_TEST_FILES" // how many it may have open
	useVariable    = "JOURNAL_TEST_USE"   // one of uses
	keepVariable   = "JOURNAL_TEST_KEEP"  // how many tasks; keepAll when it is "all"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(actorVariable); dir != "" {
		if what := os.Getenv(useVariable); what != "" {
			os.Exit(use(dir, what))
		}
		os.Exit(act(dir))
	}
	os.Exit(m.Run())
}

// act is the process that the tests kill and take the disk away from. It opens
// the journal, then does what it reads: "append TASK N", "go-on TASK N", "cycle N" (open and
// close around each task), "compact", "peak", "close". It prints what is acknowledged.
func act(dir string) int {
	if os.Getenv(unsyncVariable) != "" {
		fdatasync = func(int) error { return nil }
	}
	if few := os.Getenv(filesVariable); few != "" {
		var limit unix.Rlimit
		if _, err := fmt.Sscan(few, &limit.Cur); err != nil {
			panic(err)
		}
		limit.Max = limit.Cur
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			panic(err)
		}
	}
	if dir == noJournal {
		fmt.Println("peak", peak())
		return 0
	}
	j, err := Open(dir, actorOptions())
	if err != nil {
		fmt.Println("failed", class(err), err)
		return 3
	}
	fmt.Println("open")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var what, task string
		var n int
		_, _ = fmt.Sscan(in.Text(), &what, &task, &n)
		switch what {
		case "append":
			err = actAppend(j, task, n)
		case "go-on":
			err = actGoOn(j, task, n)
		case "play":
			j, err = actPlay(j, dir, task, n, 3, false)
		case "cycle":
			j, err = actPlay(j, dir, task, n, 3, true)
		case "idle":
			j, err = actPlay(j, dir, task, n, 0, true)
		case "compact":
			j, err = actCompact(j, dir)
		case "peak":
			fmt.Println("peak", peak())
		case "close":
			if err = j.Close(); err == nil {
				fmt.Println("closed")
				return 0
			}
		}
		if err != nil {
			fmt.Println("failed", class(err), err)
			return 3
		}
		fmt.Println("did", in.Text())
	}
	return 0
}

func actorOptions() Options {
	o := Options{BootID: "actor", AnyFilesystem: os.Getenv(anyVariable) != ""}
	if keep := os.Getenv(keepVariable); keep == "all" {
		o.Retention = keepAll
	} else if keep != "" {
		if _, err := fmt.Sscan(keep, &o.Retention.Keep); err != nil {
			panic(err)
		}
	}
	return o
}

// keepAll forgets no task.
var keepAll = Retention{Keep: 1 << 30, Bytes: 1 << 40}

// noJournal in place of a directory is for a process without a journal.
const noJournal = "none"

// peak is this process's peak memory so far, in KiB.
func peak() int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib := 0
	_, _ = fmt.Sscan(rest, &kib)
	return kib
}

// actCompact moves everything finished to the history.
func actCompact(j *Journal, dir string) (*Journal, error) {
	if err := j.Close(); err != nil {
		return j, err
	}
	if err := compact(dir); err != nil {
		return j, err
	}
	return Open(dir, actorOptions())
}

// compact puts every finished task into the history.
func compact(dir string) (err error) {
	j, err := enter(dir, Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.release()) }()
	c, logged, err := j.load()
	if err != nil {
		return err
	}
	f, err := (&reader{c, j.past}).finished(time.Now())
	if err != nil {
		return err
	}
	return j.rewrite(c, f, logged > 0)
}

func class(err error) string {
	for name, e := range map[string]error{
		"space": ErrNoSpace, "damaged": ErrDamaged, "locked": ErrLocked, "refused": ErrRefused,
	} {
		if errors.Is(err, e) {
			return name
		}
	}
	return "other"
}

// actAppend writes n notes on one task, with a node record now and then, as a
// download of many inputs does.
func actAppend(j *Journal, task string, n int) error {
	e := journaltest.Task(task, 1)[0]
	for i := range n {
		if i > 0 {
			e.Record.Kind, e.Record.From, e.Record.Event, e.Record.To = machine.KindIntent, machine.Accepted, "", machine.Accepted
			e.Record.Detail = json.RawMessage(fmt.Sprintf(`{"what":"file","name":"inputs/%04d/%s","bytes":%d}`, i, strings.Repeat("x", 150), i))
		}
		e.Node = nil
		if i%20 == 0 {
			e.Node = &machine.Node{Active: &machine.TaskRef{Task: task, Attempt: 1}, Images: []machine.ImageRecord{{Reference: "r:1", ImageID: "sha256:1"}}}
		}
		head, err := j.Append(context.Background(), e)
		if err != nil {
			return err
		}
		fmt.Println("ack", task, head.Seq)
	}
	return nil
}

// descriptors are what this process has open.
func descriptors() []os.DirEntry {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return fds
}

// actor is such a process seen from the test.
type actor struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ear   *ear
	lines chan string

	mu    sync.Mutex
	acked map[string]uint64 // the newest acknowledged record of each task
	tried map[string]uint64 // the newest that it was about to write
}

func startActor(t testing.TB, dir string, env ...string) *actor {
	t.Helper()
	a := &actor{t: t, cmd: exec.Command("/proc/self/exe"), lines: make(chan string, 1000), acked: map[string]uint64{}, tried: map[string]uint64{}}
	a.cmd.Env = append(append(os.Environ(), actorVariable+"="+dir), env...)
	a.cmd.Stderr = os.Stderr
	a.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var err error
	if a.stdin, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := stdout.(*os.File).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	a.ear = &ear{conn: conn}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(a.lines)
		for out := bufio.NewScanner(a.ear); out.Scan(); {
			var what, task string
			var seq uint64
			if n, _ := fmt.Sscan(out.Text(), &what, &task, &seq); n == 3 && (what == "ack" || what == "try") {
				a.mu.Lock()
				if what == "ack" {
					a.acked[task] = seq
				} else {
					a.tried[task] = seq
				}
				a.mu.Unlock()
				continue
			}
			a.lines <- out.Text()
		}
	}()
	t.Cleanup(func() { a.kill() })
	return a
}

// ear reads what a process says, and knows whether all of that was heard.
type ear struct {
	conn syscall.RawConn

	mu    sync.Mutex
	taken int // bytes of the pipe
	heard int // bytes of whole lines
}

func (e *ear) Read(p []byte) (n int, err error) {
	e.mu.Lock()
	e.heard = e.taken // who asks for more has dealt with every whole line
	e.mu.Unlock()
	closed := e.conn.Read(func(fd uintptr) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		for n, err = unix.Read(int(fd), p); err == unix.EINTR; n, err = unix.Read(int(fd), p) {
		}
		e.taken += max(n, 0)
		return err != unix.EAGAIN
	})
	if err := cmp.Or(closed, err); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// all says whether nothing is on its way that the process has said.
func (e *ear) all() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	left := 0
	closed := e.conn.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return closed != nil || left == 0 && e.heard == e.taken
}

// signal stops the process, or has it go on.
func (a *actor) signal(sig os.Signal) {
	a.t.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		a.t.Fatal(err)
	}
}

// say sends a command.
func (a *actor) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.stdin, format+"\n", args...)
}

// hear returns the next line that is not an acknowledgement, "" when the
// process has ended. A process that says nothing for ten minutes hangs.
func (a *actor) hear() string {
	a.t.Helper()
	select {
	case line := <-a.lines:
		return line
	case <-time.After(10 * time.Minute):
		a.t.Fatal("the process hangs")
		return ""
	}
}

func (a *actor) expect(want string) {
	a.t.Helper()
	if got := a.hear(); got != want {
		a.t.Fatalf("the process said %q, not %q", got, want)
	}
}

// kill ends the process and returns what it had acknowledged.
func (a *actor) kill() map[string]uint64 {
	_ = a.cmd.Process.Kill()
	for range a.lines {
	}
	_ = a.cmd.Wait()
	return a.soFar()
}

// soFar returns what the process has acknowledged.
func (a *actor) soFar() map[string]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.acked)
}

// soFarTried returns what a process that is stopped or dead was about to write.
func (a *actor) soFarTried() map[string]uint64 {
	for !a.ear.all() {
		time.Sleep(time.Millisecond)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.tried)
}

// holds fails the test when an acknowledged record is missing.
func holds(t testing.TB, r readJournal, acked map[string]uint64) {
	t.Helper()
	for task, seq := range acked {
		head, found, err := r.Head(task)
		if err != nil || !found || head.Seq < seq {
			t.Errorf("task %s: record %d was acknowledged, the head says %d (%v, %v)", task, seq, head.Seq, found, err)
		}
	}
}

// scratch is a directory in memory, where there is enough of it: a test that
// makes ten thousand records durable, on filesystems of its own, should not wait
// for this machine's disk.
func scratch(t testing.TB) string {
	t.Helper()
	const shm, enough = "/dev/shm", 3 << 30
	var st unix.Statfs_t
	if unix.Statfs(shm, &st) != nil || uint32(st.Type) != unix.TMPFS_MAGIC || int64(st.Bavail)*st.Bsize < enough {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "deckhand-journal-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fsSize is that of filesystems for tests, in MiB: beyond plenty.
const fsSize = plenty>>20 + 400

// loopFS mounts a new filesystem of its own below dir and returns the mount
// point and the image. It needs root.
func loopFS(t testing.TB, fstype, dir string, mib int64) (mnt, image string) {
	t.Helper()
	_, err := exec.LookPath("mkfs." + fstype)
	need(t, "mkfs."+fstype, err)
	if os.Geteuid() != 0 {
		need(t, "root, to mount a filesystem", errors.New("not root"))
	}
	image = filepath.Join(dir, fstype+".img")
	mnt = filepath.Join(dir, fstype)
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(mib<<20), f.Close(), os.Mkdir(mnt, 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs."+fstype, "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	mountLoop(t, image, mnt)
	return mnt, image
}

func mountLoop(t testing.TB, image, mnt string, options ...string) (unmount func()) {
	t.Helper()
	o := strings.Join(append([]string{"loop"}, options...), ",")
	out, err := exec.Command("mount", "-o", o, image, mnt).CombinedOutput()
	if err != nil {
		need(t, "a loop mount", fmt.Errorf("%w: %s", err, out))
	}
	var once sync.Once
	unmount = func() {
		once.Do(func() {
			// A loop device lets go of its image a moment after its filesystem, and
			// not before a mount namespace that was copied meanwhile, for a container
			// of another package's tests, has ended. Then the mount goes with it.
			for n := 0; n < 100; n++ {
				if unix.Unmount(mnt, 0) == nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
				t.Errorf("umount %s: %v", mnt, err)
			}
		})
	}
	t.Cleanup(unmount)
	return unmount
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
