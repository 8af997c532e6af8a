package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (e *examination) reached(context.Context) []finding {
	if e.silent != nil {
		return []finding{broken(message(e.silent), e.dockerFix())}
	}
	i := e.info
	return []finding{fine("%s, API %s, %s, cgroup v%s by %s", i.Version, i.APIVersion, i.StorageDriver, i.CgroupVersion, i.CgroupDriver)}
}

// dockerFix is what mends a Docker that cannot be used.
func (e *examination) dockerFix() string {
	socket, here := strings.CutPrefix(e.conf.Docker.Host, "unix://")
	var st unix.Stat_t
	switch err := unix.Stat(socket, &st); {
	case !here:
		return "see whether it runs there and this node reaches it, or name another with --docker-host"
	case errors.Is(err, os.ErrNotExist):
		return "start the Docker Engine (\"systemctl start docker\"), or name another with --docker-host"
	case err != nil: // whose it is cannot be told
		return fmt.Sprintf("run as root, or let this user get to %s: %s", socket, message(err))
	case unix.Access(socket, unix.R_OK|unix.W_OK) != nil:
		return fmt.Sprintf("add this user to the group of the socket (\"usermod -aG %s USER\") and log in again", groupName(st.Gid))
	case e.docker == nil && strings.Contains(e.silent.Error(), "or newer is needed"):
		return "upgrade the Docker Engine"
	}
	return "look at the log of the Docker Engine (\"journalctl -u docker\") and start it again"
}

func groupName(id uint32) string {
	name := strconv.FormatUint(uint64(id), 10)
	if g, err := user.LookupGroupId(name); err == nil {
		return g.Name
	}
	return name
}

// slowDrivers copy every layer of an image whole for each container.
var slowDrivers = []string{"vfs"}

func (e *examination) storageDriver(context.Context) []finding {
	if e.silent != nil {
		return nil
	}
	if slices.Contains(slowDrivers, e.info.StorageDriver) {
		return []finding{doubt(e.info.StorageDriver+": it copies the whole image for each layer and each container",
			"use overlay2, on an ext4 or on an xfs with ftype=1")}
	}
	return []finding{fine("%s", e.info.StorageDriver)}
}

func (e *examination) dockerLimits(context.Context) []finding {
	if e.silent != nil {
		return nil
	}
	const fix = "mount the controllers of cgroups that are missing, or start Docker as root; what a task asks for does not bound it"
	switch {
	case e.info.CgroupDriver == "none":
		return []finding{doubt("Docker uses no control groups: nothing bounds a task", fix)}
	case len(e.info.Unlimited) > 0:
		return []finding{doubt("Docker cannot limit the "+strings.Join(e.info.Unlimited, ", the ")+" of a task", fix)}
	}
	return []finding{fine("memory, CPU and the number of processes, by cgroup v%s", e.info.CgroupVersion)}
}

// runtime looks for the program that starts containers, without which Docker answers
// everything and every task fails.
func (e *examination) runtime(context.Context) []finding {
	if e.silent != nil || e.info.Runtime == "" {
		return nil
	}
	path := e.info.RuntimePath
	if filepath.IsAbs(path) && e.dockerIsHere() && unix.Access(path, unix.X_OK) != nil {
		return []finding{broken(fmt.Sprintf("%s: there is no program %s", e.info.Runtime, path), "install it, or mend \"runtimes\" and \"default-runtime\" in daemon.json")}
	}
	return []finding{fine("%s", e.info.Runtime)}
}

func (e *examination) liveRestore(ctx context.Context) []finding {
	switch {
	case e.silent != nil:
		return nil
	case e.info.LiveRestore:
		return []finding{fine("on: containers outlive a restart of the daemon")}
	}
	if podman, err := e.docker.IsPodman(ctx); err == nil && podman {
		return []finding{fine("not needed: containers of Podman are no children of its service")}
	}
	return []finding{doubt("off: a restart of the daemon ends running tasks, which are then run again", "set \"live-restore\": true in daemon.json")}
}
