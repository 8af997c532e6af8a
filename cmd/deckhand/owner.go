package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

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
		if err != nil {
			err = a.beforeStart(ctx, err)
		}
		return lock, err
	}
	if owner.Document != d.hash && !fresh {
		return nil, usage("task %s runs on this node (process %d) with another document; cancel it, or use --fresh to replace it", d.id, owner.PID)
	}
	a.log.Warn("fencing the process that runs this task already", "process", owner.PID, "since", owner.Since)
	// So that it leaves its container running, for this process to find again.
	announced, err := node.Succeed(a.conf.Root, owner.Process)
	if err != nil {
		a.log.Warn("cannot tell the owner who comes after it; it will roll back", "error", err)
		announced = func() error { return nil }
	}
	// From here on the task is this process's to end: a signal that comes now is
	// for the attempt, once it is taken over.
	ctx = context.WithoutCancel(ctx)
	if err := node.Fence(ctx, owner.Process, a.conf.Run.StopGrace); err != nil {
		if errors.Is(err, node.ErrElsewhere) {
			return nil, machine.Faultf(machine.RetryLater, "cannot fence the owner of task %s: %w; wait for it or stop it there", d.id, err)
		}
		return nil, fmt.Errorf("cannot fence the owner of task %s: %w", d.id, err)
	}
	lock, err = node.WaitLock(ctx, a.conf.Root, releaseWait)
	return lock, errors.Join(err, announced())
}

// own writes down who holds the root, and for what. A disk that is too full for
// that is no reason to stop: the run may be about to make room.
func (a *app) own(lock *node.RootLock, task, document string) error {
	self, err := node.Self()
	if err != nil {
		return err
	}
	err = lock.SetOwner(node.Owner{Process: self, Task: task, Document: document, Job: os.Getenv("SLURM_JOB_ID"), Since: time.Now().UTC()})
	if errors.Is(err, unix.ENOSPC) {
		a.log.Warn("cannot write down who holds the root", "error", err)
		return nil
	}
	return err
}
