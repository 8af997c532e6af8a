package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/machine"
)

// releaseWait is how long the lock of a process that was fenced may take to come free.
const releaseWait = 5 * time.Second

// take takes the root for a task. An owner that runs the same task is fenced:
// the engine has started the task a second time, and the newer process is the
// one that it knows. Any other owner is waited for.
func (a *app) take(ctx context.Context, d *document, fresh bool) (*node.RootLock, error) {
	lock, err := node.Lock(a.conf.Root)
	var held *node.Held
	if !errors.As(err, &held) {
		return lock, err
	}
	owner := held.Owner
	if owner.Task != d.id {
		a.log.Info("the node is busy", "owner", owner.PID, "task", owner.Task, "wait", a.conf.Lock.Wait)
		lock, err := node.WaitLock(ctx, a.conf.Root, a.conf.Lock.Wait)
		if ctx.Err() != nil {
			return nil, &exit{exitRetry, context.Cause(ctx)}
		}
		return lock, err
	}
	if owner.Document != d.hash && !fresh {
		return nil, usage("task %s runs on this node (process %d) with another document; cancel it, or use --fresh to replace it", d.id, owner.PID)
	}
	a.log.Warn("fencing the process that runs this task already", "process", owner.PID, "since", owner.Since)
	if err := node.Fence(ctx, owner.Process, a.conf.Run.StopGrace); err != nil {
		if errors.Is(err, node.ErrElsewhere) {
			return nil, machine.Faultf(machine.RetryLater, "cannot fence the owner of task %s: %w; wait for it or stop it there", d.id, err)
		}
		return nil, fmt.Errorf("cannot fence the owner of task %s: %w", d.id, err)
	}
	return node.WaitLock(ctx, a.conf.Root, releaseWait)
}

// own writes down who holds the root, and for what.
func own(lock *node.RootLock, task, document string) error {
	self, err := node.Self()
	if err != nil {
		return err
	}
	return lock.SetOwner(node.Owner{Process: self, Task: task, Document: document, Since: time.Now().UTC()})
}
