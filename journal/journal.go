// Package journal is the durable record of what happened on this node: one
// small badger database, made to survive kills, power cuts and full disks.
// docs/journal.md describes what it writes; ADR 0003 gives the reasons.
package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/machine"
)

var (
	// ErrLocked: another process has the journal open. Read it through OpenView.
	ErrLocked = errors.New("another process holds it")
	// ErrNewerSchema: a newer release wrote this journal.
	ErrNewerSchema = errors.New("a newer release of deckhand wrote it")
	// ErrNoSpace: the journal is intact, but the filesystem has no room to open
	// it or to go on writing. Read it through OpenView, free space, open again.
	ErrNoSpace = errors.New("no space left on its filesystem; what it holds is intact")
	// ErrDamaged: records are missing, altered or unreadable. MoveAside keeps
	// what is there for inspection.
	ErrDamaged = errors.New("the journal is damaged")
	// ErrRefused: the entry cannot be journaled as it is. Nothing was written,
	// and the journal goes on.
	ErrRefused = machine.ErrRefused
)

// Options of a journal. The zero value works.
type Options struct {
	// BootID goes into every record.
	BootID string
	// Now gives the time of a record; time.Now when nil.
	Now func() time.Time
	// Retention is applied to finished tasks when the journal compacts itself;
	// DefaultRetention when zero.
	Retention Retention
	// Sinks names those who are told of records (machine.Record.Told), beginning
	// with what is written after a sink was first named here.
	Sinks []string
	// AnyFilesystem opens the journal also where node.CheckFilesystem refuses.
	AnyFilesystem bool
}

// Journal is the open journal of a root. Only one process has it at a time.
// Its methods may be called from several goroutines.
type Journal struct {
	reader
	dir  string
	opts Options
	lock *os.File
	db   *badger.DB // the open generation

	// mu is held for writing by what changes the journal or replaces its database.
	mu     sync.Mutex
	failed error // the first failed append; every later one returns it
	closed bool

	rootID  string
	tip     tip
	newest  storedHead // the one written last, empty before
	sinks   map[string]place
	current current
	witness *witness
	log     *logFile
	ballast bool // all of it is set aside
}

// OpenError is the error of a journal that cannot be opened.
type OpenError struct {
	Dir string
	Err error
}

func (e *OpenError) Error() string {
	return fmt.Sprintf("cannot open the journal %s: %v", e.Dir, e.Err)
}
func (e *OpenError) Unwrap() error { return e.Err }

// Open opens the journal in the directory dir and creates it when it is not
// there. Its errors are an OpenError and carry their machine.Fault; they are one
// of the Err variables of this package, with the reason, or name the operation
// that failed.
func Open(dir string, o Options) (*Journal, error) {
	j, err := open(dir, o)
	if err != nil {
		return nil, openError(dir, err)
	}
	return j, nil
}

func openError(dir string, err error) error {
	err = spaceError(err)
	fault := machine.NodeFault
	if errors.Is(err, ErrLocked) {
		fault = machine.RetryLater
	}
	return &machine.Error{Fault: fault, Err: &OpenError{dir, err}}
}

// Append writes the record, the task's head and, when it is given, the node
// record in one durable transaction. It fills in Seq, Time, BootID and Prev of
// the record and Seq and Hash of the head, takes secrets out of the texts, and
// returns the head as stored. ctx does not cancel it: what an entry tells of
// has happened. After an error other than ErrRefused it is not known whether
// the entry is in the journal, and every later Append returns the same error:
// the caller ends the process.
func (j *Journal) Append(_ context.Context, e machine.Entry) (machine.Head, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
		return machine.Head{}, j.failed
	}
	head, err := j.append(e)
	if err == nil {
		if !j.ballast {
			j.ballast, _ = fillBallast(j.dir) // the entry is written all the same
		}
		return head, nil
	}
	err = spaceError(err)
	err = machine.Faultf(machine.NodeFault, "cannot journal %s of task %q: %w", e.Record.Kind, e.Record.Task, err)
	if !errors.Is(err, ErrRefused) {
		j.failed = err
	}
	return machine.Head{}, err
}

func (j *Journal) append(e machine.Entry) (machine.Head, error) {
	if j.closed {
		return machine.Head{}, fmt.Errorf("%w: the journal is closed", ErrRefused)
	}
	if err := checkEntry(e); err != nil {
		return machine.Head{}, err
	}
	before := j.newest
	if before.Task != e.Record.Task {
		var err error
		if before, _, err = j.head(e.Record.Task); err != nil {
			return machine.Head{}, err
		}
	}
	now := j.opts.Now().UTC().Round(0)
	record := sealRecord(e.Record, before.Head, now, j.opts.BootID)
	raw, err := json.Marshal(record)
	if err != nil {
		return machine.Head{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	hash := hashOf(raw)
	head := sealHead(e.Head, record.Seq, hash)
	next := tip{Count: j.tip.Count + 1, Hash: hash}

	var w batch
	w.set(recordKey(record.Task, record.Seq), raw)
	w.setJSON(tipKey, next)
	newest := storedHead{Head: head, Number: next.Count, At: now}
	w.setJSON(headKey(record.Task), newest)
	if record.Told() && len(j.sinks) > 0 {
		w.setJSON(eventKey(next.Count), event{record.Task, record.Seq})
	}
	if e.Node != nil {
		node := *e.Node
		node.RootID = j.rootID
		node.Images = append([]machine.ImageRecord{}, node.Images...) // [] in JSON, never null
		w.setJSON(nodeKey, node)
	}
	if w.err != nil {
		return machine.Head{}, fmt.Errorf("%w: %w", ErrRefused, w.err)
	}
	if w.size() > maxEntry {
		return machine.Head{}, fmt.Errorf("%w: %d bytes are more than the %d that one transaction holds", ErrRefused, w.size(), maxEntry)
	}
	if err := j.log.reserve(w.cost(), memTableSize); err != nil {
		return machine.Head{}, err
	}
	if err := j.commit(w); err != nil {
		return machine.Head{}, err
	}
	j.tip, j.newest = next, newest
	return head, j.witness.acknowledge(next, record.Task, record.Seq)
}

// commit writes w durably. The log has room for it.
func (j *Journal) commit(w batch) error {
	tx := j.db.NewTransaction(true)
	defer tx.Discard()
	if err := w.apply(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return j.log.commit()
}

// Close makes the journal's files tidy and releases it. With little space left
// it only releases it: everything acknowledged is durable already, and the next
// Open tidies up.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	return j.shut()
}

// spaceError makes sure that an error about space is ErrNoSpace.
func spaceError(err error) error {
	if !errors.Is(err, ErrNoSpace) && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// checkEntry refuses what the keys or the chain cannot hold.
func checkEntry(e machine.Entry) error {
	r, h := e.Record, e.Head
	switch {
	case r.Task == "" || len(r.Task) > maxTaskID:
		return fmt.Errorf("%w: a task id has 1 to %d bytes, this one %d", ErrRefused, maxTaskID, len(r.Task))
	case strings.IndexByte(r.Task, 0) >= 0 || !utf8.ValidString(r.Task):
		return fmt.Errorf("%w: a task id is UTF-8 without NUL", ErrRefused)
	case r.Task != h.Task || r.Attempt != h.Attempt:
		return fmt.Errorf("%w: the record is of attempt %d at %q, the head of attempt %d at %q", ErrRefused, r.Attempt, r.Task, h.Attempt, h.Task)
	case len(r.Detail) > 0 && !isObject(r.Detail):
		return fmt.Errorf("%w: its detail is no JSON object", ErrRefused)
	}
	return nil
}

func isObject(raw json.RawMessage) bool {
	return json.Valid(raw) && bytes.HasPrefix(bytes.TrimLeft(raw, " \t\r\n"), []byte("{"))
}

// sealRecord makes r the successor of the record that before tells of.
func sealRecord(r machine.Record, before machine.Head, now time.Time, bootID string) machine.Record {
	r.Seq = before.Seq + 1
	r.Prev = before.Hash
	r.Time = now
	r.BootID = bootID
	// Whatever is not UTF-8 would come back as something else and break the chain.
	r.Reason = redact.Text(strings.ToValidUTF8(r.Reason, "\ufffd"))
	if len(r.Detail) == 0 {
		r.Detail = json.RawMessage("{}")
	}
	r.Detail = redact.JSON(r.Detail)
	return r
}

func sealHead(h machine.Head, seq uint64, hash string) machine.Head {
	h.Seq, h.Hash = seq, hash
	h.Since, h.Accepted = h.Since.UTC().Round(0), h.Accepted.UTC().Round(0)
	h.Reason = redact.Text(h.Reason)
	if h.Failed != nil {
		failed := *h.Failed
		failed.Reason = redact.Text(failed.Reason)
		h.Failed = &failed
	}
	return h
}

// hashOf is the hash that the next record carries of the one stored as raw.
func hashOf(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// batch collects what one transaction writes.
type batch struct {
	entries []*badger.Entry
	err     error
}

func (b *batch) set(key, value []byte) {
	b.entries = append(b.entries, badger.NewEntry(key, value))
}

func (b *batch) setJSON(key []byte, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		b.err = errors.Join(b.err, err)
	}
	b.set(key, raw)
}

func (b *batch) size() (n int) {
	for _, e := range b.entries {
		n += len(e.Key) + len(e.Value)
	}
	return n
}

// cost is an upper bound of the bytes that the transaction takes in the log and
// in the table in memory, whichever is more: badger adds a header, a checksum
// and a list node to each key, and one more entry that ends the transaction.
func (b *batch) cost() int64 {
	return int64(b.size() + 160*(len(b.entries)+1))
}

func (b *batch) apply(tx *badger.Txn) error {
	for _, e := range b.entries {
		if err := tx.SetEntry(e); err != nil {
			return err
		}
	}
	return nil
}
