// Package power cuts the power of a whole node: a virtual machine with a real
// kernel, a real Docker Engine and deckhand, on a disk that loses what was not
// flushed.
package power

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

const (
	// sector is what a disk writes whole or not at all, in bytes.
	sector = 512
	// cacheSize is how much a disk holds back before it writes the oldest of it,
	// in bytes.
	cacheSize = 64 << 20
)

// Disk is a disk with a volatile write cache. What it has acknowledged outlives
// a power cut only when a flush was acknowledged after it. Of everything else
// any part may be lost, in any order, a write in pieces too.
type Disk struct {
	mu    sync.Mutex
	now   *os.File // what a reader gets
	safe  *os.File // what a power cut leaves of it in any case
	size  int64
	cache []write // in now and not in safe, oldest first
	held  int     // bytes in cache
	on    bool
	conn  io.Closer // of the machine that uses it
	stats Stats

	socket string // where machines find it
}

type write struct {
	offset int64
	data   []byte
}

// Stats count what a disk was asked for since its power came on.
type Stats struct {
	Writes, Flushes int
}

// NewDisk makes a disk that holds what the file image does; the file stays as it
// is. It goes when the test ends.
func NewDisk(tb testing.TB, image string) *Disk {
	tb.Helper()
	d, err := openDisk(image, tb.TempDir())
	if err != nil {
		tb.Fatalf("make a disk: %v", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "dkpower") // short enough for a socket
	if err != nil {
		tb.Fatalf("%v", err)
	}
	d.socket = filepath.Join(dir, "disk")
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = d.serve(l) // until the listener is closed
	}()
	tb.Cleanup(func() {
		l.Close()
		d.off()
		<-served
		d.now.Close()
		d.safe.Close()
		os.RemoveAll(dir)
	})
	return d
}

func openDisk(image, dir string) (*Disk, error) {
	d := &Disk{}
	for name, file := range map[string]**os.File{"now": &d.now, "safe": &d.safe} {
		path := filepath.Join(dir, name)
		if err := copyFile(image, path); err != nil {
			return nil, err
		}
		var err error
		if *file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return nil, err
		}
	}
	info, err := d.now.Stat()
	if err != nil {
		return nil, err
	}
	d.size = info.Size()
	return d, nil
}

// copyFile copies a file with its holes.
func copyFile(from, to string) error {
	out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cp %s: %w: %s", from, err, out)
	}
	return nil
}

// drive is the disk as a machine gets it. It is told of each flush, and qemu keeps
// nothing back itself.
func (d *Disk) drive() string {
	return "format=raw,cache=writeback,file=nbd+unix:///?socket=" + d.socket
}

// Save writes to a new file what a power cut would leave at this moment if
// nothing was kept that was not flushed.
func (d *Disk) Save(image string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copyFile(d.safe.Name(), image)
}

// Loss is what a power cut did to a disk.
type Loss struct {
	Stats
	Cached, Lost int // sectors that were not flushed, and those of them that were lost
}

func (l Loss) String() string {
	return fmt.Sprintf("%d writes and %d flushes; of %d sectors not flushed, %d lost", l.Writes, l.Flushes, l.Cached, l.Lost)
}

// Cut takes the power away: nothing is answered from here on. Of the sectors
// that were written and not flushed, each is kept with the probability keep. The
// disk can be used again afterwards.
func (d *Disk) Cut(random *rand.Rand, keep float64) (Loss, error) {
	d.off()
	d.mu.Lock()
	defer d.mu.Unlock()
	loss := Loss{Stats: d.stats}
	for _, w := range d.cache {
		for at := 0; at < len(w.data); at += sector {
			loss.Cached++
			if random.Float64() >= keep {
				loss.Lost++
				continue
			}
			if _, err := d.safe.WriteAt(w.data[at:at+sector], w.offset+int64(at)); err != nil {
				return loss, err
			}
		}
	}
	for _, w := range d.cache {
		if _, err := d.safe.ReadAt(w.data, w.offset); err != nil {
			return loss, err
		}
		if _, err := d.now.WriteAt(w.data, w.offset); err != nil {
			return loss, err
		}
	}
	d.cache, d.held = nil, 0
	return loss, nil
}

// power turns the disk on for the machine at the other end of conn.
func (d *Disk) power(conn io.Closer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.on, d.conn, d.stats = true, conn, Stats{}
}

func (d *Disk) off() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.on {
		d.on = false
		d.conn.Close()
	}
}

// errOff is the answer of a disk without power.
var errOff = errors.New("the disk has no power")

func (d *Disk) read(p []byte, offset int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on {
		return errOff
	}
	_, err := d.now.ReadAt(p, offset)
	return err
}

// write takes p over.
func (d *Disk) write(p []byte, offset int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on {
		return errOff
	}
	d.stats.Writes++
	if _, err := d.now.WriteAt(p, offset); err != nil {
		return err
	}
	d.cache = append(d.cache, write{offset, p})
	d.held += len(p)
	if d.held > cacheSize {
		return d.settle(cacheSize / 2)
	}
	return nil
}

func (d *Disk) flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on {
		return errOff
	}
	d.stats.Flushes++
	return d.settle(0)
}

// settle makes the oldest writes safe until no more than left bytes are cached.
func (d *Disk) settle(left int) error {
	n := 0
	for ; n < len(d.cache) && d.held > left; n++ {
		w := d.cache[n]
		if _, err := d.safe.WriteAt(w.data, w.offset); err != nil {
			return err
		}
		d.held -= len(w.data)
	}
	d.cache = d.cache[n:]
	return nil
}
