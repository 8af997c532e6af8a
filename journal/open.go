package journal

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/deckhand/deckhand/machine"
)

const (
	// maxTables is how many tables a generation has before the next one is
	// made: one comes with every run.
	maxTables = 12
	// closeDeadline bounds Close. What is acknowledged is durable without it.
	closeDeadline = 10 * time.Second
)

func open(dir string, o Options) (_ *Journal, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Retention == (Retention{}) {
		o.Retention = DefaultRetention
	}
	if o.Retention.Bytes == 0 {
		o.Retention.Bytes = DefaultRetention.Bytes
	}
	if !o.AnyFilesystem {
		if err := checkFilesystem(filepath.Dir(dir)); err != nil {
			return nil, err
		}
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	j := &Journal{dir: dir, opts: o, lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.closeGeneration(), j.release())
		}
	}()
	if err := makeRoom(dir); err != nil {
		return nil, err
	}
	c, found, err := readCurrent(dir)
	if err != nil {
		return nil, err
	}
	if !found {
		if c, err = create(dir); err != nil {
			return nil, err
		}
	}
	if c.Schema < Schema {
		if c, err = upgradeJournal(dir, c); err != nil {
			return nil, err
		}
	}
	j.current = c
	if j.witness, err = openWitness(dir); err != nil {
		return nil, err
	}
	if err := removeOtherGenerations(dir, c); err != nil {
		return nil, err
	}
	if err := j.openGeneration(); err != nil {
		return nil, err
	}
	if err := j.witness.said.contradicts(j.tip); err != nil {
		return nil, err
	}
	if err := j.compactIfDue(); err != nil {
		return nil, err
	}
	if err := j.begin(); err != nil {
		return nil, err
	}
	return j, fillBallast(dir)
}

// makeDir makes the journal's directory, durably. Its parent must exist.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// create makes the first generation. CURRENT comes last: without it and with a
// witness of no record, an interrupted creation begins anew.
func create(dir string) (current, error) {
	w, err := openWitness(dir)
	switch err {
	case nil:
		count := w.said.Tip.Count
		if err := w.close(); err != nil {
			return current{}, err
		}
		if count > 0 {
			return current{}, fmt.Errorf("%w: its file %s is gone", ErrDamaged, currentFile)
		}
	default:
		if err := removeOrRefuse(dir); err != nil {
			return current{}, err
		}
		if err := createWitness(dir); err != nil {
			return current{}, err
		}
	}
	rootID, err := makeRootID(dir)
	if err != nil {
		return current{}, err
	}
	c := current{Schema: Schema, Generation: 1}
	if err := removeOtherGenerations(dir, current{}); err != nil {
		return current{}, err
	}
	err = writeDatabase(dir, c.Generation, func(w *badger.WriteBatch) error {
		var b batch
		b.setJSON(nodeKey, machine.Node{RootID: rootID, Images: []machine.ImageRecord{}})
		b.set(tipKey, tip{}.encode())
		for _, e := range b.entries {
			if err := w.SetEntry(e); err != nil {
				return err
			}
		}
		return b.err
	})
	if err != nil {
		return current{}, err
	}
	return c, writeCurrent(dir, c)
}

// removeOrRefuse is for a directory without CURRENT and without a readable
// witness: fine when it is new, damage when there is a generation in it.
func removeOrRefuse(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if generationPattern.MatchString(f.Name()) {
			return fmt.Errorf("%w: its files %s and %s are gone", ErrDamaged, currentFile, witnessFile)
		}
	}
	return nil
}

// makeRootID returns the id of the root and writes it down. A journal that
// takes the place of a damaged one keeps the id, which names what is on the node.
func makeRootID(dir string) (string, error) {
	if id, ok := readRootID(dir); ok {
		return id, nil
	}
	raw := make([]byte, 8)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	id := hex.EncodeToString(raw)
	return id, writeRootID(dir, id)
}

func readRootID(dir string) (string, bool) {
	raw, err := os.ReadFile(filepath.Join(dir, rootIDFile))
	id := strings.TrimSpace(string(raw))
	return id, err == nil && rootIDPattern.MatchString(id)
}

func writeRootID(dir, id string) error {
	return writeFile(filepath.Join(dir, rootIDFile), []byte(id+"\n"))
}

// openGeneration opens the database that CURRENT names and reads what every
// append needs.
func (j *Journal) openGeneration() error {
	path := j.generation()
	// A generation that is newer than the testimony comes from a compaction
	// that was interrupted at its very end.
	if said := j.witness.said; said.Generation == j.current.Generation {
		if err := checkManifest(path, said.Manifest); err != nil {
			return err
		}
	}
	if err := checkTables(path, everyBlock); err != nil {
		return err
	}
	crashed, err := hasLogs(path)
	if err != nil {
		return err
	}
	if crashed {
		if err := j.afterCrash(path); err != nil {
			return err
		}
	}
	db, err := openDatabase(databaseOptions(path))
	if err != nil {
		return err
	}
	j.db, j.past, j.newest = db, j.current.past(j.dir), storedHead{}
	if err := settle(path); err != nil {
		return err
	}
	return db.View(func(tx *badger.Txn) error {
		node, err := j.Node()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		j.rootID = node.RootID
		if j.tip, err = getTip(tx); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return nil
	})
}

// hasLogs says whether the database was not closed: a log holds records that
// are in no table yet.
func hasLogs(path string) (bool, error) {
	if err := sweepEmpty(path); err != nil {
		return false, err
	}
	logs, err := filepath.Glob(filepath.Join(path, "*.mem"))
	return len(logs) > 0, err
}

// afterCrash prepares what a process left that did not close its journal.
func (j *Journal) afterCrash(path string) error {
	free, err := freeBytes(j.dir)
	if err != nil {
		return err
	}
	if free < ample {
		return tidy(path, j.lock)
	}
	return keepEvidence(j.dir, path)
}

// settle waits until badger has turned the logs that it found into tables, so
// that only the new one is left.
func settle(path string) error {
	deadline := time.Now().Add(closeDeadline)
	for {
		logs, err := filepath.Glob(filepath.Join(path, "*.mem"))
		if err != nil || len(logs) == 1 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("badger did not write the table of its last log within %s", closeDeadline)
		}
		time.Sleep(time.Millisecond)
	}
}

func (j *Journal) generation() string {
	return filepath.Join(j.dir, generationName(j.current.Generation))
}

// checkManifest compares the beginning of badger's list of tables with what it
// was: badger takes a shorter list as it is and deletes the tables that are not
// on it.
func checkManifest(path string, was fingerprint) error {
	is, err := fingerprintOf(filepath.Join(path, badger.ManifestFilename), was.Size)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if is != was {
		return fmt.Errorf("%w: its list of tables (%s) was altered", ErrDamaged, badger.ManifestFilename)
	}
	return nil
}

// fingerprintOf reads the first size bytes of a file, all of them when size is
// negative.
func fingerprintOf(name string, size int64) (fingerprint, error) {
	f, err := os.Open(name)
	if err != nil {
		return fingerprint{}, err
	}
	defer f.Close()
	if size < 0 {
		info, err := f.Stat()
		if err != nil {
			return fingerprint{}, err
		}
		size = info.Size()
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(f, raw); err != nil {
		return fingerprint{}, err
	}
	sum := sha256.Sum256(raw)
	return fingerprint{Size: size, Hash: hex.EncodeToString(sum[:])}, nil
}

// begin makes an opened generation ready to be written to.
func (j *Journal) begin() error {
	j.log = &logFile{dir: j.generation()}
	if err := j.log.prepare(); err != nil {
		return err
	}
	return j.testify(false)
}

// testify has the witness take down what the journal holds now, durably.
func (j *Journal) testify(clean bool) error {
	manifest, err := fingerprintOf(filepath.Join(j.generation(), badger.ManifestFilename), -1)
	if err != nil {
		return err
	}
	return j.witness.record(testimony{Tip: j.tip, Clean: clean, Generation: j.current.Generation, Manifest: manifest})
}

// shut closes what open opened. With little space left the database stays as a
// kill would leave it.
func (j *Journal) shut() error {
	free, err := freeBytes(j.dir)
	if err == nil && free >= ample && j.failed == nil {
		if err = j.closeGeneration(); err == nil {
			err = errors.Join(j.testify(true), dropEvidence(j.dir))
		}
	}
	return errors.Join(err, j.release())
}

// closeGeneration closes the databases.
func (j *Journal) closeGeneration() error {
	err := errors.Join(j.log.close(), j.past.close())
	j.log, j.past = nil, nil
	if j.db != nil {
		err = errors.Join(err, closeDatabase(j.db))
	}
	j.db = nil
	if errors.Is(err, errHangs) {
		// Badger may still write: the lock stays until this process ends.
		hanging, j.lock = append(hanging, j.lock), nil
	}
	return err
}

// hanging keeps the locks of databases that did not close from being collected.
var hanging []*os.File

// release gives up everything but the generation's database.
func (j *Journal) release() error {
	err := errors.Join(j.log.close(), j.past.close(), j.witness.close())
	if j.lock != nil {
		err = errors.Join(err, j.lock.Close())
	}
	return err
}

// errHangs: what is acknowledged is durable all the same.
var errHangs = fmt.Errorf("badger did not close within %s", closeDeadline)

// closeDatabase is badger's Close with a deadline.
func closeDatabase(db *badger.DB) error {
	done := make(chan error, 1)
	go func() { done <- db.Close() }()
	select {
	case err := <-done:
		if err != nil {
			return databaseError(err)
		}
		return nil
	case <-time.After(closeDeadline):
		return errHangs
	}
}
