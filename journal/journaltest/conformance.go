package journaltest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// Journal is what the suite asks of a journal.
type Journal interface {
	machine.Journal
	Heads() ([]machine.Head, error)
	Outbox
}

// Outbox is the part of a journal of which others are told.
type Outbox interface {
	Undelivered(sink string, most int) ([]machine.Notice, error)
	Delivered(sink string, number uint64) error
	Keep(sink string, number uint64, state json.RawMessage) error
	Kept(sink string) (json.RawMessage, error)
	SinkNames() ([]string, error)
}

// Settings are what the suite sets in a journal that it asks for.
type Settings struct {
	BootID string
	Now    func() time.Time
	Sinks  []string
}

// Run tests the journal that open returns, a new and empty one each time.
func Run(t *testing.T, open func(*testing.T, Settings) Journal) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	fixed := Settings{BootID: "boot-1", Now: func() time.Time { return start }}
	ctx := context.Background()

	t.Run("empty", func(t *testing.T) {
		j := open(t, fixed)
		if _, found, err := j.Head("t1"); found || err != nil {
			t.Errorf("Head of an unknown task: found %v, error %v", found, err)
		}
		if heads, err := j.Heads(); len(heads) != 0 || err != nil {
			t.Errorf("Heads: %v, %v", heads, err)
		}
		node, err := j.Node()
		if err != nil || node.RootID == "" || strings.Trim(node.RootID, "0123456789abcdef") != "" {
			t.Errorf("the root id %q is no lowercase hexadecimal (error %v)", node.RootID, err)
		}
		if node.Active != nil || node.Images == nil || len(node.Images) != 0 {
			t.Errorf("node of an empty journal: %+v", node)
		}
		if records := Records(t, j, "t1"); len(records) != 0 {
			t.Errorf("records of an unknown task: %v", records)
		}
	})

	t.Run("append fills in and chains", func(t *testing.T) {
		j := open(t, fixed)
		var last machine.Head
		for i, e := range Task("t1", 1) {
			e.Record.Seq, e.Record.Prev, e.Record.BootID = 77, "wrong", "wrong"
			e.Head.Seq, e.Head.Hash = 99, "wrong"
			head, err := j.Append(ctx, e)
			if err != nil {
				t.Fatal(err)
			}
			if head.Seq != uint64(i)+1 {
				t.Fatalf("append %d returned seq %d", i+1, head.Seq)
			}
			stored, found, err := j.Head("t1")
			if err != nil || !found || !reflect.DeepEqual(stored, head) {
				t.Fatalf("Append returned\n%+v\nHead returns\n%+v (%v, %v)", head, stored, found, err)
			}
			last = head
		}
		records := Records(t, j, "t1")
		if len(records) != len(Task("t1", 1)) {
			t.Fatalf("%d records", len(records))
		}
		Chained(t, records, last)
		for i, r := range records {
			want := Task("t1", 1)[i].Record
			if r.BootID != "boot-1" || !r.Time.Equal(start) || r.Time.Location() != time.UTC {
				t.Errorf("record %d: boot %q, time %v", r.Seq, r.BootID, r.Time)
			}
			if r.Kind != want.Kind || r.From != want.From || r.Event != want.Event || r.To != want.To || r.Reason != want.Reason {
				t.Errorf("record %d: %+v, want %+v", r.Seq, r, want)
			}
		}
	})

	t.Run("sequence runs over attempts and tasks apart", func(t *testing.T) {
		j := open(t, fixed)
		var heads []machine.Head
		for _, e := range slices.Concat(Task("t1", 1), Task("t2", 1), Task("t1", 2)) {
			head, err := j.Append(ctx, e)
			if err != nil {
				t.Fatal(err)
			}
			heads = append(heads, head)
		}
		n := len(Task("t1", 1))
		Chained(t, Records(t, j, "t1"), heads[3*n-1])
		Chained(t, Records(t, j, "t2"), heads[2*n-1])
		if got := heads[3*n-1]; got.Seq != uint64(2*n) || got.Attempt != 2 {
			t.Errorf("head after two attempts: %+v", got)
		}
		list, err := j.Heads()
		if err != nil || len(list) != 2 || list[0].Task != "t1" || list[1].Task != "t2" {
			t.Errorf("Heads, newest activity first: %v, %v", list, err)
		}
	})

	t.Run("outbox", func(t *testing.T) {
		told := fixed
		told.Sinks = []string{"one", "two"}
		j := open(t, told)
		var want []machine.Record
		var hashes []string
		for _, e := range slices.Concat(Task("t1", 1), Task("t2", 1), Task("t1", 2)) {
			head, err := j.Append(ctx, e)
			if err != nil {
				t.Fatal(err)
			}
			if r := Records(t, j, e.Record.Task)[head.Seq-1]; r.Told() {
				want = append(want, r)
				hashes = append(hashes, head.Hash)
			}
		}
		all := Undelivered(t, j, "one")
		ids := map[string]bool{}
		for i, n := range all {
			ids[n.ID] = true
			if i > 0 && n.Number <= all[i-1].Number {
				t.Errorf("notice %d follows notice %d", n.Number, all[i-1].Number)
			}
			if i < len(want) && (!reflect.DeepEqual(n.Record, want[i]) || n.ID != hashes[i]) {
				t.Errorf("notice %d is %+v, want %+v with the id %s", i, n, want[i], hashes[i])
			}
		}
		if len(all) != len(want) || len(ids) != len(want) || len(want) < 6 {
			t.Fatalf("%d notices with %d ids of %d records", len(all), len(ids), len(want))
		}
		if some, err := j.Undelivered("one", 2); err != nil || !reflect.DeepEqual(some, all[:2]) {
			t.Errorf("the first two notices are %+v (%v)", some, err)
		}
		if err := j.Delivered("one", all[3].Number); err != nil {
			t.Fatal(err)
		}
		if left := Undelivered(t, j, "one"); !reflect.DeepEqual(left, all[4:]) {
			t.Errorf("after four were delivered %d of %d are left", len(left), len(all))
		}
		if names, err := j.SinkNames(); err != nil || !slices.Equal(names, []string{"one", "two"}) {
			t.Errorf("the sinks are %q (%v)", names, err)
		}
		if state, err := j.Kept("one"); state != nil || err != nil {
			t.Errorf("a state that nobody has given: %s, %v", state, err)
		}
		if err := errors.Join(j.Keep("one", all[4].Number, json.RawMessage(`{"n":5}`)), j.Delivered("one", all[5].Number)); err != nil {
			t.Fatal(err)
		}
		if state, err := j.Kept("one"); string(state) != `{"n":5}` || err != nil || len(Undelivered(t, j, "one")) != len(all)-6 {
			t.Errorf("the state is %s (%v), and %d of %d are left", state, err, len(Undelivered(t, j, "one")), len(all))
		}
		if left := Undelivered(t, j, "two"); !reflect.DeepEqual(left, all) {
			t.Errorf("what one sink has is gone for the other: %d of %d are left", len(left), len(all))
		}
	})

	t.Run("no outbox without sinks", func(t *testing.T) {
		j := open(t, fixed)
		for _, e := range Task("t1", 1) {
			if _, err := j.Append(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		if all := Undelivered(t, j, "one"); len(all) > 0 {
			t.Errorf("%d notices", len(all))
		}
	})

	t.Run("task names do not mix", func(t *testing.T) {
		j := open(t, fixed)
		names := []string{"a", "a/", "a/b", "ab", "ü", " ", strings.Repeat("x", 300)}
		for _, name := range names {
			for _, e := range Task(name, 1) {
				if _, err := j.Append(ctx, e); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, name := range names {
			if got := len(Records(t, j, name)); got != len(Task(name, 1)) {
				t.Errorf("%d records of %q", got, name)
			}
		}
	})

	t.Run("node record", func(t *testing.T) {
		j := open(t, fixed)
		before, err := j.Node()
		if err != nil {
			t.Fatal(err)
		}
		e := Task("t1", 1)[0]
		e.Node = &machine.Node{
			RootID: "another",
			Active: &machine.TaskRef{Task: "t1", Attempt: 1},
			Images: []machine.ImageRecord{{Reference: "r:1", ImageID: "sha256:1", Phase: machine.Present, Since: start, Last: true}},
		}
		if _, err := j.Append(ctx, e); err != nil {
			t.Fatal(err)
		}
		want := *e.Node
		want.RootID = before.RootID // is not the caller's to change
		if node, err := j.Node(); err != nil || !reflect.DeepEqual(node, want) {
			t.Errorf("node is %+v, want %+v (%v)", node, want, err)
		}
		if _, err := j.Append(ctx, Task("t1", 1)[1]); err != nil {
			t.Fatal(err)
		}
		if node, _ := j.Node(); !reflect.DeepEqual(node, want) {
			t.Errorf("an entry without a node record changed it: %+v", node)
		}
		e = Task("t1", 1)[2]
		e.Node = &machine.Node{}
		if _, err := j.Append(ctx, e); err != nil {
			t.Fatal(err)
		}
		if node, _ := j.Node(); node.Active != nil || node.Images == nil || len(node.Images) != 0 {
			t.Errorf("node after an empty one was written: %+v", node)
		}
	})

	t.Run("detail", func(t *testing.T) {
		j := open(t, fixed)
		for _, c := range []struct{ in, want string }{
			{"", "{}"},
			{"{}", "{}"},
			{`{"what":"file","n":12345678901234567890,"f":1.50}`, `{"what":"file","n":12345678901234567890,"f":1.50}`},
			{` { "b" : [ 1 , null ] , "a" : "x" } `, `{"b":[1,null],"a":"x"}`},
		} {
			e := Task("t1", 1)[0]
			e.Record.Detail = json.RawMessage(c.in)
			if _, err := j.Append(ctx, e); err != nil {
				t.Fatalf("%s: %v", c.in, err)
			}
			records := Records(t, j, "t1")
			if got := string(records[len(records)-1].Detail); got != c.want {
				t.Errorf("detail %q is stored as %q, want %q", c.in, got, c.want)
			}
		}
	})

	t.Run("text that is no UTF-8", func(t *testing.T) {
		j := open(t, fixed)
		e := Task("t1", 1)[0]
		e.Record.Reason = "file \xff\xfe.txt <b>"
		e.Record.Detail = json.RawMessage("{\"what\":\"\xff <b>\"}")
		head, err := j.Append(ctx, e)
		if err != nil {
			t.Fatal(err)
		}
		records := Records(t, j, "t1")
		Chained(t, records, head)
		if got, want := records[0].Reason, "file \ufffd.txt <b>"; got != want {
			t.Errorf("reason %q, want %q", got, want)
		}
	})

	t.Run("secrets", func(t *testing.T) {
		j := open(t, fixed)
		const secret = "S3CR3T"
		url := "https://user:" + secret + "@host/path?sig=" + secret
		e := Task("t1", 1)[0]
		e.Record.Reason = "cannot get " + url + ": refused"
		e.Record.Detail = json.RawMessage(`{"name":"` + url + `","deep":[{"x":"?sv=1&sig=` + secret + `"}]}`)
		e.Head.Reason = e.Record.Reason
		e.Head.Failed = &machine.ExecutorFailure{Reason: url}
		head, err := j.Append(ctx, e)
		if err != nil {
			t.Fatal(err)
		}
		if e.Head.Failed.Reason != url {
			t.Error("the caller's own entry was changed")
		}
		stored, _, _ := j.Head("t1")
		for name, v := range map[string]any{"returned head": head, "head": stored, "records": Records(t, j, "t1")} {
			raw, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(raw), secret) {
				t.Errorf("the %s: %s", name, raw)
			}
		}
	})

	t.Run("cancelled context", func(t *testing.T) {
		j := open(t, fixed)
		canceled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := j.Append(canceled, Task("t1", 1)[0]); err != nil {
			t.Errorf("what has happened is journaled also when the run is cancelled: %v", err)
		}
	})

	t.Run("early end of an iteration", func(t *testing.T) {
		j := open(t, fixed)
		for _, e := range Task("t1", 1) {
			if _, err := j.Append(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		for r, err := range j.Records("t1") {
			if err != nil || r.Seq != 1 {
				t.Errorf("%+v, %v", r, err)
			}
			break
		}
	})

	t.Run("several goroutines", func(t *testing.T) {
		j := open(t, fixed)
		var wg sync.WaitGroup
		errs := make(chan error, 100)
		for g := range 4 {
			wg.Go(func() {
				for _, e := range slices.Concat(Task("shared", 1), Task(fmt.Sprint("own", g), 1)) {
					_, err := j.Append(ctx, e)
					_, _, err2 := j.Head("shared")
					_, err3 := j.Node()
					if err := errors.Join(err, err2, err3); err != nil {
						errs <- err
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			t.Error(err)
		}
		head, _, _ := j.Head("shared")
		Chained(t, Records(t, j, "shared"), head)
		if want := uint64(4 * len(Task("shared", 1))); head.Seq != want {
			t.Errorf("%d records, want %d", head.Seq, want)
		}
	})
}

// Reader yields the records of a task.
type Reader interface {
	Records(task string) iter.Seq2[machine.Record, error]
}

// Records returns all records of a task.
func Records(t testing.TB, j Reader, task string) []machine.Record {
	t.Helper()
	var all []machine.Record
	for r, err := range j.Records(task) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// Undelivered returns all that was not delivered to a sink.
func Undelivered(t testing.TB, j Outbox, sink string) []machine.Notice {
	t.Helper()
	all, err := j.Undelivered(sink, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Chained fails the test unless the records follow each other by number and
// hash and end at the head. A record's JSON is what is hashed.
func Chained(t testing.TB, records []machine.Record, head machine.Head) {
	t.Helper()
	hash := ""
	for i, r := range records {
		if r.Seq != uint64(i)+1 || r.Prev != hash {
			t.Errorf("record %d of %s: seq %d, prev %q, want %q", i+1, r.Task, r.Seq, r.Prev, hash)
		}
		sum := sha256.Sum256(mustMarshal(r))
		hash = hex.EncodeToString(sum[:])
	}
	if head.Seq != uint64(len(records)) || head.Hash != hash {
		t.Errorf("head of %s: seq %d, hash %q; the last record is %d, %q", head.Task, head.Seq, head.Hash, len(records), hash)
	}
}

// Task returns the entries of a whole attempt that ends Complete.
func Task(id string, attempt int) []machine.Entry {
	var entries []machine.Entry
	head := machine.Head{Task: id, Attempt: attempt, Document: "document", Accepted: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	head.Since = head.Accepted
	add := func(kind machine.Kind, event machine.Event, to machine.State, detail string) {
		r := machine.Record{Task: id, Attempt: attempt, Kind: kind, From: head.State, Event: event, To: to, Detail: json.RawMessage(detail)}
		head.State = to
		entries = append(entries, machine.Entry{Record: r, Head: head})
	}
	add(machine.KindTransition, machine.AcceptedTask, machine.Accepted, "")
	add(machine.KindTransition, machine.Started, machine.Scrub, "")
	add(machine.KindTransition, machine.Scrubbed, machine.ImageCheck, "")
	add(machine.KindIntent, "", machine.ImageCheck, `{"what":"pull","name":"r:1"}`)
	add(machine.KindDone, "", machine.ImageCheck, `{"what":"pull","name":"r:1","bytes":7340032}`)
	add(machine.KindTransition, machine.ImageReady, machine.Download, "")
	add(machine.KindTransition, machine.InputsStaged, machine.Run, "")
	add(machine.KindIntent, "", machine.Run, `{"what":"container","name":"deckhand-x-1-0"}`)
	add(machine.KindDone, "", machine.Run, `{"what":"container","name":"deckhand-x-1-0","exit_code":0}`)
	add(machine.KindTransition, machine.ExecutorsFinished, machine.Upload, "")
	add(machine.KindTransition, machine.Completed, machine.Complete, "")
	return entries
}
