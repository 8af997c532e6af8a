package engine

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
)

// Volume is a named volume of Docker's.
type Volume struct {
	Name   string
	Labels map[string]string
	Bytes  int64 // 0 when it is not known
}

// Network is a network of Docker's.
type Network struct {
	ID     string
	Name   string
	Labels map[string]string
	Users  []string // IDs of the containers that are attached to it
}

// usageLimit bounds the question how much room volumes take, for which Docker
// reads all of them.
const usageLimit = 10 * time.Second

// CreateVolume makes a volume; one that has the name already is left as it is.
func (d *Docker) CreateVolume(ctx context.Context, name string, labels map[string]string) error {
	err := d.ask(ctx, func(ctx context.Context) error {
		_, err := d.api.VolumeCreate(ctx, volume.CreateOptions{Name: name, Labels: labels})
		return err
	})
	return explain(err, "create volume %s", name)
}

// Volumes lists the volumes that have all of these labels, and those that have
// no label at all and a name that begins with one of prefixes. Docker keeps the
// labels apart from the files: a power cut can bring back a volume that was
// being removed without them.
func (d *Docker) Volumes(ctx context.Context, labels map[string]string, prefixes ...string) ([]Volume, error) {
	var found []Volume
	err := d.ask(ctx, func(ctx context.Context) error {
		list, err := d.api.VolumeList(ctx, volume.ListOptions{})
		found = nil
		for _, v := range list.Volumes {
			x := Volume{Name: v.Name, Labels: v.Labels}
			if x.has(labels) || x.forgotten(prefixes) {
				found = append(found, x)
			}
		}
		return err
	})
	if err != nil || len(found) == 0 {
		return nil, explain(err, "list volumes")
	}
	sizes := d.volumeSizes(ctx)
	for i := range found {
		found[i].Bytes = sizes[found[i].Name]
	}
	return found, nil
}

func (v Volume) has(labels map[string]string) bool {
	for key, value := range labels {
		if is, ok := v.Labels[key]; !ok || is != value {
			return false
		}
	}
	return true
}

func (v Volume) forgotten(prefixes []string) bool {
	return len(v.Labels) == 0 && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(v.Name, p) })
}

// volumeSizes returns what Docker says in time about the bytes in its volumes.
func (d *Docker) volumeSizes(ctx context.Context) map[string]int64 {
	ctx, cancel := context.WithTimeout(ctx, usageLimit)
	defer cancel()
	usage, err := d.api.DiskUsage(ctx, types.DiskUsageOptions{Types: []types.DiskUsageObject{types.VolumeObject}})
	if err != nil {
		return nil
	}
	sizes := map[string]int64{}
	for _, v := range usage.Volumes {
		if v.UsageData != nil && v.UsageData.Size > 0 {
			sizes[v.Name] = v.UsageData.Size
		}
	}
	return sizes
}

// RemoveVolume removes a volume, never by force: ErrInUse when a container
// mounts it. One that is not there is success.
func (d *Docker) RemoveVolume(ctx context.Context, name string) error {
	err := d.ask(ctx, func(ctx context.Context) error { return d.api.VolumeRemove(ctx, name, false) })
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return explain(err, "remove volume %s", name)
}

// Networks lists the networks that have all of these labels.
func (d *Docker) Networks(ctx context.Context, labels map[string]string) ([]Network, error) {
	var found []Network
	err := d.ask(ctx, func(ctx context.Context) error {
		list, err := d.api.NetworkList(ctx, network.ListOptions{Filters: byLabels(labels)})
		found = nil
		for _, n := range list {
			found = append(found, Network{ID: n.ID, Name: n.Name, Labels: n.Labels})
		}
		return err
	})
	if err != nil {
		return nil, explain(err, "list networks")
	}
	for i := range found {
		err := d.ask(ctx, func(ctx context.Context) error {
			n, err := d.api.NetworkInspect(ctx, found[i].ID, network.InspectOptions{})
			found[i].Users = slices.Sorted(maps.Keys(n.Containers))
			return err
		})
		if err != nil && !cerrdefs.IsNotFound(err) { // one that is gone by now is found gone when it is removed
			return nil, explain(err, "look at network %s", found[i].Name)
		}
	}
	return found, nil
}

// RemoveNetwork removes a network: ErrInUse when a container is attached to
// it. One that is not there is success.
func (d *Docker) RemoveNetwork(ctx context.Context, id string) error {
	err := d.ask(ctx, func(ctx context.Context) error { return d.api.NetworkRemove(ctx, id) })
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return explain(err, "remove network %s", id)
}
