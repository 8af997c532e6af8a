// Package worktree decides where on the node each container path of one
// attempt lives, and reads and writes there without ever leaving the attempt's
// own directory, whatever links a container leaves in it.
package worktree

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/deckhand/deckhand/internal/storage/glob"
	"github.com/deckhand/deckhand/internal/tes"
)

// Mount is one directory or file of the work tree that every executor sees.
type Mount struct {
	Target string // absolute path in the container
	Source string // relative to the attempt's directory
	File   bool   // a single file, not a directory
}

// Layout is the number of the rules by which NewPlan and Tree lay a directory out.
// With any change of these it goes up.
const Layout = 3

// Plan is the layout of a task's work tree. But for Binds, which are journaled, it is a
// pure function of the document, so that a process which takes the task up again finds
// everything where the one before it put it.
type Plan struct {
	Mounts []Mount
	// Merges are input directories that the image may have too: mounted, they
	// would hide what it keeps there. Their files are copied into each container.
	Merges []Mount
	// Captured lists the patterns of outputs that stay in the container's own
	// filesystem, because mounting their directory would hide what the image
	// keeps there.
	Captured []string
	// Binds are the input files that are mounted from the node instead of being
	// copied. They do not follow from the document alone: NewPlan knows none.
	Binds []Bind
}

// systemTrees are directories whose content belongs to the image: a directory
// in them is mounted only when the document names it as a volume or an input.
var systemTrees = []string{
	"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/opt",
	"/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/usr", "/var",
}

// system says whether dir is or lies in such a tree, or is the root or /home
// itself. /var/tmp is scratch space like /tmp.
func system(dir string) bool {
	if dir == "/" || dir == "/home" {
		return true
	}
	if within(dir, "/var/tmp") {
		return false
	}
	for _, tree := range systemTrees {
		if within(dir, tree) {
			return true
		}
	}
	return false
}

// within says whether p is dir or lies below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// NewPlan lays a validated document out.
//
// Mounted are: every volume; the directories of input files, output files and of
// executors' stdout and stderr, unless they are the image's own; input and output
// directories likewise. Of nested directories only
// the outermost is mounted. An input file, stdout or stderr in a directory of
// the image is mounted as a single file; an output there is captured from the
// container when it has ended. An input directory there is mounted when it is one
// of own, those that no image of the task has anything in, and otherwise merged.
func NewPlan(t *tes.Task, own ...string) Plan {
	dirs, files := map[string]bool{}, map[string]bool{}
	merges, streams := map[string]bool{}, map[string]bool{}
	captured := map[string]string{} // pattern to the path that it begins with
	file := func(p string) {
		if dir := path.Dir(p); system(dir) {
			files[p] = true
		} else {
			dirs[dir] = true
		}
	}
	for _, v := range t.Volumes {
		dirs[path.Clean(v)] = true
	}
	for _, in := range t.Inputs {
		p := path.Clean(in.Path)
		switch {
		case in.Type != tes.Directory:
			file(p)
		case !system(p) || within(p, "/dev") || slices.Contains(own, p):
			dirs[p] = true
		default:
			merges[p] = true
		}
	}
	for _, e := range t.Executors {
		for _, p := range []string{e.Stdout, e.Stderr} {
			if p != "" {
				file(path.Clean(p))
				streams[path.Clean(p)] = true
			}
		}
	}
	for _, out := range t.Outputs {
		dir, name := outputDir(out)
		switch {
		case !system(dir):
			dirs[dir] = true
		case !coveredBy(dirs, name) && (!files[name] || coveredBy(merges, name) && !streams[name]):
			captured[path.Clean(out.Path)] = name
		}
	}
	// The container's root cannot be a mount point.
	delete(dirs, "/")

	var p Plan
	for _, dir := range outermost(dirs) {
		p.Mounts = append(p.Mounts, Mount{Target: dir, Source: "dirs/" + strconv.Itoa(len(p.Mounts))})
	}
	for _, dir := range outermost(merges) {
		if !coveredBy(dirs, dir) {
			p.Merges = append(p.Merges, Mount{Target: dir, Source: "merges/" + strconv.Itoa(len(p.Merges))})
		}
	}
	for _, f := range slices.Sorted(maps.Keys(files)) {
		if !coveredBy(dirs, f) && (streams[f] || !coveredBy(merges, f)) {
			p.Mounts = append(p.Mounts, Mount{Target: f, Source: "files/" + strconv.Itoa(len(p.Mounts)), File: true})
		}
	}
	for _, pattern := range slices.Sorted(maps.Keys(captured)) {
		if !coveredBy(dirs, captured[pattern]) {
			p.Captured = append(p.Captured, pattern)
		}
	}
	return p
}

// Mounted says whether a container path is in a mounted directory.
func (p Plan) Mounted(container string) bool {
	for _, m := range p.Mounts {
		if !m.File && within(container, m.Target) {
			return true
		}
	}
	return false
}

// outputDir returns the directory to mount for an output, and the output's own
// path without what its pattern leaves open.
func outputDir(out tes.Output) (dir, name string) {
	if out.Wildcard() {
		dir = path.Clean(out.Path)
		for glob.HasMeta(dir) {
			dir = path.Dir(dir)
		}
		dir = glob.Unescape(dir)
		return dir, dir
	}
	name = path.Clean(out.LiteralPath())
	if out.Type == tes.Directory {
		return name, name
	}
	return path.Dir(name), name
}

func coveredBy(dirs map[string]bool, p string) bool {
	for dir := range dirs {
		if within(p, dir) {
			return true
		}
	}
	return false
}

// outermost returns the directories that lie in no other one, sorted.
func outermost(dirs map[string]bool) []string {
	var out []string
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		if len(out) == 0 || !nested(out, dir) {
			out = append(out, dir)
		}
	}
	return out
}

func nested(outer []string, dir string) bool {
	for _, o := range outer {
		if within(dir, o) {
			return true
		}
	}
	return false
}
