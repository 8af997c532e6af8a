package engine

import (
	"context"
	"io"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// Logs copies all that a container writes, from its first byte to its end, and
// returns when the container has ended and all of it is written. It goes on
// where it was when the connection breaks.
//
// Docker keeps logs as text: bytes that are not UTF-8 come out as U+FFFD.
func (d *Docker) Logs(ctx context.Context, id string, stdout, stderr io.Writer) error {
	out, errs := &resumed{to: stdout}, &resumed{to: stderr}
	passes := []bool{true}
	if d.older("1.42") {
		// Up to 20.10 a reader that follows may miss what comes just before the
		// end (daemon/logger/loggerutils/follow.go: waitRead). Then the log is whole.
		passes = append(passes, false)
	}
	for _, follow := range passes {
		err := d.ask(ctx, func(ctx context.Context) error {
			return d.copyLogs(ctx, id, follow, out, errs)
		})
		for _, w := range []*resumed{out, errs} {
			if w.err != nil {
				return w.err
			}
		}
		if err != nil {
			return explain(err, "read the logs of container %s", id)
		}
	}
	return nil
}

// Log copies what a container has written so far. Docker keeps it as text, as
// for Logs.
func (d *Docker) Log(ctx context.Context, id string, stdout, stderr io.Writer) error {
	out, errs := &resumed{to: stdout}, &resumed{to: stderr}
	err := d.ask(ctx, func(ctx context.Context) error { return d.copyLogs(ctx, id, false, out, errs) })
	for _, w := range []*resumed{out, errs} {
		if w.err != nil {
			return w.err
		}
	}
	return explain(err, "read the logs of container %s", id)
}

func (d *Docker) copyLogs(ctx context.Context, id string, follow bool, out, errs *resumed) error {
	body, err := d.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Follow: follow})
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
