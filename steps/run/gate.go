package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/netfilter"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// BlockCommand is the hidden command that closes addresses in the network
// namespace of the container that it runs in:
//
//	deckhand exec-block ADDRESS…
const BlockCommand = "exec-block"

// ExecBlock closes addresses and returns an exit code.
func ExecBlock(addresses []string) error {
	blocked := make([]netip.Prefix, 0, len(addresses))
	for _, a := range addresses {
		p, err := netfilter.ParsePrefix(a)
		if err != nil {
			return err
		}
		blocked = append(blocked, p)
	}
	return netfilter.Block(0, blocked, netfilter.Resolvers("/etc/resolv.conf"))
}

// gatePoll is how often a container looks for it.
const gatePoll = 2 * time.Millisecond

// errStopped is the error of a command that was stopped before it might begin.
var errStopped = errors.New("it was stopped before it began")

// wait returns when the gate is open: the file is there. A signal ends the wait. One
// that comes as the gate is opened is for the command.
func wait(gate string, signals <-chan os.Signal) (early os.Signal, err error) {
	for gate != "" {
		_, err := os.Stat(gate)
		switch {
		case err == nil || !errors.Is(err, fs.ErrNotExist):
			return early, err
		case early != nil:
			return nil, errStopped
		}
		select {
		case s := <-signals:
			// Which one stops a container is for its image to say.
			if !slices.Contains([]os.Signal{unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, unix.SIGCONT}, s) {
				early = s
			}
		case <-time.After(gatePoll):
		}
	}
	return nil, nil
}

// closed is the name of a gate's file while it is closed. To open it takes no
// room on a disk that the task may have filled.
func closed(gate string) string { return gate + ".closed" }

// closeGate makes the closed gate of a container that is to be made.
func closeGate(gate string) error {
	f, err := os.OpenFile(closed(gate), os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Close()) // whatever the umask
	}
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot make the gate of a container: %w", err)
	}
	return nil
}

// gated says whether commands wait until addresses are closed to their containers.
func (h Hardening) gated() bool { return len(h.Block) > 0 }

// checkGate refuses to start a container that was made when commands waited for
// no gate, under another setting or by an older version: its command would run
// before the addresses are closed.
func (s *Step) checkGate(tree *worktree.Tree, i int, c engine.Container) error {
	if !s.Containers.Hardening.gated() || hasGate(tree, i, c) {
		return nil
	}
	return fmt.Errorf("container %s of executor %d was made before run.block_addresses was set: %w", c.Name, i, machine.ErrLost)
}

func hasGate(tree *worktree.Tree, i int, c engine.Container) bool {
	dir := filepath.Dir(tree.Gate(i))
	return slices.ContainsFunc(c.Binds, func(m engine.Mount) bool { return m.Source == dir })
}

// openGate closes the addresses to a container that has started and then lets
// its command begin. Doing it again is harmless: the rules are replaced, and
// they go with the container. A gate of an earlier process's making is opened
// also when nothing is to be closed any more.
func (s *Step) openGate(ctx context.Context, t *machine.Task, n machine.Notes, i int, tree *worktree.Tree) error {
	gate := tree.Gate(i)
	if _, err := os.Lstat(gate); err == nil {
		return nil
	}
	waits := false
	if s.Containers.Hardening.gated() {
		c, err := s.Engine.Container(ctx, s.Containers.Name(t, i))
		if errors.Is(err, engine.ErrNotFound) || err == nil && (c.State == engine.Created || c.State.Ended()) {
			return nil // whoever waits for its end learns that
		}
		if err != nil {
			return err
		}
		if err := s.block(ctx, t, n, tree, c); err != nil {
			return err
		}
		waits = hasGate(tree, i, c)
	}
	err := os.Rename(closed(gate), gate)
	if errors.Is(err, fs.ErrNotExist) && !waits {
		return nil
	}
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot let executor %d begin: %w", i, err)
	}
	return nil
}

// block closes the addresses, or says that it could not, as the policy has it.
func (s *Step) block(ctx context.Context, t *machine.Task, n machine.Notes, tree *worktree.Tree, c engine.Container) error {
	h := s.Containers.Hardening
	err := ownNetwork(c)
	if err == nil {
		err = blockFromHere(c, h.Block)
	}
	if err != nil && !errors.Is(err, errShared) {
		s.Log.Debug("cannot close addresses from outside of the container; trying it from inside", "container", c.Name, "error", err)
		err = s.blockFromInside(ctx, t, n, tree, c)
	}
	if err != nil {
		// A container that has ended meanwhile has no network to close.
		if c, e := s.Engine.Container(ctx, c.ID); errors.Is(e, engine.ErrNotFound) || e == nil && c.State.Ended() {
			return nil
		}
	}
	var journal *machine.JournalError
	switch {
	case err == nil, errors.As(err, &journal), machine.FaultOf(err) == machine.EngineFault, ctx.Err() != nil:
		return err
	case h.BlockOrWarn:
		message := fmt.Sprintf("the addresses of run.block_addresses are open to the task: %v", err)
		s.Log.Warn(message)
		return n.Warn(ctx, message)
	}
	return machine.Faultf(machine.NodeFault,
		"cannot close the addresses of run.block_addresses to the task: %w; mend that, or let tasks run all the same with run.block_failure: warn", err)
}

// errShared is wrapped by the error of a container whose network is not its own.
var errShared = errors.New("the container's network is not its own")

// ownNetwork refuses a container that shares a network namespace, with the node
// or whomever: what is closed in there is closed to all of them, and stays.
// Deckhand asks for no such thing, but Podman can be set to do it by default.
func ownNetwork(c engine.Container) error {
	mode, _, _ := strings.Cut(c.Network, ":")
	if slices.Contains([]string{"host", "container", "ns"}, mode) {
		return fmt.Errorf("%w: the engine has given it the network %q", errShared, c.Network)
	}
	return nil
}

// blockFromHere takes the right to enter the container's network namespace.
func blockFromHere(c engine.Container, blocked []netip.Prefix) error {
	ns, err := netfilter.Namespace(c.PID, c.ID)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }() // read-only
	return netfilter.Block(int(ns.Fd()), blocked, netfilter.Resolvers(c.ResolvConf))
}

// blockFromInside has Docker enter it.
func (s *Step) blockFromInside(ctx context.Context, t *machine.Task, n machine.Notes, tree *worktree.Tree, c engine.Container) error {
	binary, err := helper.Install(s.Containers.Bin)
	if err != nil {
		return err
	}
	command := []string{BlockCommand}
	for _, p := range s.Containers.Hardening.Block {
		command = append(command, p.String())
	}
	fact := machine.Fact{What: whatHelper, Name: c.Name + "-block", Detail: map[string]string{"command": strings.Join(command, " ")}}
	if err := n.Intent(ctx, fact); err != nil {
		return err
	}
	err = helper.Run(ctx, s.Engine, helper.Job{
		Name: fact.Name, Image: c.ImageID, Labels: s.Containers.labels(t), Binary: binary, Command: command,
		Capabilities: []string{"NET_ADMIN"}, Network: "container:" + c.ID,
	})
	if err != nil {
		return err
	}
	return n.Done(ctx, fact)
}

// whatHelper is the kind of fact that announces a container of deckhand's own.
const whatHelper = "helper"
