package fakedocker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/engine"
)

// start runs the container's command. The caller holds the engine's mu.
func (c *container) start() (*os.Process, error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, name := range []string{os.DevNull, c.log(0), c.log(1)} {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	var process *os.Process
	err := c.inRoot(func() error {
		argv, env := c.command()
		program, err := find(argv[0], env["PATH"])
		if err != nil {
			return err
		}
		credential, err := user(first(c.spec.User, c.image.User))
		if err != nil {
			return err
		}
		dir := first(c.spec.Workdir, c.image.Workdir, "/")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if c.spec.NoNewPrivileges {
			// Of this thread, hence of what it starts.
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return err
			}
		}
		var list []string
		for k, v := range env {
			list = append(list, k+"="+v)
		}
		process, err = os.StartProcess(program, argv, &os.ProcAttr{Dir: dir, Env: list, Files: files, Sys: &syscall.SysProcAttr{
			Credential: credential, Cloneflags: syscall.CLONE_NEWPID,
		}})
		return err
	})
	return process, err
}

func first(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// command is what runs, by Docker's rules, and its environment.
func (c *container) command() (argv []string, env map[string]string) {
	entrypoint, command := c.spec.Entrypoint, c.spec.Command
	if entrypoint == nil {
		entrypoint = c.image.Entrypoint
		if len(command) == 0 {
			command = c.image.Cmd
		}
	}
	env = map[string]string{"HOSTNAME": c.id[:12]}
	for _, pair := range c.image.Env {
		k, v, _ := strings.Cut(pair, "=")
		env[k] = v
	}
	for k, v := range c.spec.Env {
		env[k] = v
	}
	return append(append([]string{}, entrypoint...), command...), env
}

// find looks for a program as a container runtime does. It runs in the
// container's root.
func find(name, search string) (string, error) {
	places := []string{""}
	if !strings.Contains(name, "/") {
		places = strings.Split(search, ":")
	}
	refused := &engine.StartError{ExitCode: 127, Message: fmt.Sprintf("exec: %q: not found", name)}
	for _, dir := range places {
		program := path.Join(dir, name)
		info, err := os.Stat(program)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		case err != nil:
			return "", err
		case info.IsDir(), info.Mode()&0o111 == 0:
			refused = &engine.StartError{ExitCode: 126, Message: fmt.Sprintf("exec: %q: permission denied", name)}
		default:
			return program, nil
		}
	}
	return "", refused
}

// user looks a user up in the container's root; "" is the superuser.
func user(name string) (*syscall.Credential, error) {
	if name == "" {
		return nil, nil
	}
	if id, err := strconv.ParseUint(name, 10, 32); err == nil {
		return &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}, nil
	}
	f, err := os.Open("/etc/passwd")
	if err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Split(lines.Text(), ":")
			if len(fields) < 4 || fields[0] != name {
				continue
			}
			uid, err1 := strconv.ParseUint(fields[2], 10, 32)
			gid, err2 := strconv.ParseUint(fields[3], 10, 32)
			if err := errors.Join(err1, err2); err != nil {
				return nil, err
			}
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, taskFault("cannot start the container: unable to find user %s", name)
}

// within runs f in a container's root, whether the container runs or not.
func (e *Engine) within(ctx context.Context, id string, f func() error) error {
	e.mu.Lock()
	c, err := e.find(id)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		e.mu.Unlock()
		return err
	}
	pid := c.pid
	e.mu.Unlock()
	if pid == 0 {
		return c.inRoot(f)
	}
	return onThread(func() error {
		// Through the process, which has all that is mounted there.
		if err := unix.Chroot(fmt.Sprintf("/proc/%d/root", pid)); err != nil {
			return err
		}
		return errors.Join(os.Chdir("/"), f())
	})
}

// inRoot runs f with the container's layers as its root, and what is mounted into
// the container in its place. What it mounts goes with what f has started.
func (c *container) inRoot(f func() error) error {
	return onThread(func() error {
		root := filepath.Join(c.dir, "root")
		var lower []string
		for _, layer := range c.image.layers {
			lower = append([]string{layer}, lower...)
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lower, ":"), filepath.Join(c.dir, "upper"), filepath.Join(c.dir, "work"))
		if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount the layers of container %s: %w", c.spec.Name, err)
		}
		for _, dir := range []string{"/proc", "/dev"} {
			if err := unix.Mount(dir, filepath.Join(root, dir), "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mount %s: %w", dir, err)
			}
		}
		for _, m := range c.mounts {
			if err := bind(root, m); err != nil {
				return fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
			}
		}
		if err := unix.Chroot(root); err != nil {
			return err
		}
		return errors.Join(os.Chdir("/"), f())
	})
}

func bind(root string, m engine.Mount) error {
	target := filepath.Join(root, m.Target)
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		var f *os.File
		if f, err = os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(m.Source, target, "", unix.MS_BIND, ""); err != nil || !m.ReadOnly {
		return err
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// onThread runs f on a thread that has mounts and a root of its own, and ends
// with f.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is of no use to others
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}
