package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/imagecheck"
	"github.com/deckhand/deckhand/steps/run"
)

// Exit codes of status, as systemctl has them.
const (
	statusComplete   = 0
	statusEnded      = 1
	statusUnfinished = 3
	statusUnknown    = 4
)

// status is what is known of a task. Its JSON form is public.
type status struct {
	Task        string          `json:"task"`
	State       machine.State   `json:"state"`
	Attempt     int             `json:"attempt"`
	Since       time.Time       `json:"since"`
	Running     bool            `json:"running"`
	Owner       *statusOwner    `json:"owner"`
	Next        string          `json:"next"`
	Reason      string          `json:"reason"`
	Transfers   statusTransfers `json:"transfers"`
	Image       statusImage     `json:"image"`
	ResultState string          `json:"result_state"`
	// Reserve is what the journal of this root has set aside for a full disk.
	Reserve journal.Reserve `json:"reserve"`
	// Program is how many bytes the copy of deckhand takes that containers run.
	Program int64 `json:"program_bytes"`
	// Node is what takes space on the node.
	Node holdings `json:"node"`
	// ExitCode is what the run of an attempt that has ended exits with; null before.
	ExitCode *int `json:"exit_code"`
	// States are those that the attempt went through, the present one last.
	States []statusState `json:"states"`
	// Container is that of the present executor, or of the one that ran last.
	Container string `json:"container"`

	records []machine.Record // the newest
}

// statusState is a state and the time in it.
type statusState struct {
	State   machine.State `json:"state"`
	Since   time.Time     `json:"since"`
	Seconds float64       `json:"seconds"`
}

type statusOwner struct {
	PID    int    `json:"pid"`
	Host   string `json:"host"`
	BootID string `json:"boot_id"`
}

type statusTransfers struct {
	progress.Snapshot
	// BytesPerSecond is the speed at this moment; 0 when nothing is under way.
	BytesPerSecond int64 `json:"bytes_per_second"`
}

type statusImage struct {
	Reference string `json:"reference"`
	ID        string `json:"id"`
}

func newStatusCommand(a *app) *cobra.Command {
	var asJSON, watch bool
	var lines int
	cmd := &cobra.Command{
		Use:   "status [TASK|prefix|last]",
		Short: "Where a task stands; works while it runs",
		Long: `Status tells where a task stands and what its next run would do. The task is
given by its id, by a beginning that only it has, or as last. Its newest records
follow, as "journal inspect" has them. It exits 0 for a
task that is Complete, 1 for one that ended otherwise, 3 while it is unfinished
or running, 4 when it is unknown.`,
		Example: `  deckhand status
  deckhand status task-7 --json
  deckhand status task-7 --watch`,
		Args:              optionalArgument("TASK"),
		ValidArgsFunction: a.completeTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := last
			if len(args) > 0 {
				name = args[0]
			}
			if lines < 0 {
				return usage("--lines is %d; it must not be negative", lines)
			}
			show := printStatus
			if asJSON {
				show = func(w io.Writer, s status) error { return printJSON(w, s) }
			}
			if watch {
				return a.watchStatus(cmd.Context(), name, lines, show)
			}
			s, err := a.status(cmd.Context(), name, lines)
			if err == nil {
				err = show(a.stdout, s)
			}
			if err != nil {
				return err
			}
			return s.exit()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again when it has changed, until the attempt has ended")
	cmd.Flags().IntVarP(&lines, "lines", "n", 10, "the newest `N` records")
	return cmd
}

// watchEvery is how often a watched task is looked at.
const watchEvery = time.Second

// watchStatus shows where a task stands until its attempt has ended: on a terminal always in
// the same place, elsewhere one after the other.
func (a *app) watchStatus(ctx context.Context, name string, lines int, show func(io.Writer, status) error) error {
	over := ""
	if newScreen(a.stdout, a.conf).draws() {
		over = "\x1b[H\x1b[2J" // the cursor goes home, and the screen is empty
	}
	shown := ""
	for {
		s, err := a.status(ctx, name, lines)
		if err != nil {
			return err
		}
		name = s.Task // which may be the last one no longer, or have no beginning of its own
		var text strings.Builder
		if err := show(&text, s); err != nil {
			return err
		}
		if text.String() != shown {
			shown = text.String()
			if _, err := io.WriteString(a.stdout, over+shown); err != nil {
				return err
			}
		}
		if s.State.Final() && !s.Running {
			return s.exit()
		}
		select {
		case <-ctx.Done():
			return s.exit()
		case <-time.After(watchEvery):
		}
	}
}

// exit is the status in the form of an exit code.
func (s status) exit() error {
	switch {
	case s.State == machine.Complete:
		return nil
	case s.State.Final() && !s.Running:
		return &exit{code: statusEnded}
	default:
		return &exit{code: statusUnfinished}
	}
}

func (a *app) status(ctx context.Context, name string, lines int) (s status, err error) {
	v, head, err := a.viewTask(name)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	s = status{
		Task: head.Task, State: head.State, Attempt: head.Attempt, Since: head.Since, Reason: head.Reason,
		Next: machine.NextInWords(head), ResultState: string(tesStates[head.State]),
	}
	if head.State.Final() {
		code := headCode(head)
		s.ExitCode = &code
	}
	if s.Reserve, err = journal.ReserveOf(a.journalDir()); err != nil {
		return s, err
	}
	if s.Program, err = helper.Installed(a.binDir()); err != nil {
		return s, err
	}
	owner, alive, err := a.owner()
	if err != nil {
		a.log.Debug("cannot tell whether the owner lives", "error", err)
	}
	if alive && owner.Task == head.Task {
		s.Running = true
		s.Owner = &statusOwner{owner.PID, owner.Host, owner.BootID}
		s.Next = "running"
		if s.Transfers, err = askTransfers(ctx, a.conf.Root); err != nil {
			a.log.Debug("the running process does not say how far its transfers are", "error", err)
		}
	}
	if err := s.addPast(v, head, lines); err != nil {
		return s, err
	}
	n, err := v.Node()
	if err != nil {
		return s, err
	}
	s.Node = a.holdings(ctx, n, statusLimit)
	return s, nil
}

// speedOver is the time between two readings that tell how fast transfers are.
const speedOver = 500 * time.Millisecond

// askTransfers asks the running process how far its transfers are, and while
// some are under way once more, for their speed.
func askTransfers(ctx context.Context, root string) (t statusTransfers, err error) {
	if t.Snapshot, err = askProgress(ctx, root); err != nil || t.FilesDone == t.FilesTotal {
		return t, err
	}
	var speed rate
	speed.add(time.Now(), t.Snapshot)
	select {
	case <-time.After(speedOver):
	case <-ctx.Done():
		return t, ctx.Err()
	}
	next, err := askProgress(ctx, root)
	if err == nil {
		t = statusTransfers{next, speed.add(time.Now(), next)}
	}
	return t, err
}

// addPast takes the states of the task's newest attempt, its first image and its last
// container from its history, and the newest records.
func (s *status) addPast(v *journal.View, head machine.Head, lines int) error {
	var stays []stay
	var end time.Time // of the newest record
	for r, err := range v.Records(head.Task) {
		if err != nil {
			return err
		}
		if lines > 0 {
			s.records = append(s.records[max(0, len(s.records)-lines+1):], r)
		}
		if r.Attempt != head.Attempt {
			continue
		}
		stays, end = addStay(stays, r), r.Time
		if r.Kind != machine.KindDone && r.Kind != machine.KindIntent {
			continue
		}
		var fact struct {
			What string `json:"what"`
			Name string `json:"name"`
			imagecheck.Image
			Container string `json:"container"`
		}
		if err := json.Unmarshal(r.Detail, &fact); err != nil {
			return err
		}
		switch {
		case fact.What == imagecheck.WhatImage && r.Kind == machine.KindDone && s.Image.ID == "":
			s.Image = statusImage{fact.Reference, fact.ImageID}
		case fact.What == run.WhatExecutor && fact.Container != "":
			s.Container = fact.Container
		}
	}
	if s.Running {
		end = time.Now()
	}
	s.States = []statusState{}
	for _, x := range stays {
		if x.End.IsZero() {
			x.End = end
		}
		s.States = append(s.States, statusState{x.State, x.Start, x.Took().Seconds()})
	}
	return nil
}

func printStatus(w io.Writer, s status) error {
	running := "not running"
	if s.Running {
		running = fmt.Sprintf("running (process %d on %s)", s.Owner.PID, s.Owner.Host)
	}
	lines := []string{
		fmt.Sprintf("task:     %s (attempt %d)", s.Task, s.Attempt),
		fmt.Sprintf("state:    %s since %s (%s ago), %s", s.State, s.Since.Local().Format(time.DateTime), units.HumanDuration(time.Since(s.Since)), running),
	}
	if s.ExitCode != nil {
		lines = append(lines, fmt.Sprintf("ended:    with exit code %d", *s.ExitCode))
	}
	if s.Reason != "" {
		lines = append(lines, "reason:   "+s.Reason)
	}
	if len(s.States) > 0 {
		var words []string
		for _, x := range s.States {
			words = append(words, fmt.Sprintf("%s %s", x.State, tookExactly(time.Duration(x.Seconds*float64(time.Second)))))
		}
		lines = append(lines, "states:   "+strings.Join(words, ", "))
	}
	if s.Image.Reference != "" {
		lines = append(lines, fmt.Sprintf("image:    %s (%s)", s.Image.Reference, shortID(s.Image.ID)))
	}
	if s.Container != "" {
		lines = append(lines, "executor: container "+s.Container)
	}
	if t := s.Transfers; t.FilesTotal > 0 {
		words := fmt.Sprintf("transfer: %d of %d files, %s of %s",
			t.FilesDone, t.FilesTotal, units.BytesSize(float64(t.BytesDone)), units.BytesSize(float64(t.BytesTotal)))
		if t.BytesPerSecond > 0 {
			words += ", " + units.BytesSize(float64(t.BytesPerSecond)) + "/s"
		}
		lines = append(lines, words)
	} else if t.FilesDone > 0 {
		lines = append(lines, fmt.Sprintf("removal:  %s, %s of %s", counted(int(t.FilesDone), "file"), units.BytesSize(float64(t.BytesDone)), t.Phase))
	}
	lines = append(lines, "next:     "+s.Next, "reserve:  "+reserveInWords(s.Reserve))
	ours, others := s.Node.inWords()
	lines = append(lines, "holds:    "+ours, "others:   "+others)
	if len(s.records) > 0 {
		lines = append(lines, "")
	}
	for _, r := range s.records {
		lines = append(lines, recordLine(r))
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, printable(l)); err != nil {
			return err
		}
	}
	return nil
}

// reserveInWords says what a full disk leaves the journal.
func reserveInWords(r journal.Reserve) string {
	text := fmt.Sprintf("%s of %s set aside to open the journal on a full disk, %s to finish a task there",
		units.BytesSize(float64(r.Ballast)), units.BytesSize(float64(r.BallastWanted)), units.BytesSize(float64(r.Log)))
	if r.Ballast < r.BallastWanted {
		text += "; filled again when a run finds space"
	}
	return text
}

// shortID is an image ID as Docker shows it; anything else stays as it is.
func shortID(id string) string {
	const digits = 12
	if hex, ok := strings.CutPrefix(id, "sha256:"); ok && len(hex) > digits {
		return hex[:digits]
	}
	return id
}
