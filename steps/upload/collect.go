package upload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/storage/glob"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// File is one file to publish.
type File struct {
	Path string // in the container
	URL  string // with its secrets; never journaled
	Size int64
}

// Published is a published file as the journal and the result know it.
type Published struct {
	tes.OutputFileLog
	// Target tells URLs apart that differ only in what is not journaled.
	Target string `json:"target"`
}

func (f File) log() Published {
	sum := sha256.Sum256([]byte(f.URL))
	return Published{tes.OutputFileLog{URL: redact.URL(f.URL), Path: f.Path, SizeBytes: f.Size}, hex.EncodeToString(sum[:8])}
}

// told bounds the warnings of one output: each is a record of the journal, and a
// task can make millions of links.
const told = 20

// collect finds the files of all outputs in the work tree, in the order of the
// document. What is missing is a warning or an error, as the step is told.
func (s *Step) collect(ctx context.Context, t *machine.Task, n machine.Notes, tree *worktree.Tree) ([]File, error) {
	if err := s.capture(ctx, t, tree); err != nil {
		return nil, err
	}
	var files []File
	for i := range s.Task.Outputs {
		out := &s.Task.Outputs[i]
		f := finder{ctx: ctx, tree: tree, join: s.Storage.Join}
		if err := f.find(out); err != nil {
			return nil, err
		}
		if !f.made {
			if len(f.leftOut) == 0 {
				f.leave("output %s was not made by the task", out.Path)
			}
			if s.Missing == MissingError {
				return nil, machine.Faultf(machine.TaskFault, "%s (outputs.missing is \"error\")", strings.Join(f.leftOut[:min(told, len(f.leftOut))], "; "))
			}
		}
		if more := len(f.leftOut) - told; more > 0 {
			f.leftOut = append(f.leftOut[:told], fmt.Sprintf("%d more of output %s are left out", more, out.Path))
		}
		for _, sentence := range f.leftOut {
			if err := n.Warn(ctx, sentence); err != nil {
				return nil, err
			}
		}
		files = append(files, f.files...)
	}
	return files, nil
}

// finder finds what there is of one output.
type finder struct {
	ctx  context.Context
	tree *worktree.Tree
	join func(url, name string) string

	made    bool // there is a file, or the directory that was asked for
	files   []File
	leftOut []string // sentences that say what, and why
}

func (f *finder) leave(format string, args ...any) {
	f.leftOut = append(f.leftOut, fmt.Sprintf(format, args...))
}

func (f *finder) find(out *tes.Output) error {
	if !out.Wildcard() {
		return f.walk(path.Clean(out.LiteralPath()), out.URL, out.Type, nil)
	}
	for match, err := range glob.Expand(f.tree, path.Clean(out.Path)) {
		if err != nil {
			return machine.Faultf(machine.TaskFault, "output %s: %w", out.Path, err)
		}
		// A pattern says what to take; each match is taken as what it is.
		if err := f.walk(match, f.join(out.URL, out.Relative(match)), "", nil); err != nil {
			return err
		}
	}
	return nil
}

// walk takes the file at a container path, or the files below a directory. An
// empty want takes either. above holds where on the node the directories are
// that the walk is in: a link back to one of them, or to what they are in, ends
// there.
func (f *finder) walk(p, url string, want tes.FileType, above []string) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	place, info, err := f.tree.Resolve(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, _, err := f.tree.Lookup(p); err == nil {
			f.leave("output %s is a link that leads to none of the task's files and is left out", p)
		}
		return nil
	case err != nil:
		f.leave("output %s cannot be read and is left out: %v", p, err)
		return nil
	case info.Mode().IsRegular() && want != tes.Directory:
		f.made = true
		f.files = append(f.files, File{p, url, info.Size()})
		return nil
	case info.IsDir() && want != tes.File:
		f.made = true
		return f.directory(p, url, path.Join(place.Base, place.Name), above)
	}
	f.leave("output %s is not %s and is left out", p, kindName(want))
	return nil
}

func (f *finder) directory(p, url, at string, above []string) error {
	for _, dir := range above {
		if dir == at || strings.HasPrefix(dir, at+"/") {
			f.leave("output %s is a link to a directory above it and is left out", p)
			return nil
		}
	}
	entries, err := f.tree.ReadDir(p)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot list output %s: %w", p, err)
	}
	above = append(above[:len(above):len(above)], at)
	for _, e := range entries {
		if err := f.walk(path.Join(p, e.Name()), f.join(url, e.Name()), "", above); err != nil {
			return err
		}
	}
	return nil
}

func kindName(want tes.FileType) string {
	switch want {
	case tes.File:
		return "a file"
	case tes.Directory:
		return "a directory"
	}
	return "a file or a directory"
}
