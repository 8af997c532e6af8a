package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// killWait bounds the wait for a process to vanish after SIGKILL. One that
// sleeps uninterruptibly, on a dead disk for example, never does.
const killWait = 10 * time.Second

// Fence ends p: SIGTERM, up to grace to leave by itself, SIGKILL. It returns nil
// when p is gone, also when it was gone before. A process that merely has the
// same PID is not touched. The error is ErrElsewhere when p is not of this
// machine and PID namespace, and carries machine.NodeFault when p does not die.
func Fence(ctx context.Context, p Process, grace time.Duration) error {
	fd, err := openPidfd(p)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot end process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)

	// SIGCONT after SIGTERM: a stopped process wakes up to the request to leave.
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGCONT} {
		if err := signalPidfd(fd, p, sig); err != nil {
			return endFence(err)
		}
	}
	if exited, err := waitPidfd(ctx, fd, grace); exited || err != nil {
		return err
	}
	if err := signalPidfd(fd, p, unix.SIGKILL); err != nil {
		return endFence(err)
	}
	exited, err := waitPidfd(ctx, fd, killWait)
	if err == nil && !exited {
		return machine.Faultf(machine.NodeFault, "cannot end process %d: it is still there %s after SIGKILL; look for a hanging disk or a frozen cgroup (ps -o state,wchan %d)", p.PID, killWait, p.PID)
	}
	return err
}

// endFence turns "it has just gone" into success.
func endFence(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Signal sends sig to p and to no other process: os.ErrProcessDone when p is gone.
func Signal(p Process, sig unix.Signal) error {
	fd, err := openPidfd(p)
	if err != nil {
		return fmt.Errorf("cannot signal process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	return signalPidfd(fd, p, sig)
}

// openPidfd returns a descriptor that stays with p whatever becomes of its PID.
// os.ErrProcessDone means that p is gone.
func openPidfd(p Process) (int, error) {
	gone, err := p.ofEarlierBoot()
	if err != nil {
		return -1, err
	}
	if gone {
		return -1, os.ErrProcessDone
	}
	if p.PID == os.Getpid() {
		return -1, errors.New("it is the calling process")
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return -1, os.ErrProcessDone
	case errors.Is(err, unix.ENOSYS):
		return -1, machine.Faultf(machine.NodeFault, "the kernel has no pidfd_open(2), so that a reused PID could not be told from it; Linux 5.3 or newer is needed")
	case err != nil:
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	// Only now is the start time worth comparing: the descriptor keeps whom we look at.
	alive, err := p.Alive()
	if err == nil && !alive {
		err = os.ErrProcessDone
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func signalPidfd(fd int, p Process, sig unix.Signal) error {
	err := unix.PidfdSendSignal(fd, sig, nil, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return os.ErrProcessDone
	case errors.Is(err, unix.EPERM):
		return machine.Faultf(machine.NodeFault, "cannot send %s to process %d: it belongs to another user; run as that user or as root", unix.SignalName(sig), p.PID)
	case err != nil:
		return fmt.Errorf("cannot send %s to process %d: %w", unix.SignalName(sig), p.PID, err)
	}
	return nil
}

// waitPidfd returns true as soon as the process has exited, false after limit.
func waitPidfd(ctx context.Context, fd int, limit time.Duration) (bool, error) {
	// A pipe that the context closes wakes poll(2) up.
	wake, cancel, err := os.Pipe()
	if err != nil {
		return false, fmt.Errorf("cannot wait for a process: %w", err)
	}
	defer wake.Close()
	defer cancel.Close()
	stop := context.AfterFunc(ctx, func() { cancel.Close() })
	defer stop()

	deadline := time.Now().Add(limit)
	for {
		// Rounded up, so that the last round does not spin; -1 would be for ever.
		left := math.Ceil(max(time.Until(deadline), 0).Seconds() * 1000)
		fds := []unix.PollFd{
			{Fd: int32(fd), Events: unix.POLLIN},
			{Fd: int32(wake.Fd()), Events: unix.POLLIN},
		}
		n, err := unix.Poll(fds, int(min(left, math.MaxInt32)))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, fmt.Errorf("cannot wait for a process: poll: %w", err)
		case fds[0].Revents != 0:
			return true, nil
		case n > 0:
			return false, ctx.Err()
		}
		if !time.Now().Before(deadline) {
			return false, nil
		}
	}
}
