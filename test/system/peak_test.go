package system

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// observe runs a command that succeeds, and returns the most memory that it had, in
// bytes. It runs below GNU time: the kernel counts what a process
// was before it became the command, and this one is large.
func observe(b *testing.B, cmd *exec.Cmd) (peak int64) {
	b.Helper()
	program, err := exec.LookPath("time")
	if err != nil {
		b.Fatal(errors.Join(err, cmd.Err))
	}
	report := filepath.Join(b.TempDir(), "peak")
	cmd.Args = append([]string{program, "--quiet", "--format=%M", "--output=" + report, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = program
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", cmd.Args, err, out)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		b.Fatal(err)
	}
	kib, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib << 10
}
