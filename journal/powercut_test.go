package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cutter takes the block image of a mounted filesystem at an instant, as a
// power cut leaves it: an xfs below clones the image atomically. What it does
// not model is a disk that loses its own cache or tears sectors.
type cutter struct {
	t      testing.TB
	image  string
	clone  string
	mnt    string // of the clone
	option []string
}

func newCutter(t testing.TB, fstype string) (mnt string, c *cutter) {
	t.Helper()
	below, _ := loopFS(t, "xfs", t.TempDir(), 4096)
	mnt, image := loopFS(t, fstype, below, 320)
	c = &cutter{t: t, image: image, clone: filepath.Join(below, "clone.img"), mnt: filepath.Join(below, "clone")}
	if fstype == "xfs" {
		c.option = []string{"nouuid"}
	}
	if err := os.Mkdir(c.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	return mnt, c
}

// cut clones the image, mounts the clone and has look at it.
func (c *cutter) cut(look func(mnt string)) {
	c.t.Helper()
	src, err := os.Open(c.image)
	if err != nil {
		c.t.Fatal(err)
	}
	dst, err := os.Create(c.clone)
	if err != nil {
		c.t.Fatal(err)
	}
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	if err := errors.Join(err, src.Close(), dst.Close()); err != nil {
		c.t.Fatal(err)
	}
	defer os.Remove(c.clone)
	unmount := mountLoop(c.t, c.clone, c.mnt, c.option...)
	defer unmount()
	look(c.mnt)
}

// Every record that was acknowledged before a power cut is there after it, and
// the journal goes on.
func TestPowerCut(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			mnt, c := newCutter(t, fstype)
			dir := filepath.Join(mnt, "journal")
			all := map[string]uint64{}
			records := 0
			cuts := campaign(6, 200)
			for i := 0; i < cuts; {
				a := startActor(t, dir)
				a.expect("open")
				if i%4 < 2 {
					a.say("append p%d 1000000", i)
				} else {
					a.say("cycle p%d- 1000000", i)
				}
				for range 2 {
					time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
					acked := a.soFar()
					c.cut(func(mnt string) {
						cut := filepath.Join(mnt, "journal")
						j := openTest(t, cut, Options{})
						holds(t, j, all)
						holds(t, j, acked)
						appendTest(t, j, entry(fmt.Sprint("after", i), 1))
						closeTest(t, j)
						records = sound(t, cut).Records
					})
					i++
				}
				for task, seq := range a.kill() {
					all[task] = seq
				}
			}
			t.Logf("%d cuts, %d records at the last one", cuts, records)
		})
	}
}

// The same test sees losses when nothing is synced: it can fail.
func TestPowerCutUnsynced(t *testing.T) {
	mnt, c := newCutter(t, "ext4")
	dir := filepath.Join(mnt, "journal")
	a := startActor(t, dir, unsyncVariable+"=1")
	a.expect("open")
	a.say("append u 1000000")
	lost := false
	for i := 0; i < 20 && !lost; i++ {
		time.Sleep(50 * time.Millisecond)
		acked := a.soFar()
		c.cut(func(mnt string) {
			cut := filepath.Join(mnt, "journal")
			j, err := Open(cut, Options{})
			if err != nil {
				lost = true
				return
			}
			head, _, err := j.Head("u")
			lost = err != nil || head.Seq < acked["u"]
			closeTest(t, j)
		})
	}
	if !lost {
		t.Error("no cut lost a record although nothing was synced: the power cut test proves nothing")
	}
}
