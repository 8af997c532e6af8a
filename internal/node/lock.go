package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

const (
	lockFile  = "lock"
	ownerFile = "owner.json"

	// ownerSize is the length of the owner file: one block, padded with blanks.
	ownerSize = 4096
	// lockPoll is how often a busy lock is tried again.
	lockPoll = 50 * time.Millisecond
)

// Owner says who holds a root and for what.
type Owner struct {
	Process
	Task     string    `json:"task"`     // empty for a command that runs no task
	Document string    `json:"document"` // identifies the task document
	Job      string    `json:"job"`      // of the batch engine that started it; empty when it is not known
	Since    time.Time `json:"since"`
}

// Held is the error of a lock that another process has.
type Held struct {
	Root string
	// Owner is the zero value when the holder has not written down who it is.
	Owner Owner
}

func (h *Held) Error() string {
	switch {
	case h.Owner.PID == 0:
		return fmt.Sprintf("cannot lock %s: another process holds it; wait for it (--lock-wait) or try again", h.Root)
	case h.Owner.Task == "":
		return fmt.Sprintf("cannot lock %s: process %d on %s holds it; wait for it (--lock-wait) or try again", h.Root, h.Owner.PID, h.Owner.Host)
	}
	return fmt.Sprintf("cannot lock %s: process %d on %s holds it for task %s; wait for it (--lock-wait) or try again", h.Root, h.Owner.PID, h.Owner.Host, h.Owner.Task)
}

// RootLock is the exclusive right to a root. The kernel takes it back when the
// process dies, however it dies: it is a flock(2) on a descriptor that no child inherits.
type RootLock struct {
	lock  *os.File
	owner *os.File
}

// Lock takes the lock of an existing root without waiting and writes down this
// process as its owner. When another one has it, the error is a *Held that
// carries machine.RetryLater.
func Lock(root string) (*RootLock, error) {
	lock, err := flock(root)
	if err != nil {
		return nil, err
	}
	// The file is overwritten in place and never removed: on a full filesystem
	// its block is the one that can still be written.
	owner, err := os.OpenFile(filepath.Join(root, ownerFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		lock.Close()
		return nil, machine.Faultf(machine.NodeFault, "cannot open the owner file of %s: %w", root, err)
	}
	l := &RootLock{lock: lock, owner: owner}
	self, err := Self()
	if err == nil {
		err = l.SetOwner(Owner{Process: self, Since: time.Now().UTC()})
	}
	// Without a byte for the owner's name the lock still holds, and its holder
	// can free space.
	if err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return nil, errors.Join(err, l.Unlock())
	}
	return l, nil
}

// Locked says whether a root was ever locked: then it has the files of a lock.
func Locked(root string) bool {
	_, err := os.Lstat(filepath.Join(root, lockFile))
	return err == nil
}

// WaitLock is Lock that waits up to wait, or until ctx ends, for another holder to leave.
func WaitLock(ctx context.Context, root string, wait time.Duration) (*RootLock, error) {
	deadline := time.Now().Add(wait)
	for {
		l, err := Lock(root)
		var held *Held
		if !errors.As(err, &held) || !time.Now().Before(deadline) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(min(lockPoll, time.Until(deadline))):
		}
	}
}

func flock(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, machine.Faultf(machine.NodeFault, "cannot open the lock of %s: %w", root, err)
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		return f, nil
	}
	f.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, machine.Faultf(machine.NodeFault, "cannot lock %s: %w", root, err)
	}
	owner, _, err := ReadOwner(root)
	if err != nil {
		owner = Owner{} // who it is matters less than that it is held
	}
	return nil, &machine.Error{Fault: machine.RetryLater, Err: &Held{Root: root, Owner: owner}}
}

// SetOwner writes down who holds the root. Readers need no lock. Nothing is
// synced: after a power cut the boot id is another one and the text is stale anyway.
func (l *RootLock) SetOwner(o Owner) error {
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("cannot write the owner file: %w", err)
	}
	return l.write(b)
}

// write replaces the content with one write of whole blocks.
func (l *RootLock) write(b []byte) error {
	size := (len(b) + ownerSize) / ownerSize * ownerSize
	padded := slices.Concat(b, bytes.Repeat([]byte{' '}, size-len(b)))
	padded[size-1] = '\n'
	if _, err := l.owner.WriteAt(padded, 0); err != nil {
		return machine.Faultf(machine.NodeFault, "cannot write the owner file %s: %w", l.owner.Name(), err)
	}
	if err := l.owner.Truncate(int64(size)); err != nil {
		return machine.Faultf(machine.NodeFault, "cannot write the owner file %s: %w", l.owner.Name(), err)
	}
	return nil
}

// Unlock says in the owner file that nobody holds the root, and releases it.
func (l *RootLock) Unlock() error {
	err := l.write([]byte("{}"))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = nil // a file that was never filled names nobody
	}
	return errors.Join(err, l.owner.Close(), l.lock.Close())
}

// ReadOwner returns who holds or held the root last; false when nobody is
// written down, also when the text is torn. A process that was killed leaves its
// name behind: Process.Alive tells.
func ReadOwner(root string) (Owner, bool, error) {
	f, err := os.OpenFile(filepath.Join(root, ownerFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return Owner{}, false, nil
	}
	if err != nil {
		return Owner{}, false, fmt.Errorf("cannot read the owner of %s: %w", root, err)
	}
	defer f.Close()
	// A reader may see half of a write; two equal readings are a whole one.
	var last []byte
	for {
		b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
		if err != nil {
			return Owner{}, false, fmt.Errorf("cannot read the owner of %s: %w", root, err)
		}
		if last != nil && bytes.Equal(b, last) {
			break
		}
		last = append(b, '\n')[:len(b)]
	}
	var o Owner
	if err := json.Unmarshal(last, &o); err != nil || o.PID == 0 {
		return Owner{}, false, nil
	}
	return o, true, nil
}
