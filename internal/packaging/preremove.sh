#!/bin/sh
# Before a removal, not an upgrade: ends the tasks of deckhand@.service, and takes
# out the links of units that were enabled. dpkg says "remove", rpm says 0.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
command -v systemctl >/dev/null || exit 0
[ ! -d /run/systemd/system ] || systemctl stop 'deckhand@*.service'
systemctl disable --quiet deckhand-recover.service deckhand@.service
