// Package engine is the Docker Engine behind plain types. It is the only
// package that knows the Docker client, so that moving to another client is a
// change to this package alone.
//
// Every call waits for a Docker that does not answer, as long as Options.Wait
// allows, and then fails with machine.EngineFault. A Docker that does not
// answer is never taken for an object that is not there: only Docker itself
// can say ErrNotFound.
package engine

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"github.com/deckhand/deckhand/machine"
)

// Labels on every container, volume and network that is made for a task.
const (
	LabelRoot     = "deckhand.root"     // id of the root
	LabelTask     = "deckhand.task"     // id of the task
	LabelAttempt  = "deckhand.attempt"  // number of the attempt
	LabelExecutor = "deckhand.executor" // index of the executor
	// LabelCgroup is on a container below the group of a batch engine's job: that group.
	LabelCgroup = "deckhand.cgroup"
)

// RootPrefix begins the name of every container and volume that is made for the
// tasks of a root.
func RootPrefix(rootID string) string { return "deckhand-" + rootID + "-" }

// oldestAPI is that of Docker 20.10.
const oldestAPI = "1.41"

// Options say which Docker is meant and how patient its callers are.
type Options struct {
	// Host is a Docker host such as unix:///var/run/docker.sock. Empty means
	// DOCKER_HOST and, when that is empty, the default socket.
	Host string
	// Wait is how long one call waits for a Docker that does not answer.
	Wait time.Duration
	// PullRetryFor is how long a pull is tried again after its first failure
	// that may pass, such as a registry that throttles.
	PullRetryFor time.Duration
	Log          *slog.Logger // nil logs nothing
}

// Docker is one Docker Engine. Its methods may be called from several goroutines.
type Docker struct {
	api     *client.Client
	opts    []client.Opt // of api
	options Options
	log     *slog.Logger
	silent  atomic.Bool // it was logged that Docker does not answer
}

// Connect finds the Docker Engine, waits until it answers and agrees with it on
// the version of the API.
func Connect(ctx context.Context, o Options) (*Docker, error) {
	opts := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if o.Host != "" {
		opts = append(opts, client.WithHost(o.Host))
	}
	api, err := client.NewClientWithOpts(opts...)
	if err != nil {
		return nil, machine.Faultf(machine.EngineFault,
			"cannot use Docker at %q: %w; name it with --docker-host or DOCKER_HOST", o.Host, err)
	}
	d := &Docker{api: api, opts: opts, options: o, log: o.Log}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	err = d.ask(ctx, func(ctx context.Context) error {
		ping, err := api.Ping(ctx)
		if err != nil {
			return err
		}
		api.NegotiateAPIVersionPing(ping)
		return nil
	})
	if err != nil {
		return nil, explain(err, "ask Docker at %s for its version", api.DaemonHost())
	}
	if d.older(oldestAPI) {
		return nil, machine.Faultf(machine.EngineFault,
			"cannot use Docker at %s: it speaks API %s; Docker 20.10 (API %s) or newer is needed",
			api.DaemonHost(), api.ClientVersion(), oldestAPI)
	}
	return d, nil
}

// Close lets go of the connections.
func (d *Docker) Close() error { return d.api.Close() }

func (d *Docker) older(api string) bool { return versions.LessThan(d.api.ClientVersion(), api) }

// Info describes the Docker Engine and its host.
type Info struct {
	Version       string // such as 20.10.24
	APIVersion    string // the one in use
	DataRoot      string // where images and containers lie on its host
	StorageDriver string
	CgroupDriver  string // cgroupfs, systemd or none
	CgroupVersion string // 1 or 2
	OS, Arch      string // as images name them: linux, amd64
	LiveRestore   bool   // containers outlive a restart of the daemon
	CPUs          int
	MemoryBytes   int64
	// Unlimited are the limits that its host lets no container have, in words.
	Unlimited []string
	// Runtime starts containers that ask for none; RuntimePath is its program as the
	// daemon was told of it, empty for one that containerd knows.
	Runtime, RuntimePath string
}

// Info asks the Docker Engine to describe itself.
func (d *Docker) Info(ctx context.Context) (Info, error) {
	var info Info
	err := d.ask(ctx, func(ctx context.Context) error {
		i, err := d.api.Info(ctx)
		info = Info{
			Version: i.ServerVersion, APIVersion: d.api.ClientVersion(), DataRoot: i.DockerRootDir,
			StorageDriver: i.Driver, CgroupDriver: i.CgroupDriver, CgroupVersion: i.CgroupVersion,
			OS: i.OSType, Arch: goarch(i.Architecture), LiveRestore: i.LiveRestoreEnabled,
			CPUs: i.NCPU, MemoryBytes: i.MemTotal,
			Runtime: i.DefaultRuntime, RuntimePath: i.Runtimes[i.DefaultRuntime].Path,
		}
		for _, limit := range []struct {
			name string
			held bool
		}{{"memory", i.MemoryLimit}, {"CPU", i.CPUCfsQuota}, {"number of processes", i.PidsLimit}} {
			if !limit.held {
				info.Unlimited = append(info.Unlimited, limit.name)
			}
		}
		return err
	})
	return info, explain(err, "ask Docker about itself")
}

// goarch turns a machine name of uname(2), which Docker reports, into the
// architecture of an image (OCI image spec, config.md).
func goarch(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "armv6l", "armv7l":
		return "arm"
	case "i386", "i586", "i686":
		return "386"
	}
	return machine
}

// platform is how an operating system and architecture are written.
func platform(os, arch string) string { return fmt.Sprintf("%s/%s", os, arch) }
