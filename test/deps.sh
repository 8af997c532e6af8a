#!/bin/sh
# Installs what the tests and the demo need and the machine lacks: a Docker
# Engine and its command line, a registry, a static busybox for the images,
# servers and filesystems.
set -eu
PATH=$PATH:/usr/sbin:/sbin

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
need nginx nginx-light
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs
# The C library's fnmatch is what POSIX patterns are held against.
need gcc "gcc libc6-dev"
# The plain busybox package is linked dynamically, and would not run in an image.
[ -e /usr/share/doc/busybox-static ] || need busybox busybox-static
# A machine without systemd may have no control groups mounted, which dockerd needs.
grep -q ' /sys/fs/cgroup' /proc/self/mountinfo || packages="$packages cgroupfs-mount"

[ -n "$packages" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "missing here:$packages. Install them as root; tests that need them are skipped." >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# From Debian 13 on the command line is a package of its own.
case "$packages" in
*docker.io*) [ -z "$(apt-cache search --names-only '^docker-cli$')" ] || packages="$packages docker-cli" ;;
esac
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $packages
