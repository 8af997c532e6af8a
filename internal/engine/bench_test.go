package engine_test

import (
	"io"
	"testing"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/test/rig"
)

// BenchmarkContainer takes one short container from its creation to its
// removal, as a task does; its peer is the docker command line.
func BenchmarkContainer(b *testing.B) {
	image := rig.Image(b, rig.NewRegistry(b), "tool", rig.Spec{}).Tag
	d, err := engine.Connect(b.Context(), engine.Options{Host: rig.Docker(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := d.Pull(b.Context(), image, nil); err != nil {
		b.Fatal(err)
	}
	b.Run("deckhand", func(b *testing.B) {
		for b.Loop() {
			id, err := d.Create(b.Context(), engine.Spec{Image: image, Command: []string{"true"}})
			if err != nil {
				b.Fatal(err)
			}
			exits, err := d.WaitNext(b.Context(), id)
			if err != nil {
				b.Fatal(err)
			}
			if err := d.Start(b.Context(), id); err != nil {
				b.Fatal(err)
			}
			if exit := <-exits; exit.Err != nil {
				b.Fatal(exit.Err)
			}
			if err := d.Log(b.Context(), id, io.Discard, io.Discard); err != nil {
				b.Fatal(err)
			}
			if _, err := d.Container(b.Context(), id); err != nil {
				b.Fatal(err)
			}
			if err := d.Remove(b.Context(), id); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("docker run --rm", func(b *testing.B) {
		for b.Loop() {
			rig.DockerCmd(b, "run", "--rm", image, "true")
		}
	})
}
