// Package enginetest says what a Docker Engine behind package engine must do.
// The same tests run against the real one and against whatever stands in for it.
package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
)

// Engine is all of package engine's Docker.
type Engine interface {
	Info(ctx context.Context) (engine.Info, error)

	Image(ctx context.Context, ref string) (engine.Image, error)
	Images(ctx context.Context) ([]engine.Image, error)
	RemoteDigest(ctx context.Context, ref string) (string, error)
	Pull(ctx context.Context, ref string, report func(engine.PullProgress)) error
	RemoveImage(ctx context.Context, refOrID string) error
	Sync(ctx context.Context) error

	Create(ctx context.Context, s engine.Spec) (string, error)
	Container(ctx context.Context, nameOrID string) (engine.Container, error)
	Containers(ctx context.Context, labels map[string]string) ([]engine.Container, error)
	Start(ctx context.Context, id string) error
	Restarted(ctx context.Context, id string, since time.Time) (bool, error)
	WaitNext(ctx context.Context, id string) (<-chan engine.Exit, error)
	Wait(ctx context.Context, id string) (engine.Exit, error)
	Stop(ctx context.Context, id string, grace time.Duration) error
	Remove(ctx context.Context, id string) error
	Log(ctx context.Context, id string, stdout, stderr io.Writer) error
	CopyFrom(ctx context.Context, id, path string, read func(io.Reader) error) error
	CopyTo(ctx context.Context, id, dir string, tar io.Reader) error
	Changes(ctx context.Context, id string, read func(iter.Seq[string]) error) error

	CreateVolume(ctx context.Context, name string, labels map[string]string) error
	Volumes(ctx context.Context, labels map[string]string, prefixes ...string) ([]engine.Volume, error)
	RemoveVolume(ctx context.Context, name string) error
	Networks(ctx context.Context, labels map[string]string) ([]engine.Network, error)
	RemoveNetwork(ctx context.Context, id string) error
}

var _ Engine = (*engine.Docker)(nil)

// Image describes an image that a test needs: busybox, and what is said here.
type Image struct {
	Name       string // repository, or repository:tag
	Marker     string // tells images apart that are otherwise equal
	Platform   string // empty is that of the engine
	Files      map[string]string
	Env        []string
	Entrypoint []string
	Cmd        []string
	User       string
	Workdir    string
	Volumes    []string
}

// Subject is an engine under test and a registry that it can reach.
type Subject struct {
	Engine Engine
	// Push puts an image into the registry, under its name, and returns its
	// references by tag and by digest and its ID.
	Push func(t *testing.T, i Image) (tag, digest, id string)
	// AddTag gives an image that is on the node another name.
	AddTag func(t *testing.T, id, tag string)
	// AddNetwork makes a network with labels and returns its ID.
	AddNetwork func(t *testing.T, name string, labels map[string]string) string
	// Podman says that the engine is one, which differs where this is asked for.
	Podman bool
}

// Run runs all tests; factory is called for each of them.
func Run(t *testing.T, factory func(t *testing.T) Subject) {
	RunContract(t, factory)
	run(t, factory, enforced)
}

// RunContract runs the tests of what an engine answers and keeps. What only a
// container runtime enforces is left out.
func RunContract(t *testing.T, factory func(t *testing.T) Subject) { run(t, factory, contract) }

type test struct {
	name string
	run  func(*bench)
}

func run(t *testing.T, factory func(t *testing.T) Subject, tests []test) {
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			t.Cleanup(cancel)
			b := &bench{T: t, ctx: ctx, Subject: factory(t), root: "enginetest-" + strings.ToLower(rand.Text()[:12])}
			t.Cleanup(b.clear)
			c.run(b)
		})
	}
}

var contract = []test{
	{"info", info},
	{"image", images},
	{"pull moves a tag", movedTag},
	{"pull reports progress", pullProgress},
	{"pull of what is not there", pullMissing},
	{"pull for another platform", pullPlatform},
	{"bad references", badReferences},
	{"image in use", imageInUse},
	{"image with two names", twoNames},
	{"create", create},
	{"create twice", createTwice},
	{"create without its image", createWithoutImage},
	{"entrypoint", entrypoint},
	{"mounts", mounts},
	{"exit code of a short command", shortCommand},
	{"wait for what ended", waitAfterwards},
	{"wait is cancelled", waitCancelled},
	{"start twice", startTwice},
	{"command that is not there", commandMissing},
	{"user that is not there", userMissing},
	{"logs", logs},
	{"logs to a broken writer", logsBrokenWriter},
	{"stop", stop},
	{"remove", remove},
	{"list by labels", list},
	{"copy", copyFiles},
	{"changes", changes},
	{"volumes", volumes},
	{"networks", networks},
}

// enforced are the tests of what a container runtime and the kernel see to.
var enforced = []test{
	{"limits", limits},
	{"devices", devices},
	{"devices that are not there", devicesMissing},
	{"no new privileges", noNewPrivileges},
	{"out of memory", outOfMemory},
}

// bench is one test at work. What it makes carries its root label and goes
// with it.
type bench struct {
	*testing.T
	Subject
	ctx  context.Context
	root string
	made int
}

func (b *bench) labels() map[string]string { return map[string]string{engine.LabelRoot: b.root} }

func (b *bench) clear() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), 5*time.Minute)
	defer cancel()
	containers, err := b.Engine.Containers(ctx, b.labels())
	b.check(err)
	for _, c := range containers {
		b.check(b.Engine.Stop(ctx, c.ID, 0))
		b.check(b.Engine.Remove(ctx, c.ID))
	}
	volumes, err := b.Engine.Volumes(ctx, b.labels())
	b.check(err)
	for _, v := range volumes {
		b.check(b.Engine.RemoveVolume(ctx, v.Name))
	}
}

// check reports an error and goes on; must stops the test.
func (b *bench) check(err error) {
	b.Helper()
	if err != nil {
		b.Errorf("%v", err)
	}
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%v", err)
	}
}

// is says whether an error is of a kind and readable.
func (b *bench) is(err, kind error) {
	b.Helper()
	if !errors.Is(err, kind) {
		b.Errorf("got %v, want an error that is %q", err, kind)
	}
}

// pulled pushes and pulls an image and returns its tag.
func (b *bench) pulled(i Image) string {
	b.Helper()
	if i.Name == "" {
		i.Name = "tool"
	}
	tag, _, _ := b.Push(b.T, i)
	b.must(b.Engine.Pull(b.ctx, tag, nil))
	return tag
}

// container makes one of a shell script, without starting it.
func (b *bench) container(image, script string, change func(*engine.Spec)) string {
	b.Helper()
	b.made++
	s := engine.Spec{
		Name: b.root + "-" + strconv.Itoa(b.made), Image: image, Labels: b.labels(),
		Command: []string{"sh", "-c", script},
	}
	if change != nil {
		change(&s)
	}
	id, err := b.Engine.Create(b.ctx, s)
	b.must(err)
	return id
}

// ran runs a script to its end and returns its exit code and output.
func (b *bench) ran(image, script string, change func(*engine.Spec)) (code int, stdout, stderr string) {
	b.Helper()
	id := b.container(image, script, change)
	exits, err := b.Engine.WaitNext(b.ctx, id)
	b.must(err)
	b.must(b.Engine.Start(b.ctx, id))
	exit := <-exits
	b.must(exit.Err)
	var out, errs bytes.Buffer
	b.must(b.Engine.Log(b.ctx, id, &out, &errs))
	return exit.Code, out.String(), errs.String()
}

func (b *bench) equal(what string, got, want any) {
	b.Helper()
	if fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
		b.Errorf("%s: got %#v, want %#v", what, got, want)
	}
}

func info(b *bench) {
	i, err := b.Engine.Info(b.ctx)
	b.must(err)
	if i.Version == "" || i.APIVersion == "" || i.DataRoot == "" || i.OS != "linux" || i.Arch == "" || i.CPUs < 1 || i.MemoryBytes < 1 {
		b.Errorf("info lacks something: %+v", i)
	}
}

func images(b *bench) {
	tag, digest, id := b.Push(b.T, Image{
		Name: "tool:1", Env: []string{"GREETING=hello"}, Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"true"},
		User: "1000", Workdir: "/tmp", Volumes: []string{"/scratch", "/data"},
	})
	_, err := b.Engine.Image(b.ctx, tag)
	b.is(err, engine.ErrNotFound)
	remote, err := b.Engine.RemoteDigest(b.ctx, tag)
	b.must(err)
	if !strings.HasSuffix(digest, "@"+remote) {
		b.Errorf("the registry names %s, want that of %s", remote, digest)
	}
	b.must(b.Engine.Pull(b.ctx, digest, nil))
	b.must(b.Engine.Pull(b.ctx, tag, nil))
	for _, ref := range []string{tag, digest, id} {
		i, err := b.Engine.Image(b.ctx, ref)
		b.must(err)
		b.equal("ID", i.ID, id)
		b.equal("tags", i.Tags, []string{tag})
		b.equal("digests", i.Digests, []string{digest})
		b.equal("entrypoint", i.Entrypoint, []string{"/bin/sh", "-c"})
		b.equal("cmd", i.Cmd, []string{"true"})
		b.equal("volumes", i.Volumes, []string{"/data", "/scratch"})
		b.equal("user and workdir", i.User+" "+i.Workdir, "1000 /tmp")
		if !slices.Contains(i.Env, "GREETING=hello") || i.Size <= 0 || i.OS != "linux" || i.Arch == "" {
			b.Errorf("image lacks something: %+v", i)
		}
	}
	b.must(b.Engine.RemoveImage(b.ctx, tag))
	b.must(b.Engine.Sync(b.ctx))
	_, err = b.Engine.Image(b.ctx, id)
	b.is(err, engine.ErrNotFound)
	b.is(b.Engine.RemoveImage(b.ctx, tag), engine.ErrNotFound)
}

func movedTag(b *bench) {
	tag, _, first := b.Push(b.T, Image{Name: "moving:1", Marker: "1"})
	b.must(b.Engine.Pull(b.ctx, tag, nil))
	_, digest, second := b.Push(b.T, Image{Name: "moving:1", Marker: "2"})
	remote, err := b.Engine.RemoteDigest(b.ctx, tag)
	b.must(err)
	local, err := b.Engine.Image(b.ctx, tag)
	b.must(err)
	b.equal("image before the pull", local.ID, first)
	if !strings.HasSuffix(digest, remote) {
		b.Errorf("the registry names %s, want %s", remote, digest)
	}
	b.must(b.Engine.Pull(b.ctx, tag, nil))
	local, err = b.Engine.Image(b.ctx, tag)
	b.must(err)
	b.equal("image after the pull", local.ID, second)
	old, err := b.Engine.Image(b.ctx, first)
	b.must(err)
	b.equal("tags of the old image", len(old.Tags), 0)
	images, err := b.Engine.Images(b.ctx)
	b.must(err)
	for _, want := range []engine.Image{old, local} {
		i := slices.IndexFunc(images, func(img engine.Image) bool { return img.ID == want.ID })
		if i < 0 {
			b.Errorf("the list of images lacks %s: %v", want.ID, images)
			continue
		}
		b.equal("tags of "+want.ID, len(images[i].Tags), len(want.Tags))
		b.equal("digests of "+want.ID, len(images[i].Digests), len(want.Digests))
	}
	b.must(b.Engine.RemoveImage(b.ctx, first))
	_, err = b.Engine.Image(b.ctx, first)
	b.is(err, engine.ErrNotFound)
	if _, err := b.Engine.Image(b.ctx, second); err != nil {
		b.Errorf("the new image went with the old one: %v", err)
	}
}

func pullProgress(b *bench) {
	big := make([]byte, 4<<20)
	_, _ = rand.Read(big)
	tag, _, _ := b.Push(b.T, Image{Name: "big", Files: map[string]string{"/big": string(big)}})
	var last engine.PullProgress
	b.must(b.Engine.Pull(b.ctx, tag, func(p engine.PullProgress) {
		if p.Done < last.Done || p.Total < last.Total || p.Done > p.Total {
			b.Errorf("progress goes from %+v to %+v", last, p)
		}
		last = p
	}))
	if b.Podman && last.Total == 0 {
		return // it tells of a layer's bytes every few seconds only
	}
	if last.Total < int64(len(big)) || last.Done != last.Total {
		b.Errorf("last progress %+v of an image with %d bytes", last, len(big))
	}
}

func pullMissing(b *bench) {
	tag, digest, _ := b.Push(b.T, Image{Name: "there:1"})
	for _, ref := range []string{
		strings.Replace(tag, "there", "absent", 1),
		tag + "-not",
		digest[:len(digest)-8] + "01234567",
	} {
		err := b.Engine.Pull(b.ctx, ref, nil)
		if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), ref) {
			b.Errorf("pull of %s: %v (fault %s), want a task fault that names it", ref, err, machine.FaultOf(err))
		}
	}
	if digest, err := b.Engine.RemoteDigest(b.ctx, tag+"-not"); machine.FaultOf(err) != machine.TaskFault || err == nil {
		b.Errorf("digest of a tag that is not there: %q, %v", digest, err)
	}
	if remote, err := b.Engine.RemoteDigest(b.ctx, digest); err != nil || !strings.HasSuffix(digest, "@"+remote) {
		b.Errorf("digest of a digest: %q, %v", remote, err)
	}
}

func pullPlatform(b *bench) {
	tag, _, _ := b.Push(b.T, Image{Name: "foreign", Platform: "linux/s390x"})
	err := b.Engine.Pull(b.ctx, tag, nil)
	if err == nil || machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "linux/s390x") {
		b.Errorf("pull for another platform: %v, want a task fault that names it", err)
	}
}

func badReferences(b *bench) {
	for _, ref := range []string{"", "UPPER/case", "a b", "../containers/x", "x:y:z", "tool@sha256:12", "http://h/x"} {
		_, err := b.Engine.Image(b.ctx, ref)
		_, remote := b.Engine.RemoteDigest(b.ctx, ref)
		for what, err := range map[string]error{
			"image": err, "digest": remote,
			"pull": b.Engine.Pull(b.ctx, ref, nil), "remove": b.Engine.RemoveImage(b.ctx, ref),
		} {
			if err == nil || errors.Is(err, engine.ErrNotFound) || machine.FaultOf(err) != machine.TaskFault {
				b.Errorf("%s of %q: %v", what, ref, err)
			}
		}
	}
}

func imageInUse(b *bench) {
	tag := b.pulled(Image{})
	i, err := b.Engine.Image(b.ctx, tag)
	b.must(err)
	id := b.container(i.ID, "true", nil)
	for _, ref := range []string{tag, i.ID} {
		b.is(b.Engine.RemoveImage(b.ctx, ref), engine.ErrInUse)
	}
	again, err := b.Engine.Image(b.ctx, i.ID)
	b.must(err)
	b.equal("tags after a refused removal", again.Tags, i.Tags)
	b.must(b.Engine.Remove(b.ctx, id))
	b.must(b.Engine.RemoveImage(b.ctx, tag))
}

func twoNames(b *bench) {
	tag := b.pulled(Image{Name: "tool:1"})
	i, err := b.Engine.Image(b.ctx, tag)
	b.must(err)
	other := "localhost/" + b.root + ":other"
	b.AddTag(b.T, i.ID, other)
	b.is(b.Engine.RemoveImage(b.ctx, i.ID), engine.ErrInUse)
	b.must(b.Engine.RemoveImage(b.ctx, tag))
	left, err := b.Engine.Image(b.ctx, i.ID)
	b.must(err)
	b.equal("names that are left", left.Tags, []string{other})
	b.must(b.Engine.RemoveImage(b.ctx, other))
	_, err = b.Engine.Image(b.ctx, i.ID)
	b.is(err, engine.ErrNotFound)
}

func create(b *bench) {
	tag := b.pulled(Image{})
	i, err := b.Engine.Image(b.ctx, tag)
	b.must(err)
	name := b.root + "-made"
	id, err := b.Engine.Create(b.ctx, engine.Spec{
		Name: name, Image: i.ID, Command: []string{"sh", "-c", `echo "$PWD $(id -u) $A|$B"; env | grep -c ^A=`},
		Env: map[string]string{"A": "x = y", "B": "$A\nline"}, Workdir: "/new/dir", User: "1000",
		Labels: map[string]string{engine.LabelRoot: b.root, engine.LabelTask: "a=b, c"},
	})
	b.must(err)
	for _, key := range []string{name, id} {
		c, err := b.Engine.Container(b.ctx, key)
		b.must(err)
		b.equal("ID", c.ID, id)
		b.equal("name", c.Name, name)
		b.equal("image", c.ImageID, i.ID)
		b.equal("state", c.State, engine.Created)
		b.equal("label", c.Labels[engine.LabelTask], "a=b, c")
		if !c.Started.IsZero() || !c.Finished.IsZero() {
			b.Errorf("times before the start: %v, %v", c.Started, c.Finished)
		}
	}
	_, err = b.Engine.Container(b.ctx, name+"-not")
	b.is(err, engine.ErrNotFound)
	b.must(b.Engine.Start(b.ctx, id))
	_, err = b.Engine.Wait(b.ctx, id)
	b.must(err)
	var out bytes.Buffer
	b.must(b.Engine.Log(b.ctx, id, &out, io.Discard))
	b.equal("output", out.String(), "/new/dir 1000 x = y|$A\nline\n1\n")
}

func createTwice(b *bench) {
	s := engine.Spec{Name: b.root, Image: b.pulled(Image{}), Command: []string{"true"}, Labels: b.labels()}
	first, err := b.Engine.Create(b.ctx, s)
	b.must(err)
	_, err = b.Engine.Create(b.ctx, s)
	b.is(err, engine.ErrExists)
	c, err := b.Engine.Container(b.ctx, s.Name)
	b.must(err)
	b.equal("container after the second call", c.ID, first)
}

func createWithoutImage(b *bench) {
	tag, _, _ := b.Push(b.T, Image{Name: "unpulled"})
	_, err := b.Engine.Create(b.ctx, engine.Spec{Name: b.root, Image: tag, Command: []string{"true"}, Labels: b.labels()})
	b.is(err, engine.ErrNotFound)
}

func entrypoint(b *bench) {
	tag := b.pulled(Image{Entrypoint: []string{"echo", "kept"}, Cmd: []string{"default"}})
	for _, c := range []struct {
		entrypoint, command []string
		want                string
	}{
		{nil, nil, "kept default\n"},
		{nil, []string{"a", "", "b c"}, "kept a  b c\n"},
		{[]string{}, []string{"echo", "cleared"}, "cleared\n"},
		{[]string{"echo", "other"}, []string{"x"}, "other x\n"},
	} {
		_, out, _ := b.ran(tag, "", func(s *engine.Spec) { s.Entrypoint, s.Command = c.entrypoint, c.command })
		b.equal(fmt.Sprintf("entrypoint %#v, command %#v", c.entrypoint, c.command), out, c.want)
	}
}

func mounts(b *bench) {
	tag := b.pulled(Image{Volumes: []string{"/anonymous"}, Files: map[string]string{"/named/of-image": "x"}})
	name := "odd: name, with=everything"
	if b.Podman {
		name = "odd name, with=everything" // never both a comma and a colon
	}
	dir := filepath.Join(b.TempDir(), name)
	b.must(os.Mkdir(dir, 0o755))
	b.must(os.WriteFile(filepath.Join(dir, "in"), []byte("from the host\n"), 0o644))
	volume := b.root + "-v"
	b.must(b.Engine.CreateVolume(b.ctx, volume, b.labels()))
	var id string
	code, out, errs := b.ran(tag, "cat /rw/in && echo new > /rw/out && ls /named && ! echo no > /ro/out", func(s *engine.Spec) {
		id = s.Name
		s.Mounts = []engine.Mount{
			{Kind: engine.BindMount, Source: dir, Target: "/rw"},
			{Kind: engine.BindMount, Source: dir, Target: "/ro", ReadOnly: true},
			{Kind: engine.VolumeMount, Source: volume, Target: "/named"},
		}
	})
	if code != 0 || out != "from the host\nof-image\n" {
		b.Errorf("exit code %d, output %q, %q", code, out, errs)
	}
	text, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil || string(text) != "new\n" {
		b.Errorf("written through the mount: %q, %v", text, err)
	}
	c, err := b.Engine.Container(b.ctx, id)
	b.must(err)
	if len(c.Volumes) != 2 || !slices.Contains(c.Volumes, volume) {
		b.Errorf("volumes %q, want %s and an anonymous one", c.Volumes, volume)
	}
	_, err = b.Engine.Create(b.ctx, engine.Spec{
		Name: b.root + "-absent", Image: tag, Command: []string{"true"}, Labels: b.labels(),
		Mounts: []engine.Mount{{Kind: engine.BindMount, Source: filepath.Join(dir, "absent"), Target: "/x"}},
	})
	if err == nil {
		b.Error("a bind mount of a path that is not there is accepted")
	}
}

func limits(b *bench) {
	i, err := b.Engine.Info(b.ctx)
	b.must(err)
	files := "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.swap.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max"
	want := []string{"67108864", "0", "50000 100000", "100"}
	if i.CgroupVersion == "1" {
		files = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max"
		want = []string{"67108864", "67108864", "50000", "100"}
	}
	_, out, errs := b.ran(b.pulled(Image{}), files, func(s *engine.Spec) {
		s.MemoryBytes, s.CPUs, s.PidsLimit = 64<<20, 0.5, 100
	})
	if strings.Contains(errs, "swap") || strings.Contains(errs, "memsw") { // a kernel without swap accounting has no such file
		want = slices.Delete(want, 1, 2)
	}
	b.equal("limits in force", strings.Split(strings.TrimSpace(out), "\n"), want)
}

func devices(b *bench) {
	// Not one of those that every container has.
	script := `(: < /dev/own) && echo opens; (: > /dev/own) 2>/dev/null || echo read only; df -k /dev/shm | awk 'END {print $2}'`
	_, out, errs := b.ran(b.pulled(Image{}), script, func(s *engine.Spec) {
		s.Devices = []engine.Device{{Host: "/dev/loop-control", Target: "/dev/own", Permissions: "r"}}
		s.ShmBytes = 96 << 20
	})
	b.equal("what the container sees", out, "opens\nread only\n98304\n")
	b.equal("errors", errs, "")
}

// What the node does not have makes it unfit, and is no fault of the command.
func devicesMissing(b *bench) {
	tag := b.pulled(Image{})
	for what, change := range map[string]func(*engine.Spec){
		"/dev/none": func(s *engine.Spec) {
			s.Devices = []engine.Device{{Host: "/dev/none", Target: "/dev/none", Permissions: "rwm"}}
		},
		"GPU":                 func(s *engine.Spec) { s.GPUs = engine.GPUs{IDs: []string{"no-such-gpu"}} },
		"example.com/none=no": func(s *engine.Spec) { s.Devices = []engine.Device{{Host: "example.com/none=no"}} },
	} {
		s := engine.Spec{Name: b.root, Image: tag, Labels: b.labels(), Command: []string{"true"}}
		change(&s)
		id, err := b.Engine.Create(b.ctx, s)
		if err == nil {
			err = b.Engine.Start(b.ctx, id)
			b.must(b.Engine.Remove(b.ctx, id))
		} else if !b.Podman {
			b.Errorf("create with %s: %v", what, err)
		}
		if machine.FaultOf(err) != machine.NodeFault || err == nil {
			b.Errorf("start with %s: %v, fault %s", what, err, machine.FaultOf(err))
		}
	}
}

func noNewPrivileges(b *bench) {
	tag := b.pulled(Image{})
	for want, on := range map[string]bool{"0": false, "1": true} {
		_, out, _ := b.ran(tag, "grep NoNewPrivs /proc/self/status", func(s *engine.Spec) { s.NoNewPrivileges = on })
		b.equal("NoNewPrivs", strings.TrimSpace(strings.TrimPrefix(out, "NoNewPrivs:")), want)
	}
}

func shortCommand(b *bench) {
	tag := b.pulled(Image{})
	for code := range 8 {
		id := b.container(tag, fmt.Sprintf("exit %d", code), nil)
		exits, err := b.Engine.WaitNext(b.ctx, id)
		b.must(err)
		b.must(b.Engine.Start(b.ctx, id))
		exit := <-exits
		b.must(exit.Err)
		b.equal("exit code", exit.Code, code)
		c, err := b.Engine.Container(b.ctx, id)
		b.must(err)
		b.equal("state", c.State, engine.Exited)
		b.equal("exit code later", c.ExitCode, code)
		if c.Started.IsZero() || c.Finished.Before(c.Started) || c.OOMKilled {
			b.Errorf("times %v, %v, OOM %t", c.Started, c.Finished, c.OOMKilled)
		}
	}
}

func waitAfterwards(b *bench) {
	id := b.container(b.pulled(Image{}), "read x; exit 5", nil) // no standard input: it ends at once
	exits, err := b.Engine.WaitNext(b.ctx, id)
	b.must(err)
	b.must(b.Engine.Start(b.ctx, id))
	<-exits
	for range 2 {
		exit, err := b.Engine.Wait(b.ctx, id)
		b.must(err)
		b.equal("exit code", exit.Code, 5)
	}
	b.must(b.Engine.Remove(b.ctx, id))
	_, err = b.Engine.Wait(b.ctx, id)
	b.is(err, engine.ErrNotFound)
	_, err = b.Engine.WaitNext(b.ctx, id)
	b.is(err, engine.ErrNotFound)
}

func waitCancelled(b *bench) {
	id := b.container(b.pulled(Image{}), "sleep 1000", func(s *engine.Spec) { s.Command = []string{"sleep", "1000"} })
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	exits, err := b.Engine.WaitNext(ctx, id)
	b.must(err)
	b.must(b.Engine.Start(b.ctx, id))
	cancel()
	b.is((<-exits).Err, context.Canceled)
	_, err = b.Engine.Wait(ctx, id)
	b.is(err, context.Canceled)
	b.is(b.Engine.Log(ctx, id, io.Discard, io.Discard), context.Canceled)
	_, err = b.Engine.Container(ctx, id)
	b.is(err, context.Canceled)
	b.is(b.Engine.Pull(ctx, "localhost/x", nil), context.Canceled)
}

func startTwice(b *bench) {
	id := b.container(b.pulled(Image{}), "", func(s *engine.Spec) { s.Command = []string{"sleep", "1000"} })
	b.must(b.Engine.Start(b.ctx, id))
	first, err := b.Engine.Container(b.ctx, id)
	b.must(err)
	b.must(b.Engine.Start(b.ctx, id))
	second, err := b.Engine.Container(b.ctx, id)
	b.must(err)
	b.equal("state", second.State, engine.Running)
	b.equal("start", second.Started.UTC(), first.Started.UTC())
	restarted, err := b.Engine.Restarted(b.ctx, id, first.Started)
	b.must(err)
	b.equal("the engine was restarted", restarted, false)
	b.is(b.Engine.Start(b.ctx, b.root+"-not"), engine.ErrNotFound)
}

func commandMissing(b *bench) {
	tag := b.pulled(Image{Files: map[string]string{"/Data/File": "no program", "/Data/noexec": "#!/bin/sh\n"}})
	for _, c := range []struct {
		command string
		code    int
	}{
		{"no-such-command", 127},
		{"/No/Such/Path", 127},
		{"/Data/File/x", 127}, // below a file
		{"/Data/File", 126},   // no execute permission
		{"/Data", 126},        // a directory
	} {
		id := b.container(tag, "", func(s *engine.Spec) { s.Command = []string{c.command} })
		var refused *engine.StartError
		err := b.Engine.Start(b.ctx, id)
		if !errors.As(err, &refused) || refused.ExitCode != c.code {
			b.Errorf("start of %s: %v (%+v), want exit code %d", c.command, err, refused, c.code)
		}
		b.must(b.Engine.Remove(b.ctx, id))
	}
}

func userMissing(b *bench) {
	id := b.container(b.pulled(Image{}), "true", func(s *engine.Spec) { s.User = "nosuchuser" })
	err := b.Engine.Start(b.ctx, id)
	if err == nil || machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "nosuchuser") {
		b.Errorf("start as a user that is not there: %v, fault %s", err, machine.FaultOf(err))
	}
}

func outOfMemory(b *bench) {
	// Docker does not hear of the kill when the container ends with it on a busy node.
	id := b.container(b.pulled(Image{}), "(x=0123456789; while :; do x=$x$x; done); code=$?; sleep 3; exit $code",
		func(s *engine.Spec) { s.MemoryBytes = 16 << 20 })
	exits, err := b.Engine.WaitNext(b.ctx, id)
	b.must(err)
	b.must(b.Engine.Start(b.ctx, id))
	exit := <-exits
	b.must(exit.Err)
	c, err := b.Engine.Container(b.ctx, id)
	b.must(err)
	if exit.Code != 137 || !c.OOMKilled && !b.Podman { // which does not hear of it from every cgroup
		b.Errorf("exit code %d, OOMKilled %t, want 137 and true", exit.Code, c.OOMKilled)
	}
}

func logs(b *bench) {
	_, out, errs := b.ran(b.pulled(Image{}), `
		i=0; while [ $i -lt 8 ]; do i=$((i+1)); head -c 65536 /dev/zero | tr '\0' o; echo; printf 'e%d\n' $i >&2; done
		printf 'no newline'; printf '\n\nätsch\r\t\033[0m' >&2`, nil)
	want := strings.Repeat(strings.Repeat("o", 65536)+"\n", 8) + "no newline"
	if out != want {
		b.Errorf("%d bytes of standard output, want %d; they differ", len(out), len(want))
	}
	var lines strings.Builder
	for i := range 8 {
		fmt.Fprintf(&lines, "e%d\n", i+1)
	}
	b.equal("standard error", errs, lines.String()+"\n\nätsch\r\t\033[0m")
}

var errFull = errors.New("the writer is full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

func logsBrokenWriter(b *bench) {
	id := b.container(b.pulled(Image{}), "echo x", nil)
	b.must(b.Engine.Start(b.ctx, id))
	_, err := b.Engine.Wait(b.ctx, id)
	b.must(err)
	b.is(b.Engine.Log(b.ctx, id, full{}, io.Discard), errFull)
	b.is(b.Engine.Log(b.ctx, b.root+"-not", io.Discard, io.Discard), engine.ErrNotFound)
}

func stop(b *bench) {
	tag := b.pulled(Image{})
	for _, c := range []struct {
		script string
		grace  time.Duration
		code   int
	}{
		{"trap 'exit 9' TERM; echo ready; while :; do usleep 10000; done", time.Minute, 9},
		{"trap '' TERM; echo ready; while :; do usleep 10000; done", 100 * time.Millisecond, 137},
	} {
		id := b.container(tag, c.script, nil)
		b.must(b.Engine.Start(b.ctx, id))
		for ready := (bytes.Buffer{}); ready.Len() == 0; {
			b.must(b.Engine.Log(b.ctx, id, &ready, io.Discard))
		}
		b.must(b.Engine.Stop(b.ctx, id, c.grace))
		got, err := b.Engine.Container(b.ctx, id)
		b.must(err)
		b.equal("state", got.State, engine.Exited)
		b.equal("exit code", got.ExitCode, c.code)
		b.must(b.Engine.Stop(b.ctx, id, c.grace))
	}
	b.must(b.Engine.Stop(b.ctx, b.container(tag, "true", nil), time.Second)) // never started
	b.must(b.Engine.Stop(b.ctx, b.root+"-not", time.Second))
}

func remove(b *bench) {
	tag := b.pulled(Image{Volumes: []string{"/anonymous"}})
	volume := b.root + "-named"
	b.must(b.Engine.CreateVolume(b.ctx, volume, b.labels()))
	id := b.container(tag, "", func(s *engine.Spec) {
		s.Command = []string{"sleep", "1000"}
		s.Mounts = []engine.Mount{{Kind: engine.VolumeMount, Source: volume, Target: "/named"}}
	})
	b.must(b.Engine.Start(b.ctx, id))
	c, err := b.Engine.Container(b.ctx, id)
	b.must(err)
	b.is(b.Engine.Remove(b.ctx, id), engine.ErrInUse)
	b.is(b.Engine.RemoveVolume(b.ctx, volume), engine.ErrInUse)
	b.must(b.Engine.Stop(b.ctx, id, 0))
	// Several at once, as when a scrub meets somebody else's.
	results := make(chan error)
	for range 4 {
		go func() { results <- b.Engine.Remove(b.ctx, id) }()
	}
	for range 4 {
		b.check(<-results)
	}
	_, err = b.Engine.Container(b.ctx, id)
	b.is(err, engine.ErrNotFound)
	b.must(b.Engine.Remove(b.ctx, id))
	all, err := b.Engine.Volumes(b.ctx, nil)
	b.must(err)
	var left []string
	for _, v := range all {
		if slices.Contains(c.Volumes, v.Name) {
			left = append(left, v.Name)
		}
	}
	b.equal("volumes that are left", left, []string{volume})
}

func list(b *bench) {
	tag := b.pulled(Image{})
	label := func(task string) func(*engine.Spec) {
		return func(s *engine.Spec) {
			s.Labels = map[string]string{engine.LabelRoot: b.root, engine.LabelTask: task}
		}
	}
	one := b.container(tag, "true", label("one"))
	two := b.container(tag, "true", label("two"))
	b.must(b.Engine.Start(b.ctx, two))
	_, err := b.Engine.Wait(b.ctx, two)
	b.must(err)
	for _, c := range []struct {
		labels map[string]string
		want   []string
	}{
		{b.labels(), []string{one, two}},
		{map[string]string{engine.LabelRoot: b.root, engine.LabelTask: "two"}, []string{two}},
		{map[string]string{engine.LabelRoot: b.root[:len(b.root)-1]}, nil},
	} {
		found, err := b.Engine.Containers(b.ctx, c.labels)
		b.must(err)
		var ids []string
		for _, x := range found {
			ids = append(ids, x.ID)
			if x.ID == two && (x.State != engine.Exited || x.Name != b.root+"-2" || x.Labels[engine.LabelTask] != "two" || x.ImageID == "") {
				b.Errorf("in the list: %+v", x)
			}
		}
		slices.Sort(ids)
		slices.Sort(c.want)
		b.equal("containers", ids, c.want)
	}
}

func copyFiles(b *bench) {
	id := b.container(b.pulled(Image{Files: map[string]string{"/opt/file": "content"}}), "true", nil)
	content := func(path string) (text string) {
		b.Helper()
		b.must(b.Engine.CopyFrom(b.ctx, id, path, func(stream io.Reader) error {
			r := tar.NewReader(stream)
			h, err := r.Next()
			b.must(err)
			content, err := io.ReadAll(r)
			text = h.Name + " " + string(content)
			return err
		}))
		return text
	}
	b.equal("file", content("/opt/file"), "file content")
	for _, key := range []string{id, b.root + "-not"} {
		b.is(b.Engine.CopyFrom(b.ctx, key, "/no/such/path", nil), engine.ErrNotFound)
		if key == id && b.Podman {
			continue // it makes the directory
		}
		b.is(b.Engine.CopyTo(b.ctx, key, "/no/such/path", archive(b, "x", "")), engine.ErrNotFound)
	}
	b.must(b.Engine.CopyTo(b.ctx, id, "/opt", archive(b, "new", "text")))
	b.equal("what was copied there", content("/opt/new"), "new text")
	// Directories are made where there are none; what lies in those that are there stays.
	b.must(b.Engine.CopyTo(b.ctx, id, "/", archive(b, "opt/made/new", "deep")))
	b.equal("what was copied deep", content("/opt/made/new"), "new deep")
	b.equal("a file beside it", content("/opt/file"), "file content")
	err := b.Engine.CopyTo(b.ctx, id, "/", archive(b, "opt", "a file"))
	b.equal("whose fault a file in the place of a directory is", machine.FaultOf(err), machine.TaskFault)
	read := 0
	b.is(b.Engine.CopyFrom(b.ctx, id, "/opt/new", func(io.Reader) error { read++; return errFull }), errFull)
	b.equal("readings of a reader that fails", read, 1)
}

func archive(b *bench, name, content string) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	b.must(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}))
	_, err := io.WriteString(w, content)
	b.must(err)
	b.must(w.Close())
	return &buf
}

func changes(b *bench) {
	tag := b.pulled(Image{Files: map[string]string{"/own/kept": "k", "/own/changed": "c", "/own/gone": "g"}})
	script := "cd /own; echo more >> changed; rm gone; mkdir -p a/b; echo > a/b/new; ln -s new a/b/link; [ -e /v ] && echo > /v/mounted"
	id := b.container(tag, script, func(s *engine.Spec) {
		s.Mounts = []engine.Mount{{Kind: engine.BindMount, Source: b.TempDir(), Target: "/v"}}
	})
	b.must(b.Engine.Start(b.ctx, id))
	_, err := b.Engine.Wait(b.ctx, id)
	b.must(err)
	var got []string
	b.must(b.Engine.Changes(b.ctx, id, func(paths iter.Seq[string]) error { got = slices.Collect(paths); return nil }))
	got = slices.DeleteFunc(got, func(p string) bool { return !strings.HasPrefix(p, "/own") && p != "/v/mounted" })
	slices.Sort(got)
	b.equal("changes", got, []string{"/own", "/own/a", "/own/a/b", "/own/a/b/link", "/own/a/b/new", "/own/changed"})
	read := 0
	b.is(b.Engine.Changes(b.ctx, id, func(paths iter.Seq[string]) error {
		for range paths {
			read++
			break
		}
		return errFull
	}), errFull)
	b.equal("paths that a reader has read which gives up", read, 1)
	b.is(b.Engine.Changes(b.ctx, b.root+"-not", nil), engine.ErrNotFound)
}

func volumes(b *bench) {
	name := b.root + "-v"
	for range 2 {
		b.must(b.Engine.CreateVolume(b.ctx, name, b.labels()))
	}
	b.ran(b.pulled(Image{}), "head -c 100000 /dev/zero > /v/file", func(s *engine.Spec) {
		s.Mounts = []engine.Mount{{Kind: engine.VolumeMount, Source: name, Target: "/v"}}
	})
	found, err := b.Engine.Volumes(b.ctx, b.labels())
	b.must(err)
	if len(found) != 1 || found[0].Name != name || found[0].Labels[engine.LabelRoot] != b.root || found[0].Bytes < 100000 {
		b.Errorf("volumes: %+v", found)
	}
	b.clear()
	found, err = b.Engine.Volumes(b.ctx, b.labels())
	b.must(err)
	b.equal("volumes after their removal", len(found), 0)
	b.must(b.Engine.RemoveVolume(b.ctx, name))

	// What others have labelled is theirs, whatever its name.
	ours, forgotten, theirs := b.root+"-ours", b.root+"-forgotten", b.root+"-theirs"
	for name, labels := range map[string]map[string]string{ours: b.labels(), forgotten: nil, theirs: {"of": "others"}} {
		b.must(b.Engine.CreateVolume(b.ctx, name, labels))
		b.Cleanup(func() { b.check(b.Engine.RemoveVolume(b.ctx, name)) })
	}
	for _, c := range []struct {
		prefixes []string
		want     []string
	}{{nil, []string{ours}}, {[]string{"no-such", b.root + "-f"}, []string{forgotten, ours}}, {[]string{b.root}, []string{forgotten, ours}}} {
		found, err := b.Engine.Volumes(b.ctx, b.labels(), c.prefixes...)
		b.must(err)
		var names []string
		for _, v := range found {
			names = append(names, v.Name)
		}
		slices.Sort(names)
		b.equal(fmt.Sprint("volumes by labels and by ", c.prefixes), names, c.want)
	}
}

func networks(b *bench) {
	id := b.AddNetwork(b.T, b.root, b.labels())
	found, err := b.Engine.Networks(b.ctx, b.labels())
	b.must(err)
	if len(found) != 1 || found[0].ID != id || found[0].Name != b.root || found[0].Labels[engine.LabelRoot] != b.root {
		b.Errorf("networks: %+v", found)
	}
	for range 2 {
		b.must(b.Engine.RemoveNetwork(b.ctx, id))
	}
	found, err = b.Engine.Networks(b.ctx, b.labels())
	b.must(err)
	b.equal("networks after their removal", len(found), 0)
}
