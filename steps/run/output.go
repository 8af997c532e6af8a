package run

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/deckhand/deckhand/internal/own"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// output is what one executor wrote: in files of the attempt, for the streams
// that the document names files for, and in Docker's log.
type output struct {
	tree     *worktree.Tree
	index    int
	executor tes.Executor
	owner    *own.Owner
	notes    machine.Notes
}

// ends returns the ends of both streams of a container that does not run.
func (o *output) ends(ctx context.Context, e Engine, id string) (stdout, stderr string, err error) {
	var out, errs tail
	if o.executor.Stdout != "" || o.executor.Stderr != "" {
		// The command may have given its files away, or closed them.
		if err := o.owner.Take(ctx, o.notes, filepath.Join(o.tree.Dir, "logs")); err != nil {
			return "", "", err
		}
	}
	if err := e.Log(ctx, id, &out, &errs); err != nil {
		return "", "", err
	}
	// In Docker's log there is then only what kept the command from starting.
	if o.executor.Stdout != "" {
		if err := out.after(o.tree.Log(o.index, "stdout")); err != nil {
			return "", "", err
		}
	}
	if o.executor.Stderr != "" && !o.merged() {
		if err := errs.after(o.tree.Log(o.index, "stderr")); err != nil {
			return "", "", err
		}
	}
	return out.String(), errs.String(), nil
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

// after puts the end of a file before what the tail holds.
func (t *tail) after(file string) error {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read-only
	rest := *t
	*t = tail{}
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
			return err
		}
		t.cut = true
	}
	// The executor may still write, when it could not be stopped.
	if _, err := io.Copy(t, io.LimitReader(f, tailBytes)); err != nil {
		return err
	}
	_, err = t.Write(rest.buf)
	return err
}
