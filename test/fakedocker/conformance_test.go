package fakedocker_test

import (
	"testing"

	"github.com/deckhand/deckhand/internal/engine/enginetest"
	"github.com/deckhand/deckhand/test/fakedocker"
	"github.com/deckhand/deckhand/test/rig"
)

func TestConformance(t *testing.T) {
	enginetest.RunContract(t, func(t *testing.T) enginetest.Subject {
		registry := fakedocker.NewRegistry(t.TempDir(), "registry.test")
		e := fakedocker.New(t.TempDir(), registry)
		t.Cleanup(func() { e.Close() })
		return enginetest.Subject{
			Engine: e,
			Push: func(t *testing.T, i enginetest.Image) (tag, digest, id string) {
				ref := registry.Push(t, i.Name, rig.Spec{
					Marker: i.Marker, Platform: i.Platform, Files: i.Files, Env: i.Env,
					Entrypoint: i.Entrypoint, Cmd: i.Cmd, User: i.User, Workdir: i.Workdir, Volumes: i.Volumes,
				})
				return ref.Tag, ref.Digest, ref.ID
			},
			AddTag:     func(_ *testing.T, id, tag string) { e.AddTag(id, tag) },
			AddNetwork: func(_ *testing.T, name string, labels map[string]string) string { return e.AddNetwork(name, labels) },
		}
	})
}
