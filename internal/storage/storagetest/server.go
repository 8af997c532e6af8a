package storagetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// missing ends a test that needs something which the machine lacks: in CI it fails.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// tool returns the path of a program or file below .tools, where make deps puts it.
func tool(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil || dir == "/" {
			break
		}
	}
	path := filepath.Join(dir, ".tools", name)
	if _, err := os.Stat(path); err != nil {
		missing(t, path+" is not there; make deps installs it")
	}
	return path
}

// serve starts a server that listens on an address, and stops it at the end of
// the test. log is the file with what it has to say.
func serve(t testing.TB, cmd *exec.Cmd, address, log string) {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(cmd.Args[0])
	var why error
	ended := make(chan struct{})
	go func() { why = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		select {
		case <-ended:
		case <-time.After(5 * time.Second): // it waits for connections that are kept open
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("%s said: %s", name, text[max(0, len(text)-4096):])
		}
	})
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %v", name, why)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %v", name, err)
		}
	}
}

// freeAddress returns an address of loopback that nobody listens on, nor will before the
// test has ended: the port is none of those that the system gives to whoever asks for any,
// and other tests that come here see that it is taken.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := 10_000 + rand.IntN(20_000)
		taken, err := net.Listen("unix", fmt.Sprintf("@deckhand-test-port-%d", port)) // of this network namespace, and gone with the process
		if err != nil {
			continue
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			t.Cleanup(func() { taken.Close() })
			return address
		}
		taken.Close()
	}
	t.Fatal("no port is free")
	return ""
}

func split(address string) (host, port string) {
	host, port, _ = net.SplitHostPort(address) // of freeAddress
	return host, port
}
