package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// upgrade turns an entry of a generation of one schema into that of the next.
// A nil key leaves it out. Packs are not rewritten: what reads them knows all
// their forms.
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
	from := filepath.Join(dir, generationName(c.Generation))
	if err := checkTables(from, everyBlock); err != nil {
		return current{}, err
	}
	old, err := openDatabase(databaseOptions(from))
	if err != nil {
		return current{}, err
	}
	next := c
	next.Schema, next.Generation = Schema, c.free()
	err = writeDatabase(dir, next.Generation, func(w *badger.WriteBatch) error {
		tx := old.NewTransaction(false)
		defer tx.Discard()
		for item := range items(tx, nil) {
			key := item.KeyCopy(nil)
			value, err := item.ValueCopy(nil)
			for s := c.Schema; s < Schema && key != nil && err == nil; s++ {
				key, value, err = upgrades[s](key, value)
			}
			if err == nil && key != nil {
				err = w.Set(key, value)
			}
			if err != nil {
				return fmt.Errorf("cannot upgrade %q from schema %d to %d: %w", item.Key(), c.Schema, Schema, err)
			}
		}
		return nil
	})
	if err := errors.Join(err, closeDatabase(old)); err != nil {
		return current{}, err
	}
	return next, writeCurrent(dir, next)
}

// backup copies all that the journal is made of, whole or not at all.
func backup(dir string, c current) error {
	to := filepath.Join(dir, backupName(c.Schema))
	if _, err := os.Stat(to); err == nil {
		return nil // from before an interruption
	}
	half := to + ".half"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
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
		if err := copyDatabase(filepath.Join(dir, generationName(n)), filepath.Join(half, generationName(n))); err != nil {
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
