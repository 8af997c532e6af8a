package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/journal"
)

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
