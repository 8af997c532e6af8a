package power

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/vm"
)

// history is what happened to one node, as far as it was told before its power
// went.
type history struct {
	t       *testing.T
	plan    *plan
	program string // that is deckhand here
	disk    *Disk
	machine *vm.Machine

	bootID string   // of the machine
	found  []string // where the journal had the task at each boot, empty for nowhere
	cuts   []string
	states []said // what deckhand has said that it had journaled
	events []check.Event
	// What the guest said last.
	last    []string // words of deckhand that are no log
	exit    string
	result  tes.Task
	records []machine.Record
	nodes   map[string]check.Node
}

// said is a line of deckhand's log.
type said struct {
	Msg     string
	Task    string
	Attempt int
	State   machine.State
	bootID  string
	at      time.Time
}

// entered is the message of a line that is written when the transition is in the
// journal.
const entered = "entered"

// newHistory plugs in a disk with the content of image.
func newHistory(t *testing.T, p *plan, program, image string) *history {
	t.Helper()
	return &history{t: t, plan: p, program: program, disk: NewDisk(t, image), nodes: map[string]check.Node{}}
}

func (h *history) boot(words ...string) {
	h.t.Helper()
	h.machine = h.plan.system.Boot(h.t, h.disk.drive(), append([]string{"deckhand=" + h.program}, h.plan.environment...), append([]string{"/bin/guest"}, words...)...)
}

// never is no instant.
var never = instant{delay: -1}

// hear takes in what the guest says until that is the end or the instant has
// come. It returns what came first.
func (h *history) hear(at instant, end func(vm.Line) bool) string {
	h.t.Helper()
	var until <-chan time.Time
	for {
		l, ok := h.machine.Next(until)
		if !ok {
			return fmt.Sprintf("%s after %s", at.delay.Round(time.Millisecond), at.name())
		}
		s := h.take(l)
		if at.delay >= 0 && until == nil && at.is(l, s) {
			until = time.After(at.delay)
		}
		if end(l) {
			return "at its " + l.Word
		}
	}
}

// is says whether the delay begins with a line that tells of that, nil for no log.
func (i instant) is(l vm.Line, s *said) bool {
	switch {
	case i.said != "":
		return s != nil && s.Msg == i.said
	case i.after != "":
		return s != nil && s.Msg == entered && s.State == i.after
	}
	return l.Word == "found"
}

func (i instant) name() string {
	return cmp.Or(i.said, string(i.after), "the start")
}

// take takes one line in, and returns what deckhand said, if it is of its log.
func (h *history) take(l vm.Line) *said {
	h.t.Helper()
	read := func(text string, into any) {
		h.t.Helper()
		if err := json.Unmarshal([]byte(text), into); err != nil {
			h.t.Fatalf("the guest says %s %q: %v", l.Word, text, err)
		}
	}
	switch l.Word {
	case "boot":
		id, cache, _ := strings.Cut(l.Rest, " ")
		if cache != "write back" {
			h.t.Fatalf("the guest takes the disk's cache for %q: it would not flush it", cache)
		}
		h.bootID = id
	case "found":
		h.found = append(h.found, l.Rest)
	case "log":
		s := said{bootID: h.bootID, at: l.At}
		if !strings.HasPrefix(l.Rest, "{") { // why it ends
			h.last = append(h.last, l.Rest)
			break
		}
		read(l.Rest, &s)
		if s.Msg == entered {
			h.states = append(h.states, s)
		}
		return &s
	case "event":
		var e check.Event
		read(l.Rest, &e)
		h.events = append(h.events, e)
	case "exit":
		h.exit = l.Rest
	case "result":
		h.result = tes.Task{}
		read(l.Rest, &h.result)
	case "records":
		h.records = nil
		read(l.Rest, &h.records)
	case "node":
		name, text, _ := strings.Cut(l.Rest, " ")
		var n check.Node
		read(text, &n)
		h.nodes[name] = n
	}
	return nil
}

// cut takes the power away. Containers end with it. The machine goes before its disk:
// it would take a disk that is gone for one that fails, and say so.
func (h *history) cut(random *rand.Rand, keep float64) Loss {
	h.t.Helper()
	for _, l := range h.machine.Kill() {
		h.take(l)
	}
	loss, err := h.disk.Cut(random, keep)
	if err != nil {
		h.t.Fatal(err)
	}
	alive := map[string]check.Event{}
	for _, e := range h.events {
		switch e.Action {
		case check.Start:
			alive[e.Container] = e
		case check.Die:
			delete(alive, e.Container)
		}
	}
	for _, e := range alive {
		e.Action, e.At = check.Die, time.Now()
		h.events = append(h.events, e)
	}
	return loss
}

// runAndCut boots the machine, runs the task, or what is left of it, and takes
// the power away at an instant, at the task's end at the latest. Of what was not
// flushed each sector is kept with the probability keep.
func (h *history) runAndCut(at instant, random *rand.Rand, keep float64) {
	h.t.Helper()
	h.boot(task)
	when := h.hear(at, func(l vm.Line) bool { return l.Word == "exit" })
	h.cuts = append(h.cuts, fmt.Sprintf("%s; %s", when, h.cut(random, keep)))
}

// recover boots the machine once more, lets the task end, and says what is wrong
// then.
func (h *history) recover() []string {
	h.t.Helper()
	h.boot(task)
	h.hear(never, func(l vm.Line) bool { return l.Word == "done" })
	h.cut(rand.New(rand.NewPCG(0, 0)), 1)
	return h.problems()
}

// problems says what is wrong with the node and the task that has ended on it.
func (h *history) problems() []string {
	after := h.nodes[task]
	twin := h.plan.twin
	// What Docker was unpacking when the power went stays for good: an empty layer (ADR 16).
	if more := after.Layers.Entries - twin.Layers.Entries; more > 0 && more <= h.cutsAt(machine.ImageCheck) {
		twin.Layers = after.Layers
	}
	c := check.Case{Task: task, Before: h.plan.before, After: after, Events: h.events, Twin: &twin}
	problems := append(c.Problems(), h.lost()...)
	if h.exit != "0" {
		problems = append(problems, "deckhand exits with "+h.exit+": "+strings.Join(h.last, "\n"))
	}
	if attempts := len(after.Journal.Tasks[task].Attempts); h.result.State != tes.Complete || len(h.result.Logs) != attempts {
		problems = append(problems, fmt.Sprintf("the result is %s with %d logs of %d attempts", h.result.State, len(h.result.Logs), attempts))
	}
	return problems
}

// lost says which transitions were acknowledged and are not in the journal.
func (h *history) lost() (problems []string) {
	for _, s := range h.states {
		if s.Task != task {
			continue
		}
		if !slices.ContainsFunc(h.records, func(r machine.Record) bool {
			return r.Kind == machine.KindTransition && r.Attempt == s.Attempt && r.To == s.State && r.BootID == s.bootID
		}) {
			problems = append(problems, fmt.Sprintf("%s of attempt %d was acknowledged in boot %s, and the journal does not have it", s.State, s.Attempt, s.bootID))
		}
	}
	return problems
}

// account tells what was done to the node and what came of it.
func (h *history) account() string {
	var lines []string
	for i, cut := range h.cuts {
		lines = append(lines, fmt.Sprintf("cut %s; the journal has the task at %s", cut, h.foundAfter(i)))
	}
	var path []string
	for _, r := range h.records {
		switch r.Kind {
		case machine.KindTransition:
			path = append(path, string(r.To))
		case machine.KindResume:
			path = append(path, "resumed")
		}
	}
	return strings.Join(append(lines, "the task went through "+strings.Join(path, " ")), "\n")
}

// cutsAt counts the cuts after which the journal had the task at a state.
func (h *history) cutsAt(state machine.State) (n int) {
	for i := range h.cuts {
		if h.foundAfter(i) == string(state) {
			n++
		}
	}
	return n
}

// foundAfter is where the journal had the task after a cut.
func (h *history) foundAfter(cut int) string {
	if cut+1 < len(h.found) && h.found[cut+1] != "" {
		return h.found[cut+1]
	}
	return "nothing"
}
