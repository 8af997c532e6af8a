package journal

import (
	"errors"
	"fmt"
	"io/fs"
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
	// openRoom is what opening takes: a log, the table of the log before it,
	// and the first pages of badger's other files.
	openRoom = logSize + 1<<20
	// ample is the free space with which badger may write as it likes: nobody
	// fills that much while it flushes one log.
	ample = 64 << 20

	// freeingDelay is how long space may take to appear that was just freed.
	freeingDelay = 500 * time.Millisecond
)

// unfit filesystems, by the f_type of statfs(2): they allocate a block again
// when it is overwritten, or do not keep a memory map durable.
var unfit = map[uint32]string{
	unix.BTRFS_SUPER_MAGIC: "btrfs (copy on write: a full disk kills what writes to a memory map)",
	0x2fc12fc1:             "ZFS (copy on write: a full disk kills what writes to a memory map)",
	0xca451a4e:             "bcachefs (copy on write: a full disk kills what writes to a memory map)",
	unix.NFS_SUPER_MAGIC:   "NFS (a network filesystem)",
	unix.SMB_SUPER_MAGIC:   "SMB (a network filesystem)",
	unix.SMB2_SUPER_MAGIC:  "SMB (a network filesystem)",
	unix.CIFS_SUPER_MAGIC:  "CIFS (a network filesystem)",
	unix.CEPH_SUPER_MAGIC:  "CephFS (a network filesystem)",
	unix.AFS_SUPER_MAGIC:   "AFS (a network filesystem)",
	0x0BD00BD0:             "Lustre (a network filesystem)",
	0x47504653:             "GPFS (a network filesystem)",
	0x19830326:             "BeeGFS (a network filesystem)",
	unix.V9FS_MAGIC:        "9P (a network filesystem)",
	unix.FUSE_SUPER_MAGIC:  "FUSE (what is below it is not known)",
	unix.MSDOS_SUPER_MAGIC: "FAT (no room can be set aside)",
	unix.EXFAT_SUPER_MAGIC: "exFAT (no room can be set aside)",
}

// checkFilesystem refuses the filesystems that are known not to keep the
// journal's guarantees.
func checkFilesystem(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if name, ok := unfit[uint32(st.Type)]; ok {
		return fmt.Errorf("%w: %s; choose a root on ext4 or xfs", ErrFilesystem, name)
	}
	return nil
}

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
	// should be. It is filled again at the next Open that finds space.
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

// sizeOf adds up the blocks of all files in dir.
func sizeOf(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(path, &st)
		size += st.Blocks * 512
		return err
	})
	return size, err
}

// allocate gives a file blocks for its first size bytes and leaves its length.
func allocate(f *os.File, size int64) error {
	var err error
	for {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: %s: %w", ErrNoSpace, filepath.Base(f.Name()), err)
	}
	return err
}

// makeRoom gives up the ballast when opening needs it, and fails with
// ErrNoSpace when that is not enough.
func makeRoom(dir string) error {
	free, err := freeBytes(dir)
	if err != nil || free >= openRoom {
		return err
	}
	// Truncated first: xfs frees the blocks of a removed file some time later.
	name := filepath.Join(dir, ballastFile)
	if err := errors.Join(os.Truncate(name, 0), os.Remove(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for deadline := time.Now().Add(freeingDelay); ; time.Sleep(freeingDelay / 50) {
		if free, err = freeBytes(dir); err != nil || free >= openRoom {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %d bytes free, %d needed", ErrNoSpace, free, openRoom)
		}
	}
}

// fillBallast sets space aside again when there is some. Without it the journal
// works until the disk is full.
func fillBallast(dir string) error {
	name := filepath.Join(dir, ballastFile)
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err == nil && st.Blocks*512 >= ballastSize {
		return nil
	}
	free, err := freeBytes(dir)
	if err != nil || free < 2*ballastSize {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err = allocate(f, ballastSize); err == nil {
		err = f.Truncate(ballastSize)
	}
	if errors.Is(err, ErrNoSpace) {
		err = nil
	}
	return errors.Join(err, f.Close())
}
