package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/scrub"
	"github.com/deckhand/deckhand/steps/upload"
)

func newScrubCommand(a *app) *cobra.Command {
	var dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Make the node clean now: remove what earlier tasks of this root left",
		Long: `Scrub rolls back what is unfinished and removes the containers, volumes, networks
and task directories of this root that no running task has, the images whose
deletion is pending, and the program's copies of other versions. The last image stays. What others made is never touched.
The bytes of an image are its whole size: layers that other images share stay.`,
		Example: `  deckhand scrub --dry-run
  deckhand scrub --json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := a.scrub(cmd.Context(), dryRun)
			if err != nil {
				return err
			}
			if err := printReport(a.stdout, report, asJSON, dryRun); err != nil {
				return err
			}
			if len(report.Failed) > 0 && !dryRun {
				return &exit{exitSystemError, fmt.Errorf("%s could not be removed; see above why", counted(len(report.Failed), "thing"))}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would go, and why; touch nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	config.AddFlags(cmd.Flags(), "lock.wait", "run.stop_grace")
	return cmd
}

func (a *app) scrub(ctx context.Context, dryRun bool) (scrub.Report, error) {
	if dryRun {
		return a.wouldScrub(ctx)
	}
	s, err := a.hold(ctx)
	if err != nil {
		return scrub.Report{}, err
	}
	began := time.Now()
	stop := a.follow(s.meter, func() standing { return standing{"node", machine.Scrub, began} })
	report, err := s.scrub(ctx)
	stop()
	return report, errors.Join(err, s.close())
}

func (s *session) scrub(ctx context.Context) (report scrub.Report, err error) {
	report = scrub.Report{Removed: []scrub.Item{}, Kept: []scrub.Item{}, Failed: []scrub.Item{}}
	if report.FreeBytesBefore, err = freeBytes(s.app.conf.Root); err != nil {
		return report, err
	}
	cleaner, err := s.cleaner()
	if err != nil {
		return report, err
	}
	undone, err := s.rollBackTelling(ctx, "", "rolled back by scrub")
	if err != nil {
		return report, err
	}
	gone, kept, err := s.leftovers(ctx, cleaner)
	if err != nil {
		return report, err
	}
	for _, f := range s.partial {
		report.Removed = append(report.Removed, scrub.Item{Kind: scrub.Program, Name: f.Path, Bytes: f.Bytes, Why: "a dead process has not installed it whole"})
	}
	report.Removed = append(report.Removed, undone...)
	report.Kept = append(report.Kept, kept...)
	s.meter.Reset(scrub.Phase)
	notes, err := machine.NodeNotes(s.journal)
	if err != nil {
		return report, err
	}
	for _, i := range gone {
		if err := s.removeItem(ctx, cleaner, notes, i, &report); err != nil {
			return report, err
		}
	}
	settled, err := s.settleDebts(ctx)
	if err != nil {
		return report, err
	}
	report.Removed = append(report.Removed, settled...)
	report.FreeBytesAfter, err = freeBytes(s.app.conf.Root)
	return report, err
}

// leftovers lists what is to go and what stays.
func (s *session) leftovers(ctx context.Context, c *scrub.Cleaner) (gone, kept []scrub.Item, err error) {
	n, err := s.journal.Node()
	if err != nil {
		return nil, nil, err
	}
	images, err := ledger.Reconcile(ctx, s.docker, n.Images)
	if err != nil {
		return nil, nil, err
	}
	return c.Find(ctx, nil, "", images)
}

// wouldScrub says what a scrub would do. The journal is only read, and a root
// of another kind, or none, is left as it is. One whose journal is lost has its id
// beside it.
func (a *app) wouldScrub(ctx context.Context) (report scrub.Report, err error) {
	report = scrub.Report{Removed: []scrub.Item{}, Kept: []scrub.Item{}, Failed: []scrub.Item{}}
	if err := a.checkRoot(); err != nil {
		return report, err
	}
	if report.FreeBytesBefore, err = freeBytes(a.conf.Root); err != nil {
		return report, err
	}
	report.FreeBytesAfter = report.FreeBytesBefore
	if !exists(a.conf.Root) {
		return report, nil
	}
	docker, err := a.connect(ctx)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, docker.Close()) }()
	if node.Locked(a.conf.Root) {
		lock, err := node.WaitLock(ctx, a.conf.Root, a.conf.Lock.Wait)
		if err != nil {
			return report, err
		}
		defer func() { err = errors.Join(err, lock.Unlock()) }()
	}
	n, err := a.nodeRecord()
	if err != nil {
		return report, err
	}
	images, err := ledger.Reconcile(ctx, docker, n.Images)
	if err != nil {
		return report, err
	}
	cleaner := &scrub.Cleaner{Engine: docker, RootID: n.RootID, TasksDir: a.tasksDir(), Bin: a.binDir(), Grace: a.conf.Run.StopGrace}
	found, kept, err := cleaner.Find(ctx, nil, "", images)
	if err != nil {
		return report, err
	}
	gone, failed, err := cleaner.Foresee(ctx, found)
	report.Removed, report.Kept, report.Failed = append(report.Removed, gone...), append(report.Kept, kept...), append(report.Failed, failed...)
	if err != nil {
		return report, err
	}
	owed, err := upload.WouldSettle(n.Debts)
	report.Removed = append(report.Removed, uploads(owed)...)
	return report, err
}

// nodeRecord reads what the journal knows of the node; of a lost one it is the
// root's id alone.
func (a *app) nodeRecord() (n machine.Node, err error) {
	v, known, err := a.view()
	if err != nil {
		return n, err
	}
	if !known {
		n.RootID, err = journal.RootIDOf(a.journalDir())
		return n, err
	}
	n, err = v.Node()
	return n, errors.Join(err, v.Close())
}

// removeItem removes one item and accounts for it. Only the journal and a
// silent engine are errors.
func (s *session) removeItem(ctx context.Context, c *scrub.Cleaner, n machine.Notes, i scrub.Item, report *scrub.Report) error {
	freed, err := c.Remove(ctx, n, i)
	var journal *machine.JournalError
	switch {
	case errors.As(err, &journal), err != nil && machine.FaultOf(err) == machine.EngineFault:
		return err
	case errors.Is(err, engine.ErrInUse):
		i.Why = "still in use"
		report.Kept = append(report.Kept, i)
		return nil
	case err != nil:
		i.Why = message(err)
		report.Failed = append(report.Failed, i)
		return nil
	}
	i.Bytes = freed
	report.Removed = append(report.Removed, i)
	if i.Kind == scrub.Image {
		return nil // the ledger has journaled it
	}
	return n.Done(ctx, machine.Fact{What: scrub.WhatRemoved, Name: i.Name, Detail: i})
}

func freeBytes(root string) (uint64, error) {
	space, err := node.SpaceAt(root)
	return space.FreeBytes, err
}

func printReport(w io.Writer, r scrub.Report, asJSON, dryRun bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	verb := "removed"
	if dryRun {
		verb = "would remove"
	}
	for _, group := range []struct {
		word  string
		items []scrub.Item
	}{{verb, r.Removed}, {"kept", r.Kept}, {"cannot remove", r.Failed}} {
		for _, i := range group.items {
			if _, err := fmt.Fprintf(w, "%s %s %s (%s): %s\n", group.word, i.Kind, printable(i.Name), units.BytesSize(float64(i.Bytes)), printable(i.Why)); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "free: %s before, %s after\n", units.BytesSize(float64(r.FreeBytesBefore)), units.BytesSize(float64(r.FreeBytesAfter)))
	return err
}
