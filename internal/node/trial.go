package node

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// trialSize is the size of the file of a trial, in bytes: some pages of a disk.
const trialSize = 64 << 10

const (
	trialName = ".deckhand-trial-" // and the process's ID
	trialTime = time.Hour          // is more than a trial takes on any disk
)

// TryDisk does, in the nearest directory of a path that exists, what a root and its journal
// ask of a filesystem: it writes a small file, through to the disk, reads it back from
// there, maps it into memory, locks it, renames it and removes it. The error says what
// of that fails. Nothing is left, unless removing fails or the process is killed; what a
// killed one has left goes with a later trial.
func TryDisk(path string) error {
	at, _, err := statfsNearest(path)
	if err != nil {
		return err
	}
	if err := removeTrials(at); err != nil {
		return err
	}
	name := filepath.Join(at, trialName+strconv.Itoa(os.Getpid()))
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

// removeTrials removes what killed processes have left of theirs in a directory. A file
// of one that is at it is younger.
func removeTrials(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), trialName) {
			continue
		}
		if info, err := e.Info(); err != nil || time.Since(info.ModTime()) <= trialTime {
			continue // or it has gone by now
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
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
