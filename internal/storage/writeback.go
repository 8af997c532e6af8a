package storage

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeBackEvery is how many bytes are written before the kernel is asked to
// bring them to the disk.
const writeBackEvery = 8 << 20

// writeBack lets the kernel begin to bring a range of a file to the disk, so that
// the sync that makes the whole durable has little left to wait for. It promises
// nothing, and its failure says nothing: the sync does.
func writeBack(f *os.File, at, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), at, n, unix.SYNC_FILE_RANGE_WRITE)
}
