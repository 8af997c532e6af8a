package rig

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// HTCondorCommand is a command with the programs of HTCondor, which are those of a newer
// Debian (see test/deps.sh): in a mount namespace of its own that has their /usr in place
// of the machine's. Every other path means there what it means here.
func HTCondorCommand(tb TB, args ...string) *exec.Cmd {
	tb.Helper()
	if os.Getuid() != 0 {
		giveUp(tb, lacking{"HTCondor's programs are mounted, which root can do"})
	}
	_, here, _, _ := runtime.Caller(0)
	usr := filepath.Join(filepath.Dir(here), "..", "..", ".tools", "condor")
	if _, err := os.Stat(usr); err != nil {
		giveUp(tb, lacking{"this machine has no HTCondor: run `make deps` as root"})
	}
	return exec.Command("unshare", append([]string{"--mount", "sh", "-c", `mount --bind "$0" /usr && exec "$@"`, usr}, args...)...)
}
