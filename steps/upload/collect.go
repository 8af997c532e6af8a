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
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/storage/glob"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// File is one file to publish.
type File struct {
	Path     string // in the container, as the output leads there
	physical string // the same without links
	Size     int64
	// output, an index, and name make up the URL, which has its secrets: it is put
	// together when it is needed.
	output int
	name   string
}

// URL is where a file goes.
func (s *Step) url(f File) string {
	base := s.Task.Outputs[f.output].URL
	if f.name == "" {
		return base
	}
	return s.Storage.Join(base, f.name)
}

// Published is a published file as the journal and the result know it. Bytes of
// names that are no UTF-8 are U+FFFD in it, as everywhere in JSON.
type Published struct {
	tes.OutputFileLog
	// Target tells URLs apart that differ only in what is not journaled.
	Target string `json:"target"`
}

func (s *Step) log(f File) Published {
	url := s.url(f)
	sum := sha256.Sum256([]byte(url))
	return Published{tes.OutputFileLog{URL: text(redact.URL(url)), Path: text(f.Path), SizeBytes: f.Size}, hex.EncodeToString(sum[:8])}
}

// text is what JSON makes of a name, so that one that was journaled equals itself.
func text(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	return string([]rune(name))
}

// told bounds the warnings of one output: each is a record of the journal, and a
// task can make millions of links.
const told = 20

// collect adds the files of all outputs in the work tree, in the order of the
// document. What is missing is a warning or an error, as the step is told; after
// an executor's failure it is a warning.
func (s *Step) collect(ctx context.Context, t *machine.Task, n machine.Notes, tree *worktree.Tree, add func(File) error) error {
	// What was captured stays: after a power cut the containers' own files may be others.
	if !secured(n) {
		if err := s.spare(ctx, t, n, s.capture(ctx, t, tree)); err != nil {
			return err
		}
	}
	reader := tree.Reader(s.MaxFiles)
	for i := range s.Task.Outputs {
		out := &s.Task.Outputs[i]
		f := finder{ctx: ctx, reader: reader, add: add}
		err := f.find(i, out)
		if errors.Is(err, worktree.ErrTooMuch) {
			err = s.tooMany(out.Path, err)
		}
		if err := s.spare(ctx, t, n, err); err != nil {
			return err
		}
		if !f.made && err == nil {
			if f.left == 0 {
				f.leave("output %s was not made by the task", out.Path)
			}
			if s.Missing == MissingError && !t.Failed {
				return machine.Faultf(machine.TaskFault, "%s (outputs.missing is \"error\")", strings.Join(f.leftOut, "; "))
			}
		}
		if more := f.left - len(f.leftOut); more > 0 {
			f.leftOut = append(f.leftOut, fmt.Sprintf("%d more of output %s are left out", more, out.Path))
		}
		if f.asTree != "" && out.Type == tes.File {
			f.leftOut = append(f.leftOut, fmt.Sprintf("output %s is of type FILE and matches directories, such as %s; what is in them is published", out.Path, f.asTree))
		}
		for _, sentence := range f.leftOut {
			if err := n.Warn(ctx, sentence); err != nil {
				return err
			}
		}
	}
	return nil
}

// tooMany is the error of an output for which there is more to look at than may be.
func (s *Step) tooMany(output string, err error) error {
	return machine.Faultf(machine.TaskFault, "cannot look for output %s: %w; outputs.max_files allows %d", output, err, s.MaxFiles)
}

// finder finds what there is of one output. Its reader is that of all outputs,
// which share its limits.
type finder struct {
	ctx    context.Context
	reader *worktree.Reader

	made    bool // there is a file, or the directory that was asked for
	add     func(File) error
	left    int      // entries that are left out
	leftOut []string // sentences that say what, and why; at most told
	asTree  string   // the first directory that a pattern has matched
}

func (f *finder) leave(format string, args ...any) {
	if f.left++; f.left <= told {
		f.leftOut = append(f.leftOut, fmt.Sprintf(format, args...))
	}
}

func (f *finder) find(output int, out *tes.Output) error {
	if !out.Wildcard() {
		p := path.Clean(out.LiteralPath())
		return f.follow(place{path: p, top: len(p), output: output}, out.Type)
	}
	for match, err := range glob.Expand(f.reader, path.Clean(out.Path)) {
		if errors.Is(err, worktree.ErrTooMuch) {
			return err
		}
		if err != nil {
			return machine.Faultf(machine.TaskFault, "output %s: %w", out.Path, err)
		}
		// A pattern says what to take; each match is taken as what it is.
		top := len(match) - len(out.Relative(match))
		if err := f.follow(place{path: match, top: top, output: output}, ""); err != nil {
			return err
		}
	}
	return nil
}

// place is where a walk is.
type place struct {
	path     string // in the container, as the walk came there
	physical string // the same without links
	// What path has after top is appended to the output's URL.
	top    int
	output int
	// above is the directory that the walk is in; nil at its beginning.
	above *place
}

func (p place) file(size int64) File {
	return File{Path: p.path, physical: p.physical, Size: size, output: p.output, name: strings.TrimPrefix(p.path[p.top:], "/")}
}

// in is an entry of the directory that the walk is in.
func (p place) in(name string) place {
	child := place{top: p.top, output: p.output, above: &p}
	child.path = path.Join(p.path, name)
	child.physical = child.path
	if p.physical != p.path {
		child.physical = path.Join(p.physical, name)
	}
	return child
}

// follow takes the file to which a container path leads, through links or not,
// or the files below the directory. An empty want takes either.
func (f *finder) follow(p place, want tes.FileType) error {
	physical, info, err := f.reader.Resolve(p.path)
	switch {
	case errors.Is(err, worktree.ErrTooMuch):
		return err
	case errors.Is(err, fs.ErrNotExist):
		if f.reader.Dangling(p.path) {
			f.leave("output %s is a link that leads to none of the task's files and is left out", p.path)
		}
		return nil
	case err != nil:
		f.leave("output %s cannot be read and is left out: %v", p.path, err)
		return nil
	}
	if p.physical = physical; physical == p.path {
		p.physical = p.path // they share their memory
	}
	return f.take(p, info.Mode(), info.Size(), want)
}

// take takes a file, or the files below a directory.
func (f *finder) take(p place, mode fs.FileMode, size int64, want tes.FileType) error {
	switch {
	case len(p.path) > longest:
		f.leave("output %.100s… is left out: its path has %d bytes, and %d are allowed", p.path, len(p.path), longest)
	case mode.IsRegular() && want != tes.Directory:
		f.made = true
		return f.add(p.file(size))
	case mode.IsDir() && want != tes.File:
		f.made = true
		if want == "" && p.above == nil && f.asTree == "" {
			f.asTree = p.path
		}
		return f.directory(p)
	default:
		f.leave("output %s is not %s and is left out", p.path, kindName(want))
	}
	return nil
}

// longest is the length in bytes of the longest path that a container can name
// (PATH_MAX without the NUL). Directories may be nested deeper.
const longest = unix.PathMax - 1

// directory walks a directory. A link back to one that the walk is in, or to
// what they are in, ends there.
func (f *finder) directory(p place) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	for dir := p.above; dir != nil; dir = dir.above {
		if within(dir.physical, p.physical) {
			f.leave("output %s is a link to a directory above it and is left out", p.path)
			return nil
		}
	}
	for e, err := range f.reader.List(p.physical) {
		if errors.Is(err, worktree.ErrTooMuch) {
			return err
		}
		if err != nil {
			return machine.Faultf(machine.NodeFault, "cannot list output %s: %w", p.path, err)
		}
		child := p.in(e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			err = f.follow(child, "")
		} else {
			err = f.take(child, e.Type(), e.Size(), "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// within says whether p is dir or lies below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir) && p[len(dir)] == '/'
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
