// Package rig gives tests and the demo real things to work on: a Docker Engine,
// a registry that counts its requests, and small images that need no network.
//
// Nothing here is a fake. Where the machine lacks something (root, dockerd, a
// registry) the test is skipped by name; with CI=true it fails instead.
package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// TB is the part of testing.TB that the rig needs; the demo, which is no test,
// has one of its own.
type TB interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// lacking is the error of a machine that misses something which tests need.
type lacking struct{ what string }

func (l lacking) Error() string { return l.what }

// giveUp ends the test: skipped when the machine lacks something, failed otherwise.
func giveUp(tb TB, err error) {
	tb.Helper()
	var l lacking
	if errors.As(err, &l) && os.Getenv("CI") != "true" {
		tb.Skipf("%v", err)
	}
	tb.Fatalf("%v", err)
}

// program returns the path of a program that may live outside an ordinary
// user's PATH.
func program(name, pkg string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", lacking{fmt.Sprintf("this machine has no %s: run `make deps` as root, or apt-get install %s", name, pkg)}
}

// Dir is where the rig keeps what outlives one test process: $DECKHAND_RIG_DIR,
// else /var/tmp/deckhand-rig. It is short because socket paths end at 107 bytes.
func Dir() string {
	if dir := os.Getenv("DECKHAND_RIG_DIR"); dir != "" {
		return dir
	}
	return "/var/tmp/deckhand-rig"
}

// Program returns the path of a program of a Debian package.
func Program(tb TB, name, pkg string) string {
	tb.Helper()
	path, err := program(name, pkg)
	if err != nil {
		giveUp(tb, err)
	}
	return path
}

// Lack ends the test for want of something that the machine should have.
func Lack(tb TB, what string) {
	tb.Helper()
	giveUp(tb, lacking{what})
}
