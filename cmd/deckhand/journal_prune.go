package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/journal"
)

func newPruneCommand(a *app) *cobra.Command {
	var olderThan string
	var keep int
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove the history of finished tasks, by age and count",
		Example: `  deckhand journal prune --older-than 30d --dry-run
  deckhand journal prune --keep 100`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := retention(cmd, olderThan, keep)
			if err != nil {
				return err
			}
			return a.prune(cmd.Context(), r, dryRun)
		},
	}
	f := cmd.Flags()
	f.StringVar(&olderThan, "older-than", "", "remove tasks that ended longer ago than this `duration`, such as 30d")
	f.IntVar(&keep, "keep", 0, "keep the newest `N` finished tasks and remove the others")
	f.BoolVar(&dryRun, "dry-run", false, "print what would go; remove nothing")
	return cmd
}

// retention is what the flags of prune ask for.
func retention(cmd *cobra.Command, olderThan string, keep int) (r journal.Retention, err error) {
	byAge, byCount := cmd.Flags().Changed("older-than"), cmd.Flags().Changed("keep")
	if !byAge && !byCount {
		return r, usage("say what to keep: --keep, --older-than or both")
	}
	if byCount && keep < 1 {
		return r, usage("--keep is %d; it must be at least 1", keep)
	}
	if byAge {
		if r.Age, err = config.ParseDuration(olderThan); err != nil || r.Age <= 0 {
			return r, usage("--older-than is %q; write a duration such as 12h or 30d", olderThan)
		}
	}
	r.Keep = keep
	return r, nil
}

func (a *app) prune(ctx context.Context, r journal.Retention, dryRun bool) error {
	if known, err := a.hasJournal(); !known {
		return err
	}
	verb, pruned, err := "removed", journal.Pruned{}, error(nil)
	if dryRun {
		verb = "would remove"
		pruned, err = a.wouldPrune(r)
	} else {
		pruned, err = a.pruneHeld(ctx, r)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s the history of %s\n", verb, counted(len(pruned.Tasks), "task"))
	return err
}

// wouldPrune works while a run holds the journal.
func (a *app) wouldPrune(r journal.Retention) (pruned journal.Pruned, err error) {
	v, ok, err := a.view()
	if err != nil || !ok {
		return pruned, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	return journal.PruneView(v, r, time.Now())
}

// pruneHeld prunes while it holds the root.
func (a *app) pruneHeld(ctx context.Context, r journal.Retention) (pruned journal.Pruned, err error) {
	lock, err := node.WaitLock(ctx, a.conf.Root, a.conf.Lock.Wait)
	if err != nil {
		return pruned, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if err := a.own(lock, "", ""); err != nil {
		return pruned, err
	}
	boot, err := node.BootID()
	if err != nil {
		return pruned, err
	}
	pruned, err = journal.Prune(a.journalDir(), a.journalOptions(boot), r)
	if errors.Is(err, journal.ErrDamaged) {
		err = fmt.Errorf("%w; \"deckhand journal verify\" tells more, the next run sets it aside", err)
	}
	return pruned, err
}
