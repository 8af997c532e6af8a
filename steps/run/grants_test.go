package run

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/tes"
)

// What a task asks for by backend parameters is in its container's configuration.
func TestGrants(t *testing.T) {
	device := func(host, target, permissions string) engine.Spec {
		return engine.Spec{Devices: []engine.Device{{Host: host, Target: target, Permissions: permissions}}}
	}
	gpus := func(count int, ids ...string) engine.Spec {
		return engine.Spec{GPUs: engine.GPUs{Count: count, IDs: ids}}
	}
	for _, test := range []struct {
		grants     Grants
		key, value string
		want       engine.Spec
		says       string // why the value is refused
	}{
		{Grants{GPUs: "all"}, "gpus", "all", gpus(engine.AllGPUs), ""},
		{Grants{GPUs: "all"}, "gpus", "2", gpus(2), ""},
		{Grants{GPUs: "all"}, "gpus", "0", engine.Spec{}, ""},
		{Grants{GPUs: "all"}, "gpus", "device=0,GPU-1a2b", gpus(0, "0", "GPU-1a2b"), ""},
		{Grants{GPUs: "2,3"}, "gpus", "all", gpus(0, "2", "3"), ""},
		{Grants{GPUs: "2,3"}, "GPUs", "1", gpus(0, "2"), ""},
		{Grants{GPUs: "2,3"}, "gpus", "device=3", gpus(0, "3"), ""},
		{Grants{GPUs: "2,3"}, "gpus", "3", engine.Spec{}, "gives a task 2 GPUs at most (run.gpus)"},
		{Grants{GPUs: "2,3"}, "gpus", "device=3,0", engine.Spec{}, "each of these GPUs (run.gpus)"},
		{Grants{GPUs: "none"}, "gpus", "1", engine.Spec{}, "no GPUs (run.gpus)"},
		{Grants{GPUs: "none"}, "gpus", "all", engine.Spec{}, "no GPUs (run.gpus)"},
		{Grants{GPUs: "all"}, "gpus", "-1", engine.Spec{}, "write all, a number"},
		{Grants{GPUs: "all"}, "gpus", "true", engine.Spec{}, "write all, a number"},
		{Grants{GPUs: "all"}, "gpus", "device=", engine.Spec{}, "write all, a number"},
		{Grants{GPUs: "all"}, "gpus", "99999999999", engine.Spec{}, "write all, a number"},

		{Grants{Devices: "/dev/fuse"}, "devices", "/dev/fuse", device("/dev/fuse", "/dev/fuse", "rwm"), ""},
		{Grants{Devices: "/dev/f*"}, "Devices", "/dev/fuse:r", device("/dev/fuse", "/dev/fuse", "r"), ""},
		{Grants{Devices: "/dev/f*"}, "devices", "/dev/fuse:/dev/x", device("/dev/fuse", "/dev/x", "rwm"), ""},
		{Grants{Devices: "/dev/f*"}, "devices", "/dev/fuse:/dev/x:rw", device("/dev/fuse", "/dev/x", "rw"), ""},
		{Grants{Devices: "nvidia.com/*"}, "devices", "nvidia.com/gpu=0", device("nvidia.com/gpu=0", "", ""), ""},
		{Grants{Devices: "/dev/kfd,/dev/dri"}, "devices", "/dev/kfd, /dev/dri", engine.Spec{Devices: []engine.Device{
			{Host: "/dev/kfd", Target: "/dev/kfd", Permissions: "rwm"}, {Host: "/dev/dri", Target: "/dev/dri", Permissions: "rwm"}}}, ""},
		{Grants{Devices: "/dev/fuse"}, "devices", "", engine.Spec{}, ""},
		{Grants{}, "devices", "/dev/fuse", engine.Spec{}, "each of these devices (run.devices)"},
		{Grants{Devices: "/dev/*"}, "devices", "/dev/dri/card0", engine.Spec{}, "each of these devices"},
		{Grants{Devices: "/dev/fuse"}, "devices", "/dev/fuse,/dev/sda", engine.Spec{}, "each of these devices"},
		{Grants{Devices: "/dev/*"}, "devices", "/dev/../etc/shadow", engine.Spec{}, "write paths such as"},
		{Grants{Devices: "/dev/*"}, "devices", "/dev/fuse:/etc/../x", engine.Spec{}, "write paths such as"},
		{Grants{Devices: "/dev/*"}, "devices", "/dev/fuse:/dev/x:w+", engine.Spec{}, "write paths such as"},
		{Grants{Devices: "/dev/*"}, "devices", "/dev/fuse:/dev/x:r:w", engine.Spec{}, "write paths such as"},
		{Grants{Devices: "/dev/*"}, "devices", "fuse", engine.Spec{}, "write paths such as"},
		{Grants{Devices: "/*/*,*/*=*"}, "devices", "a/b=c/../d", engine.Spec{}, "write paths such as"},

		{Grants{}, "shm_size", "512m", engine.Spec{ShmBytes: 512 << 20}, ""},
		{Grants{}, "SHM_SIZE", "2g", engine.Spec{ShmBytes: 2 << 30}, ""},
		{Grants{}, "shm_size", "big", engine.Spec{}, "write a size such as"},
		{Grants{}, "shm_size", "0", engine.Spec{}, "write a size such as"},
		{Grants{}, "time_limit", "90m", engine.Spec{}, ""},
		{Grants{}, "time_limit", "90", engine.Spec{}, "write a duration such as"},
		{Grants{}, "time_limit", "-1s", engine.Spec{}, "write a duration such as"},
		{Grants{}, "VmSize", "Standard_D64_v3", engine.Spec{}, "is not supported here"},
	} {
		t.Run(test.key+" "+test.value+" of "+test.grants.GPUs+test.grants.Devices, func(t *testing.T) {
			doc := tes.Task{
				Executors: []tes.Executor{{Image: "x", Command: []string{"x"}}},
				Resources: tes.Resources{BackendParameters: map[string]string{test.key: test.value}},
			}
			warnings, err := doc.Validate(test.grants.Parameters()...)
			if err != nil {
				t.Fatal(err)
			}
			if said := strings.Join(warnings, "\n"); !strings.Contains(said, test.says) || test.says == "" && said != "" {
				t.Errorf("the warnings are %q, want %q", said, test.says)
			}
			f := newFixture(t, doc)
			f.containers.Grants = test.grants
			got := f.create(t, 0, engine.Image{ID: "i"})
			if !reflect.DeepEqual([]any{got.GPUs, got.Devices, got.ShmBytes}, []any{test.want.GPUs, test.want.Devices, test.want.ShmBytes}) {
				t.Errorf("the container has %+v %+v %d", got.GPUs, got.Devices, got.ShmBytes)
			}
		})
	}
}

// The least of both limits counts, and says whose it is.
func TestLimitOf(t *testing.T) {
	for _, test := range []struct {
		node time.Duration
		own  string
		want time.Duration
		says string
	}{
		{0, "", 0, "run.time_limit"},
		{time.Hour, "", time.Hour, "run.time_limit"},
		{0, "2h", 2 * time.Hour, "resources.backend_parameters.time_limit"},
		{time.Hour, "2h", time.Hour, "run.time_limit"},
		{time.Hour, "30m", 30 * time.Minute, "resources.backend_parameters.time_limit"},
	} {
		doc := tes.Task{Resources: tes.Resources{BackendParameters: map[string]string{}}}
		if test.own != "" {
			doc.Resources.BackendParameters["time_limit"] = test.own
		}
		if got, says := limitOf(&doc, test.node); got != test.want || says != test.says {
			t.Errorf("of %s and %q it is %s by %s", test.node, test.own, got, says)
		}
	}
}

// The least that Docker takes is what a smaller request gets.
func TestSmallRequests(t *testing.T) {
	for _, test := range []struct {
		asked  tes.Resources
		cpus   float64
		memory int64
	}{
		{tes.Resources{}, 0, 0},
		{tes.Resources{CPUCores: 0.001, RAMGB: 0.001}, 0.01, 6 << 20},
		{tes.Resources{CPUCores: 0.5, RAMGB: 1}, 0.5, 1_000_000_000},
	} {
		f := newFixture(t, tes.Task{Executors: []tes.Executor{{Command: []string{"x"}}}, Resources: test.asked})
		if got := f.create(t, 0, engine.Image{ID: "i"}); got.CPUs != test.cpus || got.MemoryBytes != test.memory {
			t.Errorf("%+v gives %f CPUs and %d bytes", test.asked, got.CPUs, got.MemoryBytes)
		}
	}
}
