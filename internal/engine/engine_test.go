package engine_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/engine/enginetest"
	"github.com/deckhand/deckhand/test/rig"
)

func TestConformance(t *testing.T) {
	docker := connect(t, rig.Docker(t))
	enginetest.Run(t, func(t *testing.T) enginetest.Subject {
		return subject(t, docker, func(args ...string) string { return rig.DockerCmd(t, args...) })
	})
}

// The same suite on Podman, through its Docker-compatible socket.
func TestPodmanConformance(t *testing.T) {
	t.Parallel()
	podman := rig.NewPodman(t)
	docker := connect(t, podman.Host)
	enginetest.Run(t, func(t *testing.T) enginetest.Subject {
		s := subject(t, docker, func(args ...string) string { return podman.Cmd(t, args...) })
		s.Podman = true
		return s
	})
}

// subject has a registry of its own; command runs the engine's command line.
func subject(t *testing.T, docker *engine.Docker, command func(args ...string) string) enginetest.Subject {
	registry := rig.NewRegistry(t)
	return enginetest.Subject{
		Engine: docker,
		Push: func(t *testing.T, i enginetest.Image) (tag, digest, id string) {
			ref := rig.Image(t, registry, i.Name, rig.Spec{
				Marker: i.Marker, Platform: i.Platform, Files: i.Files, Env: i.Env,
				Entrypoint: i.Entrypoint, Cmd: i.Cmd, User: i.User, Workdir: i.Workdir, Volumes: i.Volumes,
			})
			return ref.Tag, ref.Digest, ref.ID
		},
		AddTag: func(_ *testing.T, id, tag string) { command("tag", id, tag) },
		AddNetwork: func(_ *testing.T, name string, labels map[string]string) string {
			args := []string{"network", "create", "--internal"}
			for k := range maps.Keys(labels) {
				args = append(args, "--label", k+"="+labels[k])
			}
			command(append(args, name)...)
			return command("network", "inspect", "--format", "{{.ID}}", name)
		},
	}
}

// What is asked of Docker for devices and GPUs is what its own command line asks
// for, on a machine that has none too.
func TestDeviceRequests(t *testing.T) {
	docker := connect(t, rig.Docker(t))
	tag := rig.Image(t, rig.NewRegistry(t), "devices", rig.Spec{}).Tag
	if err := docker.Pull(t.Context(), tag, func(engine.PullProgress) {}); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		spec engine.Spec
		args []string // the same for docker create
	}{
		"nothing":       {},
		"all GPUs":      {engine.Spec{GPUs: engine.GPUs{Count: engine.AllGPUs}}, []string{"--gpus", "all"}},
		"a number":      {engine.Spec{GPUs: engine.GPUs{Count: 2}}, []string{"--gpus", "2"}},
		"some GPUs":     {engine.Spec{GPUs: engine.GPUs{IDs: []string{"0", "GPU-1a"}}}, []string{"--gpus", `"device=0,GPU-1a"`}},
		"devices":       {engine.Spec{Devices: []engine.Device{{"/dev/fuse", "/dev/f", "rw"}, {"/dev/kvm", "/dev/kvm", "rwm"}}}, []string{"--device", "/dev/fuse:/dev/f:rw", "--device", "/dev/kvm"}},
		"shared memory": {engine.Spec{ShmBytes: 1 << 30}, []string{"--shm-size", "1g"}},
	} {
		t.Run(name, func(t *testing.T) {
			const format = "{{json .HostConfig.DeviceRequests}} {{json .HostConfig.Devices}} {{json .HostConfig.ShmSize}}"
			inspect := func(id string) string {
				defer rig.DockerCmd(t, "rm", id)
				text := rig.DockerCmd(t, "inspect", "--format", format, id)
				// Nothing and none are the same.
				return strings.NewReplacer("[]", "null", `"Options":{}`, `"Options":null`).Replace(text)
			}
			test.spec.Image, test.spec.Name = tag, "devices-"+strings.ToLower(rand.Text())
			id, err := docker.Create(t.Context(), test.spec)
			if err != nil {
				t.Fatal(err)
			}
			got, want := inspect(id), inspect(rig.DockerCmd(t, append(append([]string{"create"}, test.args...), tag)...))
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
	id, err := docker.Create(t.Context(), engine.Spec{Image: tag, Name: "devices-" + strings.ToLower(rand.Text()), Devices: []engine.Device{{Host: "nvidia.com/gpu=all"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer rig.DockerCmd(t, "rm", id)
	if got := rig.DockerCmd(t, "inspect", "--format", "{{json .HostConfig.DeviceRequests}}", id); !strings.Contains(got, `"Driver":"cdi"`) || !strings.Contains(got, `"DeviceIDs":["nvidia.com/gpu=all"]`) {
		t.Errorf("a CDI name is asked for as %s", got)
	}
}

// connect gives up on a silent engine soon, and shows its log when the test fails.
func connect(t *testing.T, host string) *engine.Docker {
	t.Helper()
	d, err := engine.Connect(t.Context(), engine.Options{
		Host: host, Wait: time.Minute, PullRetryFor: time.Minute, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func contains(err error, parts ...string) bool {
	for _, p := range parts {
		if err == nil || !strings.Contains(err.Error(), p) {
			return false
		}
	}
	return true
}

// tarOf is an archive with one empty file.
func tarOf(t *testing.T, name string) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}), w.Close()); err != nil {
		t.Fatal(err)
	}
	return &buf
}
