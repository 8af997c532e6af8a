package journal

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// Schema is the version of what this package writes: the files of the
// directory, the keys and the values. docs/journal.md describes it.
const Schema = 1

const (
	// maxTaskID is in bytes.
	maxTaskID = 1024
	// maxEntry is the most that the keys and values of one transaction take, in
	// bytes: below badger's limit of 15 % of the memtable.
	maxEntry = memTableSize * 15 / 100 * 9 / 10
)

// The keys of the database. A task's records follow each other in the order of
// their sequence numbers, which are big-endian.
var (
	nodeKey = []byte("node")
	tipKey  = []byte("tip")
)

const (
	headPrefix   = "head/"
	recordPrefix = "record/"
	eventPrefix  = "event/"
	sinkPrefix   = "sink/"
)

func headKey(task string) []byte { return []byte(headPrefix + task) }

// recordsPrefix is that of all records of a task: no task id holds a NUL byte.
func recordsPrefix(task string) []byte { return []byte(recordPrefix + task + "\x00") }

func recordKey(task string, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(recordsPrefix(task), seq)
}

// parseRecordKey is the inverse of recordKey.
func parseRecordKey(key []byte) (task string, seq uint64, ok bool) {
	n := len(key) - 9
	if n < len(recordPrefix) || string(key[:len(recordPrefix)]) != recordPrefix || key[n] != 0 {
		return "", 0, false
	}
	return string(key[len(recordPrefix):n]), binary.BigEndian.Uint64(key[n+1:]), true
}

// taskOf returns the task that a key of the generation belongs to.
func taskOf(key []byte) (string, bool) {
	if task, _, ok := parseRecordKey(key); ok {
		return task, true
	}
	return strings.CutPrefix(string(key), headPrefix)
}

// storedHead is a head as stored.
type storedHead struct {
	machine.Head
	// Number is the tip's count when the head was written.
	Number uint64 `json:"number"`
	// At is the time of the newest record.
	At time.Time `json:"at"`
}

// tip is the newest record of the whole journal, of whatever task.
type tip struct {
	// Count is the number of records ever written, pruned ones included.
	Count uint64 `json:"count"`
	// Hash is that of the newest record, empty before the first.
	Hash string `json:"hash"`
}

// current says which directories make up the journal. It is the whole content
// of the file CURRENT, replaced atomically.
type current struct {
	// Schema comes first and is read on its own: an older release can refuse a
	// newer journal without understanding the rest.
	Schema int `json:"schema"`
	// Generation is the number of the directory that holds the database.
	Generation uint64 `json:"generation"`
	// History is nil until finished tasks have been put away.
	History *historyRef `json:"history,omitempty"`
	// Root is the root id once more.
	Root string `json:"root"`
}

// historyRef names the directory of the history, which never changes.
type historyRef struct {
	Generation uint64      `json:"generation"`
	List       fingerprint `json:"list"` // of its list of tables
}

// names says whether a directory is part of the journal.
func (c current) names(dir string) bool {
	return dir == generationName(c.Generation) || c.History != nil && dir == generationName(c.History.Generation)
}

// free is a number that no directory of the journal has.
func (c current) free() uint64 {
	if c.History != nil && c.History.Generation > c.Generation {
		return c.History.Generation + 1
	}
	return c.Generation + 1
}

func generationName(n uint64) string { return fmt.Sprintf("%06d", n) }
