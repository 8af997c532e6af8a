package node

import (
	"os"
	"path"
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
}

// ReadMounts asks the kernel. Where it does not tell, and in a PID namespace of its own,
// no mount is private.
func ReadMounts() Mounts {
	own, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Mounts{}
	}
	first, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil {
		return Mounts{}
	}
	return Mounts{parseMounts(string(own)), parseMounts(string(first))}
}

// Private returns the mount point below which an absolute path without links is, when the
// first process of the node sees something else at that path: who is in no mount namespace
// of a job, as Docker, does not find there what this process does.
func (m Mounts) Private(file string) (point string, private bool) {
	own, device, root := place(m.own, file)
	_, nodeDevice, nodeRoot := place(m.node, file)
	if own == "" || nodeDevice == "" || device == nodeDevice && root == nodeRoot {
		return "", false
	}
	return own, true
}

// place says where a path lies: its mount point, the device of that mount, and the path in
// the filesystem. They are empty where the mounts do not tell.
func place(mounts []mount, file string) (point, device, root string) {
	at, ok := first(mounts)
	if !ok {
		return "", "", ""
	}
	// As the kernel walks: a mount hides what is below its point of the mount that it is in.
	for range mounts {
		next := at
		for _, m := range mounts {
			if m.parent == at.id && m.id != at.id && within(m.point, file) && (next == at || len(m.point) < len(next.point)) {
				next = m
			}
		}
		if next == at {
			break
		}
		at = next
	}
	return at.point, at.device, path.Join(at.root, strings.TrimPrefix(file, at.point))
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

func within(dir, file string) bool {
	return dir == "/" || file == dir || strings.HasPrefix(file, dir+"/")
}

// unescape is how proc(5) writes what would end a word.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func parseMounts(text string) (mounts []mount) {
	for line := range strings.Lines(text) {
		// proc(5): id parent device root point options tags - type source options
		if f := strings.Fields(line); len(f) >= 6 {
			mounts = append(mounts, mount{f[0], f[1], f[2], unescape.Replace(f[3]), unescape.Replace(f[4])})
		}
	}
	return mounts
}
