package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

func newJournalCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "journal",
		Short: "Read and check the journal; works while a run holds it",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newInspectCommand(a), newListCommand(a), newImagesCommand(a), newVerifyCommand(a), newExportCommand(a), newPruneCommand(a))
	return cmd
}

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
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "print one JSON object a line")
	f.BoolVar(&o.follow, "follow", false, "go on with new records as they come")
	f.BoolVar(&o.reverse, "reverse", false, "newest first")
	f.IntVarP(&o.lines, "lines", "n", 0, "only the newest `N` records")
	f.StringVar(&o.since, "since", "", "only records since a `time`: RFC 3339, or a duration such as 2h")
	return cmd
}

func (a *app) inspect(ctx context.Context, args []string, o inspectOptions) error {
	if o.follow && o.reverse {
		return usage("--follow and --reverse exclude each other")
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
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usage("--since is %q; it can be a time such as 2026-01-02T15:04:05Z or a duration such as 2h", text)
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
			return nil, unknownTask(args[0], a.conf.Root)
		}
		return nil, nil
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	heads, err := v.Heads()
	if err != nil {
		return nil, err
	}
	if len(args) > 0 && args[0] != machine.NodeTask {
		head, known, err := find(heads, args[0])
		if err != nil {
			return nil, err
		}
		if !known {
			return nil, unknownTask(args[0], a.conf.Root)
		}
		heads = []machine.Head{head}
	} else if len(args) > 0 {
		heads = []machine.Head{{Task: machine.NodeTask}}
	}
	for _, h := range heads {
		for r, err := range v.Records(h.Task) {
			if err != nil {
				return nil, err
			}
			records = append(records, r)
		}
	}
	slices.SortStableFunc(records, func(x, y machine.Record) int { return x.Time.Compare(y.Time) })
	return records, nil
}

func unknownTask(name, root string) error {
	return &exit{statusUnknown, fmt.Errorf("no task %s on %s; \"deckhand journal list\" shows those that it knows", name, root)}
}

func (a *app) printRecord(r machine.Record, asJSON bool) error {
	if asJSON {
		return printJSON(a.stdout, r)
	}
	_, err := fmt.Fprintln(a.stdout, recordLine(r))
	return err
}

// recordLine is a record as people read it.
func recordLine(r machine.Record) string {
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
	return fmt.Sprintf("%s  %s #%d.%d  %s", r.Time.Local().Format("2006-01-02 15:04:05.000"), r.Task, r.Attempt, r.Seq, what)
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
	line := fmt.Sprintf("%s %s %s", word, text("what"), text("name"))
	for _, key := range shown {
		if value, ok := detail[key]; ok && len(value) < 200 && value[0] != '[' && value[0] != '{' {
			line += fmt.Sprintf("  %s=%s", key, strings.TrimSpace(text(key)))
		}
	}
	return line
}

func newListCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "The tasks that the journal knows, one line each, newest first",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.list(asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

// listed is a line of journal list. Its JSON form is public.
type listed struct {
	Task    string        `json:"task"`
	State   machine.State `json:"state"`
	Attempt int           `json:"attempt"`
	Since   time.Time     `json:"since"`
	Reason  string        `json:"reason"`
}

func (a *app) list(asJSON bool) (err error) {
	v, ok, err := a.view()
	if err != nil || !ok {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	heads, err := v.Heads()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, h := range tasksOnly(heads) {
		if asJSON {
			err = printJSON(a.stdout, listed{h.Task, h.State, h.Attempt, h.Since, h.Reason})
		} else {
			_, err = fmt.Fprintf(w, "%s\t%s\tattempt %d\t%s\t%s\n", h.Task, h.State, h.Attempt, h.Since.Local().Format(time.DateTime), h.Reason)
		}
		if err != nil {
			return err
		}
	}
	return w.Flush()
}

// imageAccount is what journal images prints. Its JSON form is public.
type imageAccount struct {
	Last   []machine.ImageRecord `json:"last"`
	Ledger []machine.ImageRecord `json:"ledger"`
}

func newImagesCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "The image ledger and the last-image record",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.images(asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) images(asJSON bool) (err error) {
	account := imageAccount{Last: []machine.ImageRecord{}, Ledger: []machine.ImageRecord{}}
	v, ok, err := a.view()
	if err != nil {
		return err
	}
	if ok {
		defer func() { err = errors.Join(err, v.Close()) }()
		n, err := v.Node()
		if err != nil {
			return err
		}
		account.Ledger = append(account.Ledger, n.Images...)
	}
	for _, r := range account.Ledger {
		if r.Last {
			account.Last = append(account.Last, r)
		}
	}
	if asJSON {
		return printJSON(a.stdout, account)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range account.Ledger {
		origin, use := "was on the node before", "kept"
		if r.PulledByUs {
			origin = "pulled by deckhand"
		}
		if r.Last {
			use = "last used"
		}
		if _, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s by task %s\n", r.Reference, shortID(r.ImageID), r.Phase, origin, use, r.Task); err != nil {
			return err
		}
	}
	return w.Flush()
}

func newVerifyCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check every record: exits 0 when the journal is sound, 1 when it is not",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.verify(asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// verified is what journal verify prints. Its JSON form is public.
type verified struct {
	Sound    bool              `json:"sound"`
	Tasks    int               `json:"tasks"`
	Records  int               `json:"records"`
	Problems []journal.Problem `json:"problems"`
}

func (a *app) verify(asJSON bool) error {
	r := verified{Sound: true, Problems: []journal.Problem{}}
	if exists(a.journalDir()) {
		report, err := journal.Verify(a.journalDir(), machine.Legal)
		if err != nil {
			return err
		}
		r.Tasks, r.Records, r.Problems = report.Tasks, report.Records, append(r.Problems, report.Problems...)
		r.Sound = len(r.Problems) == 0
	}
	if err := printVerified(a.stdout, r, asJSON); err != nil {
		return err
	}
	if !r.Sound {
		return &exit{code: 1}
	}
	return nil
}

func printVerified(w io.Writer, r verified, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	for _, p := range r.Problems {
		if _, err := fmt.Fprintf(w, "task %s, record %d: %s\n", p.Task, p.Seq, p.What); err != nil {
			return err
		}
	}
	word := "sound"
	if !r.Sound {
		word = fmt.Sprintf("NOT sound: %d problems", len(r.Problems))
	}
	_, err := fmt.Fprintf(w, "%d tasks, %d records: %s\n", r.Tasks, r.Records, word)
	return err
}

func newExportCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Every record as JSON lines",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.inspect(cmd.Context(), nil, inspectOptions{json: true})
		},
	}
}

func newPruneCommand(a *app) *cobra.Command {
	var olderThan time.Duration
	var keep int
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove the history of finished tasks, by age and count",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.prune(cmd.Context(), journal.Retention{Keep: keep, Age: olderThan}, dryRun)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&olderThan, "older-than", 0, "remove tasks that ended longer ago than this `duration`")
	f.IntVar(&keep, "keep", 0, "keep the newest `N` finished tasks and remove the others")
	f.BoolVar(&dryRun, "dry-run", false, "print what would go; remove nothing")
	return cmd
}

func (a *app) prune(ctx context.Context, r journal.Retention, dryRun bool) (err error) {
	if r == (journal.Retention{}) {
		return usage("say what to keep: --keep, --older-than or both")
	}
	if !exists(a.journalDir()) {
		return nil
	}
	lock, err := node.WaitLock(ctx, a.conf.Root, a.conf.Lock.Wait)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if err := a.own(lock, "", ""); err != nil {
		return err
	}
	boot, err := node.BootID()
	if err != nil {
		return err
	}
	j, err := journal.Open(a.journalDir(), journal.Options{BootID: boot})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	pruned, err := j.Prune(ctx, r, dryRun)
	if err != nil {
		return err
	}
	verb := "removed"
	if dryRun {
		verb = "would remove"
	}
	_, err = fmt.Fprintf(a.stdout, "%s the history of %d tasks\n", verb, len(pruned.Tasks))
	return err
}
