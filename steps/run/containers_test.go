package run

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// docker remembers what it was asked to make. Its containers do not run.
type docker struct {
	ContainerEngine // what is not here is not to be called
	t               *testing.T
	journal         *journaltest.Memory
	specs           map[string]engine.Spec
	volumes         map[string]map[string]string
	files           map[string][]string // of images; directories end with a slash
	declared        []string            // volumes of images
	made            int                 // containers
}

func (d *docker) Create(_ context.Context, s engine.Spec) (string, error) {
	if _, exists := d.specs[s.Name]; exists {
		return "", engine.ErrExists
	}
	d.specs[s.Name] = s
	d.made++
	return "id of " + s.Name, nil
}

func (d *docker) CreateVolume(_ context.Context, name string, labels map[string]string) error {
	d.volumes[name] = labels
	return nil
}

func (d *docker) Container(_ context.Context, name string) (engine.Container, error) {
	s, ok := d.specs[name]
	if !ok {
		return engine.Container{}, engine.ErrNotFound
	}
	return engine.Container{ID: "id of " + name, Name: name, ImageID: s.Image, Labels: s.Labels}, nil
}

func (d *docker) Containers(_ context.Context, labels map[string]string) (found []engine.Container, err error) {
	for name, s := range d.specs {
		if has(s.Labels, labels) {
			found = append(found, engine.Container{ID: "id of " + name, Name: name})
		}
	}
	return found, nil
}

func (d *docker) Remove(_ context.Context, id string) error {
	delete(d.specs, strings.TrimPrefix(id, "id of "))
	return nil
}

func (d *docker) Volumes(_ context.Context, labels map[string]string, prefixes ...string) (found []engine.Volume, err error) {
	for name, own := range d.volumes {
		if has(own, labels) || own == nil && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			found = append(found, engine.Volume{Name: name})
		}
	}
	return found, nil
}

func (d *docker) RemoveVolume(_ context.Context, name string) error {
	delete(d.volumes, name)
	return nil
}

func has(all, some map[string]string) bool {
	for k, v := range some {
		if all[k] != v {
			return false
		}
	}
	return true
}

type fixture struct {
	docker     *docker
	containers *Containers
	task       *machine.Task
	notes      machine.Notes
	dir        string // of the attempt
}

func newFixture(t *testing.T, doc tes.Task) *fixture {
	t.Helper()
	journal := journaltest.NewMemory()
	notes, err := machine.NodeNotes(journal)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tree := func(attempt int, n machine.Notes) *worktree.Tree {
		return worktree.New(dir, attempt, &doc, OwnDirs(n)...)
	}
	if err := tree(2, notes).Prepare(); err != nil {
		t.Fatal(err)
	}
	d := &docker{t: t, journal: journal, specs: map[string]engine.Spec{}, volumes: map[string]map[string]string{}}
	return &fixture{
		docker: d, notes: notes, dir: filepath.Join(dir, "2"), task: &machine.Task{ID: "a/b", Attempt: 2},
		containers: &Containers{Task: &doc, Engine: d, RootID: "r", Bin: filepath.Join(dir, "bin"), Tree: tree},
	}
}

// create makes the container of one executor and returns what Docker was asked for.
func (f *fixture) create(t *testing.T, executor int, img engine.Image) engine.Spec {
	t.Helper()
	if err := f.containers.Create(t.Context(), f.task, f.notes, executor, img); err != nil {
		t.Fatal(err)
	}
	return f.docker.specs[f.containers.Name(f.task, executor)]
}

func TestSpec(t *testing.T) {
	f := newFixture(t, tes.Task{
		Volumes:   []string{"/vol"},
		Inputs:    []tes.Input{{Path: "/etc/x", Type: tes.File}},
		Resources: tes.Resources{CPUCores: 9, RAMGB: 1.5},
		Executors: []tes.Executor{{}, {Command: []string{"a", ""}, Env: map[string]string{"K": "v"}, Workdir: "/w"}},
	})
	f.containers.Hardening = Hardening{NoNewPrivileges: true, PidsLimit: 7, CapAdd: []string{"SYS_NICE"}, CapDrop: []string{"NET_RAW"}}
	f.containers.Limits = Limits{CPUs: 4, CgroupParent: "/site", JobCgroup: "/engine/job"}
	got := f.create(t, 1, engine.Image{ID: "sha256:1", Entrypoint: []string{"entry"}, Volumes: []string{"/own/", "/vol", "/more"}})
	withoutOwnDir(t, &got)
	got.Mounts = slices.DeleteFunc(got.Mounts, func(m engine.Mount) bool { return strings.HasPrefix(m.Target, "/.deckhand/") })
	name := "deckhand-r-" + tes.EncodeID("a/b") + "-2-1"
	want := engine.Spec{
		Name: name, Image: "sha256:1", Env: map[string]string{"K": "v"}, Workdir: "/w",
		Entrypoint: []string{execTarget},
		Command:    []string{StdioCommand, "", failedTarget, "", ringMark + stdoutTarget, ringMark + stderrTarget, "entry", "a", ""},
		Labels: map[string]string{
			"deckhand.root": "r", "deckhand.task": "a/b", "deckhand.attempt": "2", "deckhand.executor": "1", "deckhand.cgroup": "/engine/job",
		},
		Mounts: []engine.Mount{
			{Kind: engine.BindMount, Source: f.dir + "/dirs/0", Target: "/vol"},
			{Kind: engine.BindMount, Source: f.dir + "/files/1", Target: "/etc/x"},
			{Kind: engine.VolumeMount, Source: name + "-v0", Target: "/own"},
			{Kind: engine.VolumeMount, Source: name + "-v2", Target: "/more"},
		},
		CPUs: 4, MemoryBytes: 1_500_000_000, PidsLimit: 7, CgroupParent: "/engine/job", NoNewPrivileges: true,
		CapAdd: []string{"SYS_NICE"}, CapDrop: []string{"NET_RAW"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if len(f.docker.volumes) != 2 || f.docker.volumes[name+"-v0"]["deckhand.root"] != "r" {
		t.Errorf("the volumes are %v", f.docker.volumes)
	}
}

func TestSpecOfStreams(t *testing.T) {
	for name, test := range map[string]struct {
		executor tes.Executor
		clear    bool
		command  []string // what the helper is told about its streams, and what it runs
		mounts   []string // of streams, by the names of their files
	}{
		"none":     {executor: tes.Executor{}, command: []string{"", ringMark + stdoutTarget, ringMark + stderrTarget, "entry", "x"}, mounts: []string{"stdout.ring", "stderr.ring"}},
		"stdin":    {executor: tes.Executor{Stdin: "/in"}, command: []string{"/in", ringMark + stdoutTarget, ringMark + stderrTarget, "entry", "x"}, mounts: []string{"stdout.ring", "stderr.ring"}},
		"stdout":   {executor: tes.Executor{Stdout: "/o/x"}, command: []string{"", stdoutTarget, ringMark + stderrTarget, "entry", "x"}, mounts: []string{"stdout", "stderr.ring"}},
		"both":     {executor: tes.Executor{Stdout: "/o/x", Stderr: "/o/y"}, command: []string{"", stdoutTarget, stderrTarget, "entry", "x"}, mounts: []string{"stdout", "stderr"}},
		"one path": {executor: tes.Executor{Stdout: "/o/x", Stderr: "/o/x"}, command: []string{"", stdoutTarget, stdoutTarget, "entry", "x"}, mounts: []string{"stdout"}},
		"no entry": {executor: tes.Executor{Stderr: "/o/y"}, clear: true, command: []string{"", ringMark + stdoutTarget, stderrTarget, "x"}, mounts: []string{"stdout.ring", "stderr"}},
	} {
		t.Run(name, func(t *testing.T) {
			test.executor.Command = []string{"x"}
			f := newFixture(t, tes.Task{Executors: []tes.Executor{test.executor}})
			f.containers.ClearEntrypoint = test.clear
			got := f.create(t, 0, engine.Image{ID: "i", Entrypoint: []string{"entry"}})
			var mounts []string
			for _, m := range withoutOwnDir(t, &got) {
				if name := strings.TrimPrefix(filepath.Base(m.Source), "0."); strings.HasPrefix(name, "std") {
					mounts = append(mounts, name)
				}
				info, err := os.Stat(m.Source)
				if err != nil {
					t.Fatal(err)
				}
				if binary := m.Target == execTarget; m.ReadOnly != binary || info.Mode().Perm() != map[bool]os.FileMode{true: 0o755, false: 0o666}[binary] {
					t.Errorf("%s is mounted %+v with the mode %v", m.Source, m, info.Mode())
				}
			}
			if !slices.Equal(mounts, test.mounts) {
				t.Errorf("mounted are %q, want %q", mounts, test.mounts)
			}
			entrypoint, command := []string{execTarget}, append([]string{StdioCommand, "", failedTarget}, test.command...)
			if !reflect.DeepEqual(got.Entrypoint, entrypoint) || !slices.Equal(got.Command, command) {
				t.Errorf("it runs %#v %q, want %#v %q", got.Entrypoint, got.Command, entrypoint, command)
			}
		})
	}
}

// A command of one element is a line for a shell where the node says so.
func TestShellCommands(t *testing.T) {
	for name, test := range map[string]struct {
		shell    bool
		executor tes.Executor
		want     []string
	}{
		"off":       {false, tes.Executor{Command: []string{"a && b"}}, []string{"entry", "a && b"}},
		"on":        {true, tes.Executor{Command: []string{"a && b"}}, []string{"entry", "/bin/sh", "-c", "a && b"}},
		"two":       {true, tes.Executor{Command: []string{"a", "&& b"}}, []string{"entry", "a", "&& b"}},
		"to a file": {true, tes.Executor{Command: []string{"a"}, Stderr: "/o/y"}, []string{"entry", "/bin/sh", "-c", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, tes.Task{Executors: []tes.Executor{test.executor}})
			f.containers.ShellCommands = test.shell
			got := f.create(t, 0, engine.Image{ID: "i", Entrypoint: []string{"entry"}})
			withoutOwnDir(t, &got)
			if run := got.Command[6:]; !slices.Equal(run, test.want) {
				t.Errorf("it runs %q, want %q", run, test.want)
			}
		})
	}
}

// A container is announced before it is made, found again, made anew when its image
// is another one now, and never taken from somebody else.
func TestCreateAgain(t *testing.T) {
	f := newFixture(t, tes.Task{Executors: []tes.Executor{{Command: []string{"x"}}}})
	for range 2 {
		f.create(t, 0, engine.Image{ID: "i"})
	}
	if got := len(f.notes.All("container")); got != 1 {
		t.Errorf("%d containers are announced", got)
	}
	name := f.containers.Name(f.task, 0)
	f.create(t, 0, engine.Image{ID: "j"})
	if got := f.docker.specs[name].Image; got != "j" || announced(f.notes, name) != "j" {
		t.Errorf("the container has image %q and is announced with %q", got, announced(f.notes, name))
	}
	f.docker.specs[name].Labels["deckhand.root"] = "another"
	err := f.containers.Create(t.Context(), f.task, f.notes, 0, engine.Image{ID: "j"})
	if machine.FaultOf(err) != machine.NodeFault || !strings.Contains(err.Error(), name) {
		t.Errorf("a foreign container of the name gives %v", err)
	}

	f = newFixture(t, tes.Task{Executors: []tes.Executor{{Command: []string{"x"}}}})
	full := errors.New("full")
	f.docker.journal.Fail = func(machine.Entry) (bool, error) { return false, full }
	if err := f.containers.Create(t.Context(), f.task, f.notes, 0, engine.Image{ID: "i"}); !errors.Is(err, full) || len(f.docker.specs) > 0 {
		t.Errorf("made without being announced: %v, %v", err, f.docker.specs)
	}
}

func TestRemove(t *testing.T) {
	f := newFixture(t, tes.Task{Executors: []tes.Executor{{Command: []string{"x"}}, {Command: []string{"y"}}}})
	img := engine.Image{ID: "i", Volumes: []string{"/own"}}
	f.docker.specs["of another attempt"] = engine.Spec{Labels: map[string]string{"deckhand.root": "r", "deckhand.task": "a/b", "deckhand.attempt": "1"}}
	f.docker.volumes["of another root"] = map[string]string{"deckhand.root": "s", "deckhand.task": "a/b", "deckhand.attempt": "2"}
	f.create(t, 0, img)
	f.create(t, 1, img)
	for name := range f.docker.volumes {
		if strings.Contains(name, "-1-v") {
			f.docker.volumes[name] = nil // as Docker may after a power cut
		}
	}
	for range 2 { // what is gone is no error
		if err := f.containers.Remove(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.docker.specs) != 1 || len(f.docker.volumes) != 1 {
		t.Errorf("left are %v and %v", f.docker.specs, f.docker.volumes)
	}
}

// With addresses to close, every command waits at its gate, which no container
// can open.
func TestSpecOfGate(t *testing.T) {
	f := newFixture(t, tes.Task{Executors: []tes.Executor{{}, {Command: []string{"x"}}}})
	f.containers.Hardening.Block = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
	s := f.create(t, 1, engine.Image{ID: "i", Entrypoint: []string{"entry"}})
	other := f.create(t, 0, engine.Image{ID: "i"})
	if s.Entrypoint[0] == other.Entrypoint[0] {
		t.Errorf("two containers have their own mounts in one directory: %s", s.Entrypoint[0])
	}
	own := withoutOwnDir(t, &s)
	if want := []string{StdioCommand, "gate/1", failedTarget, "", ringMark + stdoutTarget, ringMark + stderrTarget, "entry", "x"}; !slices.Equal(s.Command, want) || !slices.Equal(s.Entrypoint, []string{execTarget}) {
		t.Errorf("the container runs %q %q, want %q", s.Entrypoint, s.Command, want)
	}
	i := slices.IndexFunc(own, func(m engine.Mount) bool { return m.Target == gateTarget })
	if i < 0 || !own[i].ReadOnly || own[i].Source != filepath.Join(f.dir, "gate") {
		t.Errorf("the mounts are %+v", own)
	}
}

// withoutOwnDir returns the mounts of deckhand's own with their names alone, and
// has the command and the entrypoint name them so.
func withoutOwnDir(t *testing.T, s *engine.Spec) (own []engine.Mount) {
	t.Helper()
	dir := ""
	for _, m := range s.Mounts {
		if !strings.HasPrefix(m.Target, "/.deckhand/") {
			continue
		}
		if d := filepath.Dir(m.Target) + "/"; dir == "" && len(d) > len("/.deckhand//")+20 {
			dir = d
		} else if d != dir {
			t.Errorf("%s is where a task can foresee it, or not with the others in %s", m.Target, dir)
		}
		m.Target = filepath.Base(m.Target)
		own = append(own, m)
	}
	if dir == "" {
		return nil
	}
	s.Entrypoint, s.Command = slices.Clone(s.Entrypoint), slices.Clone(s.Command)
	for _, args := range [][]string{s.Entrypoint, s.Command} {
		for i := range args {
			args[i] = strings.Replace(args[i], dir, "", 1)
		}
	}
	return own
}
