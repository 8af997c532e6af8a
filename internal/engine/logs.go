package engine

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// Logs copies all that a container writes, from its first byte to its end, and
// returns when the container has ended and all of it is written. It goes on
// where it was when the connection breaks.
//
// Docker keeps logs by the line. One doubt remains up to 20.10: whether the
// last line of a stream, when it is longer than 16 KiB, ended with a newline. It
// is given one. Attach has no such doubt.
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

func (d *Docker) copyLogs(ctx context.Context, id string, follow bool, out, errs *resumed) error {
	old := d.older("1.42")
	body, err := d.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Follow: follow, Timestamps: old})
	if err != nil {
		return err
	}
	defer body.Close()
	out.at, errs.at = 0, 0
	if old {
		err = copyLines(out, errs, body, follow)
	} else {
		_, err = stdcopy.StdCopy(out, errs, body)
	}
	if err != nil && out.err == nil && errs.err == nil {
		return broken{err}
	}
	return nil
}

// copyLines is StdCopy for the logs of Docker up to 20.10.
func copyLines(stdout, stderr io.Writer, body io.Reader, more bool) error {
	out, errs := &lines{to: stdout}, &lines{to: stderr}
	if _, err := stdcopy.StdCopy(out, errs, body); err != nil || more {
		return err
	}
	return errors.Join(out.end(), errs.end())
}

// piece is how much of a longer line Docker logs at a time, in bytes
// (daemon/logger/copier.go: defaultBufSize).
const piece = 16 << 10

// lines is a writer that gets each piece of a log in one Write, with a timestamp
// in front, and gives long lines the newline back that the local driver of Docker
// up to 20.10 forgets (daemon/logger/local/read.go). All pieces of a line are full
// but the last one, which may be empty: only its timestamp makes Docker send it.
type lines struct {
	to   io.Writer
	long bool // in a line of several pieces
	owed bool // it has ended
}

func (l *lines) Write(p []byte) (int, error) {
	if err := l.end(); err != nil {
		return 0, err
	}
	_, text, _ := bytes.Cut(p, []byte(" "))
	ended := bytes.HasSuffix(text, []byte("\n"))
	l.owed = l.long && !ended && len(text) < piece
	l.long = !ended
	_, err := l.to.Write(text)
	return len(p), err
}

// end writes the newline that is owed.
func (l *lines) end() error {
	if !l.owed {
		return nil
	}
	l.owed, l.long = false, false
	_, err := l.to.Write([]byte("\n"))
	return err
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
