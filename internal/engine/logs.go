package engine

import (
	"context"
	"io"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// Log copies what Docker has kept of what a container has written so far, see
// shortLog. It goes on where it was when the connection breaks.
//
// Docker keeps logs as text: bytes that are not UTF-8 come out as U+FFFD.
func (d *Docker) Log(ctx context.Context, id string, stdout, stderr io.Writer) error {
	out, errs := &resumed{to: stdout}, &resumed{to: stderr}
	err := d.ask(ctx, func(ctx context.Context) error { return d.copyLog(ctx, id, out, errs) })
	for _, w := range []*resumed{out, errs} {
		if w.err != nil {
			return w.err
		}
	}
	return explain(err, "read the logs of container %s", id)
}

func (d *Docker) copyLog(ctx context.Context, id string, out, errs *resumed) error {
	body, err := d.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return err
	}
	defer body.Close()
	out.at, errs.at = 0, 0
	_, err = stdcopy.StdCopy(out, errs, body)
	if err != nil && out.err == nil && errs.err == nil {
		return broken{err}
	}
	return nil
}

// resumed is a writer to which a stream is written again from its beginning,
// and which drops what it has had.
type resumed struct {
	to  io.Writer
	at  int64 // position in the stream
	had int64 // bytes that were written
	err error // of the writer
}

func (w *resumed) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	fresh := p[min(int64(len(p)), max(0, w.had-w.at)):]
	w.at += int64(len(p))
	n, err := w.to.Write(fresh)
	w.had += int64(n)
	if err != nil {
		w.err = err
		return 0, err
	}
	return len(p), nil
}
