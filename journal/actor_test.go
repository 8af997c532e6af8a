package journal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(actorVariable); dir != "" {
		os.Exit(act(dir))
	}
	os.Exit(m.Run())
}

// act is the process that the tests kill and take the disk away from. It opens
// the journal, then does what it reads: "append TASK N", "cycle N" (open and
// close around each task), "compact", "peak", "close". It prints what is acknowledged.
func act(dir string) int {
	if os.Getenv(unsyncVariable) != "" {
		fdatasync = func(int) error { return nil }
	}
	if dir == noJournal {
		fmt.Println("peak", peak())
		return 0
	}
	j, err := Open(dir, Options{BootID: "actor"})
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
		case "cycle":
			j, err = actCycle(j, dir, task, n)
		case "compact":
			err = actCompact(j)
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
func actCompact(j *Journal) error {
	f, err := j.finished()
	if err == nil {
		err = j.rewrite(f)
	}
	if err == nil {
		err = j.begin()
	}
	return err
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

// actCycle runs n whole tasks, each in a journal opened for it.
func actCycle(j *Journal, dir, prefix string, n int) (*Journal, error) {
	for i := range n {
		task := fmt.Sprint(prefix, i)
		for _, e := range journaltest.Task(task, 1) {
			head, err := j.Append(context.Background(), e)
			if err != nil {
				return j, err
			}
			fmt.Println("ack", task, head.Seq)
		}
		if err := j.Close(); err != nil {
			return j, err
		}
		var err error
		if j, err = Open(dir, Options{BootID: "actor"}); err != nil {
			return j, err
		}
	}
	return j, nil
}

// actor is such a process seen from the test.
type actor struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string

	mu    sync.Mutex
	acked map[string]uint64 // the newest acknowledged record of each task
}

func startActor(t testing.TB, dir string, env ...string) *actor {
	t.Helper()
	a := &actor{t: t, cmd: exec.Command("/proc/self/exe"), lines: make(chan string, 100000), acked: map[string]uint64{}}
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
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(a.lines)
		for out := bufio.NewScanner(stdout); out.Scan(); {
			var task string
			var seq uint64
			if n, _ := fmt.Sscanf(out.Text(), "ack %s %d", &task, &seq); n == 2 {
				a.mu.Lock()
				a.acked[task] = seq
				a.mu.Unlock()
				continue
			}
			a.lines <- out.Text()
		}
	}()
	t.Cleanup(func() { a.kill() })
	return a
}

// say sends a command.
func (a *actor) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.stdin, format+"\n", args...)
}

// hear returns the next line that is not an acknowledgement, "" when the
// process has ended. A process that says nothing for a minute hangs.
func (a *actor) hear() string {
	a.t.Helper()
	select {
	case line := <-a.lines:
		return line
	case <-time.After(time.Minute):
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
	c := make(map[string]uint64, len(a.acked))
	for task, seq := range a.acked {
		c[task] = seq
	}
	return c
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

// loopFS mounts a new filesystem of its own and returns the mount point and the
// image. It needs root.
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
			// A loop device lets go of its image a moment after its filesystem.
			for n := 0; ; n++ {
				out, err := exec.Command("umount", mnt).CombinedOutput()
				if err == nil {
					return
				}
				if n == 100 {
					t.Errorf("umount %s: %v: %s", mnt, err, out)
					return
				}
				time.Sleep(20 * time.Millisecond)
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
