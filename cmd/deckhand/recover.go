package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/scrub"
)

// recovered is what `recover` did. Its JSON form is public.
type recovered struct {
	RolledBack []string `json:"rolled_back"`
	Running    []string `json:"running"` // left alone: their owner lives
	Ended      []string `json:"ended"`   // their owner lived, and was ended
	// Closed were handed back, and nobody runs them again: their server was told that they ended.
	Closed   []string `json:"closed"`
	Problems []string `json:"problems"`
	// Removed is what was left of the tasks of a journal that was lost, what a power cut had
	// brought back, and what earlier roll-backs had left at storages.
	Removed []scrub.Item `json:"removed"`
}

func newRecoverCommand(a *app) *cobra.Command {
	var asJSON bool
	var job string
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Roll back what is unfinished and not running (at boot, in an epilog)",
		Long: `Recover rolls back the task that a dead process left unfinished. It leaves a
running one alone, unless --job names the job of Slurm that runs it. A task of a Funnel server that
was handed back, and that nobody runs again, is ended on the server: its job of Slurm is gone, or
another engine has had it for funnel.give_up_after. It ends the uploads that earlier roll-backs could not end.
When the journal was lost it removes what its tasks left, and after a restart of the node what a power cut brought back. It exits 0 whatever it finds, because an epilog that fails
takes its node out of service, unless the journal is unusable (78).`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.recover(cmd.Context(), job)
			if err != nil {
				return err
			}
			return a.printRecovered(r, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&job, "job", "", "end the task that this job of Slurm still runs; for its epilog")
	config.AddFlags(cmd.Flags(), "lock.wait", "run.stop_grace")
	return cmd
}

func (a *app) recover(ctx context.Context, job string) (r recovered, err error) {
	r = recovered{RolledBack: []string{}, Running: []string{}, Ended: []string{}, Closed: []string{}, Problems: []string{}, Removed: []scrub.Item{}}
	if known, err := a.hasJournal(); err == nil && !known && !exists(journal.KeptID(a.journalDir())) {
		return r, nil // nothing ever ran here
	}
	s, err := a.hold(ctx)
	var held *node.Held
	if errors.As(err, &held) && held.Owner.Task != "" && job != "" && held.Owner.Job == job {
		r.Ended = append(r.Ended, held.Owner.Task)
		s, err = a.evict(ctx, held.Owner)
	}
	switch {
	case errors.As(err, &held) && held.Owner.Task != "":
		r.Running = append(r.Running, held.Owner.Task)
		return r, nil
	case err != nil && journalUnusable(err):
		return r, err
	case err != nil:
		r.Problems = append(r.Problems, message(err))
		return r, nil
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.recover(ctx, r)
}

// evict takes the root from a process whose job has ended: Slurm does not end what
// a dead slurmstepd had started.
func (a *app) evict(ctx context.Context, owner node.Owner) (*session, error) {
	a.log.Warn("ending a process that has outlived its job", "process", owner.PID, "job", owner.Job, "task", owner.Task)
	if err := node.Fence(ctx, owner.Process, a.conf.Run.StopGrace); err != nil {
		return nil, fmt.Errorf("cannot end the owner of task %s: %w", owner.Task, err)
	}
	return a.enter(ctx, "", "", func(ctx context.Context) (*node.RootLock, error) {
		return node.WaitLock(ctx, a.conf.Root, releaseWait)
	})
}

// recoverLost removes what the tasks of a journal left that is lost, or what a power cut
// brought back of tasks that have ended, and adds it to r.
func (s *session) recoverLost(ctx context.Context, r recovered) (recovered, error) {
	report, err := s.scrub(ctx)
	if err != nil && journalUnusable(err) {
		return r, err
	}
	if err != nil {
		r.Problems = append(r.Problems, message(err))
	}
	for _, i := range report.Failed {
		r.Problems = append(r.Problems, i.Why)
	}
	r.Removed = append(r.Removed, report.Removed...)
	return r, nil
}

// recover rolls back what is unfinished, and adds what came of it to r.
func (s *session) recover(ctx context.Context, r recovered) (recovered, error) {
	n, err := s.journal.Node()
	if err != nil {
		return r, err
	}
	if n.Active == nil {
		known, err := s.journal.Heads()
		if err != nil {
			return r, err
		}
		// A journal that knows of no task may have taken the place of one that did, and since the
		// last boot a power cut may have brought something back. The next task of this root may come late.
		unsure := len(known) == 0
		if !unsure {
			newest := slices.MaxFunc(known, func(a, b machine.Head) int { return a.Since.Compare(b.Since) })
			if unsure, err = restartedSince(s.journal.Records(newest.Task), s.boot); err != nil {
				return r, err
			}
		}
		if unsure {
			if r, err = s.recoverLost(ctx, r); err != nil {
				return r, err
			}
		}
		return s.ending(ctx, r, known)
	}
	if err := s.rollBackOther(ctx, "", "rolled back by recover: its process is gone"); err != nil {
		if journalUnusable(err) {
			return r, err
		}
		r.Problems = append(r.Problems, message(err))
		return r, nil
	}
	r.RolledBack = append(r.RolledBack, n.Active.Task)
	known, err := s.journal.Heads()
	if err != nil {
		return r, err
	}
	return s.ending(ctx, r, known)
}

// ending does what earlier tasks still owe to others.
func (s *session) ending(ctx context.Context, r recovered, known []machine.Head) (recovered, error) {
	settled, err := s.settleDebts(ctx)
	if err != nil {
		if journalUnusable(err) {
			return r, err
		}
		r.Problems = append(r.Problems, message(err))
	}
	r.Removed = append(r.Removed, settled...)
	return s.closeGone(ctx, r, known), nil
}

func (a *app) printRecovered(r recovered, asJSON bool) error {
	if asJSON {
		return printJSON(a.stdout, r)
	}
	var removed []string
	for _, i := range r.Removed {
		removed = append(removed, fmt.Sprint(i.Kind, " ", i.Name))
	}
	for _, group := range []struct {
		word string
		list []string
	}{{"removed", removed}, {"rolled back task", r.RolledBack}, {"ended task", r.Ended}, {"ended on its server, for nobody runs it again: task", r.Closed}, {"left alone, it runs: task", r.Running}, {"problem:", r.Problems}} {
		for _, text := range group.list {
			if _, err := fmt.Fprintln(a.stdout, group.word, printable(text)); err != nil {
				return err
			}
		}
	}
	if len(r.Removed)+len(r.RolledBack)+len(r.Ended)+len(r.Closed)+len(r.Running)+len(r.Problems) == 0 {
		_, err := fmt.Fprintln(a.stdout, "nothing to recover")
		return err
	}
	return nil
}
