package run

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/ring"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// ContainerEngine is what making and removing containers asks of Docker.
type ContainerEngine interface {
	Create(ctx context.Context, s engine.Spec) (string, error)
	Image(ctx context.Context, ref string) (engine.Image, error)
	CopyFrom(ctx context.Context, id, path string, read func(io.Reader) error) error
	Container(ctx context.Context, name string) (engine.Container, error)
	Containers(ctx context.Context, labels map[string]string) ([]engine.Container, error)
	Remove(ctx context.Context, id string) error
	CreateVolume(ctx context.Context, name string, labels map[string]string) error
	Volumes(ctx context.Context, labels map[string]string, prefixes ...string) ([]engine.Volume, error)
	RemoveVolume(ctx context.Context, name string) error
}

// The least that Docker takes. A task asks for what it needs at least, so it may
// have more.
const (
	minCPUs   = 0.01
	minMemory = 6 << 20
)

// ownDir returns the directory of one container in which deckhand's own mounts
// are. Nobody can foresee its name: a task could mount something of its own over
// a path that it knows, through a link in the image.
func ownDir() string { return path.Join("/.deckhand", rand.Text()) }

// The mounts in it, each of which is there only when the executor needs it.
const (
	execTarget   = "exec" // deckhand's binary
	gateTarget   = "gate" // the directory in which the file appears that opens the gate
	stdoutTarget = "stdout"
	stderrTarget = "stderr"
	failedTarget = "failed" // why the binary itself could not do its work
)

// Limits are the node's own bounds on a container.
type Limits struct {
	CPUs         int    // that this process may use; no container gets more
	CgroupParent string // of the site, empty for Docker's own
	JobCgroup    string // of the batch engine's job, in place of the site's; may be empty
}

// Hardening is what keeps a task's containers from the node. The zero value
// keeps nothing.
type Hardening struct {
	NoNewPrivileges bool
	PidsLimit       int64 // of processes and threads in one container; zero is none
	// CapAdd and CapDrop change the capabilities that Docker gives.
	CapAdd, CapDrop []string
	// Block are the addresses that containers cannot reach.
	Block []netip.Prefix
	// BlockOrWarn runs a task also where they cannot be closed.
	BlockOrWarn bool
}

// Containers makes the containers of a task's executors, one each, under
// names that a later process finds again.
type Containers struct {
	Task      *tes.Task
	Engine    ContainerEngine
	RootID    string
	Bin       string // directory of deckhand's binary for containers
	Tree      func(attempt int, n machine.Notes) *worktree.Tree
	Limits    Limits
	Grants    Grants
	Hardening Hardening
	// User is who the executors are, as Docker takes it; empty for the image's.
	User string
	// ClearEntrypoint runs commands without the image's ENTRYPOINT. TES does
	// not say which is right; other TES servers keep it.
	ClearEntrypoint bool
	// ShellCommands makes a command of one element a line for /bin/sh, as
	// Funnel takes it. TES has no such thing.
	ShellCommands bool
}

// Name is the name of an executor's container, deterministic so that it can be
// journaled before the container exists.
func (c *Containers) Name(t *machine.Task, executor int) string {
	return fmt.Sprintf("%s%s-%d-%d", engine.RootPrefix(c.RootID), tes.EncodeID(t.ID), t.Attempt, executor)
}

func (c *Containers) labels(t *machine.Task) map[string]string {
	return map[string]string{
		engine.LabelRoot: c.RootID, engine.LabelTask: t.ID, engine.LabelAttempt: strconv.Itoa(t.Attempt),
	}
}

// Create makes the container of one executor, without starting it. One that
// exists already is kept when it is this executor's.
func (c *Containers) Create(ctx context.Context, t *machine.Task, n machine.Notes, executor int, img engine.Image) error {
	// Docker goes on with a request that is given up, and would finish it behind
	// the roll-back's back. A Docker that does not answer is given up all the same.
	ctx = context.WithoutCancel(ctx)
	tree := c.Tree(t.Attempt, n)
	// Those that are mounted since Settle has decided so are not there yet.
	if tree.Missing() {
		if err := tree.Prepare(); err != nil {
			return machine.Faultf(machine.NodeFault, "cannot make the directories of inputs: %w", err)
		}
	}
	spec, err := c.spec(t, n, executor, img)
	if err != nil {
		return err
	}
	if announced(n, spec.Name) != img.ID {
		fact := machine.Fact{What: WhatContainer, Name: spec.Name, Detail: map[string]any{"executor": executor, "image_id": img.ID}}
		if err := n.Intent(ctx, fact); err != nil {
			return err
		}
	}
	for _, m := range spec.Mounts {
		if m.Kind == engine.VolumeMount {
			if err := c.Engine.CreateVolume(ctx, m.Source, spec.Labels); err != nil {
				return err
			}
		}
	}
	_, err = c.Engine.Create(ctx, spec)
	if errors.Is(err, engine.ErrExists) {
		err = c.adopt(ctx, spec)
	}
	if err != nil {
		return fmt.Errorf("executor %d: %w", executor, err)
	}
	return nil
}

// announced is the image of a container that was to be made, "" when none was.
func announced(n machine.Notes, name string) string {
	var made struct {
		ImageID string `json:"image_id"`
	}
	if note, ok := n.Get(WhatContainer, name); !ok || json.Unmarshal(note.Detail, &made) != nil { // it is this package's own
		return ""
	}
	return made.ImageID
}

// adopt checks that a container that has the name is the one to be made. One of
// another image is made anew: its image had gone, and the tag names this one now.
func (c *Containers) adopt(ctx context.Context, spec engine.Spec) error {
	have, err := c.Engine.Container(ctx, spec.Name)
	if err != nil {
		return err
	}
	for k, v := range spec.Labels {
		if have.Labels[k] != v {
			return machine.Faultf(machine.NodeFault,
				"a container named %s exists that is not deckhand's (its label %s is %q); remove it", spec.Name, k, have.Labels[k])
		}
	}
	if have.ImageID == spec.Image {
		return nil
	}
	if err := c.Engine.Remove(ctx, have.ID); err != nil {
		return err
	}
	_, err = c.Engine.Create(ctx, spec)
	return err
}

func (c *Containers) spec(t *machine.Task, n machine.Notes, executor int, img engine.Image) (engine.Spec, error) {
	e := c.Task.Executors[executor]
	tree := c.Tree(t.Attempt, n)
	name := c.Name(t, executor)
	labels := c.labels(t)
	labels[engine.LabelExecutor] = strconv.Itoa(executor)
	s := engine.Spec{
		Name: name, Image: img.ID, Command: e.Command, Env: e.Env, Workdir: e.Workdir, User: c.User, Labels: labels,
		CPUs: c.Task.Resources.CPUCores, MemoryBytes: c.Task.Resources.RAMBytes(), PidsLimit: c.Hardening.PidsLimit,
		CgroupParent: c.Limits.CgroupParent, NoNewPrivileges: c.Hardening.NoNewPrivileges, CapAdd: c.Hardening.CapAdd, CapDrop: c.Hardening.CapDrop,
	}
	if c.Limits.JobCgroup != "" {
		s.CgroupParent, labels[engine.LabelCgroup] = c.Limits.JobCgroup, c.Limits.JobCgroup
	}
	if c.Limits.CPUs > 0 {
		s.CPUs = min(s.CPUs, float64(c.Limits.CPUs))
	}
	if s.CPUs > 0 {
		s.CPUs = max(s.CPUs, minCPUs)
	}
	if s.MemoryBytes > 0 {
		s.MemoryBytes = max(s.MemoryBytes, minMemory)
	}
	if err := c.Grants.request(&s, c.Task.Resources.BackendParameters); err != nil {
		return s, machine.Faultf(machine.TaskFault, "executor %d: %w", executor, err)
	}
	var targets []string
	for _, m := range tree.Plan.Mounts {
		if _, bound := tree.Plan.Bound(m.Target); bound {
			continue
		}
		s.Mounts = append(s.Mounts, engine.Mount{Kind: engine.BindMount, Source: tree.Source(m), Target: m.Target})
		targets = append(targets, m.Target)
	}
	for _, b := range tree.Plan.Binds {
		f, _, err := b.Open() // Docker would say less well that it is gone
		if err != nil {
			return s, err
		}
		_ = f.Close() // nothing was read
		s.Mounts = append(s.Mounts, engine.Mount{Kind: engine.BindMount, Source: b.Source, Target: b.Target, ReadOnly: true})
		targets = append(targets, b.Target)
	}
	// A volume that the image declares would be anonymous; made by us it has a
	// name that is known beforehand, and our labels.
	// In a mounted directory it is a part of that: left alone, Docker would mount
	// an anonymous one over it. Its name does not follow from what else is mounted:
	// a container that is made anew gets the volumes of the one before it.
	for j, target := range img.Volumes {
		clean := filepath.Clean(target)
		switch {
		case slices.Contains(targets, clean):
		case tree.Plan.Mounted(clean):
			part, err := tree.MkdirAll(clean)
			if err == nil {
				err = part.Close()
			}
			// An executor may have closed what leads there since it was made.
			place := tree.Where(clean)
			source := filepath.Join(place.Base, place.Name)
			if err != nil && !errors.Is(err, fs.ErrPermission) {
				fault := machine.NodeFault
				if replaced := tree.CheckSource(source); replaced != nil && !errors.Is(replaced, fs.ErrNotExist) {
					fault = machine.TaskFault // by what an earlier executor has put there
				}
				return s, machine.Faultf(fault, "cannot make the image's volume %s: %w", clean, err)
			}
			s.Mounts = append(s.Mounts, engine.Mount{Kind: engine.BindMount, Source: source, Target: clean})
		default:
			s.Mounts = append(s.Mounts, engine.Mount{
				Kind: engine.VolumeMount, Source: fmt.Sprintf("%s-v%d", name, j), Target: clean,
			})
		}
	}
	if c.ShellCommands && len(e.Command) == 1 {
		s.Command = []string{"/bin/sh", "-c", e.Command[0]}
	}
	if c.ClearEntrypoint {
		s.Entrypoint = []string{}
	}
	err := c.redirect(&s, tree, executor, img)
	return s, err
}

// redirect makes the executor's streams files or rings, and its command wait for
// the gate.
func (c *Containers) redirect(s *engine.Spec, tree *worktree.Tree, executor int, img engine.Image) error {
	e := c.Task.Executors[executor]
	binary, err := helper.Install(c.Bin)
	if err != nil {
		return err
	}
	own := ownDir()
	exec, out, errs := path.Join(own, execTarget), path.Join(own, stdoutTarget), path.Join(own, stderrTarget)
	s.Mounts = append(s.Mounts, helper.Mount(binary, exec))
	gate := ""
	if c.Hardening.gated() {
		at := tree.Gate(executor)
		if err := closeGate(at); err != nil {
			return err
		}
		dir := path.Join(own, gateTarget)
		gate = path.Join(dir, filepath.Base(at))
		s.Mounts = append(s.Mounts, engine.Mount{Kind: engine.BindMount, Source: filepath.Dir(at), Target: dir, ReadOnly: true})
	}
	failed := path.Join(own, failedTarget)
	if err := mountStream(s, tree, executor, failedTarget, "", failed); err != nil {
		return err
	}
	files := [3]string{e.Stdin, out, errs}
	if e.Stdout == "" {
		files[1] = ringMark + out
	}
	if err := mountStream(s, tree, executor, "stdout", e.Stdout, out); err != nil {
		return err
	}
	if e.Stderr != "" && e.Stderr == e.Stdout {
		files[2] = out
	} else if err := mountStream(s, tree, executor, "stderr", e.Stderr, errs); err != nil {
		return err
	} else if e.Stderr == "" {
		files[2] = ringMark + errs
	}
	command := s.Command
	if !c.ClearEntrypoint {
		command = slices.Concat(img.Entrypoint, command)
	}
	s.Entrypoint = []string{exec}
	s.Command = slices.Concat([]string{StdioCommand, gate, failed}, files[:], command)
	return nil
}

// mountStream makes what takes a stream, so that any user may write to it, and
// mounts it: an empty file where the document names one, and else a ring.
func mountStream(s *engine.Spec, tree *worktree.Tree, executor int, stream, named, target string) error {
	source, err := tree.Log(executor, stream), error(nil)
	if named == "" {
		source = tree.Ring(executor, stream)
		err = ring.Make(source)
	} else {
		err = makeFile(source)
	}
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot make a file for the output of container %s: %w", s.Name, err)
	}
	s.Mounts = append(s.Mounts, engine.Mount{Kind: engine.BindMount, Source: source, Target: target})
	return nil
}

func makeFile(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o666), f.Close()) // whatever the umask
}

// Remove removes the containers and volumes of this attempt. They are found by
// their labels, so none is missed for want of a note, and volumes that Docker
// has lost the labels of by the names of their containers.
func (c *Containers) Remove(ctx context.Context, t *machine.Task, n machine.Notes) error {
	var names []string
	for _, note := range n.All(WhatContainer) {
		names = append(names, note.Name+"-")
	}
	if len(names) == 0 {
		return nil
	}
	containers, err := c.Engine.Containers(ctx, c.labels(t))
	if err != nil {
		return err
	}
	for _, x := range containers {
		if err := c.Engine.Remove(ctx, x.ID); err != nil {
			return fmt.Errorf("cannot remove container %s: %w", x.Name, err)
		}
	}
	volumes, err := c.Engine.Volumes(ctx, c.labels(t), names...)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := c.Engine.RemoveVolume(ctx, v.Name); err != nil {
			return fmt.Errorf("cannot remove volume %s: %w", v.Name, err)
		}
	}
	return nil
}
