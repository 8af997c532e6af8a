package crash

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/crash/instrument"
	"github.com/deckhand/deckhand/test/crash/shape"
)

// ofEngine matches the points after what the engine was asked to do.
var ofEngine = regexp.MustCompile(`/(Engine|ContainerEngine)\.\w+ (after#|called#1$)`)

// unsteady matches points that are passed or not, as time goes.
var unsteady = regexp.MustCompile(`^journal\.\(\*witness\)\.acknowledge/|/Engine\.Pull called#([2-9]|\d\d)`)

// telling returns the points of a trace to kill at on a real engine: where a
// container, or what Docker answers, makes a difference. That is before and after
// the engine is asked to do something, and when that is followed up. The
// exhaustive proof has the others, and so have real engines when everything is
// asked for.
func telling(trace []string, everywhere bool) []string {
	points := slices.DeleteFunc(Distinct(trace), unsteady.MatchString)
	var found []string
	for i, here := range points {
		near := points[max(0, i-1):min(len(points), i+2)]
		if everywhere || slices.ContainsFunc(near, ofEngine.MatchString) {
			found = append(found, here)
		}
	}
	return found
}

// TestReal runs the program on real engines: it is killed where a container makes
// a difference, sometimes twice, and ends as if nobody had killed it.
func TestReal(t *testing.T) {
	t.Parallel()
	plan := planOf(t, Plan{Points: 2, RealPairs: 1})
	program, effects, err := instrument.Build("../..", t.TempDir(), "./cmd/deckhand")
	if err != nil {
		t.Fatal(err)
	}
	registry := newRegistry(t)
	nodes := []*node{newNode(t, program, registry), newNode(t, program, registry)}
	r := &proof{plan: plan, nodes: nodes}
	began := time.Now()
	for _, s := range plan.Shapes() {
		if s.Restart {
			continue
		}
		t.Run(s.Name, func(t *testing.T) { r.explore(t, s) })
	}
	t.Logf("seed %d: %s", plan.Seed, r.tally.Line(time.Since(began)))
	unseen := r.tally.Unseen(effects)
	t.Logf("%d of %d effects were passed; the others are\n%s", len(effects)-len(unseen), len(effects), strings.Join(unseen, "\n"))
}

// proof explores shapes on several nodes at a time.
type proof struct {
	plan  Plan
	nodes []*node
	tally counter
}

func (r *proof) explore(t *testing.T, s shape.Shape) {
	nodes := r.nodes
	if s.Run.Moved != "" {
		nodes = nodes[:1] // they share the registry, where the tag leads to one image at a time
	}
	for _, n := range nodes {
		n.prepare(t, s)
	}
	twin, trace := r.uncrashed(t, s)
	everywhere := r.plan.Everywhere || s.Everywhere
	points := telling(trace, everywhere)
	r.tally.add(Tally{Shapes: 1, Passed: len(trace), Points: len(points)})
	if !everywhere {
		points = sample(r.plan, s.Name, r.plan.Points, points)
	}
	var mu sync.Mutex
	recovery := map[string][]string{} // the points of it, by that of the kill
	onNodes(nodes, points, func(n *node, at string) {
		again := r.kill(t, n, s, twin, at)
		mu.Lock()
		defer mu.Unlock()
		recovery[at] = again
	})
	var pairs [][2]string
	for _, at := range points {
		for _, second := range telling(recovery[at], everywhere) {
			pairs = append(pairs, [2]string{at, second})
		}
	}
	onNodes(nodes, sample(r.plan, s.Name+" twice", r.plan.RealPairs, pairs), func(n *node, at [2]string) { r.kill(t, n, s, twin, at[:]...) })
}

// onNodes does each thing on the next node that is free.
func onNodes[N, T any](nodes []N, things []T, do func(N, T)) {
	jobs := make(chan T, len(things))
	for _, x := range things {
		jobs <- x
	}
	close(jobs)
	var wait sync.WaitGroup
	for _, n := range nodes {
		wait.Go(func() {
			for x := range jobs {
				do(n, x)
			}
		})
	}
	wait.Wait()
}

// uncrashed runs a shape to its end and lists the points that it passes.
func (r *proof) uncrashed(t *testing.T, s shape.Shape) (check.Node, []string) {
	t.Helper()
	n := r.nodes[0]
	n.begin(t, s)
	defer n.end()
	o := n.run(t, s.Run, "")
	if o.code != s.Code {
		t.Fatalf("the run that nobody killed ended with %d, want %d\n%s", o.code, s.Code, o.log)
	}
	twin := n.look(t)
	if got := n.problems(t, s, twin, nil); len(got) > 0 {
		t.Fatalf("after the run that nobody killed:\n%s\n%s", strings.Join(got, "\n"), o.log)
	}
	return twin, o.trace
}

// kill runs the shape in a new world, kills it at each of the points in turn and
// lets it end. It returns the points that the last process has passed.
func (r *proof) kill(t *testing.T, n *node, s shape.Shape, twin check.Node, points ...string) []string {
	n.begin(t, s)
	defer n.end()
	count := Tally{Singles: 1}
	if len(points) > 1 {
		count = Tally{Doubles: 1}
	}
	var o outcome
	var logs []string
	for _, at := range append(points[:len(points):len(points)], "") {
		o = n.run(t, s.Run, at)
		logs = append(logs, o.log)
		if o.killed {
			count.Kills++
		} else if at != "" {
			count.Missed++ // on a real engine not everything happens twice in the same way
			break
		}
	}
	got := n.problems(t, s, n.look(t), &twin)
	if o.code != s.Code {
		got = append(got, fmt.Sprintf("the exit code is %d, want %d", o.code, s.Code))
	}
	if len(got) > 0 {
		count.Failures++
		t.Errorf("killed at %s:\n  %s\nthe processes said:\n%s",
			strings.Join(points, "\n  and "), strings.Join(got, "\n  "), strings.Join(logs, "\n---\n"))
	}
	count.See(o.trace)
	r.tally.add(count)
	return o.trace
}
