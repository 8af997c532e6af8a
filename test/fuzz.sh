#!/bin/sh
# Runs every fuzz target with as many new inputs as the argument says. They are
# counted because a time can end a run of Go before 1.27 with an error of its own
# (golang/go#75804). What breaks a target is left in its testdata/fuzz, from where
# every later test run takes it too.
set -eu
cd "$(dirname "$0")/.."
grep -rH '^func Fuzz' --include='*_test.go' . |
	sed 's|^\(.*\)/[^/]*:func \(Fuzz[A-Za-z0-9]*\)(.*|\1 \2|' |
	while read -r package target; do
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1x" "$package"
	done
