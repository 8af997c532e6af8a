package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/heap"
)

// manyFiles makes a journal in which an unfinished task has staged so many files, in
// records of 32 KiB as batch has them, without a transaction for each.
func manyFiles(t testing.TB, dir string, files int) {
	t.Helper()
	j := openTest(t, dir, Options{})
	appendTest(t, j, journaltest.Task("t1", 1)[:3]...)
	closeTest(t, j)
	j, err := enter(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := j.load()
	if err != nil {
		t.Fatal(err)
	}
	head, _, err := (&reader{c, nil}).head("t1")
	if err != nil {
		t.Fatal(err)
	}
	const together = 330
	for at := 0; at < files; at += together {
		detail := []byte(`{"files":[`)
		for i := at; i < min(at+together, files); i++ {
			detail = fmt.Appendf(detail, `{"path":"/in/directory-%04d/a-file-with-a-name-of-usual-length-%08d.fastq.gz","bytes":%d},`, i/1000, i^0x155, int64(i)*7919%65536)
		}
		detail = append(detail[:len(detail)-1], `],"name":"","step":"Download","what":"inputs"}`...)
		record := machine.Record{
			Task: "t1", Attempt: 1, Seq: head.Seq + 1, Kind: machine.KindDone, From: head.State, To: head.State,
			Detail: detail, Prev: head.Hash, Time: head.At,
		}
		raw := mustJSON(t, record)
		head.Seq, head.Hash, head.Number = record.Seq, hashOf(raw), head.Number+1
		c.put(tableEntry{key: recordKey("t1", head.Seq), version: head.Number, value: raw})
	}
	said := &j.witness.said
	said.Task, said.Seq, said.Tip = "t1", head.Seq, tip{head.Number, head.Hash}
	c.put(tableEntry{key: headKey("t1"), version: head.Number, value: mustJSON(t, head)})
	c.put(tableEntry{key: tipKey, version: head.Number, value: mustJSON(t, said.Tip)})
	if err := j.rewrite(c, nil, false); err != nil {
		t.Fatal(err)
	}
	if err := j.release(); err != nil {
		t.Fatal(err)
	}
}

// actGoOn journals so many notes on a task, as one whose files are slow does.
func actGoOn(j *Journal, task string, n int) error {
	head, _, err := j.Head(task)
	e := machine.Entry{Head: head, Record: machine.Record{
		Task: task, Attempt: head.Attempt, Kind: machine.KindDone, From: head.State, To: head.State,
		Detail: json.RawMessage(`{"files":[{"path":"/in/one/more","bytes":1}],"name":"","step":"Download","what":"inputs"}`),
	}}
	for i := 0; i < n && err == nil; i++ {
		_, err = j.Append(context.Background(), e)
	}
	return err
}

// uses are what is done with a journal by a process of its own.
var uses = map[string]func(dir string) error{
	"nothing": func(string) error { return nil },
	"view": func(dir string) error {
		v, err := OpenView(dir)
		if err != nil {
			return err
		}
		if _, err := PruneView(v, Retention{}, time.Now()); err != nil {
			return err
		}
		return errors.Join(readAll(&v.reader), v.Close())
	},
	"recover": func(dir string) error {
		j, err := enter(dir, Options{})
		if err != nil {
			return err
		}
		_, err = j.settle()
		return errors.Join(err, j.release())
	},
	"compact": compact,
	"verify": func(dir string) error {
		r, err := Verify(dir, machine.Legal)
		if err == nil && len(r.Problems) > 0 {
			err = fmt.Errorf("%d problems, as %v", len(r.Problems), r.Problems[0])
		}
		return err
	},
}

// use does one of uses and prints the peak of memory that it took.
func use(dir, what string) int {
	if err := uses[what](dir); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(peak())
	return 0
}

// memoryOf is what each use takes of the journal of a task of so many files, in KiB, on
// top of a process that does nothing.
func memoryOf(t *testing.T, files int) map[string]int {
	t.Helper()
	dir := filepath.Join(scratch(t), "journal")
	manyFiles(t, dir, files)
	a := startActor(t, dir)
	a.expect("open")
	a.say("go-on t1 4000") // so that there are tables of every kind, and a log
	a.expect("did go-on t1 4000")
	took := map[string]int{}
	peakOf := func(what string) (kib int) {
		t.Helper()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), actorVariable+"="+dir, useVariable+"="+what, "GOGC=20", "GOMAXPROCS=1")
		out, err := cmd.CombinedOutput()
		if err == nil {
			kib, err = strconv.Atoi(strings.TrimSpace(string(out)))
		}
		if err != nil {
			t.Fatalf("%s: %s: %v", what, out, err)
		}
		return kib
	}
	without := peakOf("nothing")
	measure := func(what, when string) {
		t.Helper()
		took[what+", "+when] = peakOf(what) - without
	}
	measure("view", "of a live journal")
	a.kill()
	measure("view", "after a death")
	measure("verify", "after a death")
	measure("recover", "after a death")
	j := openTest(t, dir, Options{})
	took["resume"] = resumed(t, j)
	appendTest(t, j, journaltest.Task("t1", 1)[3:]...)
	closeTest(t, j)
	measure("view", "of a finished task")
	measure("compact", "of a finished task")
	measure("view", "of the history")
	measure("verify", "of the history")
	measure("compact", "of the history")
	return took
}

// resumed is what is reachable, in KiB, while the records of the task are read from the
// open journal. Badger maps its tables: what it touches of them counts as memory of the
// process, and the kernel takes it back when it wants.
func resumed(t *testing.T, j *Journal) (kib int) {
	t.Helper()
	for r, err := range j.Records("t1") {
		if err != nil {
			t.Fatal(err)
		}
		if r.Seq%100 == 0 {
			kib = max(kib, int(heap.Reachable()>>10))
		}
	}
	return kib
}

// What is done with a journal takes no more memory when its task has more files.
func TestMemoryOfManyFiles(t *testing.T) {
	const files = 50_000 // with fewer, buffers are not full
	more, err := strconv.Atoi(cmp.Or(os.Getenv("DECKHAND_TEST_FILES"), "400000"))
	if err != nil {
		t.Fatalf("DECKHAND_TEST_FILES: %v", err)
	}
	few, many := memoryOf(t, files), memoryOf(t, more)
	for _, what := range slices.Sorted(maps.Keys(few)) {
		t.Logf("%s: %d KiB for %d files, %d for %d", what, few[what], files, many[what], more)
		if many[what] > few[what]+4<<10 {
			t.Errorf("%s: %d files take %d KiB of memory, %d take %d", what, files, few[what], more, many[what])
		}
	}
}

// readAll reads every record of every task.
func readAll(r *reader) error {
	heads, err := r.Heads()
	if err != nil {
		return err
	}
	for _, h := range heads {
		seq := uint64(0)
		for rec, err := range r.Records(h.Task) {
			if err != nil {
				return err
			}
			seq = rec.Seq
		}
		if seq != h.Seq {
			return fmt.Errorf("task %s: %d records were read, want %d", h.Task, seq, h.Seq)
		}
	}
	return nil
}
