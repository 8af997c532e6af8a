package journal

import (
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
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
	below, _ := loopFS(t, "xfs", scratch(t), 4*fsSize)
	mnt, image := loopFS(t, fstype, below, fsSize)
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

// Every record that was acknowledged before a power cut, at any instant of whole
// tasks, is there after it, none is half there, and the task goes on or back.
func TestPowerCut(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			t.Parallel()
			mnt, c := newCutter(t, fstype)
			dir := filepath.Join(mnt, "journal")
			all, tried := map[string]uint64{}, map[string]uint64{}
			in := map[machine.State]int{} // cuts by the state of the task
			const cuts, perLife, perJournal = 110, 5, 20
			for i := 0; i < cuts; {
				if i%perJournal == 0 {
					if err := os.RemoveAll(dir); err != nil {
						t.Fatal(err)
					}
					clear(all)
					clear(tried)
				}
				a := startActor(t, dir, keepVariable+"=all")
				a.expect("open")
				a.say("%s p%d- 1000000", []string{"play", "cycle"}[i/perLife%2], i)
				for range perLife {
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
					acked := a.soFar()
					c.cut(func(mnt string) {
						// What it does while the cut is looked at makes the next ones take longer, so that
						// a slow machine would have ever more to look at.
						time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
						a.signal(unix.SIGSTOP)
						defer a.signal(unix.SIGCONT)
						cut := filepath.Join(mnt, "journal")
						j := openTest(t, cut, Options{Retention: keepAll})
						maps.Copy(tried, a.soFarTried())
						for _, known := range []map[string]uint64{all, acked} {
							holds(t, j, known)
						}
						within(t, j, tried)
						atomic(t, j)
						in[stateOf(t, j)]++
						p := &player{j, 3, func(string, string, uint64) {}}
						if err := errors.Join(p.goOn(i%2 == 0), p.play("after")); err != nil {
							t.Error(err)
						}
						closeTest(t, j)
						sound(t, cut)
					})
					i++
				}
				maps.Copy(all, a.kill())
				maps.Copy(tried, a.soFarTried())
			}
			t.Logf("%d cuts, in the states %v", cuts, in)
			if len(in) < 6 {
				t.Errorf("the cuts fell into the states %v only", in)
			}
		})
	}
}

// stateOf is where the task stands that is unfinished; empty for none.
func stateOf(t testing.TB, j *Journal) machine.State {
	t.Helper()
	n, err := j.Node()
	if err != nil {
		t.Fatal(err)
	}
	if n.Active == nil {
		return ""
	}
	h, _, err := j.Head(n.Active.Task)
	if err != nil {
		t.Fatal(err)
	}
	return h.State
}

// The same test sees losses when nothing is synced: it can fail.
func TestPowerCutUnsynced(t *testing.T) {
	mnt, c := newCutter(t, "ext4")
	dir := filepath.Join(mnt, "journal")
	a := startActor(t, dir, unsyncVariable+"=1")
	a.expect("open")
	a.say("append u 1000000")
	lost := false
	acked := map[string]uint64{}
	for i := 0; i < 20 && !lost; i++ {
		for before := acked["u"]; acked["u"] == before; acked = a.soFar() {
			time.Sleep(50 * time.Millisecond)
		}
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
