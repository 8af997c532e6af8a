package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// manyFiles journals an unfinished task that has staged so many files, in records of
// 32 KiB as batch has them. It returns how many bytes their details are.
func manyFiles(t *testing.T, j *Journal, files int) (bytes int) {
	t.Helper()
	type file struct {
		Path  string `json:"path"`
		Bytes int64  `json:"bytes"`
	}
	begin := journaltest.Task("t1", 1)[:3]
	for _, e := range begin {
		if _, err := j.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	const together = 330
	for at := 0; at < files; at += together {
		var list []file
		for i := at; i < min(at+together, files); i++ {
			list = append(list, file{fmt.Sprintf("/in/directory-%04d/a-file-with-a-name-of-usual-length-%08d.fastq.gz", i/1000, i^0x155), int64(i) * 7919 % 65536})
		}
		detail, err := json.Marshal(map[string]any{"step": "Download", "what": "inputs", "name": "", "files": list})
		if err != nil {
			t.Fatal(err)
		}
		bytes += len(detail)
		e := begin[2]
		e.Record.Kind, e.Record.Detail, e.Record.Event = machine.KindDone, detail, ""
		if _, err := j.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	return bytes
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Who reads the journal of an unfinished task has its records in memory, compressed.
func TestMemoryOfManyFiles(t *testing.T) {
	const files = 30_000
	dir := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, dir, Options{})
	stored := manyFiles(t, j, files)
	closeTest(t, j)
	before := heap()
	v, err := OpenView(dir)
	if err != nil {
		t.Fatal(err)
	}
	took := int64(heap()) - int64(before)
	t.Logf("%d bytes are stored of %d files, %d are in memory", stored, files, took)
	records := 0
	for r, err := range v.Records("t1") {
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind == machine.KindDone {
			records += len(r.Detail)
		}
	}
	if records != stored {
		t.Errorf("%d bytes of records were read, want %d", records, stored)
	}
	if took > int64(stored)/3 {
		t.Errorf("%d bytes of records take %d bytes of memory", stored, took)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}
