package netfilter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/group"
)

// Namespace opens the network namespace of a container by its first process.
// The number may mean another process here than for Docker, when this process
// runs in a container itself: the process must be in a control group of the
// container's.
func Namespace(pid int, container string) (*os.File, error) {
	// What is opened through the directory is of that process and of no other
	// one that gets its number.
	proc, err := unix.Open(fmt.Sprintf("/proc/%d", pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot find process %d: %w", pid, err)
	}
	defer unix.Close(proc)
	open := func(name string) (*os.File, error) {
		fd, err := unix.Openat(proc, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot open %s of process %d: %w", name, pid, err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	groups, err := open("cgroup")
	if err != nil {
		return nil, err
	}
	defer func() { _ = groups.Close() }() // read-only
	text, err := io.ReadAll(groups)
	if err != nil {
		return nil, err
	}
	if container == "" || !bytes.Contains(text, []byte(container)) {
		return nil, fmt.Errorf("process %d is none of container %s", pid, container)
	}
	return open("ns/net")
}

// within calls do on a thread that is in an open network namespace, or where it
// is when ns is 0. The netlink library enters namespaces too, but takes a socket
// that it could not make there for one that it could.
func within(ns int, do func() error) error {
	if ns == 0 {
		return do()
	}
	g, _ := group.WithContext(context.Background())
	g.Go(func() error {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return do()
	})
	return g.Wait()
}
