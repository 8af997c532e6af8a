package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
)

func newCancelCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cancel TASK",
		Short: "Stop a running task; it ends Canceled",
		Long: `Cancel stops a running task as Ctrl-C does. It returns at once; the task ends
Canceled when its container is gone and its directory removed.`,
		Example: `  deckhand cancel task-7
  deckhand cancel last`,
		Args:              oneArgument("TASK"),
		ValidArgsFunction: a.completeTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.cancel(cmd.Context(), args[0])
		},
	}
}

func (a *app) cancel(ctx context.Context, name string) error {
	owner, alive, err := a.owner()
	if err != nil {
		return err
	}
	if !alive || owner.Task == "" {
		return usage("no task runs on %s; an unfinished one is rolled back by \"deckhand recover\"", a.conf.Root)
	}
	// A prefix is looked up among all tasks: job-1 is not job-10, although only
	// job-10 runs.
	if name != owner.Task {
		head, err := a.task(name)
		if err != nil {
			return err
		}
		if head.Task != owner.Task {
			return usage("task %s does not run, it is %s; process %d on %s runs task %s", head.Task, head.State, owner.PID, a.conf.Root, owner.Task)
		}
	}
	if err := askCancel(ctx, a.conf.Root, owner.Task); err != nil {
		// It may be frozen, or too busy to answer: the signal waits for it.
		a.log.Debug("the control socket does not answer; sending SIGINT", "error", err)
		if err := node.Signal(owner.Process, unix.SIGINT); err != nil {
			return fmt.Errorf("cannot cancel task %s: %w", owner.Task, err)
		}
	}
	_, err = fmt.Fprintf(a.stdout, "canceling task %s\n", owner.Task)
	return err
}

func askCancel(ctx context.Context, root, task string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://deckhand/v1/cancel?task="+url.QueryEscape(task), nil)
	if err != nil {
		return err
	}
	response, err := controlClient(root).Do(request)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode != http.StatusAccepted {
		return fmt.Errorf("it answered %s", response.Status)
	}
	return nil
}

// owner reads who holds the root, and whether that process lives.
func (a *app) owner() (node.Owner, bool, error) {
	owner, known, err := node.ReadOwner(a.conf.Root)
	if err != nil || !known {
		return owner, false, err
	}
	alive, err := owner.Alive()
	if err != nil {
		return owner, false, err
	}
	return owner, alive, nil
}
