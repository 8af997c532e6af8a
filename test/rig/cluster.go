package rig

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ClusterWait is how long something may take that must happen, also in a machine that is
// emulated on a busy one.
const ClusterWait = 20 * time.Minute

// clusterDaemon is a daemon of a cluster in the foreground.
type clusterDaemon struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

// daemonPath is where daemons find programs.
const daemonPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// startDaemon starts a daemon that writes to a log of its own.
func startDaemon(tb TB, cmd *exec.Cmd, file string) *clusterDaemon {
	tb.Helper()
	log, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		tb.Fatalf("%v", err)
	}
	d := &clusterDaemon{cmd: cmd, log: file, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(d.ended)
	}()
	return d
}

func (d *clusterDaemon) kill() {
	_ = d.cmd.Process.Kill() // already gone is what we want
	<-d.ended
}

// until waits for a daemon to be ready.
func (d *clusterDaemon) until(tb TB, ready func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(ClusterWait); time.Now().Before(deadline); {
		began := time.Now()
		if ready() {
			return
		}
		select {
		case <-d.ended:
			log, _ := os.ReadFile(d.log) // what cannot be read has nothing to say
			tb.Fatalf("%s ended:\n%s", d.cmd.Path, log)
		case <-time.After(max(50*time.Millisecond, 3*time.Since(began))):
		}
	}
	log, _ := os.ReadFile(d.log)
	tb.Fatalf("%s is not ready:\n%s", d.cmd.Path, log)
}

// firstPort is the first of the ports of clusters. They are below those that the kernel
// gives to whoever wants any: a daemon comes to listen long after its port is chosen, and
// again after it was killed.
const firstPort = 21000

// reservePorts finds two ports that no other cluster of the machine has and nobody listens
// on. They are held until the returned function is called or the process ends.
func reservePorts() (ports [2]int, release func(), err error) {
	for n := range 1000 {
		f, err := os.OpenFile(fmt.Sprintf("/var/tmp/deckhand-rig-ports-%d", n), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return ports, nil, err
		}
		ports := [2]int{firstPort + 2*n, firstPort + 2*n + 1}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && free(ports[0]) && free(ports[1]) {
			return ports, func() { f.Close() }, nil
		}
		f.Close()
	}
	return ports, nil, errors.New("every port for a cluster is taken")
}

func free(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprint(":", port))
	if err == nil {
		l.Close()
	}
	return err == nil
}

// output runs one of a cluster's commands and returns what it prints. What it complains of
// is in the error.
func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), err
}

// ends are the ends of files.
func ends(pattern string) string {
	var text strings.Builder
	files, _ := filepath.Glob(pattern) // a sound one
	for _, file := range files {
		b, _ := os.ReadFile(file) // what cannot be read has nothing to say
		fmt.Fprintf(&text, "--- %s\n%s\n", filepath.Base(file), b[max(0, len(b)-6000):])
	}
	return text.String()
}
