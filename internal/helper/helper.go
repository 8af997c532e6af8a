// Package helper runs deckhand's own binary in containers: an image need not
// have a shell, and Docker has rights that this process may lack.
package helper

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
)

// Install puts this binary into a directory of the root, where Docker can mount it
// and any user can run it, and returns its path. All tasks share it, so that it is
// written once; containers have it read-only. One that another version has left
// there is not taken: it may not know the commands of this one.
func Install(dir string) (string, error) {
	name, err := name()
	if err != nil {
		return "", err
	}
	helper := filepath.Join(dir, name)
	if _, err := os.Stat(helper); err == nil {
		return helper, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", machine.Faultf(machine.NodeFault, "cannot make a directory for the deckhand binary: %w", err)
	}
	part := helper + partial
	err = copySelf(part)
	if err == nil {
		err = os.Rename(part, helper)
	}
	if err != nil {
		// It may have taken the last free bytes.
		if left := os.Remove(part); !errors.Is(left, fs.ErrNotExist) {
			err = errors.Join(err, left)
		}
		return "", machine.Faultf(machine.NodeFault, "cannot put the deckhand binary where containers can run it: %w", err)
	}
	return helper, nil
}

// partial ends the name of a binary that is not whole yet.
const partial = ".part"

// copySelf writes this binary to a file, durably.
func copySelf(to string) (err error) {
	self, err := openSelf()
	if err != nil {
		return err
	}
	defer func() { _ = self.Close() }() // read-only
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, self); err != nil {
		return err
	}
	if err := f.Chmod(0o755); err != nil {
		return err
	}
	return f.Sync()
}

// Installed adds up the bytes of what is installed in a directory.
func Installed(dir string) (bytes int64, err error) {
	all, err := list(dir, func(string) bool { return true })
	for _, f := range all {
		bytes += f.Bytes
	}
	return bytes, err
}

// File is one that was installed.
type File struct {
	Path  string
	Bytes int64
}

// Old lists what other versions, and processes that died, have installed in a
// directory. It may go when no container of the root is left that could mount it.
func Old(dir string) ([]File, error) {
	this, err := name()
	if err != nil {
		return nil, err
	}
	return list(dir, func(name string) bool { return name != this })
}

// RemovePartial removes what a process that died while it installed has left in a
// directory, and returns what that was; no container has it. Whoever calls holds
// the root.
func RemovePartial(dir string) (gone []File, err error) {
	all, err := list(dir, func(name string) bool { return strings.HasSuffix(name, partial) })
	for _, f := range all {
		if e := os.Remove(f.Path); e != nil {
			err = errors.Join(err, e)
			continue
		}
		gone = append(gone, f)
	}
	return gone, err
}

func list(dir string, which func(name string) bool) (found []File, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if info, gone := e.Info(); gone == nil && which(e.Name()) {
			found = append(found, File{filepath.Join(dir, e.Name()), info.Size()})
		}
	}
	return found, err
}

// Mount is the mount of an installed binary at a path in a container.
func Mount(installed, target string) engine.Mount {
	return engine.Mount{Kind: engine.BindMount, Source: installed, Target: target, ReadOnly: true}
}

// Engine is what a helper asks of Docker.
type Engine interface {
	Create(ctx context.Context, s engine.Spec) (string, error)
	Start(ctx context.Context, id string) error
	WaitNext(ctx context.Context, id string) (<-chan engine.Exit, error)
	Log(ctx context.Context, id string, stdout, stderr io.Writer) error
	Stop(ctx context.Context, id string, grace time.Duration) error
	Remove(ctx context.Context, id string) error
}

// Job is one run of the binary in a container of its own.
type Job struct {
	Name         string // of the container; nobody else's
	Image        string // any image: nothing of it runs
	Labels       map[string]string
	Binary       string // as Install returned it
	Command      []string
	Capabilities []string // the only ones that it has
	Network      string   // "none", or "container:" and an id
	Mounts       []engine.Mount
}

// ErrFailed is wrapped by the error of a job that ran and could not do its work.
var ErrFailed = errors.New("it could not")

// Run runs a job to its end and removes its container. One that an earlier
// process has left is removed first. What Docker loses by a restart is an engine's
// fault: no executor is lost with it.
func Run(ctx context.Context, e Engine, j Job) (err error) {
	// Nobody can foresee the name, and nothing can be mounted over it: it is in the
	// image's own root, which can be no link and no volume. Otherwise a hostile
	// image could have a program of its own run with these rights.
	target := "/.deckhand-" + rand.Text()
	spec := engine.Spec{
		Name: j.Name, Image: j.Image, Labels: j.Labels, User: "0:0", Workdir: "/", Entrypoint: []string{target}, Command: j.Command,
		Mounts: append([]engine.Mount{Mount(j.Binary, target)}, j.Mounts...), NoNewPrivileges: true, PidsLimit: 256,
		CapDrop: []string{"ALL"}, CapAdd: j.Capabilities, Network: j.Network, ReadOnly: true, HostUsers: true,
	}
	// Docker goes on with a request that is given up, and would finish it behind
	// the back of whoever removes what is left.
	whole := context.WithoutCancel(ctx)
	id, err := e.Create(whole, spec)
	if errors.Is(err, engine.ErrExists) {
		if err := stopAndRemove(ctx, e, j.Name); err != nil {
			return err
		}
		id, err = e.Create(whole, spec)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopAndRemove(whole, e, id)) }()
	exits, err := e.WaitNext(ctx, id)
	if err != nil {
		return err
	}
	if err := e.Start(whole, id); err != nil {
		return notLost(err)
	}
	var exit engine.Exit
	select {
	case exit = <-exits:
	case <-ctx.Done():
		return ctx.Err()
	}
	if exit.Err != nil || exit.Code == 0 {
		return notLost(exit.Err)
	}
	var said strings.Builder
	if err := e.Log(ctx, id, &said, &said); err != nil {
		return err
	}
	return fmt.Errorf("%w (exit code %d): %s", ErrFailed, exit.Code, strings.TrimSpace(said.String()))
}

func notLost(err error) error {
	if errors.Is(err, machine.ErrLost) {
		return machine.Faultf(machine.EngineFault, "a container of deckhand's own was lost: %v", err)
	}
	return err
}

func stopAndRemove(ctx context.Context, e Engine, id string) error {
	if err := e.Stop(ctx, id, 0); err != nil {
		return err
	}
	return e.Remove(ctx, id)
}
