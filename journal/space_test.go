package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
)

// fill takes every free byte of the filesystem.
func fill(t testing.TB, mnt string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(mnt, "filler"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	grab(f)
	if free, err := freeBytes(mnt); err != nil || free > 64<<10 {
		t.Fatalf("%d bytes are still free (%v)", free, err)
	}
}

// grab extends a file until nothing more can be allocated.
func grab(f *os.File) {
	info, err := f.Stat()
	if err != nil {
		return
	}
	at := info.Size()
	for size := int64(256 << 20); size >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, at, size)
		if errors.Is(err, unix.EOPNOTSUPP) { // ext3
			_, err = f.WriteAt(make([]byte, size), at)
		}
		if err != nil {
			size /= 2
			continue
		}
		at += size
	}
}

// grabber takes every byte that is freed, as soon as it is freed.
func grabber(t testing.TB, mnt string) (stop func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(mnt, "filler"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
				grab(f)
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		f.Close()
	}
}

func empty(t testing.TB, mnt string) {
	t.Helper()
	if err := os.Remove(filepath.Join(mnt, "filler")); err != nil {
		t.Fatal(err)
	}
}

// taskOf500 is more than two executors and a hundred inputs write.
const taskOf500 = 500

func onFilesystems(t *testing.T, test func(t *testing.T, mnt, dir string)) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			mnt, _ := loopFS(t, fstype, scratch(t), fsSize)
			test(t, mnt, filepath.Join(mnt, "journal"))
		})
	}
}

// A task under way journals to its end with no byte free, and ends in order.
func TestFullDiskTask(t *testing.T) {
	onFilesystems(t, func(t *testing.T, mnt, dir string) {
		a := startActor(t, dir)
		a.expect("open")
		fill(t, mnt)
		a.say("append full %d", taskOf500)
		a.expect(fmt.Sprintf("did append full %d", taskOf500))
		a.say("close")
		a.expect("closed")
		if acked := a.kill(); acked["full"] != taskOf500 {
			t.Fatalf("acknowledged: %v", acked)
		}
		// What comes next finds the journal intact whatever it can do with it.
		b := startActor(t, dir)
		switch line := b.hear(); {
		case line == "open":
			b.say("append after 10")
			b.expect("did append after 10")
			b.say("close")
			b.expect("closed")
		case !strings.HasPrefix(line, "failed space"):
			t.Fatal(line)
		}
		acked := b.kill()
		acked["full"] = taskOf500
		view(t, dir, acked)
		empty(t, mnt)
		j := openTest(t, dir, Options{})
		holds(t, j, acked)
		closeTest(t, j)
		sound(t, dir)
		if r, err := ReserveOf(dir); err != nil || r.Ballast < r.BallastWanted {
			t.Errorf("the reserve was not filled again: %+v, %v", r, err)
		}
	})
}

func view(t testing.TB, dir string, acked map[string]uint64) {
	t.Helper()
	v, err := OpenView(dir)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, v, acked)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// A process that is killed on a full disk leaves a journal that can be read
// there, and opened when something was freed.
func TestFullDiskCrash(t *testing.T) {
	onFilesystems(t, func(t *testing.T, mnt, dir string) {
		all := map[string]uint64{}
		for i := range campaign(3, 30) {
			a := startActor(t, dir)
			a.expect("open")
			fill(t, mnt)
			task := fmt.Sprint("crashed", i)
			a.say("append %s %d", task, taskOf500)
			for seq := uint64(0); seq < uint64(1+i*30%taskOf500); seq = a.soFar()[task] {
				time.Sleep(time.Millisecond)
			}
			all[task] = a.kill()[task]
			view(t, dir, all)
			stop := func() {}
			if i%3 != 0 {
				stop = grabber(t, mnt)
			}
			for n := range 2 {
				b := startActor(t, dir)
				line := b.hear()
				if line == "open" {
					bTask := fmt.Sprint("after", i, n)
					b.say("append %s 20", bTask)
					if line := b.hear(); !strings.HasPrefix(line, "did") && !strings.HasPrefix(line, "failed space") {
						t.Fatalf("writing after a crash on a full disk: %q", line)
					}
				} else if !strings.HasPrefix(line, "failed space") {
					t.Fatalf("opening after a crash on a full disk: %q", line)
				} else if i == 0 {
					t.Errorf("the ballast did not suffice: %s", line)
				}
				for task, seq := range b.kill() {
					all[task] = seq
				}
				view(t, dir, all)
				if i == 0 {
					break
				}
			}
			stop()
			empty(t, mnt)
			j := openTest(t, dir, Options{})
			holds(t, j, all)
			closeTest(t, j)
		}
		sound(t, dir)
	})
}

// A filesystem that can set blocks aside only by writing them keeps the promise too.
func TestFullDiskExt3(t *testing.T) {
	mnt, _ := loopFS(t, "ext3", scratch(t), 64)
	dir := filepath.Join(mnt, "journal")
	a := startActor(t, dir)
	a.expect("open")
	fill(t, mnt)
	a.say("append full %d", taskOf500)
	a.expect(fmt.Sprintf("did append full %d", taskOf500))
	view(t, dir, a.kill())
	b := startActor(t, dir)
	b.expect("open")
	view(t, dir, b.kill())
}

func TestFullDiskCreate(t *testing.T) {
	onFilesystems(t, func(t *testing.T, mnt, dir string) {
		fill(t, mnt)
		for range 2 {
			if _, err := Open(dir, Options{}); !errors.Is(err, ErrNoSpace) {
				t.Errorf("a new journal on a full disk: %v", err)
			}
		}
		empty(t, mnt)
		j := openTest(t, dir, Options{})
		closeTest(t, j)
		sound(t, dir)
	})
}

// The reserve is used up in order: an error before badger would need space.
func TestFullDiskBeyondReserve(t *testing.T) {
	onFilesystems(t, func(t *testing.T, mnt, dir string) {
		a := startActor(t, dir)
		a.expect("open")
		fill(t, mnt)
		a.say("append endless 1000000")
		if line := a.hear(); !strings.HasPrefix(line, "failed space") {
			t.Fatal(line)
		}
		acked := a.kill()
		if acked["endless"] < 2*taskOf500 {
			t.Errorf("the reserve held %d records", acked["endless"])
		}
		empty(t, mnt)
		j := openTest(t, dir, Options{})
		holds(t, j, acked)
		closeTest(t, j)
		sound(t, dir)
		t.Logf("the reserve held %d records", acked["endless"])
	})
}

// On btrfs a journal is refused, and works at the caller's risk.
func TestFilesystemRefused(t *testing.T) {
	mnt, _ := loopFS(t, "btrfs", scratch(t), 300)
	dir := filepath.Join(mnt, "journal")
	if _, err := Open(dir, Options{}); !errors.Is(err, node.ErrFilesystem) || !strings.Contains(err.Error(), "btrfs") {
		t.Errorf("btrfs: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refusal left something behind: %v", err)
	}
	a := startActor(t, dir, anyVariable+"=1")
	a.expect("open")
	a.say("append risky 100")
	a.expect("did append risky 100")
	acked := a.kill()
	b := startActor(t, dir, anyVariable+"=1")
	b.expect("open")
	view(t, dir, acked)
}
