package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"

	"github.com/deckhand/deckhand/machine"
)

// Spec is a container to be made.
type Spec struct {
	Name  string
	Image string // reference or ID
	// Entrypoint nil is the image's; empty is none.
	Entrypoint []string
	Command    []string
	Env        map[string]string
	Workdir    string // empty is the image's
	User       string // empty is the image's
	Labels     map[string]string
	Mounts     []Mount
	// Limits; zero is none.
	CPUs        float64
	MemoryBytes int64 // of memory; none of it may be swapped out
	PidsLimit   int64
	// CgroupParent, when not empty, is the cgroup in which Docker makes the
	// container's own: a path, or a slice with the systemd driver.
	CgroupParent string
	// ShmBytes is the size of /dev/shm; zero is Docker's own.
	ShmBytes int64
	Devices  []Device
	GPUs     GPUs
	// NoNewPrivileges keeps set-uid programs from gaining any.
	NoNewPrivileges bool
	// CapAdd and CapDrop change the capabilities that Docker gives: names without
	// CAP_, or ALL.
	CapAdd, CapDrop []string
	// Network is Docker's network mode; empty is the default.
	Network string
	// ReadOnly forbids writing to the container's own filesystem.
	ReadOnly bool
	// HostUsers makes its user ids those of the host, where Docker maps others.
	HostUsers bool
}

// MountKind says what is mounted.
type MountKind string

const (
	BindMount   MountKind = "bind"   // a path of the host, which must exist
	VolumeMount MountKind = "volume" // a volume of Docker's, by its name
)

// Mount is one mount of a container.
type Mount struct {
	Kind     MountKind
	Source   string
	Target   string // path in the container
	ReadOnly bool
}

// Device is a device that a container may use.
type Device struct {
	// Host is a path on the host, or the name by which the Container Device
	// Interface knows it, such as nvidia.com/gpu=0; that has no path of its own.
	Host        string
	Target      string // path in the container
	Permissions string // of r, w and m
}

// GPUs are those that a container may use; the zero value is none.
type GPUs struct {
	Count int      // how many, AllGPUs for every one
	IDs   []string // these, by number or UUID, instead of a count
}

// AllGPUs is every GPU of the host.
const AllGPUs = -1

// State is where a container stands (Docker API, ContainerState.Status).
type State string

const (
	Created    State = "created" // never started, or its command could not be
	Running    State = "running"
	Paused     State = "paused"
	Restarting State = "restarting"
	Exited     State = "exited"
	Dead       State = "dead" // a removal of it failed half-way
	Removing   State = "removing"
)

// Ended says whether the container ran and does not run any more.
func (s State) Ended() bool { return s == Exited || s == Dead }

// Container is a container as Docker describes it.
type Container struct {
	ID      string
	Name    string
	ImageID string
	State   State
	Labels  map[string]string
	Volumes []string // names of the Docker volumes that are mounted

	// Not known from a list.
	ExitCode  int
	OOMKilled bool      // the kernel killed one of its processes for want of memory
	Started   time.Time // zero when it never was
	Finished  time.Time // zero while it runs
	Error     string    // why it could not be started
	Binds     []Mount   // of paths of the host
	PID       int       // of its first process, in Docker's PID namespace; 0 when it does not run
	// ResolvConf is the path on the host of its resolv.conf(5).
	ResolvConf string
	// Network is Docker's network mode, as the engine has understood it.
	Network string
	// CgroupParent is what its Spec said.
	CgroupParent string
}

// JobCgroup is the group of a batch engine's job that the container is below, empty
// for none.
func (c Container) JobCgroup() string {
	// A label alone may come from the image.
	if job := c.Labels[LabelCgroup]; job == c.CgroupParent {
		return job
	}
	return ""
}

// shortLog keeps the end of what a container writes to Docker, so that no
// container fills Docker's disk. The daemon's own defaults are merged in where
// these are missing, so each is named.
var shortLog = container.LogConfig{Type: "json-file", Config: map[string]string{
	"max-size": "1m", "max-file": "2", "compress": "false", "mode": "blocking",
}}

// Create makes a container, without starting it, and returns its ID.
// ErrExists when the name is taken, ErrNotFound when the image is not there.
func (d *Docker) Create(ctx context.Context, s Spec) (string, error) {
	env := make([]string, 0, len(s.Env))
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		env = append(env, name+"="+s.Env[name])
	}
	host := &container.HostConfig{
		LogConfig: shortLog,
		CapAdd:    s.CapAdd, CapDrop: s.CapDrop,
		NetworkMode: container.NetworkMode(s.Network), ReadonlyRootfs: s.ReadOnly,
		Resources: container.Resources{
			NanoCPUs: int64(s.CPUs * 1e9),
			Memory:   s.MemoryBytes, MemorySwap: s.MemoryBytes, // the sum of both
			CgroupParent: s.CgroupParent,
		},
		ShmSize: s.ShmBytes,
	}
	addDevices(&host.Resources, s)
	if s.PidsLimit > 0 {
		host.PidsLimit = &s.PidsLimit
	}
	if s.NoNewPrivileges {
		host.SecurityOpt = []string{"no-new-privileges"}
	}
	if s.HostUsers {
		host.UsernsMode = "host"
	}
	for _, m := range s.Mounts {
		host.Mounts = append(host.Mounts, mount.Mount{
			Type: mount.Type(m.Kind), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly,
		})
	}
	if err := d.forPodman(ctx, host); err != nil {
		return "", explain(err, "create container %s", s.Name)
	}
	config := &container.Config{
		Image: s.Image, Entrypoint: s.Entrypoint, Cmd: s.Command, Env: env,
		WorkingDir: s.Workdir, User: s.User, Labels: s.Labels,
		// An image's health check would run beside the command, and before it may begin.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	if s.Entrypoint != nil && len(s.Entrypoint) == 0 {
		config.Entrypoint = []string{""} // as docker create --entrypoint "" has it; Podman takes an empty list for the image's
	}
	var made container.CreateResponse
	create := func() error {
		return d.ask(ctx, func(ctx context.Context) (err error) {
			made, err = d.api.ContainerCreate(ctx, config, host, nil, nil, s.Name)
			return err
		})
	}
	err := create()
	taken := func(err error) bool {
		return cerrdefs.IsConflict(err) || err != nil && podmanTaken.MatchString(err.Error())
	}
	// Docker goes on with the creation of a client that died. It gives the name
	// away first, and only later knows the container by it.
	for deadline := time.Now().Add(d.options.Wait); taken(err) && time.Now().Before(deadline); err = create() {
		if _, unknown := d.Container(ctx, s.Name); unknown == nil {
			break
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return "", err
		}
	}
	if taken(err) {
		return "", fmt.Errorf("cannot create container %s: %w: %s", s.Name, ErrExists, message(err))
	}
	if err != nil && halfGone.MatchString(err.Error()) {
		return "", fmt.Errorf("cannot create container %s: image %w: %s", s.Name, ErrNotFound, message(err))
	}
	if err != nil && misused.MatchString(err.Error()) {
		return "", machine.Faultf(machine.TaskFault, "cannot create container %s: %s", s.Name, message(err))
	}
	for _, w := range made.Warnings {
		d.log.Warn("Docker warns about a container", "container", s.Name, "warning", w)
	}
	return made.ID, explain(err, "create container %s", s.Name)
}

// addDevices asks for devices and GPUs, as the docker command line does.
func addDevices(r *container.Resources, s Spec) {
	var cdi []string
	for _, d := range s.Devices {
		if strings.HasPrefix(d.Host, "/") {
			r.Devices = append(r.Devices, container.DeviceMapping{PathOnHost: d.Host, PathInContainer: d.Target, CgroupPermissions: d.Permissions})
		} else {
			cdi = append(cdi, d.Host)
		}
	}
	if len(cdi) > 0 {
		r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{Driver: "cdi", DeviceIDs: cdi})
	}
	if s.GPUs.Count != 0 || len(s.GPUs.IDs) > 0 {
		r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{
			Count: s.GPUs.Count, DeviceIDs: s.GPUs.IDs, Capabilities: [][]string{{"gpu"}},
		})
	}
}

// Container returns the container with that name or ID, or ErrNotFound.
func (d *Docker) Container(ctx context.Context, nameOrID string) (Container, error) {
	var c Container
	err := d.ask(ctx, func(ctx context.Context) (err error) {
		c, err = d.inspect(ctx, nameOrID)
		return err
	})
	return c, explain(err, "inspect container %s", nameOrID)
}

func (d *Docker) inspect(ctx context.Context, nameOrID string) (Container, error) {
	i, err := d.api.ContainerInspect(ctx, nameOrID)
	if err != nil {
		return Container{}, err
	}
	c := Container{
		ID: i.ID, Name: strings.TrimPrefix(i.Name, "/"), ImageID: i.Image, Volumes: volumesOf(i.Mounts),
		State: stateOf(i.State.Status), ExitCode: i.State.ExitCode, OOMKilled: i.State.OOMKilled, Error: i.State.Error,
	}
	c.PID, c.ResolvConf = i.State.Pid, i.ResolvConfPath
	if i.Config != nil {
		c.Labels = i.Config.Labels
	}
	if i.HostConfig != nil {
		c.Network = string(i.HostConfig.NetworkMode)
		c.CgroupParent = i.HostConfig.CgroupParent
	}
	for _, m := range i.Mounts {
		if m.Type == mount.TypeBind {
			c.Binds = append(c.Binds, Mount{Kind: BindMount, Source: m.Source, Target: m.Destination, ReadOnly: !m.RW})
		}
	}
	var starts, ends error
	c.Started, starts = time.Parse(time.RFC3339Nano, i.State.StartedAt)
	c.Finished, ends = time.Parse(time.RFC3339Nano, i.State.FinishedAt)
	if err := errors.Join(starts, ends); err != nil {
		return Container{}, fmt.Errorf("its times cannot be read: %w", err)
	}
	// Docker stamps a start when the runtime has returned; a short command may
	// have ended by then.
	if !c.Finished.IsZero() && c.Finished.Before(c.Started) && c.State.Ended() {
		c.Started = c.Finished
	}
	return c, nil
}

func volumesOf(mounts []container.MountPoint) []string {
	var names []string
	for _, m := range mounts {
		if m.Type == mount.TypeVolume {
			names = append(names, m.Name)
		}
	}
	return names
}

// Containers lists the containers, running or not, that have all of these labels.
func (d *Docker) Containers(ctx context.Context, labels map[string]string) ([]Container, error) {
	var found []Container
	err := d.ask(ctx, func(ctx context.Context) error {
		list, err := d.api.ContainerList(ctx, container.ListOptions{All: true, Filters: byLabels(labels)})
		found = nil
		for _, c := range list {
			x := Container{ID: c.ID, ImageID: c.ImageID, State: stateOf(c.State), Labels: c.Labels, Volumes: volumesOf(c.Mounts)}
			x.Name = nameOf(c.Names)
			found = append(found, x)
		}
		return err
	})
	return found, explain(err, "list containers")
}

func byLabels(labels map[string]string) filters.Args {
	f := filters.NewArgs()
	for k, v := range labels {
		f.Add("label", k+"="+v)
	}
	return f
}

// Start starts a container; one that runs already is left alone. A *StartError
// when its command cannot be started, ErrNotFound when it is not there, and
// machine.ErrLost when Docker went away with the request and now knows of no
// start: its command may have run all the same, and must not run twice.
func (d *Docker) Start(ctx context.Context, id string) error {
	sent := false
	err := d.ask(ctx, func(ctx context.Context) error {
		if sent {
			// The answer to an earlier request was lost. The container may have
			// run and ended since; or the runtime has started it, and the daemon
			// was killed before it had written that down.
			c, err := d.inspect(ctx, id)
			if err == nil && c.Started.IsZero() {
				err = fmt.Errorf("Docker went away before it said whether it did: %w", machine.ErrLost)
			}
			return err
		}
		err := d.api.ContainerStart(ctx, id, container.StartOptions{})
		sent = brokeOff(err)
		return err
	})
	if errors.Is(err, machine.ErrLost) {
		return fmt.Errorf("cannot start container %s: %w", id, err)
	}
	if err == nil || isContext(err) || cerrdefs.IsNotFound(err) || errors.As(err, new(*machine.Error)) {
		return explain(err, "start container %s", id)
	}
	if refused := startError(err); refused != nil {
		return refused
	}
	if noDevice.MatchString(err.Error()) {
		return machine.Faultf(machine.NodeFault,
			"cannot start container %s: this node does not have a device that the task asks for: %s; run.gpus and run.devices say what tasks may ask for", id, message(err))
	}
	if misused.MatchString(err.Error()) {
		return machine.Faultf(machine.TaskFault, "cannot start container %s: %s", id, message(err))
	}
	return explain(err, "start container %s", id)
}

// Stop ends a container: SIGTERM, or the signal that its image asks for, and
// SIGKILL after grace, in whole seconds. One that does not run, or is not
// there, is success.
func (d *Docker) Stop(ctx context.Context, id string, grace time.Duration) error {
	seconds := int((grace + time.Second - 1) / time.Second)
	err := d.ask(ctx, func(ctx context.Context) error {
		return d.api.ContainerStop(ctx, id, container.StopOptions{Timeout: &seconds})
	})
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return explain(err, "stop container %s", id)
}

// Remove removes a container that does not run, and its anonymous volumes. It
// forces nothing: ErrInUse when the container runs. It returns when the
// container is gone, also when somebody else is removing it; one that is not
// there is success.
func (d *Docker) Remove(ctx context.Context, id string) error {
	deadline := time.Now().Add(d.options.Wait)
	for {
		err := d.ask(ctx, func(ctx context.Context) error {
			return d.api.ContainerRemove(ctx, id, container.RemoveOptions{RemoveVolumes: true})
		})
		switch {
		case cerrdefs.IsNotFound(err):
			return nil
		case !cerrdefs.IsConflict(err) || !strings.Contains(err.Error(), "already in progress"):
			return explain(err, "remove container %s", id)
		case time.Now().After(deadline):
			return machine.Faultf(machine.EngineFault, "cannot remove container %s: its removal by somebody else does not end", id)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}
