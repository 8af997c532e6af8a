package engine

import (
	"context"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/registry"

	"github.com/deckhand/deckhand/machine"
)

// Podman answers Docker's API on a socket of its own. What it answers otherwise
// is here and in the patterns below: most of its refusals are internal errors
// (500), told apart by their words alone.

// IsPodman says whether the engine is one.
func (d *Docker) IsPodman(ctx context.Context) (bool, error) {
	var version types.Version
	err := d.ask(ctx, func(ctx context.Context) (err error) {
		version, err = d.api.ServerVersion(ctx)
		return err
	})
	for _, c := range version.Components {
		if c.Name == "Podman Engine" {
			return true, nil
		}
	}
	return false, err
}

// podmanDigestName is the name by digest that goes with a tag. Docker removes it
// with the last tag of its repository; for Podman it is a name like others.
// Empty when there is none, when there are other tags, and with Docker.
func (d *Docker) podmanDigestName(ctx context.Context, tag string) (string, error) {
	named, err := reference.ParseNormalizedNamed(tag)
	if _, ok := named.(reference.Tagged); err != nil || !ok {
		return "", nil
	}
	i, err := d.Image(ctx, tag)
	if err != nil || len(i.Tags) > 1 {
		return "", nil // the removal itself says what is wrong
	}
	if podman, err := d.IsPodman(ctx); err != nil || !podman {
		return "", err
	}
	for _, digest := range i.Digests {
		if strings.HasPrefix(digest, named.Name()+"@") {
			return digest, nil
		}
	}
	return "", nil
}

// hostIsInsecure says whether a registry's host is insecure at whatever port, which
// only registries.conf(5) of Podman can say.
func hostIsInsecure(config *registry.ServiceConfig, domain string) bool {
	host, _, err := net.SplitHostPort(domain)
	if err != nil || config == nil {
		return false
	}
	index := config.IndexConfigs[host]
	return index != nil && !index.Secure
}

// stateOf is where a container stands, in Docker's words also for what Podman
// calls otherwise: a container that it has set up and not started, one that it is
// about to end, and one that has ended and is not taken down yet.
func stateOf(said string) State {
	switch said {
	case "configured", "initialized":
		return Created
	case "stopping":
		return Running
	case "stopped":
		return Exited
	}
	return State(said)
}

var (
	podmanInUse = regexp.MustCompile(`(?i)with more than one tag|cannot be removed without force`)
	podmanTaken = regexp.MustCompile(`(?i)that name is already in use`)
	podmanGone  = regexp.MustCompile(`(?i)not found: layer not known`)
	podmanTask  = regexp.MustCompile(`(?i)invalid reference format|copier: put: .*: file exists`)
	podmanNode  = regexp.MustCompile(`(?i)container create: stat /dev/`) // a device
)

// forPodman makes what a container asks of its host such that Podman does it too.
// It takes a comma in a path for a separator, so such a mount is asked for in the
// older form with colons; and it passes over requests for GPUs and CDI devices.
func (d *Docker) forPodman(ctx context.Context, host *container.HostConfig) error {
	odd := func(m mount.Mount) bool { return strings.Contains(m.Source+m.Target, ",") }
	if len(host.DeviceRequests) == 0 && !slices.ContainsFunc(host.Mounts, odd) {
		return nil
	}
	if podman, err := d.IsPodman(ctx); err != nil || !podman {
		return err
	}
	if len(host.DeviceRequests) > 0 {
		return machine.Faultf(machine.NodeFault, "Podman gives no GPUs and no CDI devices to whoever asks in Docker's way; use Docker for this task, or name devices by their paths")
	}
	for _, m := range host.Mounts {
		if !odd(m) {
			continue
		}
		if strings.Contains(m.Source+m.Target, ":") {
			return machine.Faultf(machine.TaskFault, "Podman cannot mount %s at %s, with a comma and a colon; use another path, or Docker", m.Source, m.Target)
		}
		if _, err := os.Lstat(m.Source); m.Type == mount.TypeBind && err != nil { // Podman would make it
			return machine.Faultf(machine.NodeFault, "cannot mount %s: %w", m.Source, err)
		}
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		host.Binds = append(host.Binds, m.Source+":"+m.Target+":"+mode)
	}
	host.Mounts = slices.DeleteFunc(host.Mounts, odd)
	return nil
}
