package rig

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestDockerAnswers(t *testing.T) {
	if v := DockerCmd(t, "version", "--format", "{{.Server.Os}}"); v != "linux" {
		t.Errorf("engine at %s runs on %q, want linux", Docker(t), v)
	}
}

func TestDaemonSurvivesItsDeaths(t *testing.T) {
	d := NewDaemon(t)
	reg := NewRegistry(t)
	img := Image(t, reg, "sleeper", Spec{})
	d.Cmd(t, "run", "--detach", "--init", "--name", "sleeper", img.Digest, "sleep", "1000")

	d.Kill(t)
	if err := ping(d.Host); err == nil {
		t.Fatal("a killed daemon answers")
	}
	d.Start(t)
	if state := d.Cmd(t, "inspect", "--format", "{{.State.Running}}", "sleeper"); state != "false" {
		t.Errorf("after the death of its daemon the container is running: %s", state)
	}
	d.Cmd(t, "start", "sleeper")
	d.Restart(t)
	if names := d.Cmd(t, "ps", "--all", "--format", "{{.Names}}"); names != "sleeper" {
		t.Errorf("containers after a restart: %q", names)
	}
	if net := d.Cmd(t, "network", "ls", "--format", "{{.Name}}"); !strings.Contains(net, "host") {
		t.Errorf("networks: %q", net)
	}
}

func TestRegistryServesImages(t *testing.T) {
	var once Ref
	t.Run("pull", func(t *testing.T) {
		reg := NewRegistry(t)
		img := Image(t, reg, "tool:1", Spec{
			Files:      map[string]string{"/opt/hello": "#!/bin/sh\necho \"$GREETING $(pwd) $(id -u) $*\"\n", "/data/x": "y"},
			Env:        []string{"GREETING=hello"},
			Entrypoint: []string{"/opt/hello"},
			User:       "1000",
			Workdir:    "/data",
			Volumes:    []string{"/scratch"},
			Labels:     map[string]string{"a": "b"},
			Size:       1 << 20,
		})
		once = img
		if n := reg.Requests(); len(n) != 0 {
			t.Errorf("a push is counted: %v", n)
		}
		if out := DockerCmd(t, "run", "--rm", img.Tag, "world"); out != "hello /data 1000 world" {
			t.Errorf("the image prints %q", out)
		}
		if id := DockerCmd(t, "inspect", "--format", "{{.Id}} {{.Config.Labels.a}} {{json .Config.Volumes}}", img.Digest); id != img.ID+` b {"/scratch":{}}` {
			t.Errorf("inspect says %s, want ID %s", id, img.ID)
		}
		want := Request{"GET", "/v2/tool/blobs/" + img.ID, 200}
		if !slices.Contains(reg.Requests(), want) {
			t.Errorf("no %v among %v", want, reg.Requests())
		}
		reg.Reset()
		if n := reg.Requests(); len(n) != 0 {
			t.Errorf("requests after Reset: %v", n)
		}
	})
	if out := DockerCmd(t, "image", "ls", "--quiet", "--no-trunc"); strings.Contains(out, once.ID) {
		t.Errorf("the image is still there after its test")
	}
}

func TestImagesDifferWhereTheyMust(t *testing.T) {
	reg := NewRegistry(t)
	first := Image(t, reg, "tool", Spec{})
	again := Image(t, reg, "tool:other", Spec{})
	if again.ID != first.ID || again.Digest != first.Digest {
		t.Errorf("equal specs give %v and %v", first, again)
	}
	moved := Image(t, reg, "tool", Spec{Marker: "2"})
	elsewhere := Image(t, NewRegistry(t), "tool", Spec{})
	for _, other := range []Ref{moved, elsewhere} {
		if other.ID == first.ID || other.Digest == first.Digest {
			t.Errorf("%v and %v are the same image", first, other)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+reg.Addr()+"/v2/tool/manifests/latest", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json") // else it is turned into one of schema 1
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !strings.HasSuffix(moved.Digest, resp.Header.Get("Docker-Content-Digest")) {
		t.Errorf("latest is at %s, want it moved to %s", resp.Header.Get("Docker-Content-Digest"), moved.Digest)
	}
}

func TestRegistryFailsOnRequest(t *testing.T) {
	reg := NewRegistry(t)
	get := func() int {
		resp, err := http.Get("http://" + reg.Addr() + "/v2/")
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	reg.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	throttled := get()
	reg.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return false
		}
		conn.Close()
		return true
	})
	cut := get()
	reg.Intercept(nil)
	if got, want := []int{throttled, cut, get()}, []int{429, 0, 200}; !slices.Equal(got, want) {
		t.Errorf("statuses %v, want %v", got, want)
	}
	var noted []int
	for _, r := range reg.Requests() {
		noted = append(noted, r.Status)
	}
	// The client itself repeats a request whose connection was cut.
	if noted = slices.Compact(noted); !slices.Equal(noted, []int{429, 0, 200}) {
		t.Errorf("noted statuses %v", reg.Requests())
	}
}
