package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// upgrade turns an entry of a generation of one schema into that of the next.
// A nil key leaves it out; new keys follow each other as the old ones did. Packs are
// not rewritten: what reads them knows all their forms.
type upgrade func(key, value []byte) (newKey, newValue []byte, err error)

// upgrades has, for each older schema, the way to the one after it.
var upgrades = map[int]upgrade{}

// backupName is that of the copy which is kept of a journal before its upgrade.
func backupName(schema int) string { return fmt.Sprintf("backup-schema-%d", schema) }

// upgradeJournal backs up a journal of an older schema and writes its
// generation anew. Interrupted anywhere, it begins again.
func upgradeJournal(dir string, c current) (current, error) {
	if err := backup(dir, c); err != nil {
		return current{}, fmt.Errorf("cannot back it up before its upgrade: %w", err)
	}
	old, _, err := readContents(filepath.Join(dir, generationName(c.Generation)), fingerprint{}, false)
	if err != nil {
		return current{}, missing(err)
	}
	upgraded := func(yield func(tableEntry, error) bool) {
		for e, err := range old.scan(nil) {
			was := e.key
			for s := c.Schema; s < Schema && e.key != nil && err == nil; s++ {
				if e.key, e.value, err = upgrades[s](e.key, e.value); err != nil {
					err = fmt.Errorf("cannot upgrade %q from schema %d to %d: %w", was, c.Schema, Schema, err)
				}
			}
			if (e.key != nil || err != nil) && !yield(e, err) || err != nil {
				return
			}
		}
	}
	next := c
	next.Schema, next.Generation = Schema, c.free()
	if err := writeGeneration(dir, next.Generation, upgraded); err != nil {
		return current{}, err
	}
	return next, writeCurrent(dir, next)
}

// backup copies all that the journal is made of, whole or not at all.
func backup(dir string, c current) (err error) {
	to := filepath.Join(dir, backupName(c.Schema))
	if _, err := os.Stat(to); err == nil {
		return nil // from before an interruption
	}
	half := to + ".half"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	defer func() {
		if err != nil { // on a full disk it would take what others need
			err = errors.Join(err, os.RemoveAll(half))
		}
	}()
	if err := os.Mkdir(half, 0o700); err != nil {
		return err
	}
	for _, name := range []string{currentFile, witnessFile, rootIDFile} {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(half, name)); err != nil {
			return err
		}
	}
	parts := []uint64{c.Generation}
	if c.History != nil {
		parts = append(parts, c.History.Generation)
	}
	for _, n := range parts {
		if err := copyDir(filepath.Join(dir, generationName(n)), filepath.Join(half, generationName(n))); err != nil {
			return err
		}
		if err := syncTree(filepath.Join(half, generationName(n))); err != nil {
			return err
		}
	}
	if err := syncTree(half); err != nil {
		return err
	}
	if err := os.Rename(half, to); err != nil {
		return err
	}
	return syncDir(dir)
}

// copyDir copies the files in a directory. Tables never change and are linked
// where that is possible.
func copyDir(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, f := range files {
		src, dst := filepath.Join(from, f.Name()), filepath.Join(to, f.Name())
		if filepath.Ext(src) == ".sst" && os.Link(src, dst) == nil {
			continue
		}
		if err := copyFile(src, dst); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies the data of a file and leaves out its holes, so that the
// allocated but unused part of a log takes no memory.
func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		end = min(end, size)
		_, err = io.Copy(io.NewOffsetWriter(dst, begin), io.NewSectionReader(src, begin, end-begin))
		if err != nil {
			return err
		}
		at = end
	}
	return nil
}
