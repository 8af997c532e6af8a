// Package check says what is wrong on a node after a task has ended on it,
// however often its processes were killed. It asks deckhand nothing: it looks at
// the engine, the disk and the journal, and compares them with what was there
// before, and with how the same task ends when nobody kills anything.
package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/machine"
)

// Case is a task that has ended.
type Case struct {
	Task string
	// Before is the node before deckhand was there: what others have on it.
	Before Node
	// After is the node now.
	After Node
	// Twin is a node on which the same things were done and nothing was killed;
	// nil when there is none to compare with.
	Twin *Node
	// Events are those of the containers, from Before to After.
	Events []Event
}

// Problems are sentences that say what is wrong; there are none when the task
// has ended as it has to.
func (c Case) Problems() []string {
	p := slices.Concat(Clean(c.Before, c.After), Once(c.Events, c.After, c.Task))
	if c.Twin != nil {
		p = append(p, Same(*c.Twin, c.After, c.Task)...)
	}
	return p
}

// Clean says what is left on a node, or has gone from it, although no task runs
// there: after holds what was there before, and the images of the ledger.
func Clean(before, after Node) []string {
	var p problems
	for _, c := range after.Containers {
		p.when(c.Labels[labelRoot] != "", "container %s (%s) of task %s is left", c.Name, c.State, c.Labels[labelTask])
	}
	for _, v := range after.Volumes {
		p.when(v.Labels[labelRoot] != "", "volume %s of task %s is left", v.Name, v.Labels[labelTask])
	}
	for _, n := range after.Networks {
		p.when(n.Labels[labelRoot] != "", "network %s of task %s is left", n.Name, n.Labels[labelTask])
	}
	// What has no label, such as an anonymous volume, counts too: nobody else
	// has made anything meanwhile.
	p.differ("container", texts(before.Containers), texts(after.Containers))
	p.differ("volume", texts(before.Volumes), texts(after.Volumes))
	p.differ("network", texts(before.Networks), texts(after.Networks))

	for _, name := range after.Tasks() {
		if t := after.Journal.Tasks[name]; !t.State.Final() {
			p.add("task %s is unfinished: %s", name, t.State)
		}
	}
	p.when(after.Journal.Active != nil, "the journal has an active task: %+v", after.Journal.Active)
	for _, d := range after.Journal.Debts {
		p.add("what task %s has left is still owed: %s", d.Task, d.Detail)
	}
	for _, problem := range after.Journal.Problems {
		p.add("journal verify: %s", problem)
	}
	for _, name := range after.Root {
		p.when(!slices.Contains(rootFiles, name), "%s is left below the root", name)
	}
	for _, name := range after.JournalFiles {
		p.when(!slices.Contains(journalFiles, name), "%s is left in the journal's directory", name)
	}
	return append(p, imagesOf(before, after)...)
}

// imagesOf compares the images on the node with the ledger.
func imagesOf(before, after Node) (p problems) {
	theirs, is := byID(before.Images), byID(after.Images)
	for id, was := range theirs {
		now, there := is[id]
		p.when(!there, "image %s %v of others has gone", id, was.Names)
		for _, name := range was.Names {
			p.when(there && !slices.Contains(now.Names, name), "image %s of others has lost its name %s", id, name)
		}
	}
	ours := map[string]bool{}
	for _, r := range after.Journal.Images {
		p.when(r.Phase == machine.Pulling, "the ledger has a pull under way: %s", r.Reference)
		p.when(r.Last && r.Phase != machine.Present, "the last-image record %s is %s", r.Reference, r.Phase)
		img, there := is[r.ImageID]
		switch {
		case r.Phase == machine.Pulling:
			continue
		case !there:
			p.add("image %s (%s) of the ledger is not on the node", r.Reference, r.ImageID)
		case r.Phase == machine.Present && !slices.Contains(img.Names, r.Reference):
			p.add("the ledger has %s as image %s, which has the names %v", r.Reference, r.ImageID, img.Names)
		}
		if r.PulledByUs {
			ours[r.ImageID] = true
			_, wasThere := theirs[r.ImageID]
			p.when(wasThere && !r.Shared, "the ledger claims image %s, which was there before", r.Reference)
		}
	}
	for id, img := range is {
		_, wasThere := theirs[id]
		p.when(!wasThere && !ours[id], "image %s %v is on the node and in no ledger", id, img.Names)
	}
	slices.Sort(p)
	return p
}

// Once says where a container of the task ran beside another one of it, and
// which executor did not run exactly once in the attempt whose outputs count.
func Once(events []Event, after Node, task string) []string {
	var p problems
	alive := map[string]bool{}         // containers of the task that run
	starts := map[int]map[string]int{} // by attempt, then executor
	for _, e := range events {
		if e.Task != task {
			continue
		}
		switch e.Action {
		case Start:
			if alive[e.Container] {
				p.add("container %s was started while it ran", e.Container)
			}
			alive[e.Container] = true
			p.when(len(alive) > 1, "%d containers of the task ran at a time: %v", len(alive), slices.Sorted(maps.Keys(alive)))
			if starts[e.Attempt] == nil {
				starts[e.Attempt] = map[string]int{}
			}
			starts[e.Attempt][e.Executor]++
		case Die:
			delete(alive, e.Container)
		}
	}
	p.when(len(alive) > 0, "containers of the task still run: %v", slices.Sorted(maps.Keys(alive)))
	for attempt, of := range starts {
		for executor, n := range of {
			p.when(n > 1, "executor %s was started %d times in attempt %d", executor, n, attempt)
		}
	}
	t := after.Journal.Tasks[task]
	if t.State != machine.Complete && t.State != machine.ExecutorError {
		slices.Sort(p)
		return p
	}
	last := t.last()
	for executor, results := range last.Executors {
		p.when(len(results) != 1, "the journal has %d ends of executor %s in attempt %d", len(results), executor, last.Number)
		// One that was refused has not run.
		want := 1
		if results[0].refused() {
			want = 0
		}
		if n := starts[last.Number][executor]; events != nil && n != want {
			p.add("executor %s was started %d times in attempt %d, want %d", executor, n, last.Number, want)
		}
	}
	for executor := range starts[last.Number] {
		_, known := last.Executors[executor]
		p.when(!known, "executor %s ran in attempt %d, and the journal has no end of it", executor, last.Number)
	}
	slices.Sort(p)
	return p
}

// Same says where a node is not as its twin.
func Same(twin, after Node, task string) []string {
	var p problems
	p.differ("task", twin.Tasks(), after.Tasks())
	for _, name := range twin.Tasks() {
		want, got := twin.Journal.Tasks[name], after.Journal.Tasks[name]
		p.when(got.State != want.State, "task %s ended %s, want %s (%s)", name, got.State, want.State, got.Reason)
		p.when(got.Fault != want.Fault, "the fault of task %s is %q, want %q", name, got.Fault, want.Fault)
		if name != task {
			continue
		}
		p.differ("end of executor", want.last().ends(), got.last().ends())
		p.differ("published output", want.last().Published, got.last().Published)
		p.differ("warning", want.last().Warnings, got.last().Warnings)
	}
	p.differ("output file", listOf(twin.Outputs), listOf(after.Outputs))
	p.differ("image", texts(twin.Images), texts(after.Images))
	p.differ("image of the ledger", ledgerOf(twin), ledgerOf(after))
	p.differ("file below the root", twin.Root, after.Root)
	p.when(after.Layers != twin.Layers, "the engine's layers take %+v, want %+v", after.Layers, twin.Layers)
	return p
}

// ledgerOf describes the image ledger without what differs from run to run.
func ledgerOf(n Node) []string {
	var lines []string
	for _, r := range n.Journal.Images {
		lines = append(lines, fmt.Sprintf("%s %s %s %s ours=%t last=%t of %s", r.Reference, r.ImageID, r.Digest, r.Phase, r.PulledByUs, r.Last, r.Task))
	}
	return lines
}

func listOf(files map[string]string) []string {
	var list []string
	for name, content := range files {
		list = append(list, name+" "+content)
	}
	return list
}

func byID(images []Image) map[string]Image {
	m := map[string]Image{}
	for _, i := range images {
		m[i.ID] = i
	}
	return m
}

func texts[T fmt.Stringer](things []T) []string {
	list := make([]string, len(things))
	for i, t := range things {
		list[i] = t.String()
	}
	return list
}

// problems collects sentences.
type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

func (p *problems) when(wrong bool, format string, args ...any) {
	if wrong {
		p.add(format, args...)
	}
}

// differ compares two lists whose order does not matter.
func (p *problems) differ(what string, want, got []string) {
	count := map[string]int{}
	for _, x := range want {
		count[x]++
	}
	for _, x := range got {
		count[x]--
	}
	for _, x := range slices.Sorted(maps.Keys(count)) {
		switch {
		case count[x] > 0:
			p.add("missing: %s %s", what, strings.TrimSpace(x))
		case count[x] < 0:
			p.add("too many: %s %s", what, strings.TrimSpace(x))
		}
	}
}
