package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/internal/funnel"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// closeGone ends tasks on their servers of Funnel that were handed back and that nobody runs
// again: their job of Slurm is gone, or another engine has had them for long. The server
// itself would show them as running for ever. It adds to r what came of it. What fails for one would fail for the others, and each
// may wait for an answer, which an epilog has no time for: the rest is for the next time.
func (s *session) closeGone(ctx context.Context, r recovered, known []machine.Head) recovered {
	for _, h := range known {
		if h.State != machine.Interrupted {
			continue
		}
		closed, err := s.closeIfGone(ctx, h)
		if err != nil {
			r.Problems = append(r.Problems, message(fmt.Errorf("cannot tell whether task %s is run again: %w", h.Task, err)))
			break
		}
		if closed {
			r.Closed = append(r.Closed, h.Task)
		}
	}
	return r
}

func (s *session) closeIfGone(ctx context.Context, h machine.Head) (closed bool, err error) {
	p, err := pastOf(s.journal, machine.Record{Task: h.Task, Attempt: h.Attempt, Seq: math.MaxUint64})
	if err != nil {
		return false, err
	}
	job, waited := p.Metadata[engineKeys[slurmJob]], time.Since(h.Since)
	patience := s.app.conf.Funnel.GiveUpAfter
	if p.Funnel == nil || p.givenUp || job == "" && (patience == 0 || waited < patience) {
		return false, nil
	}
	client, err := s.app.funnelClient(*p.Funnel)
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithTimeout(ctx, max(s.app.conf.Events.Drain, scontrolWait))
	defer stop()
	t, err := client.Task(ctx, h.Task)
	if errors.Is(err, funnel.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	root, err := s.rootID()
	if err != nil {
		return false, err
	}
	waits := slices.Contains([]tes.State{tes.Queued, tes.Initializing, tes.Running}, t.State)
	if !waits || (ownership{root, p.start}).superseded(t.Metadata[ownerKey]) {
		return false, nil
	}
	why := fmt.Sprintf("the task was handed back %s ago, and nobody has run it again since", units.HumanDuration(waited))
	if job != "" {
		if gone, err := jobGone(ctx, job); !gone || err != nil {
			return false, err
		}
		why = fmt.Sprintf("the task was handed back to job %s of Slurm, which is gone: nobody runs it again", job)
	}
	now := time.Now().UTC()
	tell := &teller{ctx: ctx, client: client, id: h.Task, task: t}
	tell.line(fmt.Sprintf("gone.%s.%d", job, h.Attempt), now, hostname()+": "+why)
	tell.event(funnel.End(now))
	tell.state(now, tes.SystemError)
	return tell.told() == nil, tell.told()
}

// endedStates are those of a job that Slurm does not run again.
var endedStates = []string{"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}

// jobGone says whether Slurm will not run a job again: it has ended, or so long ago that
// Slurm knows it no longer. One that is completing may be taken back yet.
func jobGone(ctx context.Context, job string) (bool, error) {
	text, err := scontrol(ctx, "show", "job", "-o", job)
	var failed *exec.ExitError
	if errors.As(err, &failed) && strings.Contains(string(failed.Stderr), "Invalid job id") {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for field := range strings.FieldsSeq(text) {
		if state, ok := strings.CutPrefix(field, "JobState="); ok {
			return slices.Contains(endedStates, state), nil
		}
	}
	return false, fmt.Errorf("scontrol does not say the state of job %s", job)
}
