package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// never is longer than any test waits.
const never = time.Hour

// told is a journal that tells the sinks of those names.
func told(t *testing.T, sinks ...string) *journaltest.Memory {
	t.Helper()
	j := journaltest.NewMemory()
	j.Tell(append(sinks, "control")...)
	return j
}

func write(t *testing.T, j *journaltest.Memory, task string) {
	t.Helper()
	for _, e := range journaltest.Task(task, 1) {
		if _, err := j.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// ids are those of all events of the journal, in order.
func ids(t *testing.T, j *journaltest.Memory) (all []string) {
	t.Helper()
	for _, n := range journaltest.Undelivered(t, j, "control") {
		all = append(all, n.ID)
	}
	if len(all) < 5 {
		t.Fatalf("the journal has only %d events", len(all))
	}
	return all
}

// Retries take no time.
func TestMain(m *testing.M) {
	pause.first, pause.longest = time.Millisecond, 2*time.Millisecond
	os.Exit(m.Run())
}

// open opens an outbox, and returns its log too.
func open(t *testing.T, j Journal, sinks ...Sink) (*Outbox, *journal) {
	t.Helper()
	log := new(journal)
	o, err := Open(j, sinks, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return o, log
}

// journal is a log.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *journal) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *journal) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait waits until the log says something.
func (l *journal) wait(t *testing.T, text string) {
	t.Helper()
	for !strings.Contains(l.String(), text) {
		if t.Context().Err() != nil {
			t.Fatalf("the log says\n%s", l)
		}
		time.Sleep(time.Millisecond)
	}
}

// script is a sink that does with each delivery what it is told.
type script struct {
	deliver func(ctx context.Context, e Event) error

	mu  sync.Mutex
	got []string
}

func (*script) Name() string { return "script" }

func (s *script) Deliver(ctx context.Context, e Event) error {
	if s.deliver != nil {
		if err := s.deliver(ctx, e); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, e.ID)
	return nil
}

// Every event is delivered, in order and once, whatever is journaled meanwhile.
func TestDelivers(t *testing.T) {
	j := told(t, "script")
	write(t, j, "before")
	s := new(script)
	o, _ := open(t, j, s)
	for i := range 5 {
		write(t, j, fmt.Sprint("task", i))
		o.Wake()
	}
	o.Close(never)
	if want := ids(t, j); !slices.Equal(s.got, want) {
		t.Errorf("delivered %v, want %v", s.got, want)
	}
}

// A sink that fails now and then has every event, in order.
func TestRetries(t *testing.T) {
	j := told(t, "script")
	write(t, j, "t1")
	attempts := map[string]int{}
	s := &script{deliver: func(_ context.Context, e Event) error {
		if attempts[e.ID]++; attempts[e.ID] < 3 {
			return errors.New("not now: https://u:geheim@host/?sig=geheim")
		}
		return nil
	}}
	o, log := open(t, j, s)
	o.Close(never)
	if want := ids(t, j); !slices.Equal(s.got, want) {
		t.Errorf("delivered %v, want %v", s.got, want)
	}
	if text := log.String(); strings.Contains(text, "geheim") || !strings.Contains(text, "not now") {
		t.Errorf("the log says\n%s", text)
	}
}

// An event that a sink refuses holds up no other one.
func TestRefused(t *testing.T) {
	j := told(t, "script")
	write(t, j, "t1")
	all := ids(t, j)
	s := &script{deliver: func(_ context.Context, e Event) error {
		if e.ID == all[1] {
			return fmt.Errorf("%w: too good", ErrRefused)
		}
		return nil
	}}
	o, log := open(t, j, s)
	o.Close(never)
	if want := slices.Delete(slices.Clone(all), 1, 2); !slices.Equal(s.got, want) {
		t.Errorf("delivered %v, want %v", s.got, want)
	}
	if !strings.Contains(log.String(), "event dropped") {
		t.Errorf("the log says\n%s", log.String())
	}
}

// A sink that fails, hangs or panics holds nobody up, and the next outbox begins
// where it ended.
func TestHoldsNobodyUp(t *testing.T) {
	for name, deliver := range map[string]func(context.Context, Event) error{
		"fails":  func(context.Context, Event) error { return errors.New("no") },
		"waits":  func(ctx context.Context, _ Event) error { <-ctx.Done(); return ctx.Err() },
		"hangs":  func(context.Context, Event) error { select {} },
		"panics": func(context.Context, Event) error { panic("a defect") },
	} {
		t.Run(name, func(t *testing.T) {
			j := told(t, "script", "other")
			write(t, j, "t1")
			all := ids(t, j)
			s, stuck := &script{}, make(chan struct{})
			reached := sync.OnceFunc(func() { close(stuck) }) // it may be delivered again
			s.deliver = func(ctx context.Context, e Event) error {
				if e.ID == all[2] {
					reached()
					return deliver(ctx, e)
				}
				return nil
			}
			other := &otherScript{}
			o, log := open(t, j, s, other)
			<-stuck
			for len(journaltest.Undelivered(t, j, "other")) > 0 {
				time.Sleep(time.Millisecond)
			}
			o.Close(10 * time.Millisecond)
			if name != "hangs" {
				o.running.Wait() // however long it takes to end
			}
			if text := log.String(); !strings.Contains(text, "level=WARN") && !strings.Contains(text, "level=ERROR") || strings.Contains(text, "nil") {
				t.Errorf("the log says\n%s", log.String())
			}
			s.mu.Lock()
			first := slices.Clone(s.got)
			s.mu.Unlock()
			next := new(script)
			o, _ = open(t, j, next, other)
			o.Close(never)
			if got := slices.Concat(first, next.got); !slices.Equal(got, all) {
				t.Errorf("delivered %v, then %v, want %v", first, next.got, all)
			}
			if !slices.Equal(other.got, all) {
				t.Errorf("the other sink was told of %v, want %v", other.got, all)
			}
		})
	}
}

type otherScript struct{ script }

func (*otherScript) Name() string { return "other" }

// A journal that does not take what was delivered has it delivered again, under
// the same id.
func TestJournalRefusesPlaces(t *testing.T) {
	memory := told(t, "script")
	write(t, memory, "t1")
	j := &refusing{Memory: memory, times: 1}
	s := new(script)
	o, _ := open(t, j, s)
	o.Close(never)
	all := ids(t, memory)
	if want := append([]string{all[0]}, all...); !slices.Equal(s.got, want) {
		t.Errorf("delivered %v, want %v", s.got, want)
	}
}

type refusing struct {
	*journaltest.Memory
	times int
}

func (r *refusing) Delivered(sink string, number uint64) error {
	if r.times--; r.times >= 0 {
		return errors.New("no space")
	}
	return r.Memory.Delivered(sink, number)
}

func TestEvent(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	e := newEvent(source("0123"), machine.Notice{Number: 7, ID: "abc", Record: machine.Record{
		Task: "t1", Attempt: 2, Seq: 9, Kind: machine.KindResume, From: machine.Run, To: machine.Run, Time: at, BootID: "b", Reason: "why", Detail: []byte(`{}`), Prev: "p",
	}})
	text, err := e.encode()
	const want = `{"specversion":"1.0","id":"abc","source":"deckhand:0123","type":"deckhand.task.resumed","subject":"t1","time":"2026-01-02T03:04:05.000000006Z",` +
		`"datacontenttype":"application/json","data":{"task":"t1","attempt":2,"seq":9,"kind":"resume","from":"Run","event":"","to":"Run","time":"2026-01-02T03:04:05.000000006Z","boot_id":"b","reason":"why","detail":{},"prev":"p"}}`
	if err != nil || string(text) != want {
		t.Errorf("%s (%v)\nwant %s", text, err, want)
	}
}
