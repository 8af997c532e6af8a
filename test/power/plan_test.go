package power

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/rig"
	"github.com/deckhand/deckhand/test/vm"
)

// host is the address under which a machine reaches this one.
const host = "10.0.2.2"

// The tasks that the guest runs: task is the one whose node loses its power,
// earlier brings the image that task replaces.
const earlier, task = "earlier", "task"

// victim is a task with what a task can have: several executors, inputs of
// every kind, a stream in a file, a volume of the image, outputs.
func victim(image string) tes.Task {
	content := "of the document\n"
	return tes.Task{
		ID: task,
		Inputs: []tes.Input{
			{URL: "/srv/in/file", Path: "/in/file"},
			{URL: "/srv/in/dir", Path: "/in/dir", Type: tes.Directory},
			{Content: &content, Path: "/in/content"},
		},
		Executors: []tes.Executor{
			{Image: image, Stdout: "/data/stdout", Command: []string{
				"sh", "-c", "echo one >> /data/ran; cat /in/file; cp /in/file /data/copy; echo > /scratch/x"}},
			{Image: image, Command: []string{
				"sh", "-c", "echo two >> /data/ran; cat /in/content /in/dir/a /in/dir/b/c > /data/all; echo said"}},
		},
		Outputs: []tes.Output{
			{Path: "/data", URL: "/data/out/tree", Type: tes.Directory},
			{Path: "/data/all", URL: "/data/out/all"},
		},
		Volumes: []string{"/data"},
	}
}

// plan is a node with a task that is to be run, and how that goes when nobody
// cuts the power.
type plan struct {
	system      *vm.System
	environment []string      // of the guest, beside the program that is deckhand there
	registry    *rig.Registry // of the images
	top         string        // the digest of the last layer of the task's image
	image       string        // of the data disk, before the task
	before      check.Node    // with what others have on it, before any task
	twin        check.Node    // after the task
	whole       time.Duration // of the task, from its start to its exit
	states      []span        // that it goes through
}

// span is a state and how long the task was in it.
type span struct {
	state machine.State
	d     time.Duration
}

func (s span) String() string { return fmt.Sprint(s.state, " ", s.d) }

// newPlan makes a node with programs and has the one named deckhand run the task
// once to its end.
func newPlan(t *testing.T, programs map[string]string) *plan {
	t.Helper()
	registry := rig.NewRegistry(t)
	_, port, _ := strings.Cut(registry.Addr(), ":")
	there := func(ref string) string { return strings.Replace(ref, registry.Addr(), host+":"+port, 1) }
	image := func(name string, shared int64) rig.Ref {
		return rig.Image(t, registry, name, rig.Spec{Marker: name, Size: 1 << 20, Shared: shared, Volumes: []string{"/scratch"}})
	}
	p := &plan{environment: []string{"registry=" + host + ":" + port, "others=" + there(image("others", 0).Tag)}, registry: registry}
	b := image("b", 1<<20) // two of its layers no other image has
	p.top = b.Layers[len(b.Layers)-1]
	programs["guest"] = filepath.Join(t.TempDir(), "guest")
	vm.Build(t, programs["guest"], "./test/power/guest")
	p.system = vm.New(t, vm.Content{Programs: programs, Files: map[string][]byte{
		"/tasks/" + earlier + ".json": mustJSON(tes.Task{
			ID: earlier, Executors: []tes.Executor{{Image: there(image("a", 0).Digest), Command: []string{"true"}}},
		}),
		"/tasks/" + task + ".json": mustJSON(victim(there(b.Digest))),
		"/srv/in/file":             []byte(strings.Repeat("input of many lines\n", 50_000)),
		"/srv/in/dir/a":            []byte("a\n"),
		"/srv/in/dir/b/c":          []byte("c\n"),
	}})

	h := newHistory(t, p, "deckhand", vm.NewImage(t))
	h.boot("others", earlier, "save", task)
	h.hear(never, func(l vm.Line) bool { return l.Word == "saved" })
	p.image = filepath.Join(t.TempDir(), "image")
	if err := h.disk.Save(p.image); err != nil {
		t.Fatal(err)
	}
	h.states = nil
	var began, ended time.Time
	h.hear(never, func(l vm.Line) bool {
		switch l.Word {
		case "found":
			began = l.At
		case "exit":
			ended = l.At
		}
		return l.Word == "done"
	})
	h.cut(rand.New(rand.NewPCG(0, 0)), 1)
	p.before, p.twin, p.whole = h.nodes["others"], h.nodes[task], ended.Sub(began)
	for i, s := range h.states {
		left := ended
		if i+1 < len(h.states) {
			left = h.states[i+1].at
		}
		p.states = append(p.states, span{s.State, left.Sub(s.at).Round(time.Millisecond)})
	}
	if problems := h.problems(); len(problems) > 0 {
		t.Fatalf("without a power cut:\n%s", strings.Join(problems, "\n"))
	}
	t.Logf("with %s and no cut the task takes %s: %v", p.system.Accelerator(), p.whole.Round(time.Millisecond), p.states)
	return p
}

// instant is a time of a run: so long after deckhand said something or after a state
// was entered, or after its start when both are empty.
type instant struct {
	said  string // the message of a line of its log
	after machine.State
	delay time.Duration
}

// instant draws one: of the whole task, or, since most states are short, of one
// of its states.
func (p *plan) instant(random *rand.Rand) instant {
	if random.IntN(2) == 0 {
		return instant{delay: time.Duration(random.Int64N(int64(p.whole)))}
	}
	s := p.states[random.IntN(len(p.states))]
	return instant{after: s.state, delay: time.Duration(random.Int64N(int64(s.d) + 1))}
}

func mustJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // of tasks and maps
	}
	return text
}
