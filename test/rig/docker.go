package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const defaultHost = "unix:///var/run/docker.sock"

// Docker returns the host URL of a Docker Engine that answers:
// DECKHAND_TEST_DOCKER_HOST, else DOCKER_HOST, else the default socket, else a
// private dockerd, started once and shared by all test processes. That one is
// left running for the next package; Down ends it.
func Docker(tb TB) string {
	tb.Helper()
	host, err := sharedHost()
	if err != nil {
		giveUp(tb, err)
	}
	return host
}

// DockerCmd runs the docker command line against the engine of Docker and
// returns its standard output without the last newline.
func DockerCmd(tb TB, args ...string) string {
	tb.Helper()
	return dockerCmd(tb, Docker(tb), args...)
}

func dockerCmd(tb TB, host string, args ...string) string {
	tb.Helper()
	out, err := dockerCLI(host, args...)
	if err != nil {
		giveUp(tb, err)
	}
	return out
}

func dockerCLI(host string, args ...string) (string, error) {
	path, err := program("docker", "docker.io")
	if err != nil {
		return "", err
	}
	out, err := exec.Command(path, append([]string{"-H", host}, args...)...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.TrimSuffix(string(out), "\n"), err
}

// sharedUsed says that this process has asked for the shared engine.
var sharedUsed atomic.Bool

var sharedHost = sync.OnceValues(func() (string, error) {
	sharedUsed.Store(true)
	for _, name := range []string{"DECKHAND_TEST_DOCKER_HOST", "DOCKER_HOST"} {
		host := os.Getenv(name)
		if host == "" {
			continue
		}
		if err := ping(host); err != nil {
			return "", fmt.Errorf("no Docker Engine at %s=%s: %w", name, host, err)
		}
		return host, nil
	}
	if ping(defaultHost) == nil {
		return defaultHost, nil
	}
	return startShared()
})

// sharedBridge is the network interface of the shared engine's containers.
const sharedBridge = "deckhand-rig"

// startShared returns the host of the dockerd in Dir, and starts it when it is
// not running. Test processes run side by side, so a lock lets one of them do it.
func startShared() (string, error) {
	dir := Dir()
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	d := daemon{dir: dir, data: filepath.Join(dir, "data")}
	if ping(d.host()) == nil {
		return d.host(), nil
	}
	if err := d.destroy(false); err != nil {
		return "", fmt.Errorf("clean up after a dead dockerd: %w", err)
	}
	// A bridge of its own: docker0 goes as soon as another daemon on this machine
	// starts without a bridge. A machine may lack iptables or bridges; task
	// containers then have less of a network, but they run.
	bridge := "--bridge=" + sharedBridge
	if err := ip("link", "add", sharedBridge, "type", "bridge"); err != nil && !strings.Contains(err.Error(), "exists") {
		bridge = "--bridge=none"
	}
	var failed error
	for _, args := range [][]string{
		{bridge, poolOption(sharedBlock)},
		{bridge, poolOption(sharedBlock), "--iptables=false", "--ip6tables=false"},
	} {
		// A session of its own, so that the interrupt of one test run does not
		// end the engine of another.
		_, _, err := d.start(&syscall.SysProcAttr{Setsid: true}, args...)
		if err == nil {
			return d.host(), nil
		}
		if failed == nil {
			failed = err
		}
		var l lacking
		if errors.As(err, &l) {
			return "", l
		}
	}
	return "", failed
}

// Down ends the private dockerd of Dir, if there is one, and deletes all its data.
func Down() error {
	dir := Dir()
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	d := daemon{dir: dir, data: filepath.Join(dir, "data")}
	if err := d.destroy(true); err != nil {
		return err
	}
	if _, err := net.InterfaceByName(sharedBridge); err == nil {
		if err := ip("link", "delete", sharedBridge); err != nil {
			return err
		}
	}
	if err := removeBridges(sharedBlock); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// lock makes dir and holds its lock until the returned function is called or
// the process ends.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != os.Getuid() {
		return nil, fmt.Errorf("%s belongs to user %d: set DECKHAND_RIG_DIR to a directory of your own", dir, st.Uid)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// ping asks the engine at host for its health (Docker API, GET /_ping).
func ping(host string) error {
	u, err := url.Parse(host)
	if err != nil {
		return err
	}
	network, address := "tcp", u.Host
	if u.Scheme == "unix" {
		network, address = "unix", u.Path
	}
	client := http.Client{
		// An engine on a busy machine is slow, not absent.
		Timeout: 20 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, address)
			},
		},
	}
	resp, err := client.Get("http://docker/_ping")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET /_ping: %s", resp.Status)
	}
	return nil
}
