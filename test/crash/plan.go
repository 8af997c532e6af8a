package crash

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deckhand/deckhand/test/crash/shape"
)

// Plan says how much of the proof a process of it is to give.
type Plan struct {
	// Only names the shapes; empty means all.
	Only []string
	// Shard of Shards: of the points of a shape the process takes every
	// Shards-th, beginning with number Shard.
	Shard, Shards int
	// Everywhere kills on real engines at every point that makes a difference, and
	// not only where a container does.
	Everywhere bool
	// Points bounds at how many points of a shape real engines' runs are killed.
	// All is no bound. Which ones follows from Seed.
	Points int
	// ShortPairs and Pairs bound how many pairs of kills the exhaustive proof runs
	// for each point, in short shapes and in the others; RealPairs how many are run
	// for each shape on real engines. All is no bound. Which ones follows from Seed.
	ShortPairs, Pairs, RealPairs int
	Seed                         uint64
	// Result is the file for the Tally.
	Result string
}

// All points, or all pairs.
const All = -1

// planVariable holds a Plan as JSON.
const planVariable = "CRASH_PLAN"

// ReadPlan reads the plan from the environment.
func ReadPlan() (p Plan, err error) {
	err = json.Unmarshal([]byte(os.Getenv(planVariable)), &p)
	if err != nil {
		err = fmt.Errorf("%s: %w; the proof is run by test/crash", planVariable, err)
	}
	return p, err
}

func (p Plan) variable() string {
	text, _ := json.Marshal(p) // always encodes
	return planVariable + "=" + string(text)
}

// Shapes are those of the plan.
func (p Plan) Shapes() []shape.Shape {
	return slices.DeleteFunc(slices.Clone(shape.All), func(s shape.Shape) bool {
		return len(p.Only) > 0 && !slices.Contains(p.Only, s.Name)
	})
}

// Share returns the points that this process kills at.
func (p Plan) Share(points []string) []string {
	var share []string
	for i, at := range points {
		if i%p.Shards == p.Shard {
			share = append(share, at)
		}
	}
	return share
}

// Seconds returns the points of a recovery at which a shape that was killed at a
// point is killed again.
func (p Plan) Seconds(s shape.Shape, first string, points []string) []string {
	n := p.Pairs
	if s.Short {
		n = p.ShortPairs
	}
	return sample(p, s.Name+" "+first, n, points)
}

// sample takes n things. Which ones follows from the seed and the name alone, so
// that they can be taken again without the rest.
func sample[T any](p Plan, name string, n int, all []T) []T {
	if n == All || n >= len(all) {
		return all
	}
	all = slices.Clone(all)
	seed := sha256.Sum256(fmt.Appendf(nil, "%d %s", p.Seed, name))
	rand.New(rand.NewChaCha8(seed)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:n]
}

// Tally counts what was done.
type Tally struct {
	Shapes   int // runs that were traced
	Passed   int // points that these have passed
	Points   int // of them, those that make a difference
	Singles  int
	Doubles  int
	Kills    int
	Missed   int // points that a run to be killed there did not pass
	Failures int
	// Effects are the names of those that were passed.
	Effects map[string]bool
}

// See takes down the effects of a trace.
func (y *Tally) See(trace []string) {
	if y.Effects == nil {
		y.Effects = map[string]bool{}
	}
	for _, here := range trace {
		name, _, _ := strings.Cut(here, "#")
		y.Effects[name[:strings.LastIndex(name, " ")]] = true
	}
}

// Unseen returns those of all effects that were not passed.
func (y *Tally) Unseen(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool { return y.Effects[name] })
}

// Add adds another tally.
func (y *Tally) Add(more Tally) {
	y.Shapes += more.Shapes
	y.Passed += more.Passed
	y.Points += more.Points
	y.Singles += more.Singles
	y.Doubles += more.Doubles
	y.Kills += more.Kills
	y.Missed += more.Missed
	y.Failures += more.Failures
	if y.Effects == nil {
		y.Effects = map[string]bool{}
	}
	maps.Copy(y.Effects, more.Effects)
}

// Line tells it in a line.
func (y Tally) Line(took time.Duration) string {
	return fmt.Sprintf("%d shapes, %d points passed, %d make a difference, %d single and %d double crashes, %d kills, %d points missed, %d failures, %.0f s",
		y.Shapes, y.Passed, y.Points, y.Singles, y.Doubles, y.Kills, y.Missed, y.Failures, took.Seconds())
}

// counter is a Tally that several goroutines add to.
type counter struct {
	mu sync.Mutex
	Tally
}

func (c *counter) add(more Tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Add(more)
}
