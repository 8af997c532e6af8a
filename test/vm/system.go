// Package vm gives tests whole nodes: virtual machines with a kernel of Debian's,
// cgroup v2, and a Docker Engine and whatever else there is on this machine.
package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/test/rig"
)

// System is what a machine boots: a kernel with its first process, and a read-only
// system disk with a Docker Engine.
type System struct {
	dir         string
	kernel      string
	initial     string // the initial file system
	disk        string // the system disk
	accelerator string
	cpus        int
}

// Content is what a system disk has beside a Docker Engine and busybox.
type Content struct {
	Programs map[string]string // by their names in /bin, where they are on this machine
	Copies   []string          // files and directories that are at the same place as on this machine
	Files    map[string][]byte // by their paths
	CPUs     int               // of the machine, with a gigabyte of memory each; zero is one
}

// top is the directory of the module.
func top() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// kernelDir is where test/deps.sh unpacks a kernel.
func kernelDir() string { return filepath.Join(top(), ".tools", "kernel") }

// drivers are the kernel modules that a machine needs. What each depends on is
// loaded before it.
var drivers = []string{"virtio_pci", "virtio_blk", "virtio_net", "overlay", "bridge", "veth", "nf_tables", "nft_reject_inet"}

// New makes a system.
func New(tb testing.TB, content Content) *System {
	tb.Helper()
	s := &System{dir: tb.TempDir(), cpus: max(1, content.CPUs)}
	kernels, _ := filepath.Glob(filepath.Join(kernelDir(), "boot", "vmlinuz-*"))
	if runtime.GOARCH != "amd64" || len(kernels) == 0 {
		rig.Lack(tb, "this machine has no kernel for a virtual machine in "+kernelDir()+": run `make deps` as root on amd64")
	}
	s.kernel = kernels[0]
	s.initial, s.disk = filepath.Join(s.dir, "initial"), filepath.Join(s.dir, "system")
	if err := s.makeInitial(tb); err != nil {
		tb.Fatalf("make the initial file system: %v", err)
	}
	if err := s.makeDisk(tb, content); err != nil {
		tb.Fatalf("make the system disk: %v", err)
	}
	s.accelerator = s.choose(tb)
	return s
}

// Build builds a static program of this module.
func Build(tb testing.TB, path string, args ...string) {
	tb.Helper()
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", path}, args...)...)
	cmd.Dir = top()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %v: %v\n%s", args, err, out)
	}
}

// command runs a program to its end in a directory.
func command(dir string, stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, stderr.String())
	}
	return stdout.Bytes(), nil
}

// makeInitial makes what the kernel starts from: the first process and the drivers.
func (s *System) makeInitial(tb testing.TB) error {
	dir := filepath.Join(s.dir, "ramfs")
	for _, d := range []string{"dev", "mnt", "modules"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	Build(tb, filepath.Join(dir, "init"), "./test/vm/init")
	names := []string{"init", "dev", "mnt", "modules", "modules/order"}
	files := map[string]string{}
	err := filepath.WalkDir(kernelDir(), func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	order, err := loadOrder(files, drivers)
	if err != nil {
		return err
	}
	for _, name := range order {
		if err := os.Symlink(files[name], filepath.Join(dir, "modules", name)); err != nil {
			return err
		}
		names = append(names, "modules/"+name)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules", "order"), []byte(strings.Join(order, "\n")), 0o644); err != nil {
		return err
	}
	archive, err := command(dir, []byte(strings.Join(names, "\n")+"\n"), rig.Program(tb, "busybox", "busybox-static"), "cpio", "-o", "-L", "-H", "newc")
	if err != nil {
		return err
	}
	return os.WriteFile(s.initial, archive, 0o644)
}

var depends = regexp.MustCompile(`(?:^|\x00)depends=([^\x00]*)`)

// loadOrder sorts modules and what they depend on, as each names it itself.
func loadOrder(files map[string]string, names []string) (order []string, err error) {
	var visit func(name string) error
	visit = func(name string) error {
		if slices.Contains(order, name) {
			return nil
		}
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("the kernel in %s has no module %s", kernelDir(), name)
		}
		module, err := elf.Open(path)
		if err != nil {
			return err
		}
		defer module.Close()
		info := []byte{}
		if s := module.Section(".modinfo"); s != nil {
			if info, err = s.Data(); err != nil {
				return err
			}
		}
		if found := depends.FindSubmatch(info); len(found) > 1 && len(found[1]) > 0 {
			for _, other := range strings.Split(string(found[1]), ",") {
				if err := visit(other); err != nil {
					return err
				}
			}
		}
		order = append(order, name)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

var libraries = regexp.MustCompile(`/\S+`)

// makeDisk makes the system disk. What is Docker's is this machine's.
func (s *System) makeDisk(tb testing.TB, content Content) error {
	dir := filepath.Join(s.dir, "root")
	for _, d := range []string{"data", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	links := map[string]string{"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin", "var/run": "/run", "etc/docker": "/data/etc"}
	applets, err := exec.Command(rig.Program(tb, "busybox", "busybox-static"), "--list").Output()
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		links["usr/bin/"+applet] = "busybox"
	}
	copies := map[string]string{}
	for name, pkg := range map[string]string{
		"dockerd": "docker.io", "containerd": "containerd", "containerd-shim-runc-v2": "containerd", "runc": "runc", "busybox": "busybox-static",
	} {
		copies["/usr/bin/"+name] = rig.Program(tb, name, pkg)
	}
	for name, path := range content.Programs {
		copies["/usr/bin/"+name] = path
	}
	for _, tree := range content.Copies {
		err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				copies[path] = path
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, from := range slices.Collect(maps.Values(copies)) {
		needs, _ := exec.Command("ldd", from).Output() // fails for what is no dynamic program
		for _, library := range libraries.FindAllString(string(needs), -1) {
			copies[library] = library
		}
	}
	for to, from := range copies {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, to), content, 0o755); err != nil {
			return err
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for to, content := range content.Files {
		if err := writeFile(filepath.Join(dir, to), content, 0o644); err != nil {
			return err
		}
	}
	return filesystem(tb, s.disk, "1G", "-O", "^has_journal", "-d", dir)
}

func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, mode)
}

// filesystem makes an ext4 in a new file.
func filesystem(tb testing.TB, image, size string, args ...string) error {
	_, err := command("", nil, rig.Program(tb, "mke2fs", "e2fsprogs"), append(append([]string{"-q", "-t", "ext4", "-m", "0"}, args...), image, size)...)
	return err
}

// NewImage makes the content of an empty data disk.
func NewImage(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	image, content := filepath.Join(dir, "image"), filepath.Join(dir, "content")
	// Docker keeps its key in one of them, the other one is /var/tmp.
	err := errors.Join(os.MkdirAll(filepath.Join(content, "etc"), 0o755), os.MkdirAll(filepath.Join(content, "tmp"), 0o755))
	if err == nil {
		err = filesystem(tb, image, "4G", "-N", "32768", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=16", "-d", content)
	}
	if err != nil {
		tb.Fatalf("make the data disk: %v", err)
	}
	return image
}
