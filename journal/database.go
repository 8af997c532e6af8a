package journal

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"
)

// memTableSize is how many bytes badger logs before it rotates the log. It
// bounds what a task can journal on a full disk.
const memTableSize = 2 << 20

// databaseOptions are badger's options for one generation.
func databaseOptions(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(nil).
		// Append syncs the log itself, once. With this on badger also syncs the
		// value log, which has nothing in it, and the disk flushes twice.
		WithSyncWrites(false).
		WithMemTableSize(memTableSize).WithNumMemtables(2).
		// Every value stays out of the value log, whose sync errors badger only logs.
		WithValueThreshold(memTableSize * 15 / 100).WithValueLogFileSize(1 << 20).
		WithBaseTableSize(tableSize).WithBaseLevelSize(4 << 20).
		// A generation is replaced as a whole before it has many tables. Without
		// compactors nothing rewrites files behind the journal's back, and the
		// tables of a generation are numbered without gaps.
		WithNumCompactors(0).WithNumLevelZeroTablesStall(10000).WithCompactL0OnClose(false).
		WithNumGoroutines(1).
		WithBlockCacheSize(0).WithIndexCacheSize(0).WithCompression(options.None).
		// Every table was verified before badger opens it.
		WithChecksumVerificationMode(options.NoVerification).WithVerifyValueChecksum(true).
		WithMetricsEnabled(false).WithDetectConflicts(false).WithNumVersionsToKeep(1).
		// The journal's own lock covers all generations. Badger's would stay
		// taken for ever when its Open panics.
		WithBypassLockGuard(true)
}

// openDatabase opens one generation. Badger writes to memory maps while it
// opens: on a full disk that is a fault, which is returned as ErrNoSpace here
// instead of ending the process.
func openDatabase(o badger.Options) (db *badger.DB, err error) {
	if err := sweepEmpty(o.Dir); err != nil {
		return nil, err
	}
	if err := makeDiscard(o.Dir); err != nil {
		return nil, databaseError(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, panicError(p)
		}
	}()
	db, err = badger.Open(o)
	if err != nil {
		return nil, databaseError(err)
	}
	return db, nil
}

// discardFile is where badger counts what it may discard of its value log, which
// is nothing here.
const (
	discardFile = "DISCARD"
	discardSize = 1 << 20
)

// makeDiscard makes the file before badger does, which ends the process when it
// cannot: on a full xfs even an empty file needs a block for its inode.
func makeDiscard(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, discardFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() == 0 {
		err = f.Truncate(discardSize) // which takes no blocks
	}
	return errors.Join(err, f.Close())
}

// panicError is the error of a panic inside badger.
func panicError(p any) error {
	if fault, ok := p.(interface{ Addr() uintptr }); ok {
		return fmt.Errorf("%w: writing to its memory map failed at %#x", ErrNoSpace, fault.Addr())
	}
	return fmt.Errorf("%w: %s", ErrDamaged, oneLine(p))
}

// oneLine formats what badger panics with, which has many lines.
func oneLine(p any) string {
	return strings.Join(strings.Fields(fmt.Sprint(p)), " ")
}

// databaseError sorts badger's errors. Badger formats the errors of the system
// into its own, so that only their text is left.
func databaseError(err error) error {
	for _, e := range []unix.Errno{unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
	}
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.EACCES, unix.EPERM, unix.EROFS, unix.ENOMEM} {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// sweepEmpty removes the empty files that a killed process leaves and that
// badger refuses to open. They hold nothing: a log is filled before it is used.
func sweepEmpty(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		if ext := filepath.Ext(f.Name()); ext != ".mem" && ext != ".vlog" {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		if info.Size() == 0 {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// database is the open generation as a source.
type database struct{ *badger.DB }

func (db database) get(key []byte) (value []byte, err error) {
	err = db.View(func(tx *badger.Txn) error {
		item, err := tx.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err == nil {
			value, err = item.ValueCopy(nil)
		}
		return err
	})
	return value, err
}

func (db database) scan(prefix []byte) iter.Seq2[tableEntry, error] {
	return func(yield func(tableEntry, error) bool) {
		tx := db.NewTransaction(false)
		defer tx.Discard()
		it := tx.NewIterator(badger.IteratorOptions{Prefix: prefix, PrefetchValues: false})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			value, err := it.Item().ValueCopy(nil)
			if !yield(tableEntry{key: it.Item().KeyCopy(nil), version: it.Item().Version(), value: value}, err) || err != nil {
				return
			}
		}
	}
}
