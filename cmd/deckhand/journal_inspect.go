package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/machine"
)

// inspectOptions are the flags of journal inspect.
type inspectOptions struct {
	json, follow, reverse bool
	lines                 int
	since                 string
}

func newInspectCommand(a *app) *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect [TASK]",
		Short: "The records of a task, or of all tasks, one line each",
		Example: `  deckhand journal inspect last
  deckhand journal inspect --since 1h --json`,
		Args:              optionalArgument("TASK"),
		ValidArgsFunction: a.completeTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "print one JSON object a line")
	f.BoolVar(&o.follow, "follow", false, "go on with new records as they come")
	f.BoolVar(&o.reverse, "reverse", false, "newest first")
	f.IntVarP(&o.lines, "lines", "n", 0, "only the newest `N` records")
	f.StringVar(&o.since, "since", "", "only records since a `time`: RFC 3339, or a duration such as 2h or 7d")
	return cmd
}

func (a *app) inspect(ctx context.Context, args []string, o inspectOptions) error {
	if o.follow && o.reverse {
		return usage("--follow and --reverse exclude each other")
	}
	if o.lines < 0 {
		return usage("--lines is %d; it must not be negative", o.lines)
	}
	since, err := parseSince(o.since)
	if err != nil {
		return err
	}
	seen := map[string]uint64{}
	for first := true; ; first = false {
		records, err := a.records(args)
		if err != nil {
			return err
		}
		fresh := slices.DeleteFunc(records, func(r machine.Record) bool {
			return r.Seq <= seen[r.Task] || r.Time.Before(since)
		})
		for _, r := range fresh {
			seen[r.Task] = max(seen[r.Task], r.Seq)
		}
		if first && o.lines > 0 && len(fresh) > o.lines {
			fresh = fresh[len(fresh)-o.lines:]
		}
		if o.reverse {
			slices.Reverse(fresh)
		}
		for _, r := range fresh {
			if err := a.printRecord(r, o.json); err != nil {
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

func parseSince(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := config.ParseDuration(text); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usage("--since is %q; it can be a time such as 2026-01-02T15:04:05Z or a duration such as 2h or 7d", text)
	}
	return t, nil
}

// records reads the records of the named task, or of all, oldest first.
func (a *app) records(args []string) (records []machine.Record, err error) {
	v, ok, err := a.view()
	if err != nil {
		return nil, err
	}
	if !ok {
		if len(args) > 0 {
			return nil, a.unknownTask(args[0])
		}
		return nil, nil
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	var heads []machine.Head
	switch {
	case len(args) == 0:
		heads, err = v.Heads()
	case args[0] == machine.NodeTask:
		heads = []machine.Head{{Task: machine.NodeTask}}
	default:
		var head machine.Head
		head, err = a.find(v, args[0])
		heads = []machine.Head{head}
	}
	if err != nil {
		return nil, err
	}
	for _, h := range heads {
		for r, err := range v.Records(h.Task) {
			if err != nil {
				return nil, err
			}
			records = append(records, r)
		}
	}
	if len(heads) == 1 {
		return records, nil // in their own order, whatever the clock did
	}
	slices.SortStableFunc(records, func(x, y machine.Record) int { return x.Time.Compare(y.Time) })
	return records, nil
}

func (a *app) printRecord(r machine.Record, asJSON bool) error {
	if asJSON {
		return printJSON(a.stdout, r)
	}
	_, err := fmt.Fprintln(a.stdout, printable(recordLine(r)))
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
