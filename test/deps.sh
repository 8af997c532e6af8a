#!/bin/sh
# Installs what the tests need and the machine lacks: a Docker Engine and its command
# line, a registry, a static busybox for the images, Podman, Slurm, HTCondor, servers and filesystems, a browser,
# command lines of batch engines, and a virtual machine with a kernel to boot in it.
# With the argument "demo" only the first three, which the demo needs; with "bench" also the tools that benchmarks run
# beside deckhand.
set -eu
PATH=$PATH:/usr/sbin:/sbin
tools=$(dirname "$0")/../.tools
arch=$(dpkg --print-architecture 2>/dev/null || echo unknown)

packages=""
need() { # program, package
	command -v "$1" >/dev/null || packages="$packages $2"
}

# Not where an engine was named: it may be on another machine.
if [ -z "${DECKHAND_TEST_DOCKER_HOST:-}${DOCKER_HOST:-}" ] && [ ! -S /var/run/docker.sock ]; then
	need dockerd docker.io
	need iptables iptables
fi
need docker docker.io
need docker-registry docker-registry
need ip iproute2
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages="$packages ca-certificates"
# The plain busybox package is linked dynamically, and would not run in an image.
[ -e /usr/share/doc/busybox-static ] || need busybox busybox-static
# A machine without systemd may have no control groups mounted, which dockerd needs.
grep -q ' /sys/fs/cgroup' /proc/self/mountinfo || packages="$packages cgroupfs-mount"

kernel="" condor=""
if [ "${1:-}" != demo ]; then
	need podman "podman runc netavark iptables" # crun takes no hybrid cgroups
	need nginx nginx-light
	need node nodejs
	need npm npm
	need systemd-analyze systemd
	# For the commands of docs/engines.
	need aws awscli
	need az azure-cli
	need kubectl kubernetes-client
	# For the examples of docs/events.md.
	need python3 python3-minimal
	need openssl openssl
	need man man-db
	need curl curl
	need rpm rpm
	need zsh zsh
	need chromium "chromium fonts-liberation"
	need fish fish
	[ -e /usr/share/bash-completion/bash_completion ] || packages="$packages bash-completion"
	need munged munge
	need slurmctld slurmctld
	need slurmd slurmd
	need sbatch slurm-client
	need mkfs.ext4 e2fsprogs
	need mkfs.xfs xfsprogs
	need mkfs.btrfs btrfs-progs
	# The C library's fnmatch is what POSIX patterns are held against.
	need gcc "gcc libc6-dev"
	# Nodes whose power is cut are virtual machines of this kind.
	[ "$arch" != amd64 ] || need qemu-system-x86_64 qemu-system-x86
	[ "$arch" != amd64 ] || need xz xz-utils # for the modules of its kernel
	[ "$arch" != amd64 ] || [ -d "$tools/kernel" ] || kernel=linux-image-cloud-amd64
	# HTCondor is in Debian 13 and in no release before it.
	[ "$arch" != amd64 ] || [ -d "$tools/condor" ] || condor=condor
fi
if [ "${1:-}" = bench ]; then
	need /usr/bin/time time
	need aria2c aria2
	need rclone rclone
fi

[ -n "$packages$kernel$condor" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "missing here:$packages $kernel $condor. Install them as root; tests that need them are skipped." >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
[ -z "$packages$kernel" ] || apt-get update -q
if [ -n "$packages" ]; then
	# From Debian 13 on the command line is a package of its own.
	case "$packages" in
	*docker.io*) [ -z "$(apt-cache search --names-only '^docker-cli$')" ] || packages="$packages docker-cli" ;;
	esac
	# Not synced file by file: a package that a power cut has spoiled is installed again.
	# shellcheck disable=SC2086 # a list of words
	apt-get install -q -y --no-install-recommends -o DPkg::Options::=--force-unsafe-io $packages
fi
if [ -n "$kernel" ]; then
	# Unpacked and not installed: it is not for this machine to boot.
	rm -rf "$tools/kernel.new"
	mkdir -p "$tools/kernel.new"
	package=$(apt-cache depends "$kernel" | sed -n 's/^ *Depends: *//p' | head -n 1)
	(cd "$tools/kernel.new" && apt-get download -q -o APT::Sandbox::User=root "$package")
	dpkg-deb -x "$tools/kernel.new"/*.deb "$tools/kernel.new"
	rm "$tools/kernel.new"/*.deb
	find "$tools/kernel.new" -name '*.ko.xz' -exec xz -d {} + # since Debian 13
	mv "$tools/kernel.new" "$tools/kernel"
fi
if [ -n "$condor" ]; then
	# A /usr of Debian 13 beside this machine's own, of what apt has for a machine that has
	# nothing: it checks signatures, and installs nothing.
	new=$(realpath -m "$tools/condor.new")
	rm -rf "$new"
	mkdir -p "$new/lists/partial" "$new/cache/archives/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" >"$new/sources.list"
	: >"$new/status"
	trixie() {
		apt-get -q -o Dir::Etc::SourceList="$new/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$new/lists" \
			-o Dir::State::Status="$new/status" -o Dir::Cache="$new/cache" -o APT::Sandbox::User=root "$@"
	}
	trixie update
	# HTCondor removes the directories of jobs with rm.
	trixie install -y --no-install-recommends --download-only condor coreutils
	for package in "$new"/cache/archives/*.deb; do
		dpkg-deb -x "$package" "$new/unpacked"
	done
	mv "$new/unpacked/usr" "$tools/condor"
	rm -r "$new"
fi
