package system

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// inspected is what Docker says of a container, as far as it protects the node.
type inspected struct {
	Config struct {
		Healthcheck struct{ Test []string }
	}
	HostConfig struct {
		Privileged, AutoRemove, PublishAllPorts            bool
		NetworkMode, PidMode, IpcMode, UTSMode, UsernsMode string
		SecurityOpt, CapAdd, CapDrop, Binds, GroupAdd      []string
		PidsLimit                                          *int64
		RestartPolicy                                      struct{ Name string }
	}
	Mounts []struct {
		Type, Source, Destination string
		RW                        bool
	}
}

// The bits of capabilities(7).
const (
	capNetRaw    = 13
	capSysPtrace = 19
)

// Each protection of a container is on without any setting, and is what its
// setting says: to Docker, and to the command inside.
func TestHardening(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "hardening", rig.Spec{})
	for name, test := range map[string]struct {
		config      string
		security    []string
		pids        int64 // 0 for no limit
		add, drop   []string
		raw, ptrace bool // the command may have the capability
		gated       bool // addresses are closed to it before it begins
	}{
		"default": {security: []string{"no-new-privileges"}, pids: 16384, drop: []string{"NET_RAW"}, gated: true},
		"off":     {config: "no_new_privileges: false, pids_limit: none, cap_drop: none, block_addresses: none", raw: true},
		"other": {
			config:   "pids_limit: 77, cap_add: sys_ptrace, cap_drop: \"ALL\"",
			security: []string{"no-new-privileges"}, pids: 77, add: []string{"SYS_PTRACE"}, drop: []string{"ALL"}, ptrace: true, gated: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := "hardening-" + name
			n := *w.Node // a root of its own: they run at once
			n.Root = filepath.Join(t.TempDir(), "root")
			own := *w
			own.Node = &n
			t.Cleanup(func() { own.Deckhand(t, "scrub") })
			b := own.Start(t, tes.Task{
				ID: id, Volumes: []string{"/vol"}, Executors: []tes.Executor{
					Sh(image.Tag, "cat /proc/self/status > /vol/.status; mv /vol/.status /vol/status; until [ -e /vol/go ]; do sleep 0.1; done"),
				},
			}, "--config", own.Write(t, name+".yaml", "run: {"+test.config+"}\n"))
			b.Until(t, "executor started")
			vol := filepath.Join(n.Root, "tasks", id, "1/dirs/0")
			var status []byte
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
				var err error
				if status, err = os.ReadFile(filepath.Join(vol, "status")); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the executor does not begin: ", err)
				}
			}
			container := strings.TrimSpace(own.Docker(t, "ps", "-q", "--filter", "label=deckhand.task="+id))
			said := own.Docker(t, "inspect", container)
			if err := os.WriteFile(filepath.Join(vol, "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if code, log := b.End(t); code != 0 {
				t.Fatalf("exit code %d\n%s", code, log)
			}

			var all []inspected
			if err := json.Unmarshal([]byte(said), &all); err != nil || len(all) != 1 {
				t.Fatalf("%d containers, %v", len(all), err)
			}
			c := all[0]
			h := c.HostConfig
			var pids int64
			if h.PidsLimit != nil {
				pids = *h.PidsLimit
			}
			for _, names := range [][]string{h.CapAdd, h.CapDrop} { // Docker may have put it before them
				for i := range names {
					names[i] = strings.TrimPrefix(names[i], "CAP_")
				}
			}
			if !slices.Equal(h.SecurityOpt, test.security) || pids != test.pids || !slices.Equal(h.CapAdd, test.add) || !slices.Equal(h.CapDrop, test.drop) {
				t.Errorf("the container has %q, %d processes, and the capabilities +%q -%q", h.SecurityOpt, pids, h.CapAdd, h.CapDrop)
			}
			if h.Privileged || h.AutoRemove || h.PublishAllPorts || h.PidMode != "" || h.UTSMode != "" || h.IpcMode != "private" && h.IpcMode != "shareable" ||
				h.UsernsMode != "" || slices.Contains([]string{"host", "container"}, h.NetworkMode) || len(h.Binds)+len(h.GroupAdd) > 0 || h.RestartPolicy.Name != "no" && h.RestartPolicy.Name != "" {
				t.Errorf("the container shares more with the node than it should: %+v", h)
			}
			if !slices.Equal(c.Config.Healthcheck.Test, []string{"NONE"}) {
				t.Errorf("its health check is %q", c.Config.Healthcheck.Test)
			}
			gated := false
			for _, m := range c.Mounts {
				gated = gated || filepath.Base(m.Destination) == "gate"
				program := filepath.Dir(m.Source) == filepath.Join(n.Root, "bin") && !m.RW
				if !program && !strings.HasPrefix(m.Source, filepath.Join(n.Root, "tasks", id)+"/") {
					t.Errorf("it has a mount of what is not the task's: %+v", m)
				}
			}
			if gated != test.gated {
				t.Errorf("its command waits for its addresses: %t, want %t", gated, test.gated)
			}

			bounds, err := strconv.ParseUint(field(t, string(status), "CapBnd"), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			if raw, ptrace := bounds>>capNetRaw&1 == 1, bounds>>capSysPtrace&1 == 1; raw != test.raw || ptrace != test.ptrace {
				t.Errorf("the command may have NET_RAW: %t, SYS_PTRACE: %t, want %t and %t", raw, ptrace, test.raw, test.ptrace)
			}
			if got, want := field(t, string(status), "NoNewPrivs"), fmt.Sprint(len(test.security)); got != want {
				t.Errorf("NoNewPrivs of the command is %s, want %s", got, want)
			}
		})
	}
}

// field returns a value of a status file of proc(5).
func field(t *testing.T, status, name string) string {
	t.Helper()
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in\n%s", name, status)
	return ""
}

// A program that could not start in every image runs no task: it would look as if the
// task's own commands had failed.
func TestDynamicBinary(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	dynamic := filepath.Join(t.TempDir(), "deckhand")
	build := exec.Command("go", "build", "-trimpath", "-buildmode=pie", "-o", dynamic, "github.com/deckhand/deckhand/cmd/deckhand")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := w.prepare(t, tes.Task{ID: "dynamic", Executors: []tes.Executor{Sh(w.Image(t, "dynamic", rig.Spec{}).Tag, "true")}})
	b.Path = dynamic
	b.start(t)
	if log := b.ends(t, 78); !strings.Contains(log, "needs a dynamic linker") || !strings.Contains(log, "CGO_ENABLED=0") {
		t.Errorf("it says\n%s", log)
	}
	w.Clean(t)
}

// The binary that containers run is written once for all tasks of a root. A task
// cannot change it, and what another version has left goes.
func TestSharedBinary(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "binary", rig.Spec{})
	bin := filepath.Join(w.Root, "bin")
	attack := Sh(image.Tag, "cd /.deckhand/*; for f in exec /proc/1/exe; do echo x >> $f; chmod 0 $f; touch $f; done; mv exec other; ln exec link; rm exec; mount -o remount,rw exec; true")
	attack.Stdout = "/data/out"
	task := tes.Task{ID: "one", Volumes: []string{"/data"}, Executors: []tes.Executor{attack, attack}}
	w.MustRun(t, 0, task)
	only := func() os.FileInfo {
		t.Helper()
		entries, err := os.ReadDir(bin)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%s holds %v, %v", bin, entries, err)
		}
		info, err := entries[0].Info()
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := only()
	installed, err := os.ReadFile(filepath.Join(bin, first.Name()))
	if program, e := os.ReadFile(Build(t)); err != nil || e != nil || !bytes.Equal(installed, program) || first.Mode() != 0o755 {
		t.Errorf("what is installed, with mode %v, is not the program: %v, %v", first.Mode(), err, e)
	}
	if r := w.Deckhand(t, "status", "one"); !strings.Contains(r.Stdout, ", program ") {
		t.Errorf("status does not tell of it:\n%s", r.Stdout)
	}
	leave := func() {
		t.Helper()
		for _, name := range []string{"deckhand-1-2", first.Name() + ".part"} {
			if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	leave()
	if r := w.Deckhand(t, "recover"); r.Code != 0 {
		t.Fatalf("recover: %+v", r)
	}
	if left, _ := filepath.Glob(filepath.Join(bin, "*")); len(left) != 2 || slices.ContainsFunc(left, func(f string) bool { return filepath.Ext(f) == ".part" }) {
		t.Errorf("recover leaves %q", left)
	}
	leave()
	w.scrub(t, 0)
	only()
	leave()
	task.ID = "two"
	w.MustRun(t, 0, task)
	if second := only(); !os.SameFile(first, second) || !second.ModTime().Equal(first.ModTime()) {
		t.Error("it was written again")
	}
	w.Clean(t)
}
