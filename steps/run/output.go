package run

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/machine"
)

// output is one executor's standard output and error: kept whole in files of
// the attempt's own, out of the executor's reach, and their ends in memory.
type output struct {
	tree           *worktree.Tree
	index          int
	executor       tes.Executor
	stdout, stderr tail
}

func newOutput(tree *worktree.Tree, index int, e tes.Executor) *output {
	return &output{tree: tree, index: index, executor: e}
}

// stream takes the container's output from its first byte to its end. It always
// starts over, so that nothing is doubled when it is called again.
func (o *output) stream(copyTo func(stdout, stderr io.Writer) error) error {
	o.stdout, o.stderr = tail{}, tail{}
	stdout, err := o.create("stdout")
	if err != nil {
		return err
	}
	stderr, err := o.create("stderr")
	if err != nil {
		return errors.Join(err, stdout.Close())
	}
	files := []*os.File{stdout, stderr}
	if o.merged() {
		files[1] = stdout
	}
	err = copyTo(io.MultiWriter(files[0], &o.stdout), io.MultiWriter(files[1], &o.stderr))
	if err := errors.Join(err, stdout.Close(), stderr.Close()); errors.As(err, new(*fs.PathError)) {
		return machine.Faultf(machine.NodeFault, "cannot keep the output of executor %d: %w", o.index, err)
	}
	return err
}

// merged says whether both streams go to one file, interleaved as they come.
func (o *output) merged() bool {
	return o.executor.Stdout != "" && o.executor.Stdout == o.executor.Stderr
}

func (o *output) create(name string) (*os.File, error) {
	f, err := os.OpenFile(o.tree.Log(o.index, name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, machine.Faultf(machine.NodeFault, "cannot keep the %s of executor %d: %w", name, o.index, err)
	}
	if err := f.Chmod(0o666); err != nil { // later executors may run as any user
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// place puts the streams where the document wants them, after the end of the
// executor.
func (o *output) place() error {
	for name, p := range map[string]string{"stdout": o.executor.Stdout, "stderr": o.executor.Stderr} {
		if p == "" || name == "stderr" && o.merged() {
			continue
		}
		if err := o.tree.Link(o.tree.Log(o.index, name), p); err != nil {
			return machine.Faultf(machine.TaskFault, "cannot write the %s of executor %d to %s: %w", name, o.index, p, err)
		}
	}
	return nil
}
