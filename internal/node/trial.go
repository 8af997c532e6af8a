package node

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// trialSize is the size of the file of a trial, in bytes: some pages of a disk.
const trialSize = 64 << 10

// TryDisk does, in the nearest directory of a path that exists, what a root and its journal
// ask of a filesystem: it writes a small file, through to the disk, reads it back from
// there, maps it into memory, locks it, renames it and removes it. The error says what
// of that fails. Nothing is left, unless removing fails.
func TryDisk(path string) error {
	at, _, err := statfsNearest(path)
	if err != nil {
		return err
	}
	name := filepath.Join(at, fmt.Sprintf(".deckhand-trial-%d", os.Getpid()))
	moved := name + ".moved"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err = tryFile(f); err == nil {
		if err = os.Rename(name, moved); err == nil {
			name = moved
		}
	}
	err = errors.Join(err, os.Remove(name), f.Close())
	if err == nil {
		err = syncDir(at)
	}
	return err
}

// tryFile does what concerns the file alone.
func tryFile(f *os.File) error {
	text, read := make([]byte, trialSize), make([]byte, trialSize)
	_, _ = rand.Read(text) // never fails
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// From the disk, and not from memory, where the kernel can.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, trialSize), read); err != nil {
		return err
	}
	if !bytes.Equal(text, read) {
		return fmt.Errorf("%s: the bytes read are others than were written", f.Name())
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, trialSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		err = unix.Munmap(mapped)
	}
	if err != nil {
		return fmt.Errorf("map %s into memory: %w", f.Name(), err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}
