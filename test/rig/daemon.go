package rig

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon is a dockerd of one test's own, which the test may stop, kill and
// start again. It shares nothing with the engine of Docker: it has its own
// data, and a bridge without firewall rules, so its containers reach the host
// but not the world.
type Daemon struct {
	// Host is the URL for DOCKER_HOST; it stays the same over restarts.
	Host string
	// Options are further ones of dockerd, in force from the next Start.
	Options []string

	d      daemon
	bridge string
	block  netip.Prefix // its networks' addresses
	cmd    *exec.Cmd
	ended  <-chan struct{}
}

// NewDaemon starts a private dockerd for this test. Its data, mounts and
// containers go when the test ends. dataRoot, when given, is where its data
// lie; that directory itself is left.
func NewDaemon(tb TB, dataRoot ...string) *Daemon {
	tb.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "dk")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	d := daemon{dir: dir, data: filepath.Join(dir, "data")}
	if len(dataRoot) > 0 {
		d.data = dataRoot[0]
	}
	// Where the kernel has no bridges the daemon does without.
	bridge := filepath.Base(dir)
	bridged := ip("link", "add", bridge, "type", "bridge") == nil
	if !bridged {
		bridge = "none"
	}
	block, release, err := reserveBlock()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	p := &Daemon{Host: d.host(), d: d, bridge: bridge, block: block}
	tb.Cleanup(func() {
		defer release()
		if p.cmd != nil {
			p.end(syscall.SIGKILL)
		}
		if err := d.destroy(true); err != nil {
			tb.Logf("cannot clean up after dockerd: %v", err)
		}
		if bridged {
			if err := ip("link", "delete", bridge); err != nil {
				tb.Logf("%v", err)
			}
		}
		if err := removeBridges(block); err != nil {
			tb.Logf("%v", err)
		}
		os.RemoveAll(dir)
	})
	p.Start(tb)
	return p
}

// Start starts a daemon that was stopped or killed and returns when it answers.
func (p *Daemon) Start(tb TB) {
	tb.Helper()
	cmd, ended, err := p.d.start(&syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
		append([]string{"--iptables=false", "--ip6tables=false", "--bridge=" + p.bridge, poolOption(p.block)}, p.Options...)...)
	if err != nil {
		giveUp(tb, err)
	}
	p.cmd, p.ended = cmd, ended
}

// Stop ends the daemon as a system shutdown does: its containers are stopped.
func (p *Daemon) Stop(tb TB) {
	tb.Helper()
	p.end(syscall.SIGTERM)
}

// Kill ends the daemon with SIGKILL. Containers run on until the next Start,
// which, without live-restore, ends them.
func (p *Daemon) Kill(tb TB) {
	tb.Helper()
	p.end(syscall.SIGKILL)
}

// Restart is Stop and Start.
func (p *Daemon) Restart(tb TB) {
	tb.Helper()
	p.Stop(tb)
	p.Start(tb)
}

// DataRoot is where the daemon keeps its data.
func (p *Daemon) DataRoot() string { return p.d.data }

// Pid is the process id of the daemon, for tests that pause it with SIGSTOP.
func (p *Daemon) Pid() int { return p.cmd.Process.Pid }

// Cmd runs the docker command line against this daemon.
func (p *Daemon) Cmd(tb TB, args ...string) string {
	tb.Helper()
	return dockerCmd(tb, p.Host, args...)
}

func (p *Daemon) end(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig) // already gone is what we want
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	<-p.ended
	p.cmd = nil
	// containerd dies with a killed dockerd. Where process 1 does not reap, it
	// stays as a zombie, which the next dockerd takes for a live containerd.
	file := p.d.path("exec/containerd/containerd.pid")
	if pid, err := readPid(file); err == nil {
		waitGone(pid, p.d.path("exec"), 10*time.Second)
		os.Remove(file)
	}
}

// daemon is where one dockerd lives: its sockets and state in dir, its images
// and containers in data.
type daemon struct{ dir, data string }

func (d daemon) path(name string) string { return filepath.Join(d.dir, name) }
func (d daemon) host() string            { return "unix://" + d.path("docker.sock") }

// start runs dockerd and waits until it answers. The channel is
// closed when the process ends.
func (d daemon) start(attr *syscall.SysProcAttr, args ...string) (*exec.Cmd, <-chan struct{}, error) {
	if os.Getuid() != 0 {
		return nil, nil, lacking{"no Docker Engine answers, and only root can start one: set DOCKER_HOST, or run as root"}
	}
	path, err := program("dockerd", "docker.io")
	if err != nil {
		return nil, nil, err
	}
	// The machine's own daemon.json may name hosts and directories.
	if err := os.WriteFile(d.path("daemon.json"), []byte("{}\n"), 0o600); err != nil {
		return nil, nil, err
	}
	log, err := os.Create(d.path("dockerd.log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, append([]string{
		"--host", d.host(),
		"--config-file", d.path("daemon.json"),
		"--data-root", d.data,
		"--exec-root", d.path("exec"),
		"--pidfile", d.path("docker.pid"),
		"--log-level", "warn",
	}, args...)...)
	// A file and not a pipe: go test waits for whoever holds its pipes.
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(ended)
	}()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if ping(d.host()) == nil {
			return cmd, ended, nil
		}
		select {
		case <-ended:
			return nil, nil, fmt.Errorf("dockerd ended (%v); its last words:\n%s", cmd.ProcessState, d.lastWords())
		case <-time.After(50 * time.Millisecond):
		}
	}
	_ = cmd.Process.Kill()
	<-ended
	return nil, nil, fmt.Errorf("dockerd does not answer after a minute; its last words:\n%s", d.lastWords())
}

func (d daemon) lastWords() string {
	text, err := os.ReadFile(d.path("dockerd.log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// destroy ends what is left of a dockerd: the daemon itself if its pidfile
// still names it, the containers and their shims, and the mounts. With all it
// also deletes the data.
func (d daemon) destroy(all bool) error {
	d.terminate()
	// A killed dockerd leaves containers running; containerd has written down
	// the first process of each.
	for _, pattern := range []string{"io.containerd.runtime.v2.task", "io.containerd.runtime.v1.linux"} {
		inits, _ := filepath.Glob(d.path("exec/containerd/daemon/" + pattern + "/moby/*/init.pid"))
		for _, file := range inits {
			if pid, err := readPid(file); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	for _, pid := range processes(d.path("exec")) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, point := range slices.Backward(mounts(d.dir, d.data)) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	for _, name := range []string{"docker.pid", "docker.sock"} {
		if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.RemoveAll(d.path("exec")); err != nil {
		return err
	}
	if !all {
		return nil
	}
	entries, err := os.ReadDir(d.data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(d.data, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// terminate asks the daemon named in the pidfile to stop, and kills it when it
// takes longer than a Docker shutdown may (15 s by default).
func (d daemon) terminate() {
	pid, err := readPid(d.path("docker.pid"))
	if err != nil || !slices.Contains(processes(d.path("docker.pid")), pid) {
		return // no daemon, or its number now belongs to another process
	}
	_ = syscall.Kill(pid, syscall.SIGTERM)
	if !waitGone(pid, d.path("docker.pid"), 20*time.Second) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		waitGone(pid, d.path("docker.pid"), 10*time.Second)
	}
}

// waitGone waits until no process pid with that path in its command line runs;
// a zombie has no command line. False when it still runs after the limit.
func waitGone(pid int, path string, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if !slices.Contains(processes(path), pid) {
			return true
		}
	}
	return false
}

func readPid(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// processes returns those whose command line has path as an argument or as the
// beginning of one: the paths of a rig are its own.
func processes(path string) []int {
	var found []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		line, _ := os.ReadFile(file)
		for arg := range bytes.SplitSeq(line, []byte{0}) {
			if a := string(arg); a == path || strings.HasPrefix(a, path+"/") {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
				found = append(found, pid)
				break
			}
		}
	}
	return found
}

// mounts returns the mount points that a dockerd made below dir and in data, in
// the order in which they were made. It may also have mounted data upon itself,
// to change its propagation; the root of that mount is not "/", as it is when
// data is a filesystem that the test mounted.
func mounts(dir, data string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		root, point := fields[3], fields[4]
		if strings.HasPrefix(point, dir+"/") || strings.HasPrefix(point, data+"/") || point == data && root != "/" {
			found = append(found, point)
		}
	}
	return found
}

// ip runs the ip command, which makes and removes bridges.
func ip(args ...string) error {
	path, err := program("ip", "iproute2")
	if err != nil {
		return err
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
