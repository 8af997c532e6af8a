package slurm

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/test/rig"
	"github.com/deckhand/deckhand/test/vm"
)

// unified are the tests of a job's limits and of what it leaves.
var unified = []string{
	"TestSuccess", "TestMemoryLimit", "TestCores", "TestAccounting", "TestSeveralJobs", "TestCancel", "TestRequeue", "TestKilledProcess",
}

// script does what systemd would, and runs tests. What they say goes to the host.
const script = `
set -e
ip link set lo up
mkdir /sys/fs/cgroup/system.slice
for slice in . system.slice; do
	echo +cpu +cpuset +memory +pids >/sys/fs/cgroup/$slice/cgroup.subtree_control
done
cd /src/test/slurm
exec tests -test.v -test.parallel 2 -test.run "^($tests)\$" >/dev/ttyS1 2>&1
`

// programs are what the tests need beside Docker's, and the packages that have them.
var programs = map[string]string{
	"bash": "bash", "docker": "docker.io", "docker-registry": "docker-registry", "munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd",
	"sbatch": "slurm-client", "scancel": "slurm-client", "scontrol": "slurm-client", "sinfo": "slurm-client", "sstat": "slurm-client",
}

// Where version 2 of control groups is alone the job's limits hold as well: in a
// virtual machine this machine's Slurm and Docker run tests of this package.
func TestUnified(t *testing.T) {
	t.Parallel()
	if rig.Unified() {
		return // the tests themselves are that
	}
	dir := t.TempDir()
	content := vm.Content{
		CPUs:     2, // which a job can be kept from
		Programs: map[string]string{"deckhand": filepath.Join(dir, "deckhand"), "tests": filepath.Join(dir, "tests")},
		Copies:   []string{rig.Program(t, "slurmstepd", "slurmd")},
		Files: map[string][]byte{
			"/script":              []byte(script),
			"/etc/hosts":           []byte("127.0.0.1 localhost node\n"),
			"/etc/passwd":          []byte("root:x:0:0::/root:/bin/sh\n"),
			"/etc/group":           []byte("root:x:0:\n"),
			"/src/test/slurm/here": nil,
		},
	}
	vm.Build(t, content.Programs["deckhand"], "./cmd/deckhand")
	compile := exec.Command("go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", content.Programs["tests"])
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, pkg := range programs {
		content.Programs[name] = rig.Program(t, name, pkg)
	}
	plugins, err := filepath.Glob("/usr/lib/*/slurm-wlm")
	if err != nil {
		t.Fatal(err)
	}
	content.Copies = append(content.Copies, plugins...)
	shown, err := filepath.Glob(pages + "slurm/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range shown {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		content.Files[filepath.Join("/src/test/slurm", path)] = text
	}

	m := vm.New(t, content).Boot(t, "format=raw,cache=unsafe,file="+vm.NewImage(t), []string{
		"CI=true", "TMPDIR=/var/tmp", "HOME=/tmp", "DECKHAND_TEST_PROGRAM=/bin/deckhand", "tests=" + strings.Join(unified, "|"),
	}, "/bin/sh", "/script")
	var passed []string
	for {
		l, _ := m.Next(nil)
		if l.Word == vm.Ended {
			if l.Rest != "0" {
				t.Errorf("the exit code of the tests is %s", l.Rest)
			}
			break
		}
		t.Log(l.Word, l.Rest)
		if found := pass.FindStringSubmatch(l.Rest); l.Word == "---" && found != nil {
			passed = append(passed, found[1])
		}
	}
	slices.Sort(passed)
	if want := slices.Sorted(slices.Values(unified)); !slices.Equal(passed, want) {
		t.Errorf("passed are %v, want %v", passed, want)
	}
}

var pass = regexp.MustCompile(`^PASS: (\w+) `)
