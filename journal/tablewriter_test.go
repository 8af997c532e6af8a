package journal

import (
	"bytes"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"pgregory.net/rapid"
)

// sizes are those of keys and values: small ones, and those at which a block, a
// table or a number of two bytes is full.
func sizes(most int) *rapid.Generator[int] {
	return rapid.Custom(func(t *rapid.T) int {
		edge := rapid.SampledFrom([]int{0, blockSize, chunkSize, maxEntry, 1 << 16, tableSize}).Draw(t, "edge")
		return min(most, max(0, edge+rapid.IntRange(-24, 24).Draw(t, "off")))
	})
}

// Badger reads what a tableWriter writes: every entry, in order, and each one
// alone; and so do we.
func TestTablesForBadger(t *testing.T) {
	if err := flag.Set("rapid.checks", strconv.Itoa(campaign(10, 300))); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	round := uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		entries := map[string][]byte{}
		for range rapid.IntRange(1, 40).Draw(t, "entries") {
			prefix := rapid.SampledFrom([]string{"a", "record/", "record/task\x00"}).Draw(t, "prefix")
			fill := bytes.Repeat([]byte{'k'}, sizes(maxTaskID).Draw(t, "key"))
			key := fmt.Sprintf("%s%s%x", prefix, fill, rapid.Byte().Draw(t, "end"))
			entries[key] = bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, sizes(2*tableSize).Draw(t, "value"))
		}
		small := rapid.IntRange(0, 3000).Draw(t, "small") // several tables of many blocks
		for i := range small {
			entries[fmt.Sprintf("record/small\x00%08d", i)] = bytes.Repeat([]byte{byte(i)}, 1+i%500)
		}
		round++
		writeAndRead(t, dir, round, entries)
	})
}

// writeAndRead compares what is written with what badger and we read.
func writeAndRead(t rapid.TB, dir string, number uint64, entries map[string][]byte) {
	t.Helper()
	keys := make([]string, 0, len(entries))
	for key := range entries {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	err := writeGeneration(dir, number, func(yield func(tableEntry, error) bool) {
		for _, key := range keys {
			if !yield(tableEntry{key: []byte(key), value: entries[key]}, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, generationName(number))
	c, _, err := readContents(path, fingerprint{}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := compareSource(c, keys, entries); err != nil {
		t.Errorf("our reader: %v", err)
	}
	db, err := badger.Open(databaseOptions(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.VerifyChecksum(); err != nil {
		t.Error(err)
	}
	for _, table := range db.Tables() {
		if table.Level != 1 || table.MaxVersion != 1 {
			t.Errorf("a table: %+v", table)
		}
	}
	if err := compareSource(database{db}, keys, entries); err != nil {
		t.Errorf("badger: %v", err)
	}
}

// compareSource wants all entries from a scan, and each from a lookup, and none
// for what is beside the keys.
func compareSource(s source, keys []string, entries map[string][]byte) error {
	i := 0
	for e, err := range s.scan(nil) {
		if err != nil || i >= len(keys) || string(e.key) != keys[i] || !bytes.Equal(e.value, entries[keys[i]]) {
			return fmt.Errorf("entry %d is %.40q of %d bytes: %w", i, e.key, len(e.value), err)
		}
		i++
	}
	if i != len(keys) {
		return fmt.Errorf("%d entries instead of %d", i, len(keys))
	}
	for _, key := range keys {
		value, err := s.get([]byte(key))
		if err != nil || !bytes.Equal(value, entries[key]) {
			return fmt.Errorf("the value of %.40q is %d bytes, %w", key, len(value), err)
		}
		for _, beside := range []string{key + "\x00", key[:len(key)-1]} {
			_, there := entries[beside]
			if value, err := s.get([]byte(beside)); err != nil || value != nil && !there {
				return fmt.Errorf("%.40q is there, %w", beside, err)
			}
		}
	}
	return nil
}
