// Package own gives what containers left as other users' to the user that
// deckhand runs as. Who is not root may not do so; Docker may, in a container of
// deckhand's own.
package own

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// Hidden commands that run in a container:
//
//	deckhand exec-own DIRECTORY
//	deckhand exec-link TREE PLAN FILE CONTAINER-PATH
//	deckhand exec-check TREE SOURCE
const (
	TakeCommand = "exec-own"  // gives what is in the directory to its owner
	LinkCommand = "exec-link" // is worktree.Tree.Link
	// CheckCommand is worktree.Tree.CheckSource.
	CheckCommand = "exec-check"
)

// capabilities are those that it takes to do what the owner of a file may do.
var capabilities = []string{"CHOWN", "DAC_OVERRIDE", "FOWNER"}

// Engine is what it takes to run a container, of any image that is there.
type Engine interface {
	helper.Engine
	Image(ctx context.Context, ref string) (engine.Image, error)
	Images(ctx context.Context) ([]engine.Image, error)
}

// Owner does what files of other users need the rights of root for. A nil Owner
// is root and does it by itself.
type Owner struct {
	engine Engine
	rootID string
	bin    string // directory of deckhand's binary for containers
}

// New returns the Owner of a root: nil for a process with the rights itself.
func New(e Engine, rootID, bin string) *Owner {
	if os.Geteuid() == 0 {
		return nil
	}
	return &Owner{e, rootID, bin}
}

// ErrNoImage says that no container can be made.
var ErrNoImage = errors.New("files of it belong to another user, and there is no image on this node for a container that could take them over; " +
	"pull any image and run \"deckhand scrub\", or remove them as root")

// Take gives everything in a directory to this user. The notes may be nil, when
// there is no journal. No container of the task may run meanwhile.
func (o *Owner) Take(ctx context.Context, n machine.Notes, dir string) error {
	if o == nil {
		return nil
	}
	err := node.TakeTree(ctx, dir, func(string, error) bool { return false })
	if err == nil || errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
		return ctx.Err()
	}
	return o.run(ctx, n, dir, TakeCommand, dir)
}

// Link is tree.Link.
func (o *Owner) Link(ctx context.Context, n machine.Notes, tree *worktree.Tree, file, container string) error {
	err := tree.Link(file, container)
	if o == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	plan, err := savePlan(tree)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot write down the plan of the work tree: %w", err)
	}
	return o.run(ctx, n, tree.Dir, LinkCommand, tree.Dir, plan, file, container)
}

// CheckSource is tree.CheckSource.
func (o *Owner) CheckSource(ctx context.Context, n machine.Notes, tree *worktree.Tree, source string) error {
	err := tree.CheckSource(source)
	if o == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return o.run(ctx, n, tree.Dir, CheckCommand, tree.Dir, source)
}

// savePlan writes the plan of a tree to a file in it.
func savePlan(tree *worktree.Tree) (string, error) {
	plan := filepath.Join(tree.Dir, "plan.json")
	text, err := json.Marshal(tree.Plan)
	if err != nil {
		return "", err
	}
	return plan, os.WriteFile(plan, text, 0o600)
}

// name is the name of the container; one process at a time holds the root.
func (o *Owner) name() string { return fmt.Sprintf("deckhand-%s-own", o.rootID) }

// Clear removes the container that a dead process may have left.
func (o *Owner) Clear(ctx context.Context) error {
	if o == nil {
		return nil
	}
	return errors.Join(o.engine.Stop(ctx, o.name(), 0), o.engine.Remove(ctx, o.name()))
}

// run runs a command in a container that has a directory at its own path.
func (o *Owner) run(ctx context.Context, n machine.Notes, dir string, command ...string) error {
	image, err := o.image(ctx, n)
	if err != nil {
		return err
	}
	binary, err := helper.Install(o.bin)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		// What fills the disk may be what is to be taken over.
		binary, err = os.Executable()
	}
	if err != nil {
		return err
	}
	fact := machine.Fact{What: "helper", Name: o.name(), Detail: map[string]string{"command": command[0], "directory": dir}}
	if n != nil {
		if err := n.Intent(ctx, fact); err != nil {
			return err
		}
	}
	err = helper.Run(ctx, o.engine, helper.Job{
		Name: fact.Name, Image: image, Labels: map[string]string{engine.LabelRoot: o.rootID}, Binary: binary, Command: command,
		Capabilities: capabilities, Network: "none", Mounts: []engine.Mount{{Kind: engine.BindMount, Source: dir, Target: dir}},
	})
	if err != nil {
		return err
	}
	if n != nil {
		return n.Done(ctx, fact)
	}
	return nil
}

// image returns an image that is there, one of the last tasks' if possible.
func (o *Owner) image(ctx context.Context, n machine.Notes) (string, error) {
	if n != nil {
		for _, r := range n.Images() {
			if r.ImageID == "" {
				continue
			}
			img, err := o.engine.Image(ctx, r.ImageID)
			if err == nil || !errors.Is(err, engine.ErrNotFound) {
				return img.ID, err
			}
		}
	}
	all, err := o.engine.Images(ctx)
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", machine.Faultf(machine.NodeFault, "%w", ErrNoImage)
	}
	return all[0].ID, nil
}

// Is says whether a command is one of the hidden ones.
func Is(command string) bool {
	return command == TakeCommand || command == LinkCommand || command == CheckCommand
}

// Exec is one of the hidden commands, with its arguments.
func Exec(ctx context.Context, command string, args []string) error {
	switch {
	case command == TakeCommand && len(args) == 1:
		return takeAll(ctx, args[0])
	case command == LinkCommand && len(args) == 4:
		text, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		var plan worktree.Plan
		if err := json.Unmarshal(text, &plan); err != nil {
			return err
		}
		return worktree.Planned(args[0], plan).Link(args[2], args[3])
	case command == CheckCommand && len(args) == 2:
		return worktree.Planned(args[0], worktree.Plan{}).CheckSource(args[1])
	}
	return fmt.Errorf("%s is told %q", command, args)
}

// takeAll takes over what can be, and then says what cannot.
func takeAll(ctx context.Context, dir string) error {
	left := 0
	var first error
	err := node.TakeTree(ctx, dir, func(path string, err error) bool {
		if left++; left == 1 {
			first = fmt.Errorf("%s: %w", path, err)
		}
		return true
	})
	if err == nil && left > 0 {
		err = fmt.Errorf("cannot take over %d of what is in %s, such as %w", left, dir, first)
	}
	return err
}
