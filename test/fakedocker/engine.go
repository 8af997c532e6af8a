// Package fakedocker is an engine for tests that run thousands of small tasks:
// images are directories, containers are processes in namespaces of their own,
// and the account of both is in memory. It is much faster than Docker, and passes
// the same conformance suite (package enginetest), but for what only a real
// container runtime enforces: limits, devices, privileges.
package fakedocker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
)

// Engine is one engine. It outlives whoever uses it, as Docker does.
type Engine struct {
	dir      string
	registry *Registry

	mu         sync.Mutex
	names      map[string]string // tags and digests of images: ID by name
	images     map[string]*image // by ID
	containers []*container      // as they were made
	volumes    map[string]*volume
	networks   []engine.Network
	events     []check.Event
	restarted  time.Time
}

type volume struct {
	engine.Volume
	dir string
}

// New makes an empty engine that keeps its data in dir.
func New(dir string, registry *Registry) *Engine {
	return &Engine{dir: dir, registry: registry, names: map[string]string{}, images: map[string]*image{}, volumes: map[string]*volume{}}
}

// Close ends every container.
func (e *Engine) Close() error {
	e.mu.Lock()
	containers := slices.Clone(e.containers)
	e.mu.Unlock()
	for _, c := range containers {
		if err := e.Stop(context.Background(), c.id, 0); err != nil {
			return err
		}
	}
	return nil
}

// Restart is a restart of the node: no container survives it.
func (e *Engine) Restart() error {
	err := e.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.restarted = time.Now()
	return err
}

// Look tells what the engine holds.
func (e *Engine) Look() check.Engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found check.Engine
	for _, c := range e.containers {
		found.Containers = append(found.Containers, check.Container{ID: c.id, Name: c.spec.Name, Image: c.image.ID, State: string(c.state), Labels: c.spec.Labels})
	}
	for _, v := range e.volumes {
		found.Volumes = append(found.Volumes, check.Volume{Name: v.Name, Labels: v.Labels})
	}
	for _, n := range e.networks {
		found.Networks = append(found.Networks, check.Network{ID: n.ID, Name: n.Name, Labels: n.Labels})
	}
	for id := range e.images {
		found.Images = append(found.Images, check.Image{ID: id, Names: e.namesOf(id)})
	}
	return found
}

// Events returns what has happened to containers of deckhand's, oldest first.
func (e *Engine) Events() []check.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]check.Event{}, e.events...)
}

// happened takes down an event; the caller holds mu.
func (e *Engine) happened(action string, c *container) {
	labels := c.spec.Labels
	attempt, _ := strconv.Atoi(labels[engine.LabelAttempt]) // 0 for a container of somebody else's
	e.events = append(e.events, check.Event{
		Action: action, Container: c.spec.Name, Root: labels[engine.LabelRoot], Task: labels[engine.LabelTask],
		Attempt: attempt, Executor: labels[engine.LabelExecutor], At: time.Now(),
	})
}

// Info describes the engine.
func (e *Engine) Info(ctx context.Context) (engine.Info, error) {
	return engine.Info{
		Version: "fake", APIVersion: "1.41", DataRoot: e.dir, StorageDriver: "directories", CgroupVersion: "1",
		OS: "linux", Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), MemoryBytes: 1 << 30,
	}, ctx.Err()
}

// CreateVolume makes a volume; one that has the name already is left as it is.
func (e *Engine) CreateVolume(ctx context.Context, name string, labels map[string]string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := e.volume(name, labels)
	return err
}

func (e *Engine) volume(name string, labels map[string]string) (*volume, error) {
	if v := e.volumes[name]; v != nil {
		return v, nil
	}
	v := &volume{engine.Volume{Name: name, Labels: maps.Clone(labels)}, filepath.Join(e.dir, "volume-"+hexID()[:12])}
	if err := os.Mkdir(v.dir, 0o755); err != nil {
		return nil, err
	}
	e.volumes[name] = v
	return v, nil
}

// Volumes lists the volumes that have all of these labels, and those that have
// none and whose name begins with one of prefixes.
func (e *Engine) Volumes(ctx context.Context, labels map[string]string, prefixes ...string) ([]engine.Volume, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []engine.Volume
	for _, v := range e.volumes {
		if has(v.Labels, labels) || len(v.Labels) == 0 && hasPrefix(v.Name, prefixes...) {
			x := v.Volume
			x.Bytes = bytesIn(v.dir)
			found = append(found, x)
		}
	}
	return found, ctx.Err()
}

// RemoveVolume removes a volume: ErrInUse when a container mounts it.
func (e *Engine) RemoveVolume(ctx context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	v := e.volumes[name]
	if v == nil {
		return nil
	}
	for _, c := range e.containers {
		if slices.Contains(c.volumes, name) {
			return fmt.Errorf("cannot remove volume %s: %w: container %s mounts it", name, engine.ErrInUse, c.spec.Name)
		}
	}
	delete(e.volumes, name)
	return os.RemoveAll(v.dir)
}

// AddNetwork makes a network and returns its ID.
func (e *Engine) AddNetwork(name string, labels map[string]string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := engine.Network{ID: hexID(), Name: name, Labels: maps.Clone(labels)}
	e.networks = append(e.networks, n)
	return n.ID
}

// Networks lists the networks that have all of these labels.
func (e *Engine) Networks(ctx context.Context, labels map[string]string) ([]engine.Network, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []engine.Network
	for _, n := range e.networks {
		if has(n.Labels, labels) {
			found = append(found, n)
		}
	}
	return found, ctx.Err()
}

// RemoveNetwork removes a network.
func (e *Engine) RemoveNetwork(ctx context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.networks = slices.DeleteFunc(e.networks, func(n engine.Network) bool { return n.ID == id })
	return ctx.Err()
}

func has(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if is, ok := labels[k]; !ok || is != v {
			return false
		}
	}
	return true
}

func hexID() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	return hex.EncodeToString(raw)
}

func bytesIn(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil {
			if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

func notFound(kind, name string) error {
	return fmt.Errorf("cannot find %s %s: %w", kind, name, engine.ErrNotFound)
}

func taskFault(format string, args ...any) error {
	return machine.Faultf(machine.TaskFault, format, args...)
}

func hasPrefix(s string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}
