package main

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/download"
	"github.com/deckhand/deckhand/steps/scrub"
	"github.com/deckhand/deckhand/steps/upload"
)

// What a page holds at most of each kind, so that a browser opens it.
const (
	reportTasks   = 100
	reportRemoved = 200
	reportFiles   = 1000
	reportRecords = 5000
)

func newReportCommand(a *app) *cobra.Command {
	var output string
	var tasks int
	cmd := &cobra.Command{
		Use:   "report [TASK]",
		Short: "One HTML page about the newest tasks, or about one task in full",
		Long: `Report writes one HTML page that needs no network: of the node its newest tasks,
with the time in each state, transfers, images, what was removed, and failures; of one
task also its records, files and logs. It reads the journal, also while a run holds it.`,
		Example: `  deckhand journal report -o node.html
  deckhand journal report last -o task.html`,
		Args:              optionalArgument("TASK"),
		ValidArgsFunction: a.completeTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			if tasks < 1 {
				return usage("--tasks is %d; it must be at least 1", tasks)
			}
			if err := checkPlace("the page", output, "output"); err != nil {
				return err
			}
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			page, err := a.gather(name, tasks)
			if err != nil {
				return err
			}
			return a.writeTo(cmd.Context(), output, func(w io.Writer) error { return reportPage.Execute(w, page) })
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", "write to this `file`, whole or not at all; - is standard output")
	cmd.Flags().IntVarP(&tasks, "tasks", "n", reportTasks, "the newest `N` tasks")
	return cmd
}

//go:embed journal_report.html
var reportText string

// reportPage escapes what it shows by where it stands: ids, messages and logs come
// from strangers.
var reportPage = template.Must(template.New("report").Funcs(template.FuncMap{
	"bytes": func(n int64) string { return units.BytesSize(float64(n)) },
	"space": func(n uint64) string { return units.BytesSize(float64(n)) },
	"share": func(part float64) string { return fmt.Sprintf("%.0f%%", 100*part) },
	"short": shortID,
	"took":  tookExactly,
	"time":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"clock": func(t time.Time) string { return t.UTC().Format("15:04:05.000") },
	"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
	"count": counted,
}).Parse(reportText))

// tookExactly tells short times apart.
func tookExactly(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return took(d)
}

// reportData is what a page shows.
type reportData struct {
	Host, Root, RootID, Version string
	Made                        time.Time
	Doubt                       string // about the journal; empty for none
	Whole                       bool   // one task with all that is known
	Tasks                       []*reportTask
	Older                       int // tasks that are not shown
	Ends                        []reportEnd
	In, Out, Freed              int64
	Images                      []machine.ImageRecord
	Disks                       []reportDisk
	Removed                     []reportRemoval
	MoreRemoved                 int
}

// reportEnd is how many of the tasks are in one state.
type reportEnd struct {
	State machine.State
	Tasks int
}

type reportTask struct {
	ID       string
	State    machine.State
	Running  bool
	Next     string // in words; empty when the task has ended
	Attempts []*reportAttempt
	Records  []reportRecord
	// OlderRecords are those that are not shown.
	OlderRecords int
}

// Last is the newest attempt; every task has one.
func (t *reportTask) Last() *reportAttempt { return t.Attempts[len(t.Attempts)-1] }

type reportAttempt struct {
	Number         int
	State          machine.State
	Start, End     time.Time
	readings       []reading
	Disks          []reportDisk
	Code           string // exit code of the run; empty while it is not known
	Reason         string
	stays          []stay
	Spans          []reportSpan
	Resumed        int
	In, Out, Freed int64
	Inputs         []download.File
	Outputs        []upload.Published
	// The numbers of all files; Inputs and Outputs hold the first ones of a whole report.
	InFiles, OutFiles int
	Images            []reportImage
	Executors         []reportExecutor
	System            []string
}

// Took is how long the attempt took, or takes until now.
func (a *reportAttempt) Took() time.Duration { return a.End.Sub(a.Start) }

// reportSpan is a stay. X and Width are on a line of 1000.
type reportSpan struct {
	stay
	X, Width float64
}

// reading is what was free when a state was entered.
type reading struct {
	Time  time.Time
	State machine.State
	Task  string
	filesystem
}

// reportDisk is how full a filesystem was. Line are the points of a line in a field
// of 1000 by 100, whose upper edge is a full disk.
type reportDisk struct {
	Path               string
	First, Least, Last reading
	Line               string
}

type reportImage struct{ Reference, ID, Pull string }

type reportExecutor struct {
	Index, ExitCode        int
	Took                   time.Duration
	Reason, Stdout, Stderr string
}

type reportRemoval struct {
	Time            time.Time
	Task            string
	Kind, Name, Why string
	Bytes           int64
}

type reportRecord struct {
	Time    time.Time
	Seq     uint64
	Attempt int
	Kind    machine.Kind
	What    string
}

// gather reads what a page about one task, or with an empty name about the newest
// ones, shows.
func (a *app) gather(name string, most int) (page *reportData, err error) {
	page = &reportData{Host: hostname(), Root: a.conf.Root, Version: version, Made: time.Now(), Whole: name != ""}
	v, ok, err := a.view()
	if err != nil || !ok {
		if err == nil && name != "" {
			err = a.unknownTask(name)
		}
		return page, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	if doubt := v.Doubt(); doubt != nil {
		page.Doubt = message(doubt)
	}
	n, err := v.Node()
	if err != nil {
		return nil, err
	}
	page.RootID, page.Images = n.RootID, n.Images
	heads, err := v.Heads()
	if err != nil {
		return nil, err
	}
	heads = tasksOnly(heads)
	if name != "" {
		head, err := a.find(v, name)
		if err != nil {
			return nil, err
		}
		heads = []machine.Head{head}
	}
	shown := heads[:min(len(heads), most)]
	page.Older = len(heads) - len(shown)
	owner, alive, err := a.owner()
	if err != nil {
		a.log.Debug("cannot tell whether the owner lives", "error", err)
	}
	ends := map[machine.State]int{}
	var readings []reading
	for _, h := range shown {
		t, err := page.task(v, h, alive && owner.Task == h.Task)
		if err != nil {
			return nil, err
		}
		ends[h.State]++
		for _, a := range t.Attempts {
			readings = append(readings, a.readings...)
		}
		page.Tasks = append(page.Tasks, t)
	}
	page.Disks = disksOf(readings)
	if name == "" {
		if err := page.byItself(v); err != nil {
			return nil, err
		}
	}
	for _, s := range machine.States {
		if ends[s] > 0 {
			page.Ends = append(page.Ends, reportEnd{s, ends[s]})
		}
	}
	return page, nil
}

// byItself adds what was removed for no task, as by scrub.
func (p *reportData) byItself(v *journal.View) error {
	for r, err := range v.Records(machine.NodeTask) {
		if err != nil {
			return err
		}
		if err := p.removal(r); err != nil {
			return err
		}
	}
	return nil
}

func (p *reportData) task(v *journal.View, h machine.Head, running bool) (*reportTask, error) {
	t := &reportTask{ID: h.Task, State: h.State, Running: running}
	if !h.State.Final() && !running {
		t.Next = machine.NextInWords(h)
	}
	var sums []*account
	for r, err := range v.Records(h.Task) {
		if err != nil {
			return nil, err
		}
		if len(t.Attempts) == 0 || t.Last().Number != r.Attempt {
			t.Attempts = append(t.Attempts, &reportAttempt{Number: r.Attempt, Start: r.Time, End: r.Time})
			sums = append(sums, newAccount(r.Time))
		}
		if err := errors.Join(sums[len(sums)-1].add(r), t.Last().add(r, p.Whole), p.removal(r)); err != nil {
			return nil, fmt.Errorf("record %d of task %s: %w", r.Seq, r.Task, err)
		}
		if p.Whole {
			t.Records = append(t.Records, reportRecord{r.Time, r.Seq, r.Attempt, r.Kind, strings.TrimSpace(recordWhat(r))})
			if over := len(t.Records) - reportRecords; over > 0 {
				t.OlderRecords, t.Records = t.OlderRecords+over, t.Records[over:]
			}
		}
	}
	for i, a := range t.Attempts {
		a.sum(sums[i], p.Whole)
		p.In, p.Out, p.Freed = p.In+a.In, p.Out+a.Out, p.Freed+a.Freed
	}
	last := t.Last()
	if running {
		last.End = p.Made
	}
	if h.State.Final() {
		last.Code = fmt.Sprint(headCode(h))
	}
	for _, a := range t.Attempts {
		a.draw()
		a.Disks = disksOf(a.readings)
	}
	return t, nil
}

// add takes down states and files.
func (a *reportAttempt) add(r machine.Record, whole bool) error {
	a.End, a.stays = r.Time, addStay(a.stays, r)
	switch r.Kind {
	case machine.KindTransition:
		found, err := disk(r)
		if err != nil {
			return err
		}
		for _, f := range found {
			a.readings = append(a.readings, reading{r.Time, r.To, r.Task, f})
		}
		a.State = r.To
		if r.Reason != "" {
			a.Reason = r.Reason
		}
	case machine.KindDone:
		var fact struct {
			What string `json:"what"`
		}
		if err := json.Unmarshal(r.Detail, &fact); err != nil {
			return err
		}
		switch fact.What {
		case download.WhatInputs:
			var staged batch.Files[download.File]
			if err := json.Unmarshal(r.Detail, &staged); err != nil {
				return err
			}
			a.InFiles += len(staged.Files)
			a.Inputs = firstOf(a.Inputs, staged.Files, whole)
		case upload.WhatOutputs:
			files, err := publishedBy(r)
			if err != nil {
				return err
			}
			a.OutFiles += len(files)
			a.Outputs = firstOf(a.Outputs, files, whole)
		}
	}
	return nil
}

// firstOf adds files to the list of a whole report, as far as it goes.
func firstOf[T any](list, files []T, whole bool) []T {
	if !whole {
		return nil
	}
	return append(list, files[:min(len(files), reportFiles-len(list))]...)
}

// sum takes over what the result would say of the attempt.
func (a *reportAttempt) sum(from *account, whole bool) {
	a.In, a.Out, a.Freed, a.Resumed, a.System = from.bytesIn, from.bytesOut, from.bytesFreed, from.resumed, from.system
	for _, ref := range slices.Sorted(maps.Keys(from.images)) {
		a.Images = append(a.Images, reportImage{ref, from.images[ref].ImageID, from.images[ref].Pull})
	}
	for _, e := range from.executors {
		x := reportExecutor{Index: e.Executor, ExitCode: e.ExitCode, Took: e.EndTime.Sub(e.StartTime), Reason: e.Reason}
		if whole {
			x.Stdout, x.Stderr = e.Stdout, e.Stderr
		}
		a.Executors = append(a.Executors, x)
	}
}

// draw lays the states out on a line of 1000, each to be seen.
func (a *reportAttempt) draw() {
	const least = 16 // more than a pixel on a phone
	total, x := a.Took().Seconds(), 0.0
	for _, s := range a.stays {
		if s.End.IsZero() {
			s.End = a.End
		}
		width := float64(least)
		if total > 0 {
			width += s.Took().Seconds() / total * (1000 - least*float64(len(a.stays)))
		}
		a.Spans = append(a.Spans, reportSpan{s, x, width})
		x += width
	}
}

// disksOf sums up readings, by filesystem.
func disksOf(all []reading) (disks []reportDisk) {
	slices.SortStableFunc(all, func(a, b reading) int { return a.Time.Compare(b.Time) })
	byPath := map[string][]reading{}
	for _, r := range all {
		byPath[r.Path] = append(byPath[r.Path], r)
	}
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		of := byPath[path]
		d := reportDisk{Path: path, First: of[0], Last: of[len(of)-1]}
		d.Least = slices.MinFunc(of, func(a, b reading) int { return cmp.Compare(a.Free, b.Free) })
		from, span := d.First.Time, d.Last.Time.Sub(d.First.Time).Seconds()
		var line strings.Builder
		for _, r := range of {
			x := 0.0
			if span > 0 {
				x = r.Time.Sub(from).Seconds() / span * 1000
			}
			fmt.Fprintf(&line, "%.1f,%.1f ", x, 100-100*r.Used())
		}
		d.Line = line.String() + fmt.Sprintf("1000,%.1f", 100-100*d.Last.Used())
		disks = append(disks, d)
	}
	return disks
}

// removal takes down what a record says to be removed.
func (p *reportData) removal(r machine.Record) error {
	if r.Kind != machine.KindDone {
		return nil
	}
	var fact struct {
		What string `json:"what"`
		scrub.Item
		Reference string `json:"reference"`
	}
	if err := json.Unmarshal(r.Detail, &fact); err != nil {
		return err
	}
	gone := reportRemoval{Time: r.Time, Task: r.Task, Kind: string(fact.Kind), Name: fact.Name, Why: fact.Why, Bytes: fact.Bytes}
	switch {
	case fact.What == ledger.WhatRemoved && fact.Reference != "":
		gone.Kind, gone.Name, gone.Why = string(scrub.Image), fact.Reference, "another image was wanted"
	case fact.What != scrub.WhatRemoved:
		return nil
	}
	if len(p.Removed) == reportRemoved {
		p.MoreRemoved++
		return nil
	}
	p.Removed = append(p.Removed, gone)
	return nil
}
