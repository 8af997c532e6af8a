package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// user says who runs tasks here. Whether Docker lets them in is told by Docker.
func (e *examination) user(context.Context) []finding {
	groups, err := os.Getgroups()
	if err != nil {
		return []finding{doubt(message(err), "see whether /proc is mounted")}
	}
	names := []string{}
	for _, id := range append(groups, os.Getegid()) {
		name := strconv.Itoa(id)
		if g, err := user.LookupGroupId(name); err == nil {
			name = g.Name
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return []finding{fine("user %d, groups %s", os.Geteuid(), strings.Join(slices.Compact(names), " "))}
}

// A run holds the journal, Docker's connections and a few descriptors for each
// parallel transfer.
const wantedFiles = 256

// wantedMemory is what a run maps and reserves of its address space, most of which it
// never touches.
const wantedMemory = 4 << 30

// limits of setrlimit(2), which batch engines often hand on from the login node. Only
// the upper ones count: a process raises the others itself.
func (e *examination) limits(context.Context) (found []finding) {
	for _, l := range []struct {
		what    string
		number  int
		least   uint64
		inWords func(uint64) string
		fix     string
	}{
		{"open files", unix.RLIMIT_NOFILE, wantedFiles, func(n uint64) string { return strconv.FormatUint(n, 10) }, "raise it: \"ulimit -n\", or LimitNOFILE= of the unit that starts the job"},
		{"the size of a file", unix.RLIMIT_FSIZE, unix.RLIM_INFINITY, bytesSize, "lift it: \"ulimit -f unlimited\"; a larger input or output fails"},
		{"address space", unix.RLIMIT_AS, wantedMemory, bytesSize, "lift it: \"ulimit -v unlimited\"; bound memory by a control group"},
	} {
		var limit unix.Rlimit
		if err := unix.Getrlimit(l.number, &limit); err != nil {
			found = append(found, doubt(fmt.Sprintf("%s: %s", l.what, message(err)), "see \"ulimit -a\""))
		} else if limit.Max < l.least {
			found = append(found, doubt(fmt.Sprintf("%s: at most %s", l.what, l.inWords(limit.Max)), l.fix))
		}
	}
	if len(found) == 0 {
		found = append(found, fine("open files, file size and address space suffice"))
	}
	return found
}

// clockSlack is how far a clock may be behind what it has shown.
const clockSlack = time.Minute

func (e *examination) clock(context.Context) []finding {
	now := e.now()
	if newest := e.newest(); newest.After(now.Add(clockSlack)) {
		return []finding{broken(fmt.Sprintf("it shows %s, and a record of the journal is from %s: it was set back by %s",
			now.UTC().Format(time.RFC3339), newest.UTC().Format(time.RFC3339), units.HumanDuration(newest.Sub(now))),
			"set the clock; signed requests to object stores and certificates need the right time")}
	}
	if synced, err := e.synced(); err == nil && !synced {
		return []finding{doubt(now.UTC().Format(time.RFC3339)+", which the kernel does not know to follow a source of time",
			"run chrony, systemd-timesyncd or ntpd on the host; object stores refuse requests when the clock is minutes off")}
	}
	return []finding{fine("%s", now.UTC().Format(time.RFC3339))}
}

// newest is the time of the newest record of a task, zero when there is none.
func (e *examination) newest() (newest time.Time) {
	v, ok, err := e.quietView()
	if err != nil || !ok {
		return newest
	}
	defer func() { _ = v.Close() }() // the check of the journal tells
	heads, err := v.Heads()
	if err != nil {
		return newest
	}
	for _, h := range heads {
		if h.Task != machine.NodeTask && h.Since.After(newest) {
			newest = h.Since
		}
	}
	return newest
}

// clockSynced asks the kernel (adjtimex(2)).
func clockSynced() (bool, error) {
	state, err := unix.Adjtimex(&unix.Timex{})
	return state != unix.TIME_ERROR, err
}
