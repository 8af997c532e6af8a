package download

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/glob"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// whatBinds is the kind of fact that says which inputs are mounted instead of being
// copied; its detail is chosen. Scrub has it written, before the containers are made.
const whatBinds = "binds"

type chosen struct {
	Binds []worktree.Bind `json:"binds"`
}

// Binds are the inputs that are mounted. Before Choose there are none. It panics when
// what Choose has journaled cannot be read: without it the holder of a mount would be
// taken for the input.
func Binds(n machine.Notes) []worktree.Bind {
	note, ok := n.Of(machine.Scrub).Get(whatBinds, "inputs")
	if !ok {
		return nil
	}
	var c chosen
	if err := json.Unmarshal(note.Detail, &c); err != nil {
		panic(fmt.Sprintf("the journaled mounts of inputs cannot be read: %v", err))
	}
	return c.Binds
}

const (
	// leastBound is the size of the smallest file that is mounted: to copy a smaller one
	// costs less than its mount in every container.
	leastBound = 1 << 20
	// mostBound bounds the mounts of a container.
	mostBound = 100
)

// Choose decides which inputs are mounted instead of being copied. The tree is there,
// and no container yet.
func (s *Step) Choose(ctx context.Context, tree *worktree.Tree, n machine.Notes) error {
	var c chosen
	for i, in := range s.Task.Inputs {
		if len(s.Mount) == 0 || len(c.Binds) == mostBound {
			break
		}
		b, why, err := s.bind(tree, i)
		if err != nil {
			return err
		}
		switch {
		case why != "":
			s.Log.Info("the input is copied, not mounted", "input", in.Path, "why", why)
		case b != nil:
			s.Log.Info("the input is mounted, not copied", "input", b.Target, "source", b.Source, "bytes", b.Size)
			c.Binds = append(c.Binds, *b)
		}
	}
	if len(c.Binds) == 0 && len(Binds(n)) == 0 {
		return nil
	}
	return n.Done(ctx, machine.Fact{What: whatBinds, Name: "inputs", Detail: c})
}

// bind describes the mount of an input: nil when it is none of a declared directory, or
// is there too and cannot be mounted, and why.
func (s *Step) bind(tree *worktree.Tree, i int) (*worktree.Bind, string, error) {
	in := s.Task.Inputs[i]
	named, local := storage.LocalPath(in.URL)
	if !local || in.Content != nil || in.Type == tes.Directory {
		return nil, "", nil
	}
	source, err := filepath.EvalSymlinks(named)
	if err != nil || !slices.ContainsFunc(s.Mount, func(dir string) bool { return below(source, dir) }) {
		return nil, "", nil // copying says what is wrong, if anything
	}
	if why := keepsFromMount(s.Task, tree.Plan, i); why != "" {
		return nil, why, nil
	}
	f, err := os.OpenFile(source, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, "", nil // as above
	}
	defer func() { _ = f.Close() }() // read-only
	info, err := f.Stat()
	if err != nil {
		return nil, "", machine.Faultf(machine.TaskFault, "input %s: %w", in.Path, err)
	}
	mode := info.Mode()
	switch {
	case !mode.IsRegular() || !utf8.ValidString(source):
		return nil, "", nil
	case info.Size() < leastBound:
		return nil, "it is small", nil
	case mode&0o004 == 0 || mode&0o100 != 0 && mode&0o001 == 0:
		return nil, "not everybody may read it, or run it as its owner may", nil
	case mode&(fs.ModeSetuid|fs.ModeSetgid) != 0:
		return nil, "it runs as its owner or group", nil
	case private(source):
		return nil, "the node, and so Docker, has something else at its path", nil
	case storage.Clones(f, tree.Dir):
		return nil, "the copy shares its blocks", nil
	}
	b := worktree.NewBind(path.Clean(in.Path), source, info)
	return &b, "", nil
}

// private says whether a path is on a mount that only the job of a batch engine has.
func private(source string) bool {
	_, is := node.ReadMounts().Private(source)
	return is
}

// below says whether a path without links lies below a directory, which may be reached
// by links.
func below(p, dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	return err == nil && strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// keepsFromMount says what in the document keeps an input from being mounted: that it
// must be written to, or that the mount would hide something.
func keepsFromMount(t *tes.Task, plan worktree.Plan, i int) string {
	p := path.Clean(t.Inputs[i].Path)
	for _, m := range plan.Merges {
		if within(p, m.Target) {
			return "its place is in a directory that is copied into containers"
		}
	}
	for j, other := range t.Inputs {
		if j != i && within(path.Clean(other.Path), p) {
			return "another input has the same place"
		}
	}
	for _, v := range t.Volumes {
		if within(path.Clean(v), p) {
			return "a volume has the same place"
		}
	}
	for k, e := range t.Executors {
		if e.Stdout != "" && within(path.Clean(e.Stdout), p) || e.Stderr != "" && within(path.Clean(e.Stderr), p) {
			return fmt.Sprintf("executor %d writes to it", k)
		}
	}
	for _, out := range t.Outputs {
		if covers(out, p) {
			return "output " + out.Path + " is or has it"
		}
	}
	return ""
}

// covers says whether an output is a file, something below it, or a directory above it.
func covers(out tes.Output, p string) bool {
	literal := path.Clean(out.LiteralPath())
	if !out.Wildcard() && within(literal, p) {
		return true
	}
	for at := p; ; at = path.Dir(at) {
		if out.Wildcard() && glob.Match(path.Clean(out.Path), at) || !out.Wildcard() && literal == at {
			return true
		}
		if at == "/" {
			return false
		}
	}
}

func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// hold makes sure that an input that is mounted can be.
func (s *Step) hold(tree *worktree.Tree, b worktree.Bind) (File, error) {
	f, _, err := b.Open()
	if err != nil {
		return File{}, err
	}
	_ = f.Close() // nothing was read
	if !tree.Holds(b) {
		if err := tree.Prepare(); err != nil {
			return File{}, machine.Faultf(machine.NodeFault, "cannot make the place of input %s: %w", b.Target, err)
		}
	}
	return File{Path: b.Target, Bytes: b.Size, Mounted: true}, nil
}
