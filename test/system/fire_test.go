package system

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/rig"
)

// Whatever others do on a node with their own images, containers, volumes and
// networks, and however runs are killed: nothing of theirs changes but by
// themselves, and nothing of ours is left that should not be. Each round is a
// random sequence on an engine without anything. -rapid.checks sets how many
// rounds there are, -rapid.steps how long they are, and -rapid.seed repeats one
// as far as the moments of kills allow. So a failure ends the test itself: rapid
// would go through the round again, and tell of what happens then.
func TestOwnershipUnderFire(t *testing.T) {
	t.Parallel()
	fewRounds(t)
	docker := rig.NewDaemon(t)
	registry := rig.NewRegistry(t)
	var sum figures
	rapid.Check(t, func(rt *rapid.T) {
		f := newFire(t, docker, registry, &sum)
		defer func() {
			if !t.Failed() {
				f.wipe()
			}
		}()
		if f.rounds == 1 {
			f.openings()
		}
		rt.Repeat(map[string]func(*rapid.T){
			"a task":           f.task,
			"a killed task":    f.killed,
			"tasks at once":    f.together,
			"recover":          f.recover,
			"a task and prune": f.taskAndPrune,
			"a task and users": f.taskAndUsers,
			"they pull":        f.theyPull,
			"they tag":         f.theyTag,
			"they untag":       f.theyUntag,
			"they run":         f.theyRun,
			"they remove":      f.theyRemove,
			"they keep":        f.theyKeep,
			"they prune":       f.theyPrune,
			"a tag moves":      f.tagMoves,
		})
		f.end()
	})
	t.Log(&sum)
}

// seed of the rounds that found a stranger's digest taken along by a root that knew
// nothing of it. The same rounds each time, as far as the moments of kills allow: who
// sends a change is not to be told of a chance that has nothing to do with it.
// docs/developing.md has how to look for others.
const seed = "1270463234868220905"

// fewRounds sets what rapid does where nobody has said it: as many rounds as CI
// has time for.
func fewRounds(t *testing.T) {
	t.Helper()
	told := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { told[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": "2", "rapid.steps": "20", "rapid.seed": seed} {
		if told[name] {
			continue
		}
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("-rapid.seed=%s", flag.Lookup("rapid.seed").Value)
}

// figures are what all rounds did.
type figures struct{ rounds, tasks, kills, foreign int }

func (s *figures) String() string {
	return fmt.Sprintf("%d rounds: %d tasks, %d of them killed, and %d acts of others", s.rounds, s.tasks, s.kills, s.foreign)
}

// fire is a node that three roots share with others.
type fire struct {
	*figures
	t        *testing.T // for what only the rig can fail
	docker   *rig.Daemon
	registry *rig.Registry
	roots    []*fireRoot
	contents map[string][]rig.Spec // that a tag may name, by repository
	tags     []string              // as Image takes them
	refs     []string              // that tasks ask for
	site     rig.Ref               // that only others have
	last     rig.Ref
	layers   int // entries of the engine's layers before the round
	next     int // number of the next task or thing of others
	mu       sync.Mutex
	faults   []string
	theirs
}

// fireRoot is a root with the task whose process was killed there, if any.
type fireRoot struct {
	*World
	name string
	keep int
	dead *tes.Task
}

// theirs is what others have.
type theirs struct {
	containers map[string]string // state, by ID
	volumes    map[string]string // what a file in it says, by name
	networks   map[string]string // name, by ID
	// names are the tags and digests that they gave images, with the ID.
	names map[string]string
	// brought are images that came by a pull of ours, whoever names them since.
	brought map[string]bool
	// nameless are images of theirs whose name a pull of ours took: a tag that moved.
	nameless map[string]bool
	// anyones are images that may stay and may go: they removed a name of ours and
	// brought it back, which nobody can tell, or gave up theirs.
	anyones map[string]bool
	// held are the containers whose image was seen after they were made. Docker may
	// delete that of a container that it is just making (ADR 17).
	held map[string]bool
}

func newFire(t *testing.T, docker *rig.Daemon, registry *rig.Registry, sum *figures) *fire {
	t.Helper()
	sum.rounds++
	f := &fire{
		figures: sum, t: t, docker: docker, registry: registry,
		contents: map[string][]rig.Spec{
			"a": {{Marker: "x", Shared: 1 << 16, Volumes: []string{"/data"}}, {Marker: "y", Shared: 1 << 16}},
			"b": {{Marker: "x", Shared: 1 << 16}, {Marker: "y"}},
		},
		tags: []string{"a:1", "a:2", "b:1"},
		theirs: theirs{
			containers: map[string]string{}, volumes: map[string]string{}, networks: map[string]string{},
			names: map[string]string{}, brought: map[string]bool{}, nameless: map[string]bool{}, anyones: map[string]bool{}, held: map[string]bool{},
		},
	}
	for _, spec := range f.contents["a"] {
		f.refs = append(f.refs, rig.Image(t, registry, "a:1", spec).Digest)
	}
	for _, tag := range f.tags {
		repo, _, _ := strings.Cut(tag, ":")
		f.refs = append(f.refs, rig.Image(t, registry, tag, f.contents[repo][0]).Tag)
	}
	f.site = rig.Image(t, registry, "site/scanner:1", rig.Spec{Marker: "scanner", Shared: 1 << 16})
	f.last = rig.Image(t, registry, "last:1", rig.Spec{Marker: "last"})
	for i, keep := range []int{1, 1, 2} {
		w := &World{Node: NewNode(t, docker.Host), Registry: registry, Dir: t.TempDir(), Docker: docker.Cmd}
		w.Write(t, "in", "input")
		f.roots = append(f.roots, &fireRoot{World: w, name: fmt.Sprint("root ", i), keep: keep})
	}
	f.layers = f.entries()
	t.Logf("round %d", f.rounds)
	return f
}

// wipe removes everything from the engine, whoever has it.
func (f *fire) wipe() {
	for _, kind := range []struct{ list, remove string }{
		{"ps -aq", "rm -f -v"}, {"volume ls -q", "volume rm -f"}, {"network ls -q --filter type=custom", "network rm"}, {"images -aq --no-trunc", "rmi -f"},
	} {
		all := strings.Fields(f.docker.Cmd(f.t, strings.Fields(kind.list)...))
		slices.Sort(all)
		if all = slices.Compact(all); len(all) > 0 {
			f.try(append(strings.Fields(kind.remove), all...)...) // a child image goes with its parent
		}
	}
}

// look asks the engine what it holds.
func (f *fire) look() check.Engine {
	f.t.Helper()
	e, err := check.ReadEngine(f.docker.Host, "")
	if err != nil {
		f.t.Fatal(err)
	}
	return e
}

// entries counts what the engine keeps of layers, while nobody uses it.
func (f *fire) entries() int {
	f.t.Helper()
	e, err := check.ReadEngine(f.docker.Host, f.docker.DataRoot())
	if err != nil {
		f.t.Fatal(err)
	}
	return e.Layers.Entries
}

// try runs the docker command line, which may refuse.
func (f *fire) try(args ...string) (string, bool) {
	var out, refusal bytes.Buffer
	cmd := exec.Command("docker", append([]string{"-H", f.docker.Host}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &refusal
	err := cmd.Run()
	f.t.Logf("  docker %s: %s %s", strings.Join(args, " "), strings.TrimSpace(out.String()), strings.TrimSpace(refusal.String()))
	return strings.TrimSpace(out.String()), err == nil
}

func (f *fire) number() int { f.next++; return f.next }

// journal reads a root's journal past deckhand's own commands.
func (f *fire) journal(x *fireRoot) check.Journal {
	f.t.Helper()
	j, err := check.OpenJournal(filepath.Join(x.Root, "journal"))
	if err != nil {
		f.t.Fatal(err)
	}
	return j
}

// believed says whether a root takes that name of the image for its own, or may
// when it goes on: a pull of the name was under way when its process was killed.
func (f *fire) believed(name, id string) bool {
	return slices.ContainsFunc(f.roots, func(x *fireRoot) bool {
		return slices.ContainsFunc(f.journal(x).Images, func(r machine.ImageRecord) bool {
			mine := r.Reference == name || r.Digest == name
			return mine && (r.Phase == machine.Pulling || r.PulledByUs && r.ImageID == id)
		})
	})
}

// volume is the file in a volume by which its content is known.
func (f *fire) volume(name string) string {
	return filepath.Join(f.docker.DataRoot(), "volumes", name, "_data", "theirs")
}

// ours says whether a root has made what has these labels. Docker goes on with what
// a process asked for that was killed.
func (f *fire) ours(labels map[string]string) bool {
	return slices.ContainsFunc(f.roots, func(x *fireRoot) bool {
		id := x.RootID(f.t)
		return id != "" && labels["deckhand.root"] == id
	})
}

// others does what others do while no process of deckhand's runs. Whatever changes
// is theirs. asked are the references that they ask for by name.
func (f *fire) others(what string, asked []string, act func()) {
	f.t.Logf("they %s", what)
	f.foreign++
	before := f.look()
	act()
	after := f.look()
	had := map[string]bool{}
	for _, c := range before.Containers {
		had[c.ID] = true
	}
	for _, v := range before.Volumes {
		had[v.Name] = true
	}
	for _, n := range before.Networks {
		had[n.ID] = true
	}
	is := map[string]bool{}
	for _, c := range after.Containers {
		is[c.ID] = true
		if _, theirs := f.containers[c.ID]; theirs || !had[c.ID] && !f.ours(c.Labels) {
			f.containers[c.ID] = c.State
		}
	}
	for _, v := range after.Volumes {
		is[v.Name] = true
		if !had[v.Name] && !f.ours(v.Labels) {
			f.takeVolume(v.Name)
		}
	}
	for _, n := range after.Networks {
		is[n.ID] = true
		if !had[n.ID] {
			f.networks[n.ID] = n.Name
		}
	}
	gone := func(key string) bool { return !is[key] }
	maps.DeleteFunc(f.containers, func(id, _ string) bool { return gone(id) })
	maps.DeleteFunc(f.volumes, func(name, _ string) bool { return gone(name) })
	maps.DeleteFunc(f.networks, func(id, _ string) bool { return gone(id) })
	f.images(before, after, asked)
}

func (f *fire) takeVolume(name string) {
	f.t.Helper()
	if err := os.WriteFile(f.volume(name), []byte(name), 0o644); err != nil {
		f.t.Fatal(err)
	}
	f.volumes[name] = name
}

// images accounts for what others did to images.
func (f *fire) images(before, after check.Engine, asked []string) {
	were, are := namesOf(before), namesOf(after)
	there := byID(after)
	maps.DeleteFunc(f.names, func(name, id string) bool {
		given := are[name] != id
		if given && there[id] != nil {
			f.anyones[id] = true
		}
		return given
	})
	for name, id := range are {
		switch {
		case were[name] == id:
		case f.believed(name, id):
			f.anyones[id] = true
		case slices.Contains(asked, name):
			f.names[name] = id
		}
	}
	f.unheld(func(name string) bool { return were[name] != "" && are[name] == "" })
	for id := range there {
		// What lost its name by them, and they have a digest of.
		if len(there[id]) == 0 && byID(before)[id] != nil && len(byID(before)[id]) > 0 {
			f.anyones[id] = true
		}
	}
	for _, set := range []map[string]bool{f.nameless, f.anyones} {
		maps.DeleteFunc(set, func(id string, _ bool) bool { return there[id] == nil })
	}
}

// unheld gives up the digests of others for which a root held a tag that they have
// removed: the tag of another root, which knows nothing of them, takes them along (ADR 17).
func (f *fire) unheld(gone func(name string) bool) {
	for _, x := range f.roots {
		for _, r := range f.journal(x).Images {
			if r.Lone && gone(r.Reference) && f.names[r.Digest] == r.ImageID {
				delete(f.names, r.Digest)
				f.anyones[r.ImageID] = true
			}
		}
	}
}

// namesOf maps the names of all images to IDs.
func namesOf(e check.Engine) map[string]string {
	names := map[string]string{}
	for _, i := range e.Images {
		for _, name := range i.Names {
			names[name] = i.ID
		}
	}
	return names
}

// byID maps the IDs of all images to their names, which are never nil.
func byID(e check.Engine) map[string][]string {
	names := map[string][]string{}
	for _, i := range e.Images {
		names[i.ID] = append([]string{}, i.Names...)
	}
	return names
}

// intact fails when anything of others has changed. asked are the references that
// tasks asked for meanwhile: a pull may have moved such a tag.
func (f *fire) intact(e check.Engine, asked []string) {
	f.t.Helper()
	state, volumes, networks := map[string]string{}, map[string]bool{}, map[string]bool{}
	there, names := byID(e), namesOf(e)
	for _, c := range e.Containers {
		state[c.ID] = c.State
		if there[c.Image] != nil {
			f.held[c.ID] = true
		} else if f.held[c.ID] {
			f.wrong("image %s of container %s has gone", c.Image, c.Name)
		}
	}
	for _, v := range e.Volumes {
		volumes[v.Name] = true
	}
	for _, n := range e.Networks {
		networks[n.ID] = true
	}
	for id, was := range f.containers {
		if state[id] != was {
			f.wrong("container %s of others was %s and is %q", id, was, state[id])
		}
	}
	for name, was := range f.volumes {
		if text, err := os.ReadFile(f.volume(name)); !volumes[name] || err != nil || string(text) != was {
			f.wrong("volume %s of others: there %t, %q, %v", name, volumes[name], text, err)
		}
	}
	for id := range f.networks {
		if !networks[id] {
			f.wrong("network %s of others has gone", id)
		}
	}
	for name, id := range f.names {
		if names[name] == id {
			continue
		}
		if names[name] == "" || !slices.Contains(asked, name) {
			f.wrong("name %s of others for image %s has gone; it names %q", name, id, names[name])
		}
		delete(f.names, name)
		if f.brought[id] {
			f.anyones[id] = true // nobody else has brought it, and nobody names it any more
		} else {
			f.nameless[id] = true
		}
	}
	for id := range f.nameless {
		if there[id] == nil {
			f.wrong("image %s of others has gone, whose tag a pull of ours has moved", id)
		}
	}
}

// clean fails when anything is left that has no owner, as far as no dead process may
// still have it.
func (f *fire) clean(e check.Engine) {
	f.t.Helper()
	dead := map[string]bool{}
	for _, x := range f.roots {
		if x.dead != nil {
			dead[x.RootID(f.t)] = true
			continue
		}
		if left := x.TaskDirs(f.t); len(left) > 0 {
			f.wrong("%s: task directories are left: %v", x.name, left)
		}
		j := f.journal(x)
		if len(j.Problems) > 0 || j.Active != nil {
			f.wrong("%s: the journal has the active task %v and the problems %v", x.name, j.Active, j.Problems)
		}
	}
	excused := func(labels map[string]string) bool {
		root, labelled := labels["deckhand.root"]
		return dead[root] || !labelled && len(dead) > 0
	}
	for _, c := range e.Containers {
		if _, theirs := f.containers[c.ID]; !theirs && !excused(c.Labels) {
			f.wrong("container %s is left, %s, with labels %v", c.Name, c.State, c.Labels)
		}
	}
	for _, v := range e.Volumes {
		if _, theirs := f.volumes[v.Name]; !theirs && !excused(v.Labels) {
			f.wrong("volume %s is left, with labels %v", v.Name, v.Labels)
		}
	}
	for _, n := range e.Networks {
		builtin := slices.Contains([]string{"bridge", "host", "none"}, n.Name)
		if _, theirs := f.networks[n.ID]; !theirs && !builtin && !excused(n.Labels) {
			f.wrong("network %s is left, with labels %v", n.Name, n.Labels)
		}
	}
	if len(dead) > 0 {
		return // a pull of theirs may have ended
	}
	known := f.foreignImages()
	for _, x := range f.roots {
		for _, r := range f.journal(x).Images {
			if r.Phase == machine.Pulling {
				f.wrong("%s: a pull of %s is under way in the ledger", x.name, r.Reference)
			}
			known[r.ImageID] = true
		}
	}
	for _, i := range e.Images {
		if !known[i.ID] {
			f.wrong("image %s %v is left, and nobody has it", i.ID, i.Names)
		}
	}
}

// foreignImages are the IDs of the images that others have or may have.
func (f *fire) foreignImages() map[string]bool {
	ids := map[string]bool{}
	for _, id := range f.names {
		ids[id] = true
	}
	maps.Copy(ids, f.nameless)
	maps.Copy(ids, f.anyones)
	return ids
}

// judge looks at the node after tasks that asked for these references.
func (f *fire) judge(asked ...string) check.Engine {
	f.t.Helper()
	for _, x := range f.roots {
		if x.dead != nil { // its pull may still end
			asked = append(asked, x.dead.Images()...)
		}
	}
	e := f.look()
	f.intact(e, asked)
	f.clean(e)
	f.bring(e)
	f.stop(e)
	return e
}

// bring notes which of the images on the engine roots have brought.
func (f *fire) bring(e check.Engine) {
	for _, x := range f.roots {
		for _, r := range f.journal(x).Images {
			if r.PulledByUs && !r.Shared {
				f.brought[r.ImageID] = true
			}
		}
	}
	there := byID(e)
	maps.DeleteFunc(f.brought, func(id string, _ bool) bool { return there[id] == nil })
}

// wrong notes what is not as it should be.
func (f *fire) wrong(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, fmt.Sprintf(format, args...))
}

// stop ends the test when anything is wrong. What is wrong comes last, after what
// is there: of a long log the end is read, and sometimes nothing else is kept.
func (f *fire) stop(e check.Engine) {
	f.t.Helper()
	if len(f.faults) == 0 {
		return
	}
	f.t.Logf("engine: %+v\ntheirs: %+v", e, f.theirs)
	for _, x := range f.roots {
		f.t.Logf("%s, dead task %v: %+v", x.name, x.dead != nil, f.journal(x).Images)
	}
	f.t.Fatal(strings.Join(f.faults, "\n"))
}

// elsewhere says whether another root has brought the image. A root that found it without
// a name holds it as somebody's until that one has deleted it.
func (f *fire) elsewhere(x *fireRoot, imageID string) bool {
	return slices.ContainsFunc(f.roots, func(y *fireRoot) bool {
		return y != x && slices.ContainsFunc(f.journal(y).Images, func(r machine.ImageRecord) bool {
			return r.ImageID == imageID && r.PulledByUs && r.Phase == machine.Present
		})
	})
}

// ledger fails when a root keeps more than it may after a task of its own, during
// which nobody else had an image in use but containers that are still there.
func (f *fire) ledger(x *fireRoot, e check.Engine) {
	f.t.Helper()
	tasks, foreign, images := map[string]bool{}, f.foreignImages(), f.journal(x).Images
	last := map[string]bool{} // by ID: the other names of such an image stay with it
	for _, r := range images {
		last[r.ImageID] = last[r.ImageID] || r.Last
	}
	for _, r := range images {
		used := slices.ContainsFunc(e.Containers, func(c check.Container) bool { return c.Image == r.ImageID })
		switch {
		case r.PulledByUs && r.Phase == machine.Present && (r.Last || !last[r.ImageID]):
			tasks[r.Task] = true
		case r.Phase == machine.Removing && !used && (!r.Lone || !foreign[r.ImageID] && !f.elsewhere(x, r.ImageID)):
			f.wrong("%s: the deletion of %s %s is pending, which nobody has", x.name, r.Reference, r.ImageID)
		}
	}
	if len(tasks) > x.keep {
		f.wrong("%s: images of the tasks %v are kept, %d may be", x.name, slices.Sorted(maps.Keys(tasks)), x.keep)
	}
	f.stop(e)
}

// a root and a task for it.

func (f *fire) root(rt *rapid.T) *fireRoot { return rapid.SampledFrom(f.roots).Draw(rt, "root") }

// work draws a task for a root: the one whose process was killed, or a new one.
func (f *fire) work(rt *rapid.T, x *fireRoot) tes.Task {
	x.Env = append(slices.Clip(x.Env[:2]),
		"DECKHAND_IMAGE_PULL="+rapid.SampledFrom([]string{"auto", "always", "missing"}).Draw(rt, "policy"),
		fmt.Sprint("DECKHAND_IMAGE_KEEP=", x.keep))
	if x.dead != nil && rapid.Bool().Draw(rt, "resumed") {
		return *x.dead
	}
	return f.newTask(x, rapid.SliceOfN(rapid.SampledFrom(f.refs), 1, 2).Draw(rt, "images")...)
}

func (f *fire) newTask(x *fireRoot, refs ...string) tes.Task {
	id := fmt.Sprint("t", f.number())
	task := tes.Task{
		ID: id, Volumes: []string{"/work"},
		Inputs:  []tes.Input{{URL: filepath.Join(x.Dir, "in"), Path: "/in/file"}},
		Outputs: []tes.Output{{URL: filepath.Join(x.Dir, "out", id), Path: "/work/out"}},
	}
	for _, ref := range refs {
		task.Executors = append(task.Executors, Sh(ref, "cat /in/file >> /work/out; sleep 0.1"))
	}
	return task
}

// run runs a task on a root to its end, or kills it after a delay. It returns what
// the task asks for.
func (f *fire) run(x *fireRoot, task tes.Task, killAfter time.Duration) []string {
	var asked []string
	for _, y := range []*tes.Task{&task, x.dead} {
		if y != nil {
			asked = append(asked, y.Images()...)
		}
	}
	b := x.prepare(f.t, task)
	b.start(f.t)
	if killAfter > 0 {
		time.Sleep(killAfter)
		_ = b.Process.Kill() // it may have ended
	}
	code, log := b.End(f.t)
	switch {
	case code == 0:
		x.dead = nil
	case code < 0 && killAfter > 0:
		x.dead = &task
	default:
		f.wrong("%s: task %s with %v ended with %d:\n%s", x.name, task.ID, task.Images(), code, log)
	}
	f.t.Logf("%s, %s: task %s with %v, killed after %s: %d", x.name, strings.Join(x.Env[2:], " "), task.ID, task.Images(), killAfter, code)
	return asked
}

func (f *fire) count(killAfter time.Duration) {
	f.tasks++
	if killAfter > 0 {
		f.kills++
	}
}

func (f *fire) task(rt *rapid.T) {
	x := f.root(rt)
	f.count(0)
	asked := f.beside(x, f.work(rt, x), 0)
	f.ledger(x, f.judge(asked...))
}

// beside is run on one root, and fails when a dead task of another one has lost its
// directory.
func (f *fire) beside(x *fireRoot, task tes.Task, killAfter time.Duration) []string {
	directories := func() (all []string) {
		for _, y := range f.roots {
			for _, name := range y.TaskDirs(f.t) {
				if y != x {
					all = append(all, y.name+": "+name)
				}
			}
		}
		return all
	}
	had := directories()
	asked := f.run(x, task, killAfter)
	if have := directories(); !slices.Equal(had, have) {
		f.wrong("the other roots had the task directories %v and have %v", had, have)
	}
	return asked
}

func moment(rt *rapid.T) time.Duration {
	return time.Duration(rapid.IntRange(1, 1200).Draw(rt, "killed after ms")) * time.Millisecond
}

func (f *fire) killed(rt *rapid.T) {
	x, after := f.root(rt), moment(rt)
	f.count(after)
	f.judge(f.beside(x, f.work(rt, x), after)...)
}

// together runs a task on every root at once.
func (f *fire) together(rt *rapid.T) {
	var all sync.WaitGroup
	asked := make([][]string, len(f.roots))
	for i, x := range f.roots {
		task, after := f.work(rt, x), time.Duration(0)
		if rapid.IntRange(0, 2).Draw(rt, "killed") == 0 {
			after = moment(rt)
		}
		f.count(after)
		all.Go(func() { asked[i] = f.run(x, task, after) })
	}
	all.Wait()
	f.judge(slices.Concat(asked...)...)
}

func (f *fire) recover(rt *rapid.T) { f.judge(f.settle(f.root(rt))...) }

// settle rolls back what a dead process left.
func (f *fire) settle(x *fireRoot) (asked []string) {
	if x.dead != nil {
		asked = x.dead.Images()
	}
	r := x.Deckhand(f.t, "recover")
	f.t.Logf("%s: recover: %d", x.name, r.Code)
	if r.Code != 0 {
		f.wrong("%s: recover: %+v", x.name, r)
	}
	x.dead = nil
	return asked
}

// taskAndPrune has a site's cron job prune the node while a task runs.
func (f *fire) taskAndPrune(rt *rapid.T) {
	x, wait := f.root(rt), moment(rt)
	task := f.work(rt, x)
	f.count(0)
	f.foreign++
	pruned := make(chan string)
	go func() {
		time.Sleep(wait)
		said, _ := f.try("system", "prune", "-a", "-f", "--volumes")
		pruned <- said
	}()
	asked := f.run(x, task, 0)
	f.forgive(<-pruned)
	f.judge(asked...)
}

// forgive drops what a prune says that it took.
func (f *fire) forgive(said string) {
	took, there := map[string]bool{}, byID(f.look())
	for _, word := range strings.Fields(said) {
		took[word] = true
	}
	maps.DeleteFunc(f.containers, func(id, _ string) bool { return took[id] })
	maps.DeleteFunc(f.volumes, func(name, _ string) bool { return took[name] })
	maps.DeleteFunc(f.networks, func(_, name string) bool { return took[name] })
	// An image that a container uses stays, but not its other names, and a task may
	// have brought back what has gone. A name that a pull of ours had moved before is
	// not among those that went with its image.
	maps.DeleteFunc(f.names, func(name, id string) bool {
		if took[name] && there[id] != nil {
			f.anyones[id] = true
		}
		return took[name] || took[id]
	})
	maps.DeleteFunc(f.nameless, func(id string, _ bool) bool { return took[id] })
	f.unheld(func(name string) bool { return took[name] })
	maps.DeleteFunc(f.anyones, func(id string, _ bool) bool { return there[id] == nil })
}

// taskAndUsers has others make a container of an image that a task uses while it
// runs.
func (f *fire) taskAndUsers(rt *rapid.T) {
	x, wait := f.root(rt), moment(rt)
	task := f.work(rt, x)
	f.count(0)
	f.foreign++
	name := fmt.Sprint("theirs-", f.number())
	var their sync.WaitGroup
	their.Go(func() {
		time.Sleep(wait)
		f.try("run", "-d", "--pull=never", "--network=none", "--name="+name, task.Images()[0], "sleep", "1d")
	})
	asked := f.run(x, task, 0)
	their.Wait()
	for _, c := range f.look().Containers {
		if c.Name != name {
			continue
		}
		f.containers[c.ID] = c.State
		for _, v := range strings.Fields(f.docker.Cmd(f.t, "inspect", "--format", "{{range .Mounts}}{{.Name}} {{end}}", name)) {
			f.takeVolume(v)
		}
	}
	f.judge(asked...)
}

// openings are what chance may miss in a few rounds: others have an image of ours by
// its digest alone, by a name of their own and by a container, when it is to go.
func (f *fire) openings() {
	task := func(x *fireRoot, ref string) {
		x.Env = append(slices.Clip(x.Env[:2]), "DECKHAND_IMAGE_PULL=missing", fmt.Sprint("DECKHAND_IMAGE_KEEP=", x.keep))
		f.count(0)
		f.ledger(x, f.judge(f.run(x, f.newTask(x, ref), 0)...))
	}
	digestX, digestY, a, b := f.refs[0], f.refs[1], f.refs[2], f.refs[4]
	const tool = "site/tool:1"
	f.others("pull "+digestX, []string{digestX}, func() { f.try("pull", "-q", digestX) })
	task(f.roots[0], a)
	task(f.roots[0], b)

	task(f.roots[1], digestY)
	f.others("tag "+digestY+" as "+tool, []string{tool}, func() { f.try("tag", digestY, tool) })
	task(f.roots[1], tool)
	task(f.roots[1], b)

	f.others("create a container of "+b, nil, func() { f.try("create", "--pull=never", "--network=none", b) })
	f.judge()
	task(f.roots[0], a)
}

// What others do.

func (f *fire) theyPull(rt *rapid.T) {
	ref := rapid.SampledFrom(append([]string{f.site.Tag}, f.refs...)).Draw(rt, "ref")
	f.others("pull "+ref, []string{ref}, func() { f.try("pull", "-q", ref) })
	f.judge()
}

// some draws one of the names that images have.
func (f *fire) some(rt *rapid.T) string {
	names := slices.Sorted(maps.Keys(namesOf(f.look())))
	if len(names) == 0 {
		rt.Skip("no image is there")
	}
	return names[rapid.IntRange(0, 1000).Draw(rt, "image")%len(names)]
}

func (f *fire) theyTag(rt *rapid.T) {
	name := f.some(rt)
	as := rapid.SampledFrom([]string{"site/tool:1", "site/tool:2", f.registry.Addr() + "/a:2", f.registry.Addr() + "/b:mine"}).Draw(rt, "as")
	f.others("tag "+name+" as "+as, []string{as}, func() { f.try("tag", name, as) })
	f.judge()
}

func (f *fire) theyUntag(rt *rapid.T) {
	name := f.some(rt)
	f.others("untag "+name, nil, func() { f.try("rmi", name) })
	f.judge()
}

func (f *fire) theyRun(rt *rapid.T) {
	image := f.some(rt)
	name := fmt.Sprint("theirs-", f.number())
	args := []string{"--pull=never", "--network=none", "--name=" + name}
	if rapid.Bool().Draw(rt, "named volume") {
		args = append(args, "-v", rapid.SampledFrom([]string{"deckhand-data", "site-data"}).Draw(rt, "volume")+":/named")
	}
	if rapid.Bool().Draw(rt, "anonymous volume") {
		args = append(args, "-v", "/anonymous")
	}
	if rapid.Bool().Draw(rt, "labels") {
		args = append(args, "--label=deckhand.root=another", "--label=deckhand.task=t1", "--label=deckhand.attempt=1")
	}
	args = slices.Concat(rapid.SampledFrom([][]string{{"create"}, {"run"}, {"run", "-d"}}).Draw(rt, "how"), args, []string{image})
	if args[0] == "run" && args[1] == "-d" {
		args = append(args, "sleep", "1d")
	} else {
		args = append(args, "true")
	}
	f.others(strings.Join(args, " "), nil, func() { f.try(args...) })
	f.judge()
}

// theyRemove removes a container, also one that a dead process of ours has left.
func (f *fire) theyRemove(rt *rapid.T) {
	all := f.look().Containers
	if len(all) == 0 {
		rt.Skip("no container is there")
	}
	slices.SortFunc(all, func(a, b check.Container) int { return cmp.Compare(a.Name, b.Name) })
	c := all[rapid.IntRange(0, 1000).Draw(rt, "container")%len(all)]
	args := []string{"rm", "-f", c.ID}
	if rapid.Bool().Draw(rt, "with volumes") {
		args = []string{"rm", "-f", "-v", c.ID}
	}
	f.others("remove container "+c.Name, nil, func() { f.try(args...) })
	f.judge()
}

func (f *fire) theyKeep(rt *rapid.T) {
	kind := rapid.SampledFrom([]string{"volume", "network"}).Draw(rt, "kind")
	args := []string{kind, "create"}
	if rapid.Bool().Draw(rt, "labels") {
		args = append(args, "--label=deckhand.root=another", "--label=deckhand.task=t1")
	}
	args = append(args, fmt.Sprint("deckhand-theirs-", f.number()))
	f.others(strings.Join(args, " "), nil, func() { f.try(args...) })
	f.judge()
}

func (f *fire) theyPrune(rt *rapid.T) {
	what := rapid.SampledFrom([]string{
		"system prune -f", "system prune -a -f --volumes", "image prune -f", "image prune -a -f",
		"container prune -f", "volume prune -f", "volume prune -a -f", "network prune -f",
	}).Draw(rt, "what")
	f.others(what, nil, func() { f.try(strings.Fields(what)...) })
	f.judge()
}

// tagMoves moves a tag in the registry. What a dead process pulled is not found
// when, before its root goes on, the tag moves and another root pulls it (ADR 17).
func (f *fire) tagMoves(rt *rapid.T) {
	var asked []string
	for _, x := range f.roots {
		if x.dead != nil {
			asked = append(asked, f.settle(x)...)
		}
	}
	tag := rapid.SampledFrom(f.tags).Draw(rt, "tag")
	repo, _, _ := strings.Cut(tag, ":")
	i := rapid.IntRange(0, len(f.contents[repo])-1).Draw(rt, "content")
	f.t.Logf("%s moves to content %d", tag, i)
	rig.Image(f.t, f.registry, tag, f.contents[repo][i])
	f.judge(asked...)
}

// end has every root do two tasks with another image, when no container of others
// is left: all images go then that nobody else has.
func (f *fire) end() {
	for _, x := range f.roots {
		f.judge(f.settle(x)...)
	}
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		f.others("remove container "+id, nil, func() { f.try("rm", "-f", "-v", id) })
	}
	for range 2 {
		for _, x := range f.roots {
			x.keep = 1
			x.Env = append(slices.Clip(x.Env[:2]), "DECKHAND_IMAGE_KEEP=1")
			f.count(0)
			f.judge(f.run(x, f.newTask(x, f.last.Tag), 0)...)
		}
	}
	e := f.look()
	for _, x := range f.roots {
		f.ledger(x, e)
	}
	known := f.foreignImages()
	for _, i := range e.Images {
		if i.ID != f.last.ID && !known[i.ID] {
			f.wrong("image %s %v is left at the end", i.ID, i.Names)
		}
	}
	f.stop(e)
	f.wipe()
	if left := f.entries(); left != f.layers {
		f.wrong("%d entries are left in the engine's layers, there were %d", left, f.layers)
	}
	f.stop(f.look())
}
