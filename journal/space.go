package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes in bytes. Badger's files are memory maps: a page of them that has no
// block yet is a fault on a full disk. So blocks are allocated ahead.
const (
	// logSize is what badger may write to a log before it rotates it: a full
	// memtable and the largest transaction.
	logSize = memTableSize * 116 / 100
	// ballastSize is kept aside to open the journal on a full disk.
	ballastSize = 4 << 20
	// openRoom is what opening takes: a log and the first pages of badger's other files.
	openRoom = logSize + 512<<10
	// ample is the free space with which badger may go on to a new log in the
	// middle of a task, and make a table of the old one.
	ample = 64 << 20
	// plenty is the free space with which badger may make a table of its log when
	// it is closed: nobody fills that much in the milliseconds which that takes.
	plenty = 1 << 30

	// freeingDelay is how long space may take to appear that was just freed.
	freeingDelay = 500 * time.Millisecond
)

// freeBytes is what this user may still write at dir.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	free := int64(st.Bavail)
	if st.Type == unix.EXT4_SUPER_MAGIC && os.Geteuid() == 0 {
		// The superuser may use what is reserved for it, but not the clusters
		// that ext4 keeps for itself (ext4_calculate_resv_clusters in fs/ext4).
		free = max(free, int64(st.Bfree)-int64(min(st.Blocks/50, 4096)))
	}
	return free * st.Bsize, nil
}

// Reserve is what keeps a journal working on a full disk, in bytes.
type Reserve struct {
	// Log is what one task may journal with no byte free, counted from when its
	// process opened the journal. A record takes about a thousand.
	Log int64 `json:"log"`
	// Ballast is set aside now, to open the journal with; BallastWanted is what
	// should be. It is filled again as soon as the journal, being written,
	// opened or closed, finds space.
	Ballast       int64 `json:"ballast"`
	BallastWanted int64 `json:"ballast_wanted"`
}

// ReserveOf tells the reserve of the journal in dir, open or not.
func ReserveOf(dir string) (Reserve, error) {
	r := Reserve{Log: memTableSize, BallastWanted: ballastSize}
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(dir, ballastFile), &st)
	if err == nil {
		r.Ballast = st.Blocks * 512
	} else if !errors.Is(err, unix.ENOENT) {
		return Reserve{}, fmt.Errorf("cannot read the reserve of the journal %s: %w", dir, err)
	}
	return r, nil
}

// allocate gives a file blocks for its first size bytes and leaves its length,
// where the filesystem can. On one that cannot, such as ext3, it writes zeros
// from an offset on.
func allocate(f *os.File, from, size int64) error {
	var err error
	for {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.WriteAt(make([]byte, size-from), from)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: %s: %w", ErrNoSpace, filepath.Base(f.Name()), err)
	}
	return err
}

// NeedsReserve says whether there is a journal in dir that can only be opened with
// the space that is set aside, if at all: whoever can free other space does that
// first.
func NeedsReserve(dir string) bool {
	if _, found, err := readCurrent(dir); !found || err != nil {
		return false
	}
	free, err := freeBytes(dir)
	return err == nil && free < openRoom
}

// roomFor is the free space with which a database of size bytes can be written.
func roomFor(size int64) int64 { return size*5/4 + 512<<10 }

// makeRoom waits for space that is just being freed, gives up the ballast when
// that makes what is needed free, and else fails with ErrNoSpace.
func makeRoom(dir string, need int64) error {
	name := filepath.Join(dir, ballastFile)
	for deadline := time.Now().Add(freeingDelay); ; time.Sleep(freeingDelay / 50) {
		free, err := freeBytes(dir)
		if err != nil || free >= need {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		// Kept when it would only go to others.
		if ballast := st.Blocks * 512; ballast > 0 && free+ballast >= need {
			// Truncated first: xfs frees the blocks of a removed file some time later.
			if err := errors.Join(os.Truncate(name, 0), os.Remove(name)); err != nil {
				return err
			}
			continue
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %d bytes free, %d needed", ErrNoSpace, free, need)
		}
	}
}

// fillBallast sets space aside again when there is some, and says whether it is
// all there. Without it the journal works until the disk is full.
func fillBallast(dir string) (full bool, err error) {
	name := filepath.Join(dir, ballastFile)
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err == nil && st.Blocks*512 >= ballastSize {
		return true, nil
	}
	free, err := freeBytes(dir)
	if err != nil || free < 2*ballastSize {
		return false, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	if err = allocate(f, 0, ballastSize); err == nil {
		err = f.Truncate(ballastSize)
		full = err == nil
	}
	if errors.Is(err, ErrNoSpace) {
		err = nil
	}
	return full, errors.Join(err, f.Close())
}
