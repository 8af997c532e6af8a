package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/test/rig"
)

// answers is a Docker that only tells of itself, for what no real one can be made
// to say.
type answers struct {
	mu   sync.Mutex
	info map[string]any // ApiVersion is what a ping says
}

// tell changes what it tells under a name of Docker's API.
func (a *answers) tell(name string, value any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.info[name] = value
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Api-Version", a.info["ApiVersion"].(string))
	switch {
	case strings.HasSuffix(r.URL.Path, "/_ping"):
	case strings.HasSuffix(r.URL.Path, "/info"):
		_ = json.NewEncoder(w).Encode(a.info) // the client tells
	case strings.HasSuffix(r.URL.Path, "/volumes"), strings.HasSuffix(r.URL.Path, "/system/df"):
		_, _ = io.WriteString(w, "{}")
	default:
		_, _ = io.WriteString(w, "[]")
	}
}

// sickNode is a node on which everything is well until a test breaks something.
type sickNode struct {
	*bareNode
	docker *answers
	under  []string // the command that runs deckhand; may be empty
	args   []string
	code   int // of the last examination
}

func newSickNode(t *testing.T) *sickNode {
	t.Helper()
	n := &sickNode{bareNode: newNode(t), docker: &answers{info: map[string]any{
		"ApiVersion": "1.41", "ServerVersion": "20.10.24", "Driver": "overlay2", "CgroupDriver": "cgroupfs", "CgroupVersion": "1", "OSType": "linux", "Architecture": "x86_64",
		"LiveRestoreEnabled": true, "MemoryLimit": true, "CpuCfsQuota": true, "PidsLimit": true,
		"DefaultRuntime": "runc", "Runtimes": map[string]any{"runc": map[string]string{"path": "runc"}},
	}}}
	dir, err := os.MkdirTemp("", "dk") // the test's own name may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", dir+"/docker")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.Server{Listener: listener, Config: &http.Server{Handler: n.docker}}
	server.Start()
	t.Cleanup(server.Close)
	n.set("DECKHAND_DOCKER_HOST=unix://" + dir + "/docker")
	n.remember(t, "well", "complete")
	return n
}

func (n *sickNode) set(env ...string) { n.env = append(n.env, env...) }
func (n *sickNode) root() string      { return filepath.Join(n.dir, "root") }
func (n *sickNode) path(name string) string {
	return filepath.Join(n.dir, name)
}

// task gives doctor a task document with these inputs and outputs.
func (n *sickNode) task(t *testing.T, inputs, outputs string) {
	t.Helper()
	n.save(t, "task.json", fmt.Sprintf(`{"executors":[{"image":"127.0.0.1:1/tool","command":["true"]}],"inputs":[%s],"outputs":[%s]}`, inputs, outputs))
	n.args = append(n.args, "task.json")
}

func (n *sickNode) remember(t *testing.T, task, end string) {
	t.Helper()
	cmd := exec.Command("history", task+"="+end)
	cmd.Env = n.env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// hold lets another process hold the root for a task until the test ends.
func (n *sickNode) hold(t *testing.T, task string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("holder", task)
	cmd.Env = n.env
	says, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(says).ReadString('\n'); err != nil {
		t.Fatalf("the holder says %q: %v", line, err)
	}
	return cmd
}

// complaints are what doctor finds wrong, by check.
func (n *sickNode) complaints(t *testing.T) map[string]finding {
	t.Helper()
	line := append(append(n.under, "deckhand", "doctor", "--json"), n.args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env, cmd.Dir = n.env, n.dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	n.code = cmd.ProcessState.ExitCode()
	var all []finding
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("%v: exit code %d\n%s%s", err, n.code, out, stderr.String())
	}
	wrong := map[string]finding{}
	for _, f := range all {
		if f.Result == checkOK {
			if f.Fix != "" {
				t.Errorf("%+v mends what is well", f)
			}
			continue
		}
		if f.Fix == "" {
			t.Errorf("%+v has no mend", f)
		}
		wrong[f.Check] = f
	}
	return wrong
}

// Whatever is broken, its check says so with what mends it, and no other does.
func TestDoctorFindsWhatIsBroken(t *testing.T) {
	const gone = "127.0.0.1:1" // which no server is given
	failing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	t.Cleanup(failing.Close) // after the parallel ones
	documents := documentServer(t)
	for name, test := range map[string]struct {
		breaks func(t *testing.T, n *sickNode)
		check  string // with its result; empty for nothing
		says   string
		mend   string
		also   string // another check that has to complain
	}{
		"nothing":          {breaks: func(*testing.T, *sickNode) {}},
		"root of another":  {func(t *testing.T, n *sickNode) { chown(t, n.root(), 54321) }, "fail root", "belongs to user 54321", "--root", ""},
		"root is a file":   {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_ROOT=/etc/hostname") }, "fail root", "not a directory", "--root", ""},
		"no space":         {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_DISK_FLOOR=1000TiB") }, "fail space", "free for the root", "disk.floor", ""},
		"no inodes":        {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_DISK_INODE_FLOOR=1000000000000") }, "fail inodes", "free for the root", "disk.inode_floor", ""},
		"few files":        {func(_ *testing.T, n *sickNode) { n.under = []string{"prlimit", "--nofile=128:128"} }, "warn limits", "open files: at most 128", "ulimit -n", ""},
		"small files":      {func(_ *testing.T, n *sickNode) { n.under = []string{"prlimit", "--fsize=1000000000"} }, "warn limits", "size of a file: at most 953", "ulimit -f", ""},
		"no address space": {func(_ *testing.T, n *sickNode) { n.under = []string{"prlimit", "--as=3221225472"} }, "warn limits", "address space: at most 3GiB", "ulimit -v", ""},

		"journal altered": {func(t *testing.T, n *sickNode) {
			witness := filepath.Join(n.root(), "journal", "WITNESS")
			must(t, os.WriteFile(witness, make([]byte, 8192), 0o600))
		}, "fail journal", "", "deckhand journal verify", ""},
		"reserve used": {func(t *testing.T, n *sickNode) {
			must(t, os.Remove(filepath.Join(n.root(), "journal", "BALLAST")))
		}, "warn journal reserve", "0B of 4MiB", "free space", ""},
		"a run has died": {func(t *testing.T, n *sickNode) { n.remember(t, "dead", "dead") }, "warn unfinished task", "task dead", "deckhand recover", ""},

		"owner has died": {func(t *testing.T, n *sickNode) {
			cmd := n.hold(t, "t")
			must(t, cmd.Process.Kill())
			_ = cmd.Wait()
		}, "warn lock", "stale: process", "deckhand recover", ""},
		"owner is elsewhere": {func(t *testing.T, n *sickNode) {
			must(t, os.WriteFile(filepath.Join(n.root(), "lock"), nil, 0o600))
			must(t, os.WriteFile(filepath.Join(n.root(), "owner.json"), []byte(`{"pid":7,"host":"another","boot_id":"another","task":"t"}`), 0o600))
		}, "warn lock", "process 7 on another", "process 7 on another", ""},
		"dead socket": {func(t *testing.T, n *sickNode) {
			must(t, os.WriteFile(filepath.Join(n.root(), "lock"), nil, 0o600))
			must(t, os.WriteFile(filepath.Join(n.root(), socketName), nil, 0o600))
		}, "warn lock", "control.sock of a dead process", "deckhand recover", ""},
		"owner is silent": {func(t *testing.T, n *sickNode) { n.hold(t, "t") }, "warn lock", "does not answer on control.sock", "kill -CONT", ""},
		"lock of a stranger": {func(t *testing.T, n *sickNode) {
			lock, err := os.Create(filepath.Join(n.root(), "lock"))
			must(t, err)
			t.Cleanup(func() { lock.Close() })
			must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
		}, "fail lock", fmt.Sprintf("process %d holds it and has not written down", os.Getpid()), "ps -fp", ""},

		"no Docker":       {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_DOCKER_HOST=unix:///nowhere") }, "fail docker", "cannot reach Docker", "systemctl start docker", ""},
		"Docker is far":   {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_DOCKER_HOST=tcp://" + gone) }, "fail docker", "cannot reach Docker", "this node reaches it", ""},
		"Docker is old":   {func(_ *testing.T, n *sickNode) { n.docker.tell("ApiVersion", "1.40") }, "fail docker", "API 1.40", "upgrade", ""},
		"slow layers":     {func(_ *testing.T, n *sickNode) { n.docker.tell("Driver", "vfs") }, "warn docker storage", "vfs", "overlay2", ""},
		"no limits":       {func(_ *testing.T, n *sickNode) { n.docker.tell("CgroupDriver", "none") }, "warn docker limits", "no control groups", "controllers", ""},
		"no memory limit": {func(_ *testing.T, n *sickNode) { n.docker.tell("MemoryLimit", false) }, "warn docker limits", "cannot limit the memory", "controllers", ""},
		"no runtime": {func(_ *testing.T, n *sickNode) {
			n.docker.tell("Runtimes", map[string]any{"runc": map[string]string{"path": "/nowhere/runc"}})
		}, "fail docker runtime", "no program /nowhere/runc", "daemon.json", ""},
		"no live-restore": {func(_ *testing.T, n *sickNode) { n.docker.tell("LiveRestoreEnabled", false) }, "warn docker live-restore", "off", "daemon.json", ""},
		"left directory": {func(t *testing.T, n *sickNode) {
			must(t, os.MkdirAll(filepath.Join(n.root(), "tasks", "old"), 0o700))
		}, "warn leftovers", "1 of kind directory", "deckhand scrub", ""},

		"Slurm is silent": {func(_ *testing.T, n *sickNode) {
			n.set("SLURM_JOB_ID=1", "PATH=/nowhere", "DECKHAND_RUN_CGROUP_PARENT=none")
		}, "warn slurm", "scontrol", "slurmctld", ""},
		"job's limits": {func(_ *testing.T, n *sickNode) {
			n.set("DECKHAND_RUN_CGROUP_PARENT=auto")
			n.docker.tell("CgroupDriver", "systemd")
		}, "warn job limits", "cgroup driver of Docker is systemd", "slurm.md", ""},

		"mounted inputs that are not there": {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_STORAGE_FILE_MOUNT=/nowhere/ref") }, "warn mounted inputs", "/nowhere/ref cannot be used", "copied until then", ""},
		"mounted inputs of others": {func(t *testing.T, n *sickNode) {
			dir := t.TempDir()
			if err := errors.Join(os.Mkdir(dir+"/ref", 0o755), os.Chmod(dir+"/ref", 0o775)); err != nil {
				t.Fatal(err)
			}
			n.set("DECKHAND_STORAGE_FILE_MOUNT=" + dir + "/ref")
		}, "warn mounted inputs", "others can change", "alone write to it", ""},
		"mounted inputs below a directory of others": {func(t *testing.T, n *sickNode) {
			dir := t.TempDir()
			if err := errors.Join(os.Mkdir(dir+"/ref", 0o755), os.Chmod(dir, 0o777)); err != nil {
				t.Fatal(err)
			}
			n.set("DECKHAND_STORAGE_FILE_MOUNT=" + dir + "/ref")
		}, "warn mounted inputs", "others can change", "alone write to it", ""},
		"mounted inputs that containers could mount": {func(t *testing.T, n *sickNode) {
			n.set("DECKHAND_STORAGE_FILE_MOUNT="+t.TempDir(), "DECKHAND_RUN_CAP_ADD=SYS_ADMIN")
		}, "warn mounted inputs", "is mounted: run.cap_add", "SYS_ADMIN", ""},
		"events file": {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_EVENTS_FILE=/nowhere/events") }, "fail events", "events.file", "mend", ""},
		"events hook": {func(t *testing.T, n *sickNode) {
			n.save(t, "hook", "#!/bin/sh\n")
			n.set("DECKHAND_EVENTS_EXEC=" + n.path("hook"))
		}, "fail events", "events.exec", "mend", ""},
		"events secret": {func(_ *testing.T, n *sickNode) {
			n.set("DECKHAND_EVENTS_WEBHOOK_URL="+documents, "DECKHAND_EVENTS_WEBHOOK_SECRET_FILE=/nowhere")
		}, "fail events", "secret_file", "mend", ""},
		"webhook is away": {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_EVENTS_WEBHOOK_URL=http://" + gone) }, "warn events", "does not answer", "receiver", ""},
		"webhook fails":   {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_EVENTS_WEBHOOK_URL=" + failing.URL) }, "warn events", "502", "receiver", ""},
		"metrics file":    {func(_ *testing.T, n *sickNode) { n.set("DECKHAND_METRICS_TEXTFILE=/nowhere/a.prom") }, "fail metrics", "metrics.textfile", "directory", ""},

		"Google file": {func(_ *testing.T, n *sickNode) { n.set("GOOGLE_APPLICATION_CREDENTIALS=/nowhere/key.json") }, "warn credentials", "GOOGLE_APPLICATION_CREDENTIALS names /nowhere/key.json", "readable", ""},
		"Docker file": {func(t *testing.T, n *sickNode) { dockerConfig(t, n, `{"auths":`) }, "warn credentials", "config.json", "mend", ""},
		"no helper":   {func(t *testing.T, n *sickNode) { dockerConfig(t, n, `{"credHelpers":{"r.example":"nope"}}`) }, "warn credentials", "helper docker-credential-nope for r.example", "install", ""},
		"no credentials": {func(t *testing.T, n *sickNode) {
			n.set("AWS_EC2_METADATA_DISABLED=true", "DECKHAND_STORAGE_S3_ENDPOINT="+documents)
			n.task(t, "", `{"url":"s3://bucket/out","path":"/out"}`)
		}, "warn credentials", "AWS: the task needs it", "docs/storage.md", "fail image"},

		"input is missing": {func(t *testing.T, n *sickNode) { n.task(t, `{"url":"/nowhere/in","path":"/in"}`, "") }, "fail storage", "/nowhere/in", "name is right", "fail image"},
		"object is missing": {func(t *testing.T, n *sickNode) { n.task(t, `{"url":"`+documents+`/nope","path":"/in"}`, "") },
			"fail storage", "404", "name is right", "fail image"},
		"server is away": {func(t *testing.T, n *sickNode) { n.task(t, `{"url":"http://`+gone+`/in","path":"/in"}`, "") },
			"fail storage", "connection refused", "node reaches it", "fail image"},
		"receiver is away": {func(t *testing.T, n *sickNode) { n.task(t, "", `{"url":"http://`+gone+`/out","path":"/out"}`) },
			"fail storage", "outputs to", "node reaches it", "fail image"},
		"all is there": {func(t *testing.T, n *sickNode) {
			n.save(t, "in", "")
			n.task(t, `{"url":"`+n.path("in")+`","path":"/in"},{"url":"`+documents+`/task.json","path":"/in2"}`, `{"url":"`+documents+`/new","path":"/out"}`)
		}, "fail image", "127.0.0.1:1/tool", "docker login", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newSickNode(t)
			before := n.complaints(t)
			test.breaks(t, n)
			after := n.complaints(t)
			want := map[string]string{}
			for check, f := range before {
				want[check] = f.Result
			}
			for _, is := range []string{test.check, test.also} {
				if result, check, ok := strings.Cut(is, " "); ok {
					want[check] = result
				}
			}
			_, check, _ := strings.Cut(test.check, " ")
			if strings.Contains(test.check, "fail docker") && check == "docker" {
				delete(want, "leftovers")
			}
			got := map[string]string{}
			for check, f := range after {
				got[check] = f.Result
			}
			if !maps.Equal(got, want) {
				t.Errorf("complaints are %v, want %v: %+v", got, want, after)
			}
			if f := after[check]; !strings.Contains(f.Found, test.says) || !strings.Contains(f.Fix, test.mend) {
				t.Errorf("it says %+v, want %q and %q", f, test.says, test.mend)
			}
			failed := strings.Contains(test.check+test.also, "fail ")
			if failed != (n.code == 1) || !failed && n.code != 0 {
				t.Errorf("exit code %d", n.code)
			}
			if n.args = append(n.args, "--strict"); len(after) > 0 && !failed {
				if n.complaints(t); n.code != doctorDoubted {
					t.Errorf("exit code %d with --strict", n.code)
				}
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, name string, uid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	must(t, os.Chown(name, uid, uid))
}

func dockerConfig(t *testing.T, n *sickNode, text string) {
	t.Helper()
	must(t, os.Mkdir(n.path(".docker"), 0o700))
	n.save(t, ".docker/config.json", text)
}

// A clock that was set back, or that follows nothing, is told. The clock of a
// machine is not a test's to change.
func TestDoctorLooksAtTheClock(t *testing.T) {
	n := newSickNode(t)
	e := &examination{app: &app{conf: &config.Loaded{Config: config.Config{Root: n.root()}}, log: slog.New(slog.DiscardHandler)}, now: time.Now}
	follows := true
	e.synced = func() (bool, error) { return follows, nil }
	look := func() finding { return e.clock(t.Context())[0] }
	if f := look(); f.Result != checkOK {
		t.Errorf("%+v", f)
	}
	e.now = func() time.Time { return time.Now().Add(-time.Hour) }
	if f := look(); f.Result != checkFail || !strings.Contains(f.Found, "it was set back by") || f.Fix == "" {
		t.Errorf("%+v", f)
	}
	e.now, follows = time.Now, false
	if f := look(); f.Result != checkWarn || !strings.Contains(f.Fix, "chrony") {
		t.Errorf("%+v", f)
	}
}

// The launcher is known by the variables that it sets, and what Slurm says of itself
// is read as it writes it.
func TestDoctorKnowsLaunchers(t *testing.T) {
	for _, l := range launchers {
		n := newSickNode(t)
		n.set(l.variable+"=job-7", "PATH=/nowhere", "DECKHAND_RUN_CGROUP_PARENT=none")
		if said := n.deckhand(t, "doctor").stdout; !strings.Contains(said, "ok    launcher: "+l.name+" ("+l.variable+"=job-7)") {
			t.Errorf("%s: %s", l.name, said)
		}
	}
	const said = "RequeueExit             = 70-75,99\nRequeueExitHold         = (null)\nKillWait                = 30 sec\n"
	if !hasCode(setting(said, "RequeueExit"), 75) || hasCode(setting(said, "RequeueExit"), 76) || hasCode(setting(said, "RequeueExitHold"), 78) ||
		setting(said, "KillWait") != "30 sec" || setting(said, "Kill") != "not set" {
		t.Error("the settings of Slurm are not read")
	}
}

// A root that goes with the job, and what the description of a job of HTCondor asks for.
func TestDoctorLooksAtTheJob(t *testing.T) {
	for _, name := range ofJob {
		n := newSickNode(t)
		n.set(name+"="+n.dir, "_CONDOR_JOB_AD=")
		if c := n.complaints(t)["job directories"]; c.Result != checkWarn || !strings.Contains(c.Found, "is in "+name) || !strings.Contains(c.Fix, "--root") {
			t.Errorf("%s: %+v", name, c)
		}
		n.set(name + "=" + n.path("roo")) // the beginning of the root's name, and not above it
		if c, complains := n.complaints(t)["job directories"]; complains {
			t.Errorf("%s: %+v", name, c)
		}
	}
	for ad, says := range map[string]string{
		"KillSig = \"SIGTERM\"\nJobMaxVacateTime = 120\n":            "",
		"Cmd = \"/usr/bin/deckhand\"\n":                              "",
		"JobMaxVacateTime = ifThenElse(true, 5, 120)\n":              "",
		"KillSig = \"SIGUSR1\"\n":                                    "kill_sig = SIGTERM",
		"JobMaxVacateTime = 5\nLastVacateTime = 0\nKillSig = \"15\"": "job_max_vacate_time = 20",
	} {
		n := newSickNode(t)
		n.save(t, "job.ad", ad)
		n.set("_CONDOR_JOB_AD=" + n.path("job.ad"))
		c, complains := n.complaints(t)["htcondor"]
		if complains != (says != "") || !strings.Contains(c.Fix, says) {
			t.Errorf("%q: %+v", ad, c)
		}
	}
	n := newSickNode(t)
	n.set("_CONDOR_JOB_AD=/nowhere")
	if c := n.complaints(t)["htcondor"]; !strings.Contains(c.Found, "cannot be read") {
		t.Errorf("%+v", c)
	}
}

// A mount of the job alone, as HTCondor makes one of /tmp: Docker does not see what is there,
// and the outputs go with it. A mount that shows what the node has there too is none.
func TestDoctorLooksAtTheMountsOfTheJob(t *testing.T) {
	if os.Geteuid() != 0 {
		rig.Lack(t, "only root can mount")
	}
	n := newSickNode(t)
	must(t, os.Mkdir(n.path("private"), 0o755))
	must(t, os.Mkdir(n.path("shared"), 0o755))
	must(t, os.Symlink("private", n.path("link")))
	in := func(of, at string) []string {
		return []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" "$1" && shift && exec "$@"`, n.path(of), n.path(at)}
	}
	n.task(t, "", fmt.Sprintf(`{"path":"/1","url":"%[1]s/shared/1"},{"path":"/2","url":"file://%[1]s/link/new/2"},{"path":"/3","url":"http://127.0.0.1:1/3"}`, n.dir))
	n.under = in("shared", "private")
	c := n.complaints(t)["job directories"]
	if c.Result != checkWarn || !strings.Contains(c.Found, "outputs[1].url: "+n.path("private/new/2")+" is on "+n.path("private")) || !strings.Contains(c.Fix, "the node") {
		t.Errorf("%+v", c)
	}
	if plan := n.says(t, append(n.under, "deckhand", "run", "--dry-run", "task.json")); !strings.Contains(plan, c.Found) {
		t.Errorf("the plan is %s", plan)
	}
	n.under = in("shared", "shared")
	if c, complains := n.complaints(t)["job directories"]; complains {
		t.Errorf("%+v", c)
	}
	n.args, n.under = nil, in("shared", "private")
	n.set("DECKHAND_ROOT=" + n.path("link/root"))
	if c := n.complaints(t)["job directories"]; c.Result != checkWarn || !strings.Contains(c.Found, "the root "+n.path("link/root")+" is on "+n.path("private")) || !strings.Contains(c.Fix, "--root") {
		t.Errorf("%+v", c)
	}
	n.set("DECKHAND_DOCKER_HOST=unix:///nowhere", "DECKHAND_ENGINE_WAIT=1ms")
	if said := n.says(t, append(n.under, "deckhand", "run", "task.json")); !strings.Contains(said, "the root is on "+n.path("private")) {
		t.Errorf("a run says %s", said)
	}
}

// says is all that a command prints, whatever it comes to.
func (n *sickNode) says(t *testing.T, line []string) string {
	t.Helper()
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env, cmd.Dir = n.env, n.dir
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out)
}

// A unit of systemd and an epilog have no HOME. Clouds are then spoken to with what is in the
// home directory that the user has, and so it is looked for there, and not where doctor stands.
func TestDoctorKnowsHomeWithoutItsVariable(t *testing.T) {
	if os.Geteuid() != 0 {
		rig.Lack(t, "only root can mount")
	}
	n := newSickNode(t)
	n.save(t, "passwd", "root:x:0:0::"+n.path("home")+":/bin/sh\n")
	n.env = slices.DeleteFunc(n.env, func(v string) bool { return strings.HasPrefix(v, "HOME=") })
	doctor := func() string {
		return n.says(t, []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/passwd && exec deckhand doctor`, n.path("passwd")})
	}
	for _, dir := range []string{".aws", "home/.aws"} {
		must(t, os.MkdirAll(n.path(dir), 0o700))
	}
	n.save(t, ".aws/credentials", "")
	if said := doctor(); strings.Contains(said, ".aws/credentials") {
		t.Errorf("without any it says %s", said)
	}
	n.save(t, "home/.aws/credentials", "")
	if said := doctor(); !strings.Contains(said, "AWS by "+n.path("home/.aws/credentials")) {
		t.Errorf("it says %s", said)
	}
}

// A registry that takes the connection and says nothing is waited for as long as the page says,
// however many images of the task are there.
func TestDoctorWaitsOnceForASilentRegistry(t *testing.T) {
	t.Parallel()
	var waiting, most atomic.Int64
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		now := waiting.Add(1)
		for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
		}
		<-r.Context().Done()
		waiting.Add(-1)
	}))
	t.Cleanup(silent.Close)
	n := newSickNode(t)
	n.docker.tell("RegistryConfig", map[string]any{"InsecureRegistryCIDRs": []string{"127.0.0.0/8"}}) // so that it is asked without TLS, too
	var executors []string
	for i := range 3 {
		executors = append(executors, fmt.Sprintf(`{"image":"%s/%d","command":["true"]}`, silent.Listener.Addr(), i))
	}
	n.save(t, "task.json", `{"executors":[`+strings.Join(executors, ",")+`]}`)
	said := n.deckhand(t, "doctor", "task.json").stdout
	if strings.Count(said, "no answer in 10s") != len(executors) || most.Load() != int64(len(executors)) {
		t.Errorf("%d are waited for at once, and it says %s", most.Load(), said)
	}
}

// Doctor tells that credentials are there, and by what, but never what they are.
func TestDoctorKeepsSecrets(t *testing.T) {
	n := newSickNode(t)
	const secret = "S3CR3T"
	n.set("AWS_ACCESS_KEY_ID="+secret, "AWS_SECRET_ACCESS_KEY="+secret, "AZURE_STORAGE_KEY="+secret, "DECKHAND_EVENTS_WEBHOOK_URL=http://u:"+secret+"@127.0.0.1:1/?sig="+secret)
	dockerConfig(t, n, `{"auths":{"registry.example":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("u:"+secret))+`"}}}`)
	n.task(t, `{"url":"http://127.0.0.1:1/in?sig=`+secret+`","path":"/in"}`, "")
	for _, args := range [][]string{{"doctor", "task.json"}, {"doctor", "task.json", "--json"}} {
		r := n.deckhand(t, args...)
		if strings.Contains(r.stdout+r.stderr, secret) {
			t.Errorf("%v tells a secret: %+v", args, r)
		}
		for _, word := range []string{"registry.example", "AWS_ACCESS_KEY_ID", "AZURE_STORAGE_KEY"} {
			if !strings.Contains(r.stdout, word) {
				t.Errorf("%v does not tell %s: %+v", args, word, r)
			}
		}
	}
}

// Doctor changes nothing, on an empty node either.
func TestDoctorLeavesTheNodeAlone(t *testing.T) {
	n := newNode(t)
	before := listing(t, n.dir)
	if r := n.deckhand(t, "doctor"); r.code != 1 || !strings.Contains(r.stdout, "ok    disk: ") {
		t.Errorf("%+v", r)
	}
	if after := listing(t, n.dir); !slices.Equal(after, before) {
		t.Errorf("there are %v, want %v", after, before)
	}
	n.deckhand(t, "doctor", "nope").want(t, exitUsage, "cannot read the task document nope")
}

// listing are the names below a directory.
func listing(t *testing.T, dir string) (names []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	}))
	return names
}
