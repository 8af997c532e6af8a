package main

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// inspectOptions are the flags of journal inspect.
type inspectOptions struct {
	json, follow, reverse          bool
	lines                          int
	since, until, priority, output string
}

// outputs are the forms of a record: a line with its time and its task, what it says
// alone, and a JSON object.
var outputs = []string{"short", "cat", "json"}

func newInspectCommand(a *app) *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect [TASK]",
		Short: "The records of a task, or of all tasks, one line each",
		Example: `  deckhand journal inspect last
  deckhand journal inspect --since 1h --json
  deckhand journal inspect -p warning --since yesterday
  deckhand journal inspect last -fn 10`,
		Args:              optionalArgument("TASK"),
		ValidArgsFunction: a.completeTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "print one JSON object a line")
	f.StringVarP(&o.output, "output", "o", outputs[0], "the `form` of a record: "+strings.Join(outputs, ", "))
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with new records as they come")
	f.BoolVarP(&o.reverse, "reverse", "r", false, "newest first")
	f.IntVarP(&o.lines, "lines", "n", 0, "only the newest `N` records")
	f.StringVarP(&o.since, "since", "S", "", "only records since a `time`: RFC 3339, \"2026-01-02 15:04\", today, yesterday, or a duration such as 2h or 7d")
	f.StringVarP(&o.until, "until", "U", "", "only records until a `time`")
	f.StringVarP(&o.priority, "priority", "p", "", "only records that are at least so urgent: "+strings.Join(priorities, ", "))
	for name, values := range map[string][]string{"output": outputs, "priority": priorities} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // the flag is there
		}
	}
	return cmd
}

func (a *app) inspect(ctx context.Context, args []string, o inspectOptions) error {
	since, until, err := o.check()
	if err != nil {
		return err
	}
	seen := map[string]uint64{}
	for first := true; ; first = false {
		fresh := maps.Clone(seen)
		var last []machine.Record // those that are printed in the end
		for r, err := range a.records(args) {
			if err != nil {
				return err
			}
			if r.Seq <= seen[r.Task] {
				continue
			}
			fresh[r.Task] = max(fresh[r.Task], r.Seq)
			if r.Time.Before(since) || !until.IsZero() && r.Time.After(until) || !asUrgent(r, o.priority) {
				continue
			}
			newest := first && o.lines > 0
			if newest || o.reverse {
				last = append(last, r)
			} else if err := a.printRecord(r, o.output); err != nil {
				return err
			}
			if newest && len(last) > o.lines {
				last = last[1:]
			}
		}
		seen = fresh
		if o.reverse {
			slices.Reverse(last)
		}
		for _, r := range last {
			if err := a.printRecord(r, o.output); err != nil {
				return err
			}
		}
		if !o.follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// check says what does not go together or means nothing, and what the times are.
func (o *inspectOptions) check() (since, until time.Time, err error) {
	switch {
	case o.json && o.output == "cat":
		return since, until, usage("--json and --output cat exclude each other")
	case o.json:
		o.output = "json"
	}
	switch {
	case o.follow && o.reverse:
		return since, until, usage("--follow and --reverse exclude each other")
	case o.follow && o.until != "":
		return since, until, usage("--follow and --until exclude each other")
	case o.lines < 0:
		return since, until, usage("--lines is %d; it must not be negative", o.lines)
	case !slices.Contains(outputs, o.output):
		return since, until, usage("--output is %q; it can be %s", o.output, strings.Join(outputs, ", "))
	case o.priority != "" && !slices.Contains(priorities, o.priority):
		return since, until, usage("--priority is %q; it can be %s", o.priority, strings.Join(priorities, ", "))
	}
	now := time.Now()
	if since, err = parseTime("--since", o.since, now); err == nil {
		until, err = parseTime("--until", o.until, now)
	}
	return since, until, err
}

// parseTime reads a moment as people write it; one without a zone is local. An empty
// text is the zero time.
func parseTime(flag, text string, now time.Time) (time.Time, error) {
	midnight := func(days int) time.Time {
		return time.Date(now.Year(), now.Month(), now.Day()+days, 0, 0, 0, 0, now.Location())
	}
	switch text {
	case "":
		return time.Time{}, nil
	case "now":
		return now, nil
	case "today":
		return midnight(0), nil
	case "yesterday":
		return midnight(-1), nil
	}
	if d, err := config.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("%s is %q; it can be a time such as 2026-01-02T15:04:05Z, \"2026-01-02 15:04\", today or yesterday, or a duration such as 2h or 7d", flag, text)
}

// records yields the records of the named task, or of all, oldest first. It ends after
// the first error.
func (a *app) records(args []string) iter.Seq2[machine.Record, error] {
	return func(yield func(machine.Record, error) bool) {
		v, ok, err := a.view()
		if err == nil && !ok && len(args) > 0 {
			err = a.unknownTask(args[0])
		}
		if err != nil {
			yield(machine.Record{}, err)
			return
		}
		if !ok {
			return
		}
		defer v.Close() // it was only read
		heads, err := a.named(v, args)
		if err != nil {
			yield(machine.Record{}, err)
			return
		}
		all := recordsOf(v, heads)
		if len(heads) > 1 {
			all = byTime(all)
		} // else in their own order, whatever the clock did
		for r, err := range all {
			if !yield(r, err) {
				return
			}
		}
	}
}

// named are the heads of the named task, or of all.
func (a *app) named(v *journal.View, args []string) ([]machine.Head, error) {
	switch {
	case len(args) == 0:
		return v.Heads()
	case args[0] == machine.NodeTask:
		return []machine.Head{{Task: machine.NodeTask}}, nil
	}
	head, err := a.find(v, args[0])
	return []machine.Head{head}, err
}

// recordsOf yields the records of one task after the other, as they are read: they may
// tell of a million files.
func recordsOf(v *journal.View, heads []machine.Head) iter.Seq2[machine.Record, error] {
	return func(yield func(machine.Record, error) bool) {
		for _, h := range heads {
			for r, err := range v.Records(h.Task) {
				if !yield(r, err) || err != nil {
					return
				}
			}
		}
	}
}

// byTime yields the records of several tasks in the order of their times, for which it
// holds them all.
func byTime(records iter.Seq2[machine.Record, error]) iter.Seq2[machine.Record, error] {
	return func(yield func(machine.Record, error) bool) {
		var all []machine.Record
		for r, err := range records {
			if err != nil {
				yield(machine.Record{}, err)
				return
			}
			all = append(all, r)
		}
		slices.SortStableFunc(all, func(x, y machine.Record) int { return x.Time.Compare(y.Time) })
		for _, r := range all {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (a *app) printRecord(r machine.Record, output string) error {
	line := recordLine(r)
	switch output {
	case "json":
		return printJSON(a.stdout, r)
	case "cat":
		line = strings.TrimSpace(recordWhat(r))
	}
	_, err := fmt.Fprintln(a.stdout, printable(line))
	return err
}

// recordLine is a record as people read it.
func recordLine(r machine.Record) string {
	return fmt.Sprintf("%s  %s #%d.%d  %s", r.Time.Local().Format("2006-01-02 15:04:05.000"), r.Task, r.Attempt, r.Seq, recordWhat(r))
}

// recordWhat is what a record says, without when and of what task.
func recordWhat(r machine.Record) string {
	what := ""
	switch r.Kind {
	case machine.KindTransition:
		from := string(r.From)
		if from == "" {
			from = "(new)"
		}
		what = fmt.Sprintf("%s → %s  %s", from, r.To, r.Event)
	case machine.KindResume:
		what = fmt.Sprintf("resumed in %s", r.To)
	default:
		what = factLine(r)
	}
	if r.Reason != "" {
		what += ": " + r.Reason
	}
	return what
}

// shown are the details of a fact that fit on its line, in this order.
var shown = []string{"pull", "image_id", "exit_code", "bytes", "files", "kind", "why", "message"}

func factLine(r machine.Record) string {
	word := "    will"
	if r.Kind == machine.KindDone {
		word = "    did "
	}
	var detail map[string]json.RawMessage
	if json.Unmarshal(r.Detail, &detail) != nil {
		return word
	}
	text := func(key string) string {
		var s string
		if json.Unmarshal(detail[key], &s) == nil {
			return s
		}
		return string(detail[key])
	}
	if text("what") == machine.WhatWarning {
		return "    warning: " + text("message")
	}
	line := word + " " + text("what")
	if name := text("name"); name != "" { // many of a kind have none
		line += " " + name
	}
	for _, key := range shown {
		if value, ok := detail[key]; ok && len(value) < 200 && value[0] != '[' && value[0] != '{' {
			line += fmt.Sprintf("  %s=%s", key, shortID(text(key)))
		}
	}
	return line
}
