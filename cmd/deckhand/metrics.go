package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// metricsSink is the place in the journal of what metrics count: they are a sink
// like others, that adds up what it is told. So they go on over restarts, and do
// not go down when history is dropped.
const metricsSink = "metrics"

// metricsEvery is how often the text file is written while a process has the root.
const metricsEvery = 30 * time.Second

// totals are what the attempts that have ended come to. The JSON form is in the
// journal.
type totals struct {
	Attempts  map[string]int64   `json:"attempts"`  // by final state
	Executors map[string]int64   `json:"executors"` // by exit code
	Seconds   map[string]float64 `json:"seconds"`   // by state
	Images    map[string]int64   `json:"images"`    // by where they came from
	Resumed   int64              `json:"resumed"`
	BytesIn   int64              `json:"bytes_in"`
	BytesOut  int64              `json:"bytes_out"`
	Freed     int64              `json:"freed"`
	// Unknown are attempts of which only their end is known: their records cannot be read.
	Unknown int64     `json:"unknown,omitempty"`
	LastEnd time.Time `json:"last_end"`
}

// tallied is a journal as metrics read it.
type tallied interface {
	Kept(sink string) (json.RawMessage, error)
	Undelivered(sink string, most int) ([]machine.Notice, error)
	Records(task string) iter.Seq2[machine.Record, error]
}

// count adds what is new in a journal, at most so many notices, to what was kept of it. It
// returns the number of the last notice; 0 when there is no new one.
func count(j tallied, most int) (t totals, last uint64, err error) {
	t = totals{Attempts: map[string]int64{}, Executors: map[string]int64{}, Seconds: map[string]float64{}, Images: map[string]int64{}}
	kept, err := j.Kept(metricsSink)
	if err == nil && kept != nil {
		err = json.Unmarshal(kept, &t)
	}
	if err != nil {
		return t, 0, err
	}
	notices, err := j.Undelivered(metricsSink, most)
	for _, n := range notices {
		if n.Record.To.Final() {
			t.add(n.Record, j.Records(n.Record.Task))
		}
		last = n.Number
	}
	return t, last, err
}

// add counts the attempt that r has ended. One whose records cannot be read holds up
// none of the later ones.
func (t *totals) add(r machine.Record, records iter.Seq2[machine.Record, error]) {
	t.Attempts[string(r.To)]++
	t.LastEnd = r.Time
	of := func(yield func(machine.Record, error) bool) {
		for rec, err := range records {
			if (err != nil || rec.Attempt == r.Attempt) && !yield(rec, err) {
				return
			}
		}
	}
	attempts, err := accounts(of)
	if err != nil || len(attempts) != 1 {
		t.Unknown++
		return
	}
	a := attempts[0]
	for state, seconds := range a.seconds {
		t.Seconds[string(state)] += seconds
	}
	for _, e := range a.executors {
		t.Executors[strconv.Itoa(e.ExitCode)]++
	}
	for _, i := range a.images {
		t.Images[i.Pull]++
	}
	t.Resumed += int64(a.resumed)
	t.BytesIn += a.bytesIn
	t.BytesOut += a.bytesOut
	t.Freed += a.bytesFreed
}

// count brings the totals in the journal up to date and returns them.
func (s *session) count() (totals, error) {
	s.counting.Lock()
	defer s.counting.Unlock()
	for {
		const batch = 1000
		t, last, err := count(s.journal, batch)
		if err != nil || last == 0 {
			return t, err
		}
		state, err := json.Marshal(t)
		if err == nil {
			err = s.journal.Keep(metricsSink, last, state)
		}
		if err != nil {
			return t, err
		}
	}
}

// metricsText counts, and returns what there is to say in Prometheus' text format.
func (s *session) metricsText() ([]byte, error) {
	root, err := s.rootID()
	if err != nil {
		return nil, err
	}
	t, err := s.count()
	if err != nil {
		return nil, err
	}
	return s.app.metricsText(root, t)
}

// writeMetrics writes the text file, now and then, until the returned function is
// called, which writes it once more.
func (s *session) writeMetrics() (stop func()) {
	if s.app.conf.Metrics.Textfile == "" {
		return func() {
			if _, err := s.count(); err != nil {
				s.app.log.Warn("cannot count what metrics tell; the next start does", "error", err)
			}
		}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(metricsEvery)
		defer tick.Stop()
		for last := false; !last; {
			select {
			case <-tick.C:
			case <-done:
				last = true
			}
			text, err := s.metricsText()
			if err == nil {
				err = node.ReplaceFile(s.app.conf.Metrics.Textfile, text, 0o644)
			}
			if err != nil {
				s.app.log.Warn("cannot write metrics", "file", s.app.conf.Metrics.Textfile, "error", err)
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// metricsText is what there is to say of a root, in Prometheus' text format.
func (a *app) metricsText(root string, t totals) ([]byte, error) {
	registry := prometheus.NewRegistry()
	list := collector{}
	list.add(root, "attempts_total", "Attempts at tasks that have ended, by final state.", prometheus.CounterValue, "state", t.Attempts)
	list.add(root, "executors_total", "Executors that have ended, by exit code.", prometheus.CounterValue, "exit_code", t.Executors)
	for state, seconds := range t.Seconds {
		list.one(root, "state_seconds_total", "Time that attempts have spent, by state.", prometheus.CounterValue, seconds, "state", state)
	}
	list.add(root, "images_total", "Images of attempts, by whether they were pulled, reused or there before.", prometheus.CounterValue, "pull", t.Images)
	one := func(name, help string, kind prometheus.ValueType, value float64) {
		list.one(root, name, help, kind, value, "", "")
	}
	one("resumed_total", "Times that a process took up what another one had left.", prometheus.CounterValue, float64(t.Resumed))
	one("downloaded_bytes_total", "Bytes of inputs.", prometheus.CounterValue, float64(t.BytesIn))
	one("uploaded_bytes_total", "Bytes of outputs.", prometheus.CounterValue, float64(t.BytesOut))
	one("reclaimed_bytes_total", "Bytes of leftovers and images that tasks have removed.", prometheus.CounterValue, float64(t.Freed))
	one("unknown_attempts_total", "Attempts that have ended and whose records cannot be read: attempts_total alone has them.", prometheus.CounterValue, float64(t.Unknown))
	if !t.LastEnd.IsZero() {
		one("last_end_timestamp_seconds", "When an attempt ended last.", prometheus.GaugeValue, float64(t.LastEnd.UnixMilli())/1000)
	}
	reserve, err := journal.ReserveOf(a.journalDir())
	if err != nil {
		return nil, err
	}
	one("journal_reserve_bytes", "Space set aside for the journal on a full disk.", prometheus.GaugeValue, float64(reserve.Ballast))
	size, err := treeBytes(context.Background(), a.journalDir())
	if err != nil {
		return nil, err
	}
	one("journal_bytes", "Size of the journal on the disk.", prometheus.GaugeValue, float64(size))
	if err := registry.Register(list); err != nil {
		return nil, err
	}
	families, err := registry.Gather()
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), nil
}

// collector collects values that are known.
type collector map[string][]prometheus.Metric

func (c collector) one(root, name, help string, kind prometheus.ValueType, value float64, label, is string) {
	var labels, values []string
	if label != "" {
		labels, values = []string{label}, []string{is}
	}
	desc := prometheus.NewDesc("deckhand_"+name, help, labels, prometheus.Labels{"root": root})
	c[name] = append(c[name], prometheus.MustNewConstMetric(desc, kind, value, values...))
}

func (c collector) add(root, name, help string, kind prometheus.ValueType, label string, values map[string]int64) {
	for is, n := range values {
		c.one(root, name, help, kind, float64(n), label, is)
	}
}

// Describe is that of prometheus.Collector: it promises nothing.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect is that of prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	for _, name := range slices.Sorted(maps.Keys(c)) {
		for _, m := range c[name] {
			to <- m
		}
	}
}

func newMetricsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "What attempts have come to, in Prometheus' text format",
		Long: `Metrics prints counters of the attempts that have ended on this root, and the
size of the journal, in Prometheus' text format. It reads the journal, also while a
run holds it. A run serves the same at /metrics on ROOT/control.sock, and with
metrics.textfile writes it to a file for the node exporter.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return a.metrics() },
	}
}

func (a *app) metrics() (err error) {
	v, known, err := a.view()
	if err != nil || !known {
		return err // nothing ever ran here
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	n, err := v.Node()
	if err != nil {
		return err
	}
	t, _, err := count(v, math.MaxInt) // nothing may be kept of a journal that is only read
	if err != nil {
		return err
	}
	text, err := a.metricsText(n.RootID, t)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(text)
	return err
}

// checkTextfile refuses, before anything runs, a file for the node exporter that
// cannot be written.
func (a *app) checkTextfile() error {
	name := a.conf.Metrics.Textfile
	if name == "" {
		return nil
	}
	if err := unix.Access(filepath.Dir(name)+"/", unix.W_OK|unix.X_OK); err != nil {
		return usage("metrics.textfile is %s: it cannot be written: %w", name, err)
	}
	return nil
}
