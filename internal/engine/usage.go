package engine

import (
	"context"
	"strings"

	"github.com/docker/docker/api/types"
)

// Usage is what Docker's objects take on its disk.
type Usage struct {
	LayersBytes int64 // of all images; layers that they share count once
	CacheBytes  int64 // of builds
	Images      []ImageUsage
	Containers  []ContainerUsage
	Volumes     []Volume
}

// ImageUsage is what an image takes.
type ImageUsage struct {
	ID     string
	Bytes  int64
	Shared int64 // of Bytes, in layers that other images have too
}

// ContainerUsage is what a container has written beside its image and volumes.
type ContainerUsage struct {
	Name   string
	Labels map[string]string
	Bytes  int64
}

// Usage adds up what is on Docker's disk, for which Docker reads all volumes. Podman's answer
// leaves things out: there LayersBytes is reckoned as if all images that share layers
// shared the same ones, and containers and volumes have no labels.
func (d *Docker) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	err := d.ask(ctx, func(ctx context.Context) error {
		all, err := d.api.DiskUsage(ctx, types.DiskUsageOptions{})
		u = Usage{LayersBytes: all.LayersSize}
		var alone, shared int64
		for _, i := range all.Images {
			x := ImageUsage{imageID(i.ID), i.Size, max(0, i.SharedSize)} // -1 when it is not known
			u.Images = append(u.Images, x)
			alone, shared = alone+x.Bytes-x.Shared, max(shared, x.Shared)
		}
		if u.LayersBytes == 0 {
			u.LayersBytes = alone + shared
		}
		for _, c := range all.Containers {
			u.Containers = append(u.Containers, ContainerUsage{nameOf(c.Names), c.Labels, c.SizeRw})
		}
		for _, v := range all.Volumes {
			x := Volume{Name: v.Name, Labels: v.Labels}
			if v.UsageData != nil {
				x.Bytes = max(0, v.UsageData.Size)
			}
			u.Volumes = append(u.Volumes, x)
		}
		for _, b := range all.BuildCache {
			if !b.Shared {
				u.CacheBytes += b.Size
			}
		}
		return err
	})
	return u, explain(err, "ask Docker what takes its space")
}

// imageID is an id as all other answers have it: in this one Podman writes the digest alone.
func imageID(id string) string {
	if strings.Contains(id, ":") {
		return id
	}
	return "sha256:" + id
}

// nameOf is the first of a container's names, without the slash that Docker begins it with.
func nameOf(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return strings.TrimPrefix(names[0], "/")
}
