package room

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/rig"
)

const mib = 1 << 20

// at is a Room with the task's files and Docker's data in two directories.
func at(dir, docker string) *Room {
	return &Room{Dir: dir, Images: func(context.Context) (string, error) { return docker, nil }}
}

func TestCheck(t *testing.T) {
	// 64 MiB each, some of which the filesystem keeps for itself.
	mine, theirs := rig.Filesystem(t, "ext4", 64*mib), rig.Filesystem(t, "ext4", 64*mib)
	tasks := filepath.Join(mine, "root", "tasks") // not there yet
	inputs := func(bytes, files int64) func(context.Context, machine.Notes) (int64, int64) {
		return func(context.Context, machine.Notes) (int64, int64) { return bytes, files }
	}
	image := []Claim{{"image a:1", 30 * mib}}
	for _, test := range []struct {
		name   string
		docker string
		change func(*Room)
		back   int64
		images []Claim
		says   []string // in the error; none when it fits
	}{
		{name: "nothing", docker: theirs},
		{name: "a little of everything", docker: theirs, images: image, change: func(r *Room) {
			r.Disk, r.Inputs, r.Floor = 20*mib, inputs(19*mib, 100), Floor{10 * mib, 1000}
		}},
		{name: "disk", docker: theirs, change: func(r *Room) { r.Disk = 80 * mib },
			says: []string{tasks, "80MiB are needed", "80MiB for resources.disk_gb", "0B to stay free by disk.floor", "are free;"}},
		{name: "disk and floor", docker: theirs, change: func(r *Room) { r.Disk, r.Floor.Bytes = 30*mib, 30*mib }, says: []string{"60MiB are needed"}},
		{name: "inputs beyond disk", docker: theirs, change: func(r *Room) { r.Disk, r.Inputs = 40*mib, inputs(70*mib, 1) },
			says: []string{"70MiB are needed", "70MiB for the inputs"}},
		{name: "inputs within disk", docker: theirs, change: func(r *Room) { r.Disk, r.Inputs = 40*mib, inputs(40*mib, 1) }},
		{name: "files of inputs", docker: theirs, change: func(r *Room) { r.Inputs, r.Floor.Inodes = inputs(1, 1_000_000), 7 },
			says: []string{"inodes", "1000007 are needed", "1000000 for the inputs", "7 to stay free by disk.inode_floor"}},
		{name: "image", docker: theirs, images: []Claim{{"image a:1", 80 * mib}}, change: func(r *Room) { r.Floor.Bytes = mib },
			says: []string{theirs, "81MiB are needed", "80MiB for image a:1", "1MiB to stay free"}},
		{name: "floor of Docker's filesystem", docker: theirs, change: func(r *Room) { r.Floor.Bytes = 60 * mib }, says: []string{"60MiB are needed"}},
		{name: "image and disk apart", docker: theirs, images: image, change: func(r *Room) { r.Disk = 30 * mib }},
		{name: "image and disk together", docker: mine, images: image, change: func(r *Room) { r.Disk = 30 * mib },
			says: []string{"60MiB are needed", "30MiB for image a:1", "30MiB for resources.disk_gb"}},
		{name: "until an image goes", docker: mine, images: image, back: 10 * mib, change: func(r *Room) { r.Disk = 30 * mib }},
		{name: "also when an image goes", docker: mine, images: image, back: 2 * mib, change: func(r *Room) { r.Disk = 30 * mib },
			says: []string{"deleting old images gives back 2MiB at most"}},
		{name: "an image of another filesystem", docker: theirs, back: 1 << 40, change: func(r *Room) { r.Disk = 80 * mib }, says: []string{"80MiB are needed"}},
		{name: "more than there are numbers", docker: mine, images: []Claim{{"image a:1", math.MaxInt64}}, back: math.MaxInt64, change: func(r *Room) {
			r.Disk, r.Floor = math.MaxInt64, Floor{math.MaxInt64, math.MaxInt64}
		}, says: []string{"inodes"}},
		{name: "Docker elsewhere", docker: "/not/on/this/node", images: []Claim{{"image a:1", 1 << 60}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := at(tasks, test.docker)
			if test.change != nil {
				test.change(r)
			}
			err := r.Check(t.Context(), nil, test.back, test.images...)
			if (err != nil) != (len(test.says) > 0) || err != nil && machine.FaultOf(err) != machine.NodeFault {
				t.Fatalf("%v (fault %s)", err, machine.FaultOf(err))
			}
			for _, words := range test.says {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%q is not in: %v", words, err)
				}
			}
		})
	}
}

// Sources are asked how large the inputs are once, however often it is checked.
func TestInputsAreAskedForOnce(t *testing.T) {
	asked := 0
	r := &Room{Dir: t.TempDir(), Inputs: func(context.Context, machine.Notes) (int64, int64) { asked++; return math.MaxInt64, 1 }}
	for range 2 {
		if r.Check(t.Context(), nil, 0) == nil {
			t.Error("it fits")
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func TestDockerThatDoesNotAnswer(t *testing.T) {
	silent := machine.Faultf(machine.EngineFault, "no answer")
	r := &Room{Dir: t.TempDir(), Images: func(context.Context) (string, error) { return "", silent }}
	if err := r.Check(t.Context(), nil, 0); machine.FaultOf(err) != machine.EngineFault {
		t.Errorf("%v", err)
	}
}

func TestDirectoryThatCannotBeRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := (&Room{Dir: file + "/tasks"}).Check(t.Context(), nil, 0)
	if machine.FaultOf(err) != machine.NodeFault || !strings.Contains(fmt.Sprint(err), file) {
		t.Errorf("%v", err)
	}
}
