package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// values parses Prometheus' text format and checks how it is written.
func values(t *testing.T, text string) map[string]float64 {
	t.Helper()
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v in\n%s", problems, err, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			key := name
			for _, l := range m.GetLabel() {
				if l.GetName() != "root" {
					key += " " + l.GetValue()
				} else if len(l.GetValue()) != 16 {
					t.Errorf("%s is of root %q", name, l.GetValue())
				}
			}
			found[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return found
}

// attempt journals an attempt that ends in a state; each second something happens.
func attempt(t *testing.T, j *journal.Journal, task string, n int, event machine.Event, end machine.State) {
	t.Helper()
	head := machine.Head{Task: task, Attempt: n}
	add := func(kind machine.Kind, event machine.Event, to machine.State, detail string) {
		t.Helper()
		r := machine.Record{Task: task, Attempt: n, Kind: kind, From: head.State, Event: event, To: to, Detail: json.RawMessage(detail)}
		head.State = to
		if _, err := j.Append(context.Background(), machine.Entry{Record: r, Head: head}); err != nil {
			t.Fatal(err)
		}
	}
	add(machine.KindTransition, machine.AcceptedTask, machine.Accepted, "{}")
	add(machine.KindTransition, machine.Started, machine.Scrub, "{}")
	add(machine.KindDone, "", machine.Scrub, `{"what":"removed","kind":"directory","name":"d","why":"w","bytes":1000}`)
	add(machine.KindTransition, machine.Scrubbed, machine.ImageCheck, "{}")
	add(machine.KindDone, "", machine.ImageCheck, `{"what":"image","name":"r:1","reference":"r:1","pull":"pulled"}`)
	add(machine.KindTransition, machine.ImageReady, machine.Download, "{}")
	add(machine.KindDone, "", machine.Download, `{"what":"inputs","name":"","files":[{"path":"/a","bytes":70}]}`)
	add(machine.KindTransition, machine.InputsStaged, machine.Run, "{}")
	add(machine.KindDone, "", machine.Run, fmt.Sprintf(`{"what":"executor","name":"0","executor":0,"exit_code":%d}`, len(end)-len(machine.Complete)))
	add(machine.KindResume, "", machine.Run, "{}")
	add(machine.KindTransition, machine.ExecutorsFinished, machine.Upload, "{}")
	add(machine.KindDone, "", machine.Upload, `{"what":"outputs","name":"","files":[{"path":"/b","url":"u","size_bytes":"9"}]}`)
	add(machine.KindTransition, event, end, "{}")
}

// Counters count each attempt once, whenever a process dies, and do not go down
// when the journal forgets the tasks.
func TestMetrics(t *testing.T) {
	root := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	options := journal.Options{Sinks: []string{metricsSink}, AnyFilesystem: true, Now: func() time.Time { now = now.Add(time.Second); return now }}
	a := &app{conf: &config.Loaded{Config: config.Config{Root: root}}, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	open := func() *session {
		t.Helper()
		j, err := journal.Open(a.journalDir(), options)
		if err != nil {
			t.Fatal(err)
		}
		return &session{app: a, journal: j}
	}
	look := func(s *session) map[string]float64 {
		t.Helper()
		text, err := s.metricsText()
		if err != nil {
			t.Fatal(err)
		}
		return values(t, string(text))
	}
	s := open()
	if got := look(s); got["deckhand_journal_bytes"] < 1<<20 || got["deckhand_journal_reserve_bytes"] != 4<<20 || len(got) != 7 {
		t.Errorf("of an empty journal: %v", got)
	}
	attempt(t, s.journal.(*journal.Journal), "t1", 1, machine.ExecutorFailed, machine.ExecutorError)
	attempt(t, s.journal.(*journal.Journal), "t1", 2, machine.Completed, machine.Complete)
	if _, _, err := count(s.journal, 1000); err != nil { // and dies before it keeps it
		t.Fatal(err)
	}
	check := func(when string, s *session, end time.Time) {
		t.Helper()
		got := look(s)
		for name, want := range map[string]float64{
			"deckhand_attempts_total Complete": 1, "deckhand_attempts_total ExecutorError": 1,
			"deckhand_executors_total 0": 1, "deckhand_executors_total 5": 1,
			"deckhand_state_seconds_total Scrub": 4, "deckhand_state_seconds_total Run": 6, "deckhand_state_seconds_total Upload": 4,
			"deckhand_images_total pulled": 2, "deckhand_resumed_total": 2,
			"deckhand_downloaded_bytes_total": 140, "deckhand_uploaded_bytes_total": 18, "deckhand_reclaimed_bytes_total": 2000,
			"deckhand_last_end_timestamp_seconds": float64(end.Unix()),
		} {
			if got[name] != want {
				t.Errorf("%s %s is %v, want %v", when, name, got[name], want)
			}
		}
	}
	end := now
	check("at first", s, end)
	check("once more", s, end)
	if err := s.journal.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err := journal.Prune(a.journalDir(), options, journal.Retention{Age: time.Nanosecond}); err != nil || len(p.Tasks) != 1 {
		t.Fatalf("pruned %+v (%v)", p, err)
	}
	s = open()
	check("without the task", s, end)
	attempt(t, s.journal.(*journal.Journal), "t1", 1, machine.Completed, machine.Complete)
	if got := look(s); got["deckhand_attempts_total Complete"] != 2 {
		t.Errorf("after one more: %v", got)
	}

	// The file is written at the end at the latest, and the command says the same.
	a.conf.Metrics.Textfile = filepath.Join(root, "node.prom")
	s.writeMetrics()()
	text, err := os.ReadFile(a.conf.Metrics.Textfile)
	if err != nil {
		t.Fatal(err)
	}
	var printed strings.Builder
	a.stdout = &printed
	if err := errors.Join(s.journal.Close(), a.metrics()); err != nil {
		t.Fatal(err)
	}
	file, said := values(t, string(text)), values(t, printed.String())
	document, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, families []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(deckhand_\\w+)` \\|").FindAllStringSubmatch(string(document), -1) {
		documented = append(documented, m[1])
	}
	for name := range file {
		name, _, _ = strings.Cut(name, " ")
		families = append(families, name)
	}
	slices.Sort(documented)
	slices.Sort(families)
	if families = slices.Compact(families); !slices.Equal(documented, families) {
		t.Errorf("docs/metrics.md has %v, the file %v", documented, families)
	}
	delete(file, "deckhand_journal_bytes")
	delete(said, "deckhand_journal_bytes") // it has been closed
	if fmt.Sprint(file) != fmt.Sprint(said) || file["deckhand_attempts_total Complete"] != 2 {
		t.Errorf("the file says %v\nthe command %v", file, said)
	}
}

// However much has come that no run has counted, the command counts it.
func TestMetricsThatNobodyCounted(t *testing.T) {
	var printed strings.Builder
	a := &app{conf: &config.Loaded{Config: config.Config{Root: t.TempDir()}}, stdout: &printed, log: slog.New(slog.DiscardHandler)}
	j, err := journal.Open(a.journalDir(), journal.Options{Sinks: []string{metricsSink}, AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	const attempts = 200 // of several transitions each
	for i := range attempts {
		attempt(t, j, "t1", i+1, machine.ExecutorFailed, machine.ExecutorError)
	}
	if err := errors.Join(j.Close(), a.metrics()); err != nil {
		t.Fatal(err)
	}
	if got := values(t, printed.String())["deckhand_attempts_total ExecutorError"]; got != attempts {
		t.Errorf("%v attempts are counted, want %d", got, attempts)
	}
}

// An attempt whose records cannot be read counts as one, and holds up no later one.
func TestMetricsOfUnreadableAttempts(t *testing.T) {
	var total totals
	total.Attempts = map[string]int64{}
	end := machine.Record{Task: "t1", Attempt: 1, To: machine.Complete, Time: time.Unix(1000, 0)}
	total.add(end, func(yield func(machine.Record, error) bool) { yield(machine.Record{}, errors.New("damaged")) })
	total.add(end, func(func(machine.Record, error) bool) {}) // it has none
	if total.Attempts["Complete"] != 2 || total.Unknown != 2 || !total.LastEnd.Equal(end.Time) {
		t.Errorf("%+v", total)
	}
}
