package node

import (
	"bytes"
	"os"
	"path"
	"slices"
	"strings"
)

// Mounts are what this process sees mounted, beside what the first process of the node does.
type Mounts struct{ own, node []mount }

// mount is a line of mountinfo.
type mount struct {
	id, parent string
	device     string
	root       string // the directory of the filesystem that is mounted
	point      string
	kind       string // of the filesystem
}

// ReadMounts asks the kernel. Where it does not tell, and in a PID namespace of its own,
// no mount is private.
func ReadMounts() Mounts {
	own, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Mounts{}
	}
	first, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil || bytes.Equal(own, first) {
		return Mounts{}
	}
	return Mounts{parseMounts(string(own)), parseMounts(string(first))}
}

// Shared says that this process has no mounts of its own, as far as the kernel tells.
func (m Mounts) Shared() bool { return len(m.own) == 0 }

// Private returns the mount point below which an absolute path without links is, when the
// first process of the node sees something else at that path: who is in no mount namespace
// of a job, as Docker, does not find there what this process does.
func (m Mounts) Private(file string) (point string, private bool) {
	own, ok := place(m.own, file)
	there, told := place(m.node, file)
	// What an automounter has not mounted yet, or not any more, is not there to be seen.
	if !ok || !told || there.kind == "autofs" || own.device == there.device && own.within(file) == there.within(file) {
		return "", false
	}
	return own.point, true
}

// within is a path below the mount's point as the filesystem itself has it.
func (m mount) within(file string) string {
	return path.Join(m.root, strings.TrimPrefix(file, m.point))
}

// place is the mount on which a path lies; false where the mounts do not tell.
func place(mounts []mount, file string) (at mount, ok bool) {
	if at, ok = first(mounts); !ok {
		return at, false
	}
	// As the kernel walks: a mount hides what is below its point of the mount that it is in.
	for range mounts {
		next := at
		for _, m := range mounts {
			if m.parent == at.id && m.id != at.id && below(m.point, file) && (next == at || len(m.point) < len(next.point)) {
				next = m
			}
		}
		if next == at {
			break
		}
		at = next
	}
	return at, true
}

// first is the mount of the root directory: what it is mounted on is not seen.
func first(mounts []mount) (mount, bool) {
	seen := map[string]bool{}
	for _, m := range mounts {
		seen[m.id] = true
	}
	for _, m := range mounts {
		if m.point == "/" && (!seen[m.parent] || m.parent == m.id) {
			return m, true
		}
	}
	return mount{}, false
}

func below(dir, file string) bool {
	return dir == "/" || file == dir || strings.HasPrefix(file, dir+"/")
}

// unescape is how proc(5) writes what would end a word.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func parseMounts(text string) (mounts []mount) {
	for line := range strings.Lines(text) {
		// proc(5): id parent device root point options tags - type source options
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i >= 6 && i+1 < len(f) {
			mounts = append(mounts, mount{f[0], f[1], f[2], unescape.Replace(f[3]), unescape.Replace(f[4]), f[i+1]})
		}
	}
	return mounts
}
