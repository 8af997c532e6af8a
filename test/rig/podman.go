package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Podman is a rootful Podman of one test's own, with its Docker-compatible
// socket: its settings, images, containers and networks are nobody else's.
type Podman struct {
	// Host is the URL for DOCKER_HOST.
	Host string

	dir string
	env []string
}

// NewPodman starts a Podman for this test. What it holds goes when the test ends.
func NewPodman(tb TB) *Podman {
	tb.Helper()
	path, err := program("podman", "podman")
	if err == nil && os.Getuid() != 0 {
		err = lacking{"only root can start a rootful Podman"}
	}
	if err != nil {
		giveUp(tb, err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "pm")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	p := &Podman{Host: "unix://" + dir + "/podman.sock", dir: dir}
	if err := p.configure(); err != nil {
		tb.Fatalf("%v", err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		tb.Fatalf("%v", err)
	}
	defer log.Close()
	service := exec.Command(path, "--log-level=warn", "system", "service", "--time=0", p.Host)
	// A file and not a pipe: go test waits for whoever holds its pipes.
	service.Dir = dir // where its helper leaves a file when a container is out of memory
	service.Env, service.Stdout, service.Stderr = p.env, log, log
	service.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := service.Start(); err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		p.Cmd(tb, "rm", "--all", "--force", "--time=0")
		_ = service.Process.Kill() // already gone is what we want
		_ = service.Wait()
		for _, point := range slices.Backward(mounts(dir, dir)) {
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				tb.Logf("unmount %s: %v", point, err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			tb.Logf("cannot clean up after Podman: %v", err)
		}
	})
	for deadline := time.Now().Add(time.Minute); ping(p.Host) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(log.Name())
			tb.Fatalf("Podman does not answer after a minute; it said:\n%s", said)
		}
	}
	return p
}

// configure writes settings that take nothing from the machine's own. Registries
// on loopback speak no TLS. Podman's own limits are higher than a container may
// have on some machines.
func (p *Podman) configure() error {
	p.env = os.Environ()
	for name, text := range map[string]string{
		"CONTAINERS_CONF": `[engine]
runtime = "runc" # crun takes no hybrid cgroups
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[network]
network_config_dir = "` + p.dir + `/networks"
`,
		"CONTAINERS_STORAGE_CONF":    fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", p.dir+"/data", p.dir+"/run"),
		"CONTAINERS_REGISTRIES_CONF": "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n",
	} {
		file := filepath.Join(p.dir, strings.ToLower(name))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		p.env = append(p.env, name+"="+file)
	}
	return nil
}

// Cmd runs Podman's command line and returns its standard output without the
// last newline.
func (p *Podman) Cmd(tb TB, args ...string) string {
	tb.Helper()
	path, err := program("podman", "podman")
	if err != nil {
		giveUp(tb, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = p.env
	out, err := cmd.Output()
	if err != nil {
		var said []byte
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			said = exit.Stderr
		}
		tb.Fatalf("podman %s: %v: %s", strings.Join(args, " "), err, said)
	}
	return strings.TrimSuffix(string(out), "\n")
}
