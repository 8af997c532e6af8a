// Package shape has the tasks whose runs are killed at every crash point, and
// what the node was like before them. They are data: one harness runs them by the
// real program on a real engine, another one inside its own process.
package shape

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/deckhand/deckhand/internal/tes"
)

// Shape is one story of a task on a node.
type Shape struct {
	Name string
	// Short shapes are cheap: all pairs of kills are run.
	Short bool
	// Everywhere: on a real engine too it is killed at every point, and not only
	// where a container makes a difference.
	Everywhere bool
	// Restart: not only the process is killed but the whole node is restarted, which
	// ends every container too. That takes an engine that can be told to.
	Restart bool
	// Present are images that others have on the node.
	Present []string
	// Earlier runs come first, and are not the ones that are looked at.
	Earlier []Run
	// Run is killed and started again.
	Run Run
	// Told: a file and a server are told of the events of every run.
	Told bool
	// Code is the exit code of the last process.
	Code int
}

// Run is one process.
type Run struct {
	// Task is the document; without it Command is run.
	Task    func(p Place) tes.Task
	Command []string
	// Front: the task is on a server of Funnel, and the run is told its id alone.
	Front bool
	// At ends an earlier run: the occurrence of a crash point.
	At string
	// Begins: where no gate holds it, an earlier run counts as over once its command
	// has begun (see Begun), so that there is always the same to be removed.
	Begins bool
	// Moved is an image whose tag has moved before this run, to another image.
	Moved string
	// Cancel: the user stops it, as with SIGINT, as soon as an executor's command has
	// begun (see Begun): before that it is stopped another way.
	Cancel bool
}

// Image names an image that is in the registry.
type Image struct{ Tag, Digest string }

// Images says what the images hold beside a shell: the volumes that they declare.
// Each is unlike the others.
var Images = map[string][]string{"a": {"/scratch"}, "b": nil, "moving": nil}

// Place is where a shape is told.
type Place struct {
	Images map[string]Image
	// In holds the inputs of Inputs; Out is for outputs.
	In, Out string
	// Server takes outputs by PUT, and has a Bucket.
	Server string
	// Streams says that executors may name files for their streams. That takes
	// the program itself into their containers.
	Streams bool
	// Moment is what an executor takes, in microseconds, so that it may be killed
	// under.
	Moment int
}

// Inputs are the files below Place.In.
var Inputs = map[string]string{"file": "of a file\n", "dir/one": "1\n", "dir/sub/two": "2\n"}

// References is the directory below Place.In whose files are mounted and not copied, and
// reference one of them, of referenceSize bytes.
const (
	References    = "references"
	reference     = References + "/large"
	referenceSize = 1 << 20
)

// MakeInputs makes all files of inputs below a directory.
func MakeInputs(in string) error {
	for name, text := range Inputs {
		file := filepath.Join(in, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	large := filepath.Join(in, reference)
	return errors.Join(os.MkdirAll(filepath.Dir(large), 0o755), os.WriteFile(large, nil, 0o644), os.Truncate(large, referenceSize))
}

const content = "of the document\n"

// script is what an executor does: it says that it ran, and makes something of
// its inputs.
func script(p Place, name string) string {
	return fmt.Sprintf("echo %[1]s >> /data/ran; echo said %[1]s; cat /in/file /in/content /in/dir/one /in/dir/sub/two > /data/made-%[1]s; usleep %[2]d", name, p.Moment)
}

func sh(image, script string) tes.Executor {
	return tes.Executor{Image: image, Command: []string{"sh", "-c", script}}
}

// task is a task with every kind of input and output, without its executors.
func task(p Place, id string, executors ...tes.Executor) tes.Task {
	text := content
	return tes.Task{
		ID: id,
		Inputs: []tes.Input{
			{URL: path.Join(p.In, "file"), Path: "/in/file"},
			{URL: path.Join(p.In, "dir"), Path: "/in/dir", Type: tes.Directory},
			{Content: &text, Path: "/in/content"},
		},
		Executors: executors,
		Outputs: []tes.Output{
			{Path: "/data", URL: path.Join(p.Out, id), Type: tes.Directory},
			{Path: "/data/ran", URL: p.Server + "/" + id},
		},
		Volumes: []string{"/data"},
	}
}

// one is a task with one executor whose output goes to a file.
func one(id, image string, byTag bool) func(Place) tes.Task {
	return func(p Place) tes.Task {
		ref := p.Images[image].Digest
		if byTag {
			ref = p.Images[image].Tag
		}
		e := sh(ref, script(p, "one"))
		if p.Streams {
			e.Stdout = "/data/stdout"
		}
		return task(p, id, e)
	}
}

// small is a task with no inputs and one output.
func small(id, image string) func(Place) tes.Task {
	return func(p Place) tes.Task {
		return tes.Task{
			ID: id, Executors: []tes.Executor{sh(p.Images[image].Digest, "echo small > /data/small")},
			Outputs: []tes.Output{{Path: "/data/small", URL: path.Join(p.Out, id)}}, Volumes: []string{"/data"},
		}
	}
}

// saying is small, with something to tell of its executor, and a warning: one of its outputs
// is not there.
func saying(id, image string) func(Place) tes.Task {
	return func(p Place) tes.Task {
		t := small(id, image)(p)
		t.Executors[0].Command[2] += "; echo said; echo why >&2"
		t.Outputs = append(t.Outputs, tes.Output{Path: "/data/missing", URL: path.Join(p.Out, "missing")})
		return t
	}
}

// parted is a task with an output that goes to a bucket in parts.
func parted(id string) func(Place) tes.Task {
	return func(p Place) tes.Task {
		t := small(id, "b")(p)
		t.Executors[0].Command[2] += "; truncate -s 17M /data/large"
		t.Outputs = []tes.Output{{Path: "/data/large", URL: "s3://bucket/" + id}}
		return t
	}
}

func several(id string) func(Place) tes.Task {
	return func(p Place) tes.Task {
		a, b := p.Images["a"].Digest, p.Images["b"].Tag
		return task(p, id, sh(a, script(p, "one")), sh(b, script(p, "two")), sh(a, script(p, "three")))
	}
}

func failing(id string, ignored bool) func(Place) tes.Task {
	return func(p Place) tes.Task {
		a := p.Images["a"].Digest
		first := sh(a, script(p, "one")+"; exit 3")
		first.IgnoreError = ignored
		return task(p, id, first, sh(a, script(p, "two")))
	}
}

// Begun is the file, in the first directory of its task, with which a command
// says that it has begun, where it is to be cancelled.
const Begun = "begun"

// EventsFile is the file of events in the directory of a world, and EventsPath the
// path at its server to which events are posted.
const (
	EventsFile = "events"
	EventsPath = "/events"
)

// HasBegun says whether a command of a task below a root has begun.
func HasBegun(root string) bool {
	found, _ := filepath.Glob(root + "/tasks/*/*/dirs/*/" + Begun) // the pattern is well
	return len(found) > 0
}

// endless is a task that ends when it is killed: it ignores a SIGTERM, which may come
// before the SIGKILL has its effect or not.
func endless(id string) func(Place) tes.Task {
	return func(p Place) tes.Task {
		return task(p, id, sh(p.Images["a"].Digest, "trap '' TERM; : > /data/"+Begun+"; exec sleep 100000"))
	}
}

func missing(id string) func(Place) tes.Task {
	return func(p Place) tes.Task {
		t := one(id, "a", false)(p)
		t.Inputs = append(t.Inputs, tes.Input{URL: path.Join(p.In, "nowhere"), Path: "/in/nowhere"})
		return t
	}
}

// over is a task with input directories in the image's trees: one where the image
// has files, and one where it has none.
func over(id string) func(Place) tes.Task {
	return func(p Place) tes.Task {
		t := one(id, "a", false)(p)
		for _, at := range []string{"/bin", "/opt/own"} {
			t.Inputs = append(t.Inputs, tes.Input{URL: path.Join(p.In, "dir"), Path: at, Type: tes.Directory})
		}
		t.Executors[0].Command[2] = "cat /bin/one /bin/sub/two /opt/own/one > /data/over; " + t.Executors[0].Command[2]
		return t
	}
}

// mounted is a task with an input that is mounted into its executors.
func mounted(id string) func(Place) tes.Task {
	return func(p Place) tes.Task {
		t := one(id, "a", false)(p)
		t.Inputs = append(t.Inputs, tes.Input{URL: path.Join(p.In, reference), Path: "/in/sub/large"})
		t.Executors[0].Command[2] = "wc -c < /in/sub/large > /data/size; grep -c ' /in/sub/large .* ro' /proc/self/mounts > /data/mounts; " + t.Executors[0].Command[2]
		return t
	}
}

// Points at which earlier runs are killed.
const (
	// firstPut: the first of several outputs is published, which nobody has
	// journaled.
	firstPut = "steps/upload.(*Step).send/Storage.Put after#1"
	// partPut: an output is there under a name that is not its own.
	partPut = "internal/storage.local.Put/File.Sync after#2"
	// unnamed: an upload in parts was begun, and what names it is known to nobody.
	unnamed = "steps/upload.(*Step).send/Notes.Intent before#2"
	// started: the executor runs, which nobody has journaled.
	started = "steps/run.(*Step).execute/Engine.Start after#1"
)

// All are all shapes.
var All = []Shape{
	{Name: "one executor", Short: true, Run: Run{Task: one("one", "a", false)}},
	{Name: "three executors", Run: Run{Task: several("several")}},
	{Name: "failing executor", Short: true, Run: Run{Task: failing("failing", false)}, Code: 1},
	{Name: "ignored error", Run: Run{Task: failing("ignored", true)}},
	{Name: "cancelled", Short: true, Run: Run{Task: endless("cancelled"), Cancel: true}, Code: 4},
	{Name: "missing input", Short: true, Run: Run{Task: missing("missing")}, Code: 3},
	{Name: "inputs over the image", Short: true, Run: Run{Task: over("over")}},
	{Name: "mounted input", Run: Run{Task: mounted("mounted")}},
	{Name: "image already there", Short: true, Present: []string{"b"}, Run: Run{Task: one("present", "b", true)}},
	{Name: "image replaced", Earlier: []Run{{Task: small("earlier", "b")}}, Run: Run{Task: one("replaced", "a", false)}},
	{Name: "tag moved", Earlier: []Run{{Task: one("earlier", "moving", true)}}, Run: Run{Task: one("moved", "moving", true), Moved: "moving"}},
	{Name: "resumed upload", Earlier: []Run{{Task: one("upload", "a", false), At: firstPut}}, Run: Run{Task: one("upload", "a", false)}},
	{
		Name: "roll-back by another task", Earlier: []Run{{Task: several("dead"), At: partPut}},
		Run: Run{Task: small("next", "b")},
	},
	{
		Name: "scrubbed", Short: true, Earlier: []Run{{Task: several("dead"), At: partPut}},
		Run: Run{Command: []string{"scrub"}},
	},
	{
		Name: "recovered", Short: true, Earlier: []Run{{Task: endless("dead"), At: started, Begins: true}},
		Run: Run{Command: []string{"recover"}},
	},
	// Its roll-back leaves an upload, and settles it when it is over.
	{
		Name: "upload is owed", Short: true, Earlier: []Run{{Task: parted("dead"), At: unnamed}},
		Run: Run{Command: []string{"scrub"}},
	},
	{Name: "others are told", Short: true, Told: true, Run: Run{Task: small("told", "b")}},
	{Name: "task of a server", Run: Run{Task: saying("front", "b"), Front: true}},
	{Name: "task of a server on a restarted node", Restart: true, Run: Run{Task: saying("front", "b"), Front: true}},
	{Name: "restarted node", Short: true, Restart: true, Run: Run{Task: one("restarted", "a", false)}},
	{Name: "three executors on a restarted node", Restart: true, Run: Run{Task: several("restarted")}},
	// What every process does before it comes to a task, and after it.
	{Name: "first start", Short: true, Everywhere: true, Run: Run{Command: []string{"scrub"}}},
}

// Other is a task that comes to the node in the place of one that is unfinished.
var Other = Run{Task: small("other", "b")}

// Named returns the shape with that name.
func Named(name string) (Shape, error) {
	for _, s := range All {
		if s.Name == name {
			return s, nil
		}
	}
	return Shape{}, fmt.Errorf("no shape is called %q", name)
}
