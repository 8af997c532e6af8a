package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// View reads a private copy of a journal, as it was when the view was opened.
// The history is read in place, it never changes. It needs no lock, works while a run writes and after a crash, and changes
// nothing.
type View struct {
	reader
	copied string // the directory of the copy
}

// viewAttempts is how often a copy is tried of a journal that changes under it;
// viewPatience, how often it may fail in the same way: then it is damaged.
const (
	viewAttempts = 50
	viewPatience = 3
)

// copyName is that of a copy's directory.
var copyName = regexp.MustCompile(`deckhand-journal-[0-9]+`)

// OpenView copies the journal in dir to memory (a tmpfs, where there is one) and
// opens the copy. Without a journal the error is fs.ErrNotExist.
func OpenView(dir string) (*View, error) {
	v, err := openView(dir, testimony{})
	if err != nil {
		return nil, machine.Faultf(machine.NodeFault, "cannot read the journal %s: %w", dir, err)
	}
	return v, nil
}

// openView compares the copy with what the witness said before; with nothing,
// when the testimony is empty.
func openView(dir string, said testimony) (*View, error) {
	var last error
	var lastText string
	same := 0
	for range viewAttempts {
		v, err := tryView(dir, said)
		if err == nil {
			return v, nil
		}
		if errors.Is(err, ErrNoSpace) || errors.Is(err, ErrNewerSchema) || errors.Is(err, os.ErrNotExist) && last == nil {
			return nil, err
		}
		text := copyName.ReplaceAllString(err.Error(), "")
		if same++; text != lastText {
			same = 1
		}
		last, lastText = err, text
		if same == viewPatience {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return nil, last
}

func tryView(dir string, said testimony) (*View, error) {
	c, found, err := readCurrent(dir)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, currentFile), os.ErrNotExist)
	}
	if c.Schema != Schema {
		return nil, fmt.Errorf("it has schema %d and this release reads %d; the next run upgrades it", c.Schema, Schema)
	}
	if said.Generation != c.Generation {
		said.Manifest = fingerprint{}
	}
	v, err := copyGeneration(filepath.Join(dir, generationName(c.Generation)), said.Manifest)
	if err != nil {
		return nil, err
	}
	v.past = c.past(dir)
	// At once: a compaction may remove the files, but not under us.
	if _, err := v.past.open(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// Close removes the copy.
func (v *View) Close() error {
	return errors.Join(v.past.close(), closeDatabase(v.db), os.RemoveAll(v.copied))
}

// copyGeneration copies a database and opens the copy. The logs come first: a
// table that is made of a log meanwhile is then in both, never in neither. The
// beginning of the list of tables has to be list, unless that is empty.
func copyGeneration(from string, list fingerprint) (_ *View, err error) {
	to, err := os.MkdirTemp(memoryDir(), "deckhand-journal-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(to))
		}
	}()
	for _, pattern := range []string{"*.mem", badger.ManifestFilename, "*.sst", "*.vlog", badger.KeyRegistryFileName} {
		names, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if err := copyFile(name, filepath.Join(to, filepath.Base(name))); err != nil {
				return nil, err
			}
		}
	}
	if list != (fingerprint{}) {
		if err := checkManifest(to, list); err != nil {
			return nil, err
		}
	}
	if err := checkTables(to, everyBlock); err != nil {
		return nil, err
	}
	db, err := openDatabase(databaseOptions(to))
	if err != nil {
		return nil, err
	}
	return &View{reader: reader{db: db}, copied: to}, nil
}

// memoryDir is a directory in memory, or else that for temporary files.
func memoryDir() string {
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm", "/run"} {
		var st unix.Statfs_t
		if dir == "" || unix.Statfs(dir, &st) != nil || uint32(st.Type) != unix.TMPFS_MAGIC {
			continue
		}
		if unix.Access(dir, unix.W_OK|unix.X_OK) == nil {
			return dir
		}
	}
	return os.TempDir()
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
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("%w: no room for a copy in %s", ErrNoSpace, filepath.Dir(to))
		}
		if err != nil {
			return err
		}
		at = end
	}
	return nil
}
