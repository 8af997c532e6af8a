package engine_test

import (
	"archive/tar"
	"bytes"
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
			AddTag: func(t *testing.T, id, tag string) { rig.DockerCmd(t, "tag", id, tag) },
			AddNetwork: func(t *testing.T, name string, labels map[string]string) string {
				args := []string{"network", "create", "--internal"}
				for k := range maps.Keys(labels) {
					args = append(args, "--label", k+"="+labels[k])
				}
				return rig.DockerCmd(t, append(args, name)...)
			},
		}
	})
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
