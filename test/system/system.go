// Package system holds the tests of the whole product: the real program on a
// real engine. This file builds the program and runs it.
package system

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// binDir is where the program was built, empty before.
var binDir string

// build holds the program's path, or why it could not be built. In a virtual machine,
// which builds nothing, DECKHAND_TEST_PROGRAM names one.
var build = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("DECKHAND_TEST_PROGRAM"); path != "" {
		return path, nil
	}
	_, file, _, _ := runtime.Caller(0)
	top := filepath.Join(filepath.Dir(file), "..", "..")
	dir, err := os.MkdirTemp("", "deckhand-bin")
	if err != nil {
		return "", err
	}
	binDir = dir
	path := filepath.Join(dir, "deckhand")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./cmd/deckhand")
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return path, nil
})

// parallel is how many tests run at a time for each processor, where the command
// line does not say: they wait for Docker, for the disk and for a grace to pass
// much more than they compute.
const parallel = 3

// Main runs the tests of a package and removes what Build made. It is called
// from TestMain and returns the exit code.
func Main(m *testing.M) int {
	flag.Parse()
	told := false
	flag.Visit(func(f *flag.Flag) { told = told || f.Name == "test.parallel" })
	if !told {
		if err := flag.Set("test.parallel", strconv.Itoa(parallel*runtime.GOMAXPROCS(0))); err != nil {
			panic(err) // a number
		}
	}
	defer func() {
		if binDir != "" {
			os.RemoveAll(binDir)
		}
	}()
	return m.Run()
}

// Build returns the path of the program, built as it ships, once for all tests
// of the process.
func Build(tb testing.TB) string {
	tb.Helper()
	path, err := build()
	if err != nil {
		tb.Fatalf("build deckhand: %v", err)
	}
	return path
}

// Result is what one run of the program left.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code, -1 when a signal ended it
}

// Node is a place where deckhand runs: a root directory and an engine, with
// nothing of the tester's own settings.
type Node struct {
	Root       string
	DockerHost string
	Env        []string // NAME=value, beside PATH and TMPDIR
	// User runs the program, a copy of it beside the root; nil for the tester.
	User  *syscall.Credential
	Under []string // the command that runs the program, such as setpriv, with its arguments; may be empty
}

// NewNode makes a node with an empty root on the engine at dockerHost.
func NewNode(tb testing.TB, dockerHost string) *Node {
	tb.Helper()
	dir := tb.TempDir()
	return &Node{
		Root:       filepath.Join(dir, "root"),
		DockerHost: dockerHost,
		Env:        []string{"HOME=" + dir, "XDG_CONFIG_HOME=" + dir},
	}
}

// Command prepares a run of the program, for tests that signal or kill it.
func (n *Node) Command(tb testing.TB, args ...string) *exec.Cmd {
	tb.Helper()
	program, dir := Build(tb), tb.TempDir()
	if n.User != nil {
		dir = filepath.Dir(n.Root)
		program = filepath.Join(dir, "program")
	}
	line := slices.Concat(n.Under, []string{program, "--root", n.Root, "--docker-host", n.DockerHost}, args)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: n.User}
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, n.Env...)
	return cmd
}

// Deckhand runs the program to its end. The error of a program that could not
// be started fails the test; an exit code does not.
func (n *Node) Deckhand(tb testing.TB, args ...string) Result {
	tb.Helper()
	cmd := n.Command(tb, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatalf("deckhand %s: %v", strings.Join(args, " "), err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}
