package engine_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/cli/cli/config"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/rig"
)

// begin starts a script in a container of a private daemon and returns its ID
// and a wait for its end.
func begin(t *testing.T, docker *engine.Docker, image, script string) (string, <-chan engine.Exit) {
	t.Helper()
	id, err := docker.Create(t.Context(), engine.Spec{Name: "x" + fmt.Sprint(time.Now().UnixNano()), Image: image, Command: []string{"sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	exits, err := docker.WaitNext(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := docker.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id, exits
}

func private(t *testing.T) (*rig.Daemon, *engine.Docker, string) {
	t.Helper()
	d := rig.NewDaemon(t)
	image := rig.Image(t, rig.NewRegistry(t), "tool", rig.Spec{}).Tag
	docker := connect(t, d.Host)
	if err := docker.Pull(t.Context(), image, nil); err != nil {
		t.Fatal(err)
	}
	return d, docker, image
}

func TestDaemonRestart(t *testing.T) {
	d, docker, image := private(t)
	for name, restart := range map[string]func(){
		"stopped": func() { d.Restart(t) },
		"killed":  func() { d.Kill(t); d.Start(t) },
	} {
		id, exits := begin(t, docker, image, "trap 'exit 0' TERM; echo words; while :; do usleep 10000; done")
		restart()
		exit := <-exits
		if !errors.Is(exit.Err, machine.ErrLost) {
			t.Errorf("%s: a container that went with its daemon ended with %+v, want it lost", name, exit)
		}
		if c, err := docker.Container(t.Context(), id); err != nil || c.State != engine.Exited {
			t.Errorf("%s: after the restart: %+v, %v", name, c, err)
		}
	}

	// Waits that outlive the daemon find a container that was not started.
	id, err := docker.Create(t.Context(), engine.Spec{Name: "later", Image: image, Command: []string{"sh", "-c", "exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	exits, err := docker.WaitNext(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	d.Kill(t)
	answered := make(chan error)
	go func() { answered <- docker.Start(t.Context(), id) }()
	d.Start(t)
	if err := <-answered; err != nil {
		t.Errorf("start of a container while Docker was away: %v", err)
	}
	// The wait may come back after the end; what it saw of it is then no proof.
	if exit := <-exits; exit.Code != 3 && !errors.Is(exit.Err, machine.ErrLost) {
		t.Errorf("ended with %+v, want 3", exit)
	}
}

// Nobody watched how these containers ended. Where their daemon went away while
// they ran, their exit code says nothing: a command that heeds SIGTERM ends well.
func TestEndsThatNobodySaw(t *testing.T) {
	d, docker, image := private(t)
	polite, quick := "trap 'exit 0' TERM; while :; do usleep 10000; done", "until [ -e /go ]; do usleep 10000; done; exit 3"
	start := func(script string) string {
		t.Helper()
		id, _ := begin(t, docker, image, script)
		return id
	}
	end := func(id string) {
		t.Helper()
		if err := docker.CopyTo(t.Context(), id, "/", tarOf(t, "go")); err != nil {
			t.Fatal(err)
		}
		if code := d.Cmd(t, "wait", id); code != "3" {
			t.Fatalf("the container ended with %s, want 3", code)
		}
	}
	check := func(what, id string, code int, want error) {
		t.Helper()
		if exit, err := docker.Wait(t.Context(), id); !errors.Is(err, want) || err == nil && exit.Code != code {
			t.Errorf("%s: %+v, %v; want exit code %d, error %v", what, exit, err, code, want)
		}
	}

	seen := start(quick)
	end(seen)
	check("seen by the daemon that started it", seen, 3, nil)
	for range 128 { // two events each: so much it remembers
		if err := errors.Join(docker.CreateVolume(t.Context(), "again", nil), docker.RemoveVolume(t.Context(), "again")); err != nil {
			t.Fatal(err)
		}
	}
	check("forgotten by it", seen, 3, nil)

	id := start(polite)
	d.Kill(t)
	d.Start(t)
	check("its daemon was killed", id, 0, machine.ErrLost)
	id = start(polite)
	d.Restart(t)
	check("its daemon was stopped", id, 0, machine.ErrLost)

	again(t, d, "--live-restore")
	id = start(quick)
	d.Kill(t)
	d.Start(t)
	end(id)
	check("it outlived its daemon", id, 3, nil)

	d.Options = []string{"--bridge=none"}
	d.Restart(t)
	check("without a network, seen by no daemon that runs", id, 0, machine.ErrLost)
	id = start(quick)
	end(id)
	check("without a network, seen by its daemon", id, 3, nil)
}

func TestDaemonSilent(t *testing.T) {
	d, docker, image := private(t)
	_, exits := begin(t, docker, image, "sleep 2; exit 4")
	impatient, err := engine.Connect(t.Context(), engine.Options{Host: d.Host, Wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer impatient.Close()
	if err := syscall.Kill(d.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stopped := false; !stopped; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		stopped = bytes.Contains(stat, []byte(") T "))
	}
	_, err = impatient.Container(t.Context(), "x")
	if errors.Is(err, engine.ErrNotFound) || machine.FaultOf(err) != machine.EngineFault || !contains(err, d.Host) {
		t.Errorf("a silent Docker gives %v", err)
	}
	if err := syscall.Kill(d.Pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if exit := <-exits; exit.Code != 4 || exit.Err != nil {
		t.Errorf("a wait over the silence ends with %+v, want 4", exit)
	}
}

// again kills a daemon and starts it with more options.
func again(t *testing.T, d *rig.Daemon, more ...string) {
	t.Helper()
	d.Kill(t)
	d.Options = append(d.Options, more...)
	d.Start(t)
}

func TestLiveRestore(t *testing.T) {
	d, docker, image := private(t)
	id, exits := begin(t, docker, image, "echo before; until [ -e /go ]; do usleep 10000; done; echo after; exit 6")
	again(t, d, "--live-restore")
	info, err := docker.Info(t.Context())
	if err != nil || !info.LiveRestore {
		t.Fatalf("no live-restore: %+v, %v", info, err)
	}
	c, err := docker.Container(t.Context(), id)
	if err != nil || c.State != engine.Running {
		t.Fatalf("the container did not survive the daemon: %+v, %v", c, err)
	}
	if err := docker.CopyTo(t.Context(), id, "/", tarOf(t, "go")); err != nil {
		t.Fatal(err)
	}
	if exit := <-exits; exit.Code != 6 || exit.Err != nil {
		t.Errorf("ended with %+v, want 6", exit)
	}
	var out bytes.Buffer
	if err := docker.Log(t.Context(), id, &out, io.Discard); err != nil || out.String() != "before\nafter\n" {
		t.Errorf("output %q, %v", &out, err)
	}
}

// Whatever a daemon's own options are, it keeps the end of a long log, and no more
// than that.
func TestLogIsShort(t *testing.T) {
	d, docker, image := private(t)
	again(t, d, "--log-opt", "max-size=10k", "--log-opt", "max-file=2", "--log-opt", "mode=non-blocking")
	const lines = 50_000
	id, exits := begin(t, docker, image, fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; done", lines))
	if exit := <-exits; exit.Code != 0 || exit.Err != nil {
		t.Fatalf("ended with %+v", exit)
	}
	var out bytes.Buffer
	if err := docker.Log(t.Context(), id, &out, &out); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(got) < 10_000 || len(got) > 30_000 {
		t.Errorf("%d of %d lines are kept", len(got), lines)
	}
	for i, line := range got {
		if want := strconv.Itoa(lines - len(got) + 1 + i); line != want {
			t.Fatalf("line %d from the end is %q, want %q", len(got)-i, line, want)
		}
	}
}

func TestPullOntoAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small filesystem")
	}
	dir, err := os.MkdirTemp("/var/tmp", "dkfull")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("this machine does not mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	d := rig.NewDaemon(t, dir)
	image := rig.Image(t, rig.NewRegistry(t), "big", rig.Spec{Size: 40 << 20}).Tag
	err = connect(t, d.Host).Pull(t.Context(), image, nil)
	if machine.FaultOf(err) != machine.NodeFault || !contains(err, image, "no space left on device") {
		t.Errorf("pull onto a full disk: %v (fault %s)", err, machine.FaultOf(err))
	}
}

func TestPullOutlastsThrottling(t *testing.T) {
	registry := rig.NewRegistry(t)
	image := rig.Image(t, registry, "tool", rig.Spec{}).Tag
	docker := connect(t, rig.Docker(t))
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		left := 3
		registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") || left == 0 {
				return false
			}
			left--
			w.WriteHeader(status)
			return true
		})
		if err := docker.Pull(t.Context(), image, nil); err != nil || left != 0 {
			t.Errorf("pull with %d refusals of status %d to come: %v", left, status, err)
		}
		if err := docker.RemoveImage(t.Context(), image); err != nil {
			t.Error(err)
		}
	}

	registry.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	hasty, err := engine.Connect(t.Context(), engine.Options{Host: rig.Docker(t), Wait: time.Minute, PullRetryFor: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer hasty.Close()
	_, digest := hasty.RemoteDigest(t.Context(), image)
	for what, err := range map[string]error{"pull": hasty.Pull(t.Context(), image, nil), "digest": digest} {
		if machine.FaultOf(err) != machine.RetryLater || !contains(err, image) {
			t.Errorf("%s from a registry that goes on throttling: %v (fault %s)", what, err, machine.FaultOf(err))
		}
	}
}

func TestRegistryCredentials(t *testing.T) {
	registry := rig.NewRegistry(t)
	image := rig.Image(t, registry, "private:1", rig.Spec{}).Tag
	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "someone" && password == "open sesame" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	docker := connect(t, rig.Docker(t))
	dir := t.TempDir()
	before := config.Dir()
	config.SetDir(dir)
	t.Cleanup(func() { config.SetDir(before) })
	configure := func(config any) {
		text, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bin := t.TempDir()
	helper := "#!/bin/sh\n[ \"$1\" = get ] && echo '{\"Username\":\"someone\",\"Secret\":\"open sesame\"}'\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))

	auth := func(text string) any {
		return map[string]any{"auths": map[string]any{registry.Addr(): map[string]any{
			"auth": base64.StdEncoding.EncodeToString([]byte("someone:" + text)),
		}}}
	}
	for _, c := range []struct {
		name   string
		config any
		let    bool
	}{
		{"none", map[string]any{}, false},
		{"wrong", auth("guess"), false},
		{"in the file", auth("open sesame"), true},
		{"of a helper", map[string]any{"credHelpers": map[string]any{registry.Addr(): "test"}}, true},
		{"of a helper that is not there", map[string]any{"credHelpers": map[string]any{registry.Addr(): "absent"}}, false},
	} {
		configure(c.config)
		_, err := docker.RemoteDigest(t.Context(), image)
		for what, err := range map[string]error{"pull": docker.Pull(t.Context(), image, nil), "digest": err} {
			switch {
			case c.let && err != nil:
				t.Errorf("credentials %s, %s: %v", c.name, what, err)
			case !c.let && (machine.FaultOf(err) != machine.TaskFault || !contains(err, image, "docker login")):
				t.Errorf("credentials %s, %s: %v, want it refused", c.name, what, err)
			}
		}
	}
}
