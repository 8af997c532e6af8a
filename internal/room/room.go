// Package room says whether what a task is about to bring fits on this node,
// before any of it comes.
package room

import (
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/machine"
)

// Claim is what is about to be taken of a filesystem, beside the task's files.
type Claim struct {
	For   string // in words, such as "image a:1"
	Bytes int64
}

// Floor is what must stay free on a filesystem besides all claims.
type Floor struct {
	Bytes  int64
	Inodes int64
}

// Room is what one task needs, and where. Both filesystems are looked at: that of
// the task's files and that of Docker's images, which may be the same.
type Room struct {
	// Dir is where the task's files go; it need not be there yet.
	Dir string
	// Images returns where Docker keeps images and containers on this node, "" when
	// that is not here. nil looks at Dir alone.
	Images func(ctx context.Context) (string, error)
	// Disk is what the task asks for (resources.disk_gb), in bytes; its inputs
	// count in. 0 for nothing.
	Disk int64
	// Inputs returns what is known of the size of the inputs. It is asked once;
	// nil for nothing.
	Inputs func(ctx context.Context, n machine.Notes) (bytes, files int64)
	Floor  Floor

	once   sync.Once
	inputs struct{ bytes, files int64 }
}

// taken is what is claimed of one filesystem.
type taken struct {
	dir           string
	bytes, inodes int64
	claims        []string
	// back is what will have been given back by then.
	back int64
}

// Check compares what is claimed with what is free. images is claimed of Docker's
// filesystem, and back is what will be given back there before. What does not
// fit is the node's fault, told in numbers.
func (r *Room) Check(ctx context.Context, n machine.Notes, back int64, images ...Claim) error {
	r.once.Do(func() {
		if r.Inputs != nil {
			r.inputs.bytes, r.inputs.files = r.Inputs(ctx, n)
		}
	})
	mine := &taken{dir: r.Dir, inodes: r.inputs.files}
	switch {
	case r.inputs.bytes > r.Disk:
		mine.claim(Claim{"the inputs", r.inputs.bytes})
	case r.Disk > 0:
		mine.claim(Claim{"resources.disk_gb", r.Disk})
	}
	all := []*taken{mine}
	dir, err := r.docker(ctx)
	if err != nil {
		return err
	}
	if dir != "" {
		theirs := mine
		if !node.SameFilesystem(r.Dir, dir) {
			theirs = &taken{dir: dir}
			all = append(all, theirs)
		}
		theirs.back = back
		for _, c := range images {
			theirs.claim(c)
		}
	}
	for _, t := range all {
		if err := t.fits(r.Floor); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// docker is the directory of Docker's data, if it lies on this node.
func (r *Room) docker(ctx context.Context) (string, error) {
	if r.Images == nil {
		return "", nil
	}
	dir, err := r.Images(ctx)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err != nil {
		return "", nil // of an engine on another host, or in a container
	}
	return dir, nil
}

func (t *taken) claim(c Claim) {
	if c.Bytes > 0 {
		t.bytes = add(t.bytes, c.Bytes)
		t.claims = append(t.claims, size(c.Bytes)+" for "+c.For)
	}
}

func (t *taken) fits(floor Floor) error {
	space, err := node.SpaceAt(t.dir)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot tell the free space of %s: %w", t.dir, err)
	}
	free := int64(min(space.FreeBytes, math.MaxInt64))
	if need := add(t.bytes, floor.Bytes); add(free, t.back) < need {
		given := ""
		if t.back > 0 {
			given = fmt.Sprintf(" and deleting old images gives back %s at most", size(t.back))
		}
		return machine.Faultf(machine.NodeFault, "not enough space on the filesystem of %s: %s are needed (%s), but only %s are free%s; "+
			"free some or run the task elsewhere", t.dir, size(need), strings.Join(append(t.claims, size(floor.Bytes)+" to stay free by disk.floor"), ", "), size(free), given)
	}
	if need := add(t.inodes, floor.Inodes); space.FreeInodes < uint64(need) {
		return machine.Faultf(machine.NodeFault, "not enough inodes on the filesystem of %s: %d are needed (%d for the inputs, %d to stay free by disk.inode_floor), "+
			"but only %d are free; remove files or run the task elsewhere", t.dir, need, t.inodes, floor.Inodes, space.FreeInodes)
	}
	return nil
}

// add adds two sizes, of which a task may ask for any.
func add(a, b int64) int64 {
	a, b = max(0, a), max(0, b)
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func size(b int64) string { return units.BytesSize(float64(b)) }
