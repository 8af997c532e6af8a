package rig

import (
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
