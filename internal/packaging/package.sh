#!/bin/sh
# Makes, in the directory OUT and for each architecture: the program, a deb, an
# rpm, a bill of materials and the context of the container image; and then
# SHA256SUMS. The same source and variables give the same bytes.
#
# usage: VERSION=… LDFLAGS=… SOURCE_DATE_EPOCH=… MAINTAINER=… package.sh OUT ARCH...
set -eu
: "${VERSION:?}" "${LDFLAGS:?}" "${SOURCE_DATE_EPOCH:?}" "${MAINTAINER:?}"
export SOURCE_DATE_EPOCH MAINTAINER
cd "$(dirname "$0")/../.."
here=$PWD
tools=$here/.tools/bin

rm -rf "$1"
mkdir -p "$1/image"
out=$(cd "$1" && pwd)
shift
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# Packages sort by their versions, which begin with a digit and have no "-": v1.2.0-4-gabc
# comes after 1.2.0, and what has no tag before everything that has one.
case "$VERSION" in
v[0-9]*) PACKAGE_VERSION=$(echo "${VERSION#v}" | sed 's/-\([0-9]*\)-g/+\1.g/; s/-dirty/+dirty/; s/-/~/g') ;;
*) PACKAGE_VERSION=0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$(echo "$VERSION" | tr - .) ;;
esac
export PACKAGE_VERSION

# What documents the program comes from the program.
go build -trimpath -buildvcs=false -ldflags "$LDFLAGS" -o "$stage/here" ./cmd/deckhand
mkdir "$stage/man" "$stage/completion"
"$stage/here" man "$stage/man"
gzip -9n "$stage"/man/*
for shell in bash:deckhand zsh:_deckhand fish:deckhand.fish; do
	"$stage/here" completion "${shell%%:*}" >"$stage/completion/${shell#*:}"
done
"$stage/here" config --example >"$stage/config.yaml"
gzip -9nc CHANGELOG.md >"$stage/CHANGELOG.md.gz"
cp -r LICENSE internal/packaging/systemd internal/packaging/*.sh "$stage/"

for ARCH in "$@"; do
	export ARCH
	name=deckhand_${PACKAGE_VERSION}_linux_$ARCH
	if [ "$ARCH" = "$(go env GOHOSTARCH)" ]; then
		cp "$stage/here" "$stage/deckhand"
	else
		GOARCH=$ARCH go build -trimpath -buildvcs=false -ldflags "$LDFLAGS" -o "$stage/deckhand" ./cmd/deckhand
	fi
	for packager in deb rpm; do
		(cd "$stage" && "$tools/nfpm" package -f "$here/internal/packaging/nfpm.yaml" -p $packager -t "$out/$name.$packager")
	done
	"$tools/cyclonedx-gomod" bin -json -std -noserial -notimestamp -version "$VERSION" -output "$out/$name.cdx.json" "$stage/deckhand"
	mkdir "$out/image/$ARCH"
	cp "$stage/deckhand" /etc/ssl/certs/ca-certificates.crt "$out/image/$ARCH/"
	mv "$stage/deckhand" "$out/$name"
done
cd "$out"
sha256sum deckhand_* >SHA256SUMS
