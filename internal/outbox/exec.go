package outbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Exec is a program that is started for each event and reads it from its standard
// input.
type Exec struct{ program string }

const (
	// execTimeout bounds one run of the program.
	execTimeout = 30 * time.Second
	// refusedCode is with which the program says that it will never take this event:
	// EX_DATAERR of sysexits.h.
	refusedCode = 65
)

// NewExec returns the program of that name, which must be there and be one that the kernel
// can run, as far as that can be seen without running it.
func NewExec(program string) (*Exec, error) {
	err := executable(program)
	if err == nil {
		err = interpreted(program)
	}
	if err != nil {
		return nil, err
	}
	return &Exec{program}, nil
}

func executable(program string) error {
	info, err := os.Stat(program)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no file") // a directory, too, may be executable
	}
	if err == nil {
		err = unix.Access(program, unix.X_OK)
	}
	return err
}

// interpreted says what is wrong with how a program begins (execve(2)): with the name of its
// interpreter, or as ELF does. One that may be run and not read is taken as it is.
func interpreted(program string) error {
	f, err := os.Open(program)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // read-only
	const most = 256                 // of the first line the kernel reads no more
	begin := make([]byte, most)
	n, err := io.ReadFull(f, begin)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	line, script := bytes.CutPrefix(begin[:n], []byte("#!"))
	if !script {
		if bytes.HasPrefix(line, []byte("\x7fELF")) {
			return nil
		}
		return errors.New("it is no program: a script begins with #! and its interpreter, such as #!/bin/sh")
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	name, _, _ := bytes.Cut(bytes.TrimLeft(line, " \t"), []byte(" "))
	name, _, _ = bytes.Cut(name, []byte("\t"))
	if err := executable(string(name)); err != nil {
		return fmt.Errorf("its interpreter %q cannot be run: %w", name, err)
	}
	return nil
}

// Name is that of its place in the journal.
func (x *Exec) Name() string { return "exec" }

// Deliver runs the program. It gets nothing of this process's environment, in
// which there may be secrets, but where programs are.
func (x *Exec) Deliver(ctx context.Context, e Event) error {
	body, err := e.encode()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, x.program)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin = bytes.NewReader(append(body, '\n'))
	said := &lastBytes{most: 512}
	cmd.Stdout, cmd.Stderr = said, said
	// What it started goes with it, and holds nobody up that holds its output.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it ended well
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == refusedCode:
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return fmt.Errorf("%s: %w: %s", x.program, err, strings.TrimSpace(string(said.text)))
}

func killGroup(pid int) error { return unix.Kill(-pid, unix.SIGKILL) }

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	most int
	text []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.text = append(l.text, p...)
	l.text = l.text[max(0, len(l.text)-l.most):]
	return len(p), nil
}
