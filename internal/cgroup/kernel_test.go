package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tree is a piece of the kernel's own hierarchy of version 2.
type tree struct{ mount, top string }

func newTree(t *testing.T) tree {
	t.Helper()
	if os.Getuid() != 0 {
		lacks(t, "only root may mount control groups")
	}
	c := tree{t.TempDir(), fmt.Sprintf("/deckhand-test-%d", os.Getpid())}
	if err := unix.Mount("none", c.mount, "cgroup2", 0, ""); errors.Is(err, unix.ENODEV) {
		lacks(t, "the kernel has no cgroup v2")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(c.mount, 0); err != nil {
			t.Error(err)
		}
	})
	return c
}

// lacks leaves the test out on a machine that lacks something, which one of CI may not.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// group makes a group, which goes with the test.
func (c tree) group(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(c.mount, c.top, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// process starts a process that is in a group from then on, and ends with the test.
func (c tree) process(t *testing.T, name string) Host {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it runs
		_ = cmd.Wait()         // killed
	})
	if err := c.write(name, "cgroup.procs", fmt.Sprint(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	return Host{Proc: fmt.Sprintf("/proc/%d", cmd.Process.Pid)}
}

func (c tree) write(group, file, text string) error {
	return os.WriteFile(filepath.Join(c.mount, c.top, group, file), []byte(text), 0o644)
}

// The parent is one below which the kernel lets containers have controllers, and the
// group of the process itself is not.
func TestParentOfTheKernel(t *testing.T) {
	c := newTree(t)
	for _, name := range []string{"", "job", "job/step", "job/step/task"} {
		c.group(t, name)
	}
	h := c.process(t, "job/step/task")
	check(t, h, "2", c.top+"/job/step")

	text, err := os.ReadFile(filepath.Join(c.mount, "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Fields(string(text))
	if len(all) == 0 {
		lacks(t, "every controller is with version 1")
	}
	controller := all[0]
	on, off := "+"+controller, "-"+controller
	was, err := os.ReadFile(filepath.Join(c.mount, "cgroup.subtree_control"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(was), controller) {
		defer func() {
			if err := c.write("..", "cgroup.subtree_control", off); err != nil {
				t.Error(err)
			}
		}()
	}
	for _, name := range []string{"..", "", "job", "job/step"} {
		if err := c.write(name, "cgroup.subtree_control", on); err != nil {
			t.Fatal(err)
		}
	}
	container := c.group(t, "job/step/container")
	if files, err := filepath.Glob(filepath.Join(container, controller+".*")); err != nil || len(files) == 0 {
		t.Errorf("a container below the parent has no %s (%v)", controller, err)
	}
	if err := c.write("job/step/task", "cgroup.subtree_control", on); !errors.Is(err, unix.EBUSY) {
		t.Errorf("in the group of the process: %v", err)
	}
	for _, name := range []string{"job/step", "job", ""} {
		if err := c.write(name, "cgroup.subtree_control", off); err != nil {
			t.Error(err)
		}
	}
}

// A group of threads tells no processes, and the one that they belong to has them all.
func TestParentOfThreads(t *testing.T) {
	c := newTree(t)
	for _, name := range []string{"", "domain", "domain/threads"} {
		c.group(t, name)
	}
	if err := c.write("domain/threads", "cgroup.type", "threaded"); err != nil {
		t.Fatal(err)
	}
	h := c.process(t, "domain/threads")
	check(t, h, "2", c.top)
}

// Where processes are in every group there is no parent.
func TestParentOfNobody(t *testing.T) {
	c := newTree(t)
	c.group(t, "")
	h := c.process(t, "")
	check(t, h, "2", "! no control group")
}
