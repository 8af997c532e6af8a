package fakedocker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
)

// container is one container. What changes in it is guarded by its engine's mu.
type container struct {
	id      string
	spec    engine.Spec
	image   *image
	volumes []string // names
	mounts  []engine.Mount
	dir     string // its own layer, logs and mount point

	state             engine.State
	code              int
	started, finished time.Time
	pid               int
	next              chan struct{} // closed when it ends next, or is removed
	removed           bool
}

// find returns a container by its name or ID; the caller holds mu.
func (e *Engine) find(nameOrID string) (*container, error) {
	for _, c := range e.containers {
		if c.id == nameOrID || c.spec.Name == nameOrID {
			return c, nil
		}
	}
	return nil, notFound("container", nameOrID)
}

// Create makes a container, without starting it.
func (e *Engine) Create(ctx context.Context, s engine.Spec) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if _, err := e.find(s.Name); err == nil {
		return "", fmt.Errorf("cannot create container %s: %w", s.Name, engine.ErrExists)
	}
	id, err := e.id(s.Image)
	if err != nil {
		return "", err
	}
	c := &container{id: hexID(), spec: s, image: e.images[id], state: engine.Created, next: make(chan struct{})}
	c.spec.Labels = maps.Clone(s.Labels)
	c.dir = filepath.Join(e.dir, c.id[:12])
	for _, dir := range []string{"", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(c.dir, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := e.mount(c); err != nil {
		return "", errors.Join(err, os.RemoveAll(c.dir))
	}
	e.containers = append(e.containers, c)
	return c.id, nil
}

// mount settles what is mounted where, and makes the volumes for that.
func (e *Engine) mount(c *container) error {
	mounts := slices.Clone(c.spec.Mounts)
	for _, target := range c.image.Volumes {
		if !slices.ContainsFunc(mounts, func(m engine.Mount) bool { return m.Target == target }) {
			mounts = append(mounts, engine.Mount{Kind: engine.VolumeMount, Source: hexID(), Target: target})
		}
	}
	for _, m := range mounts {
		if m.Kind == engine.BindMount {
			if _, err := os.Stat(m.Source); err != nil {
				return taskFault("cannot create container %s: its mount %s: %w", c.spec.Name, m.Source, err)
			}
			c.mounts = append(c.mounts, m)
			continue
		}

		v, err := e.volume(m.Source, nil)
		if err != nil {
			return err
		}
		// An empty volume gets what the image has in its place.
		if entries, err := os.ReadDir(v.dir); err == nil && len(entries) == 0 {
			for _, layer := range c.image.layers {
				if err := copyTree(filepath.Join(layer, m.Target), v.dir); err != nil {
					return err
				}
			}
		}
		c.volumes = append(c.volumes, m.Source)
		c.mounts = append(c.mounts, engine.Mount{Kind: m.Kind, Source: v.dir, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	// Outer mounts come before those in them.
	slices.SortStableFunc(c.mounts, func(a, b engine.Mount) int { return strings.Compare(a.Target, b.Target) })
	return nil
}

func (c *container) tell() engine.Container {
	return engine.Container{
		ID: c.id, Name: c.spec.Name, ImageID: c.image.ID, State: c.state, Labels: maps.Clone(c.spec.Labels), Volumes: slices.Clone(c.volumes),
		ExitCode: c.code, Started: c.started, Finished: c.finished,
	}
}

// Container returns the container with that name or ID, or ErrNotFound.
func (e *Engine) Container(ctx context.Context, nameOrID string) (engine.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return engine.Container{}, err
	}
	c, err := e.find(nameOrID)
	if err != nil {
		return engine.Container{}, err
	}
	return c.tell(), nil
}

// Containers lists the containers that have all of these labels.
func (e *Engine) Containers(ctx context.Context, labels map[string]string) ([]engine.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []engine.Container
	for _, c := range e.containers {
		if has(c.spec.Labels, labels) {
			found = append(found, c.tell())
		}
	}
	return found, ctx.Err()
}

// Start starts a container; one that runs already is left alone.
func (e *Engine) Start(ctx context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := e.find(id)
	if err != nil || c.state == engine.Running {
		return err
	}
	process, err := c.start()
	if err != nil {
		return err
	}
	c.state, c.started, c.finished, c.pid = engine.Running, time.Now().UTC(), time.Time{}, process.Pid
	e.happened(check.Start, c)
	go func() {
		state, err := process.Wait()
		e.mu.Lock()
		defer e.mu.Unlock()
		c.state, c.finished, c.pid, c.code = engine.Exited, time.Now().UTC(), 0, 255
		if err == nil {
			c.code = state.ExitCode()
			if status := state.Sys().(syscall.WaitStatus); status.Signaled() {
				c.code = 128 + int(status.Signal())
			}
		}
		e.happened(check.Die, c)
		close(c.next)
		c.next = make(chan struct{})
	}()
	return nil
}

// WaitNext returns a channel that tells the next end of a container.
func (e *Engine) WaitNext(ctx context.Context, id string) (<-chan engine.Exit, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := e.find(id)
	if err != nil {
		return nil, err
	}
	exits := make(chan engine.Exit, 1)
	go func(next <-chan struct{}) { exits <- e.await(ctx, c, next) }(c.next)
	return exits, nil
}

func (e *Engine) await(ctx context.Context, c *container, next <-chan struct{}) engine.Exit {
	select {
	case <-ctx.Done():
		return engine.Exit{Err: ctx.Err()}
	case <-next:
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.removed {
		return engine.Exit{Err: notFound("container", c.spec.Name)}
	}
	return engine.Exit{Code: c.code}
}

// Wait waits until a container does not run.
func (e *Engine) Wait(ctx context.Context, id string) (engine.Exit, error) {
	e.mu.Lock()
	c, err := e.find(id)
	if err != nil || ctx.Err() != nil {
		e.mu.Unlock()
		return engine.Exit{}, errors.Join(ctx.Err(), err)
	}
	if c.state != engine.Running {
		defer e.mu.Unlock()
		return engine.Exit{Code: c.code}, nil
	}
	next := c.next
	e.mu.Unlock()
	exit := e.await(ctx, c, next)
	return exit, exit.Err
}

// Stop ends a container: SIGTERM, and SIGKILL after grace, in whole seconds.
func (e *Engine) Stop(ctx context.Context, id string, grace time.Duration) error {
	e.mu.Lock()
	c, err := e.find(id)
	if err != nil || c.state != engine.Running || ctx.Err() != nil {
		e.mu.Unlock()
		return ctx.Err()
	}
	next := c.next
	_ = syscall.Kill(c.pid, syscall.SIGTERM) // it may just have ended
	e.mu.Unlock()
	select {
	case <-next:
		return nil
	case <-time.After((grace + time.Second - 1) / time.Second * time.Second):
	}
	e.mu.Lock()
	if c.pid != 0 {
		_ = syscall.Kill(c.pid, syscall.SIGKILL) // as above
	}
	e.mu.Unlock()
	<-next
	return nil
}

// Remove removes a container that does not run, and its anonymous volumes.
func (e *Engine) Remove(ctx context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := e.find(id)
	if err != nil {
		return nil
	}
	if c.state == engine.Running {
		return fmt.Errorf("cannot remove container %s: %w: it runs", c.spec.Name, engine.ErrInUse)
	}
	e.containers = slices.DeleteFunc(e.containers, func(x *container) bool { return x == c })
	for _, name := range c.volumes {
		named := slices.ContainsFunc(c.spec.Mounts, func(m engine.Mount) bool { return m.Kind == engine.VolumeMount && m.Source == name })
		if v := e.volumes[name]; v != nil && !named {
			delete(e.volumes, name)
			err = errors.Join(err, os.RemoveAll(v.dir))
		}
	}
	c.removed = true
	close(c.next)
	c.next = make(chan struct{})
	return errors.Join(os.RemoveAll(c.dir))
}

// Log copies what a container has written so far.
func (e *Engine) Log(ctx context.Context, id string, stdout, stderr io.Writer) error {
	e.mu.Lock()
	c, err := e.find(id)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	for i, w := range []io.Writer{stdout, stderr} {
		if err := copyFrom(w, c.log(i)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (c *container) log(stream int) string {
	return filepath.Join(c.dir, []string{"stdout", "stderr"}[stream])
}

func copyFrom(w io.Writer, file string) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was never started
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// CopyFrom archives a path of a container for read.
func (e *Engine) CopyFrom(ctx context.Context, id, p string, read func(io.Reader) error) error {
	var archive bytes.Buffer
	err := e.within(ctx, id, func() error {
		if _, err := os.Lstat(p); err != nil {
			return notFound("path", p)
		}
		w := tar.NewWriter(&archive)
		err := filepath.WalkDir(p, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return add(w, name, strings.TrimPrefix(name, strings.TrimSuffix(path.Dir(p), "/")+"/"))
		})
		return errors.Join(err, w.Close())
	})
	if err != nil {
		return err
	}
	return read(&archive)
}

func add(w *tar.Writer, file, name string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	if h.Name = name; info.IsDir() {
		h.Name += "/"
	}
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// CopyTo unpacks files into a directory of a container.
func (e *Engine) CopyTo(ctx context.Context, id, dir string, archive io.Reader) error {
	return e.within(ctx, id, func() error {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return notFound("directory", dir)
		}
		for r := tar.NewReader(archive); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			name := filepath.Join(dir, h.Name)
			if h.Typeflag == tar.TypeDir {
				err = errors.Join(os.MkdirAll(name, 0o755), os.Chmod(name, h.FileInfo().Mode()))
			} else {
				err = unpackFile(r, name, h.FileInfo().Mode())
			}
			if err != nil {
				return err
			}
		}
	})
}

func unpackFile(r io.Reader, name string, mode fs.FileMode) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if info, err := os.Lstat(name); err == nil && info.IsDir() {
		return machine.Faultf(machine.TaskFault, "cannot overwrite directory %q with non-directory", name)
	}
	return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, text, mode), os.Chmod(name, mode))
}

// Changes lists what a container has made or changed in its own layer.
func (e *Engine) Changes(ctx context.Context, id string, read func(iter.Seq[string]) error) error {
	e.mu.Lock()
	c, err := e.find(id)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	upper := filepath.Join(c.dir, "upper")
	var found []string
	err = filepath.WalkDir(upper, func(name string, d fs.DirEntry, err error) error {
		// A character device stands for what was removed (overlayfs, "whiteouts").
		if err == nil && name != upper && d.Type()&fs.ModeCharDevice == 0 {
			found = append(found, strings.TrimPrefix(name, upper))
		}
		return err
	})
	if err := errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	return read(slices.Values(found))
}

// Restarted says whether the node was restarted since a moment.
func (e *Engine) Restarted(ctx context.Context, id string, since time.Time) (bool, error) {
	_, err := e.Container(ctx, id)
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.restarted.After(since), err
}
