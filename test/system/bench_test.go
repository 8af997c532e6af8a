package system

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// BenchmarkNoop runs a task that does nothing, from an image that is on the
// node, each time beside `docker run --rm` of the same image. Reported are the
// medians in milliseconds, their difference and ratio, and the program's peak
// memory.
func BenchmarkNoop(b *testing.B) {
	w := NewWorld(b)
	image := w.Image(b, "noop", rig.Spec{Marker: "noop"})
	task := func(i int) tes.Task {
		return tes.Task{ID: fmt.Sprint("noop-", i), Executors: []tes.Executor{{Image: image.Digest, Command: []string{"true"}}}}
	}
	w.MustRun(b, 0, task(0)) // brings the image
	var ours, peer []time.Duration
	var peak int64
	for i := 1; b.Loop(); i++ {
		start := time.Now()
		rig.DockerCmd(b, "run", "--rm", image.Digest, "true")
		peer = append(peer, time.Since(start))

		cmd := w.Command(b, "run", w.Save(b, task(i)))
		start = time.Now()
		memory := observe(b, cmd)
		ours = append(ours, time.Since(start))
		peak = max(peak, memory)
	}
	a, p := median(ours), median(peer)
	b.ReportMetric(0, "ns/op") // of both together: it says nothing
	b.ReportMetric(ms(a), "deckhand-ms")
	b.ReportMetric(ms(p), "docker-run-ms")
	b.ReportMetric(ms(a-p), "on-top-ms")
	b.ReportMetric(ms(a)/ms(p), "ratio")
	b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
}

// BenchmarkSameImage counts what a second task with the same digest asks the
// registry, beside a `docker pull` of it.
func BenchmarkSameImage(b *testing.B) {
	w := NewWorld(b)
	image := w.Image(b, "same", rig.Spec{Marker: "same"})
	run := func(i int) {
		w.MustRun(b, 0, tes.Task{ID: fmt.Sprint("same-", i), Executors: []tes.Executor{{Image: image.Digest, Command: []string{"true"}}}})
	}
	run(0)
	var ours, peer int
	for i := 1; b.Loop(); i++ {
		w.Registry.Reset()
		run(i)
		ours += len(w.Registry.Requests())
		w.Registry.Reset()
		rig.DockerCmd(b, "pull", "-q", image.Digest)
		peer += len(w.Registry.Requests())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(ours)/float64(b.N), "deckhand-requests")
	b.ReportMetric(float64(peer)/float64(b.N), "docker-pull-requests")
}

// BenchmarkRecovery kills a run while its container runs and starts it again:
// until the container is found again, each time beside `docker inspect` of the
// same container. Reported are the medians in milliseconds, their difference and
// ratio.
func BenchmarkRecovery(b *testing.B) {
	w := logged(NewWorld(b))
	image := w.Image(b, "recovery", rig.Spec{Marker: "recovery"})
	task := tes.Task{ID: "recovery", Executors: []tes.Executor{{Image: image.Digest, Command: []string{"sleep", "1h"}}}}
	run := w.Start(b, task)
	run.Until(b, "executor started")
	container := w.running(b)[0]
	var ours, peer []time.Duration
	for b.Loop() {
		run.Kill(b)
		start := time.Now()
		w.Docker(b, "inspect", container)
		peer = append(peer, time.Since(start))

		run = w.prepare(b, task)
		start = time.Now()
		run.start(b)
		run.Until(b, "executor found again")
		ours = append(ours, time.Since(start))
	}
	run.Kill(b)
	w.Docker(b, "kill", container)
	a, p := median(ours), median(peer)
	b.ReportMetric(0, "ns/op") // of both together: it says nothing
	b.ReportMetric(ms(a), "deckhand-ms")
	b.ReportMetric(ms(p), "docker-inspect-ms")
	b.ReportMetric(ms(a-p), "on-top-ms")
	b.ReportMetric(ms(a)/ms(p), "ratio")
}

// BenchmarkStart is the floor of every command: the program against the Docker
// client, both only printing their version.
func BenchmarkStart(b *testing.B) {
	program := Build(b)
	var ours, peer []time.Duration
	for b.Loop() {
		for _, c := range []struct {
			name  string
			times *[]time.Duration
		}{{program, &ours}, {"docker", &peer}} {
			start := time.Now()
			if out, err := exec.Command(c.name, "--version").CombinedOutput(); err != nil && c.name == "docker" {
				b.Fatalf("%v\n%s", err, out)
			}
			*c.times = append(*c.times, time.Since(start))
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ms(median(ours)), "deckhand-ms")
	b.ReportMetric(ms(median(peer)), "docker-ms")
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
