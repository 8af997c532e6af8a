package run

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/deckhand/deckhand/internal/own"
	"github.com/deckhand/deckhand/internal/ring"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// output is what one executor wrote: in files of the attempt, for the streams
// that the document names files for, and the ends of the others in rings. In
// Docker's log is only what it wrote to the streams of the container's first process.
type output struct {
	tree     *worktree.Tree
	index    int
	executor tes.Executor
	owner    *own.Owner
	notes    machine.Notes
}

// ends returns the ends of both streams of a container that does not run, and what
// kept its command from starting or its output from being kept; that ends stderr too.
func (o *output) ends(ctx context.Context, e Engine, id string) (stdout, stderr, failed string, err error) {
	var out, errs, why tail
	// The command may have given its files away, or closed them.
	if err := o.owner.Take(ctx, o.notes, filepath.Join(o.tree.Dir, "logs")); err != nil {
		return "", "", "", err
	}
	if err := e.Log(ctx, id, &out, &errs); err != nil {
		return "", "", "", err
	}
	// The streams come last, so that nothing in Docker's log takes the place of their ends.
	for name, t := range map[string]*tail{"stdout": &out, "stderr": &errs, failedTarget: &why} {
		if err := t.read(o.tree, o.index, name); err != nil {
			return "", "", "", err
		}
	}
	_, _ = errs.Write(why.buf) // a tail takes everything
	return out.String(), errs.String(), strings.TrimSpace(why.String()), nil
}

// merged says whether both streams go to one file, interleaved as they come.
func (o *output) merged() bool {
	return o.executor.Stdout != "" && o.executor.Stdout == o.executor.Stderr
}

// place puts the streams where the document wants them, after the end of the
// executor.
func (o *output) place(ctx context.Context) error {
	for name, p := range map[string]string{"stdout": o.executor.Stdout, "stderr": o.executor.Stderr} {
		if p == "" || name == "stderr" && o.merged() {
			continue
		}
		err := o.owner.Link(ctx, o.notes, o.tree, o.tree.Log(o.index, name), p)
		var journal *machine.JournalError
		switch {
		case err == nil:
		case errors.As(err, &journal), machine.FaultOf(err) != machine.TaskFault, ctx.Err() != nil:
			return err
		default:
			return machine.Faultf(machine.TaskFault, "cannot write the %s of executor %d to %s: %w", name, o.index, p, err)
		}
	}
	return nil
}

// read takes the end of a stream from its ring, or from its file where the document
// names one. Neither is there when another stream has its file.
func (t *tail) read(tree *worktree.Tree, executor int, stream string) error {
	err := t.readRing(tree.Ring(executor, stream))
	if errors.Is(err, os.ErrNotExist) {
		err = t.readFile(tree.Log(executor, stream))
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (t *tail) readFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read-only
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
			return err
		}
		t.cut = true
	}
	// The executor may still write, when it could not be stopped.
	_, err = io.Copy(t, io.LimitReader(f, tailBytes))
	return err
}

func (t *tail) readRing(name string) error {
	r, err := ring.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // read-only
	_, err = r.Next(t)
	return err
}
