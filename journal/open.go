package journal

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/deckhand/deckhand/internal/node"
	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// closeDeadline bounds Close. What is acknowledged is durable without it.
const closeDeadline = 10 * time.Second

func open(dir string, o Options) (_ *Journal, err error) {
	j, err := enter(dir, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.closeGeneration(), j.release())
		}
	}()
	rewritten, err := j.settle()
	if err != nil {
		return nil, err
	}
	err = j.openGeneration()
	if errors.Is(err, ErrDamaged) && !rewritten {
		// Every record can be read, so it is one of the files in which badger
		// keeps nothing of ours. They stay as evidence.
		var c *contents
		if c, _, err = j.load(); err == nil {
			err = j.renew(c, true)
		}
		if err == nil {
			err = j.openGeneration()
		}
	}
	if err != nil {
		return nil, err
	}
	if err := j.begin(); err != nil {
		return nil, err
	}
	j.ballast, err = fillBallast(dir)
	return j, err
}

// enter takes the journal's lock and finds out what the journal is made of. It
// makes a new journal where there is none and upgrades an older one. The
// caller releases what it returns.
func enter(dir string, o Options) (_ *Journal, err error) {
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
		if err := node.CheckFilesystem(filepath.Dir(dir)); err != nil {
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
			err = errors.Join(err, j.release())
		}
	}()
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
	if j.past, err = openHistory(dir, c); err != nil {
		return nil, missing(err)
	}
	// Only when what CURRENT names is there: else it may be CURRENT that was altered.
	if _, err := readManifest(j.generation()); err != nil {
		return nil, missing(err)
	}
	return j, removeOtherGenerations(dir, c)
}

// missing is the error of a file that has to be there: nobody else changes the
// journal of whoever has its lock.
func missing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
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
	if err := makeRoom(dir, openRoom); err != nil {
		return current{}, err
	}
	if err := damagedWithoutCurrent(dir); err != nil {
		return current{}, err
	}
	if err := createWitness(dir); err != nil {
		return current{}, err
	}
	rootID, err := makeRootID(dir)
	if err != nil {
		return current{}, err
	}
	c := current{Schema: Schema, Generation: 1, Root: rootID}
	if err := removeOtherGenerations(dir, current{}); err != nil {
		return current{}, err
	}
	var b batch
	b.setJSON(nodeKey, machine.Node{RootID: rootID, Images: []machine.ImageRecord{}})
	b.setJSON(tipKey, tip{})
	if b.err != nil {
		return current{}, b.err
	}
	err = writeGeneration(dir, c.Generation, func(yield func(tableEntry, error) bool) {
		for _, e := range b.entries { // in the order of their keys
			if !yield(tableEntry{key: e.Key, value: e.Value}, nil) {
				return
			}
		}
	})
	if err != nil {
		return current{}, err
	}
	return c, writeCurrent(dir, c)
}

// damagedWithoutCurrent tells a directory whose CURRENT is gone from one in
// which no journal was ever finished.
func damagedWithoutCurrent(dir string) error {
	said, err := testimonyIn(dir)
	if err == nil && said.Tip.Count > 0 {
		return fmt.Errorf("%w: its file %s is gone", ErrDamaged, currentFile)
	}
	if err == nil {
		return nil
	}
	if number, err := newestGeneration(dir); err != nil || number > 0 {
		return errors.Join(err, fmt.Errorf("%w: its files %s and %s are gone", ErrDamaged, currentFile, witnessFile))
	}
	return nil
}

// newestGeneration is the highest number of a directory that may be a
// generation; 0 when there is none.
func newestGeneration(dir string) (newest uint64, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		if !generationPattern.MatchString(f.Name()) {
			continue
		}
		n, err := strconv.ParseUint(f.Name(), 10, 64)
		if err != nil {
			return 0, err
		}
		if _, err := os.Stat(filepath.Join(dir, f.Name(), listFile)); err == nil {
			continue // a history
		}
		newest = max(newest, n)
	}
	return newest, nil
}

// KeptID is the file beside a journal's directory that has its root id as well: a
// journal that takes the place of one whose directory was lost keeps the id,
// which names what is on the node.
func KeptID(dir string) string { return dir + ".id" }

// makeRootID returns the id of the root and writes it down. A journal that
// takes the place of a damaged or lost one has its id.
func makeRootID(dir string) (string, error) {
	if id, ok := readRootID(dir); ok {
		return id, writeFile(KeptID(dir), []byte(id+"\n"))
	}
	id, err := RootIDOf(dir)
	if err != nil {
		return "", err
	}
	if err := writeRootID(dir, id); err != nil {
		return "", err
	}
	return id, writeFile(KeptID(dir), []byte(id+"\n"))
}

// RootIDOf is the id that a journal made in dir would have: that of one whose
// directory was lost, or else a new one. It writes nothing.
func RootIDOf(dir string) (string, error) {
	if id, ok := readID(KeptID(dir)); ok {
		return id, nil
	}
	raw := make([]byte, 8)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	return hex.EncodeToString(raw), nil
}

func readRootID(dir string) (string, bool) { return readID(filepath.Join(dir, rootIDFile)) }

func readID(name string) (string, bool) {
	raw, err := os.ReadFile(name)
	id := strings.TrimSpace(string(raw))
	return id, err == nil && rootIDPattern.MatchString(id)
}

func writeRootID(dir, id string) error {
	return writeFile(filepath.Join(dir, rootIDFile), []byte(id+"\n"))
}

// writeGeneration makes a new generation of what entries yields, which is
// ordered by key, durably.
func writeGeneration(dir string, number uint64, entries iter.Seq2[tableEntry, error]) error {
	return writeDatabase(dir, number, entries, func(path string, tables []writtenTable) error {
		return writeManifest(path, len(tables))
	})
}

// settle leaves the generation as badger may open it: without the log of a dead
// process, which badger would turn into a table in a goroutine of its own, and
// with few tables. It verifies all that it finds.
func (j *Journal) settle() (rewritten bool, err error) {
	path := j.generation()
	logs, err := filesOf(path, "*.mem")
	if err != nil {
		return false, missing(err)
	}
	if err := checkManifest(path, j.manifest()); err != nil {
		return false, err
	}
	tables, err := readManifest(path)
	if err != nil {
		return false, missing(err)
	}
	more, err := measureTables(tables)
	if err != nil {
		return false, missing(err)
	}
	if len(logs) > 0 || more.due() {
		return j.renewIfDue(len(logs) > 0, more)
	}
	for _, t := range tables {
		if err := verifyTable(t.name); err != nil {
			return false, missing(err)
		}
	}
	return false, nil
}

// manifest is what the list of tables of the generation has to begin with. A
// generation that is newer than the testimony comes from a compaction that was
// interrupted at its very end: of it nothing is known.
func (j *Journal) manifest() fingerprint {
	if said := j.witness.said; said.Generation == j.current.Generation {
		return said.Manifest
	}
	return fingerprint{}
}

// load reads the generation without opening it, and compares it with the witness.
// Its tables are read where they are: nobody else touches them.
func (j *Journal) load() (c *contents, logged int64, err error) {
	c, logged, err = readContents(j.generation(), j.manifest(), false)
	if err != nil {
		return nil, 0, missing(err)
	}
	found, err := get[tip](c, tipKey)
	if err != nil {
		return nil, 0, err
	}
	return c, logged, j.witness.said.contradicts(found)
}

// openGeneration opens the database that CURRENT names and reads what every
// append needs.
func (j *Journal) openGeneration() error {
	if err := makeRoom(j.dir, openRoom); err != nil {
		return err
	}
	db, err := openDatabase(databaseOptions(j.generation()))
	if err != nil {
		return err
	}
	j.db, j.source, j.newest = db, database{db}, storedHead{}
	record, err := j.node()
	if err != nil {
		return err
	}
	if j.tip, err = j.reader.tip(); err != nil {
		return err
	}
	j.rootID = record.RootID
	if id, err := os.ReadFile(filepath.Join(j.dir, rootIDFile)); err != nil || string(id) != j.rootID+"\n" {
		if err := writeRootID(j.dir, j.rootID); err != nil {
			return err
		}
	}
	if id, ok := readID(KeptID(j.dir)); !ok || id != j.rootID {
		// It serves when the journal is lost, and no task has to wait for it: on a
		// full disk the next process writes it.
		if err := writeFile(KeptID(j.dir), []byte(j.rootID+"\n")); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
			return err
		}
	}
	return j.witness.said.contradicts(j.tip)
}

func (j *Journal) generation() string {
	return filepath.Join(j.dir, generationName(j.current.Generation))
}

// checkManifest compares the beginning of badger's list of tables with what it
// was: badger takes a shorter list as it is and deletes the tables that are not
// on it.
func checkManifest(path string, was fingerprint) error {
	if was == (fingerprint{}) {
		return nil
	}
	raw, err := os.ReadFile(filepath.Join(path, badger.ManifestFilename))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if int64(len(raw)) < was.Size || fingerprintOf(raw[:was.Size]) != was {
		return fmt.Errorf("%w: its list of tables (%s) was altered", ErrDamaged, badger.ManifestFilename)
	}
	return nil
}

func fingerprintOf(raw []byte) fingerprint {
	sum := sha256.Sum256(raw)
	return fingerprint{Size: int64(len(raw)), Hash: hex.EncodeToString(sum[:])}
}

// begin makes an opened generation ready to be written to.
func (j *Journal) begin() error {
	j.log = &logFile{dir: j.generation()}
	if err := j.log.prepare(); err != nil {
		return err
	}
	if err := j.placeSinks(); err != nil {
		return err
	}
	said := j.witness.said
	said.Tip, said.Root, said.Clean = j.tip, j.rootID, false
	return j.testify(said)
}

// testify has the witness take down, durably, what is said and what the list of
// tables is now.
func (j *Journal) testify(said testimony) error {
	list, err := os.ReadFile(filepath.Join(j.generation(), badger.ManifestFilename))
	if err != nil {
		return err
	}
	said.Generation, said.Manifest = j.current.Generation, fingerprintOf(list)
	return j.witness.record(said)
}

// shut closes what open opened. Badger makes a table of its log then, where a
// full disk would be a SIGBUS: unless there is plenty of space the log stays as
// a kill would leave it.
func (j *Journal) shut() error {
	free, err := freeBytes(j.dir)
	if err == nil && free >= plenty && j.failed == nil {
		if err = j.closeGeneration(); err == nil {
			said := j.witness.said
			said.Clean = true
			err = errors.Join(j.testify(said), dropEvidence(j.dir))
		}
	}
	_, ballastErr := fillBallast(j.dir)
	return errors.Join(err, ballastErr, j.release())
}

// closeGeneration closes the database.
func (j *Journal) closeGeneration() error {
	err := j.log.close()
	j.log = nil
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
