package run

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StdioCommand is the hidden command that runs inside a container whose
// executor names files for its streams, or which has to wait until addresses are
// closed to it:
//
//	deckhand exec-stdio GATE STDIN STDOUT STDERR COMMAND [ARGUMENT…]
//
// It begins when the file GATE is there. An empty name leaves a stream as it is.
// Without files for its output it becomes the command; with them it stays and
// copies, through
// pipes: a file would be truncated by a command that opens /dev/stderr. So every
// byte gets to its file, whatever happens to the process outside or to Docker,
// whose own log keeps lines of text.
const StdioCommand = "exec-stdio"

// Exit codes of a command that could not be started, as in POSIX sh and Docker,
// and of one whose output could not be kept (EX_IOERR of sysexits).
const (
	notExecutable = 126
	notFound      = 127
	outputLost    = 74
)

// cannotStart begins the complaint about a command that does not run.
const cannotStart = "cannot start "

// drainTime is how long output is still taken after a command's end from what it
// has left running; everything dies with the container.
const drainTime = time.Second

// ExecStdio waits for a gate, unless its name is empty, runs a command with files
// as its standard streams and returns its exit code, as a shell gives it. When it
// fails itself it says so on complain.
func ExecStdio(gate string, files [3]string, command []string, complain io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(complain, cannotStart+"%q: %v\n", command[0], err)
		return code
	}
	// The kernel discards a signal to a container's first process until that has
	// asked for it. So does this one, which the command replaces, once the gate is open.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	if err := wait(gate, signals); errors.Is(err, errStopped) {
		return fail(terminated, err)
	} else if err != nil {
		return fail(notExecutable, err)
	}
	program, err := lookPath(command[0])
	if err != nil {
		code := notExecutable
		if errors.Is(err, fs.ErrNotExist) {
			code = notFound
		}
		return fail(code, err)
	}
	if files[0] != "" {
		in, err := unix.Open(files[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail(notExecutable, fmt.Errorf("cannot open %s as its standard input: %w", files[0], err))
		}
		if err := unix.Dup2(in, 0); err != nil {
			return fail(notExecutable, fmt.Errorf("cannot make %s its standard input: %w", files[0], err))
		}
	}
	if files[1] == "" && files[2] == "" {
		return fail(notExecutable, unix.Exec(program, command, os.Environ()))
	}
	out, err := openOutputs(files)
	if err != nil {
		return fail(notExecutable, err)
	}
	code, err := supervise(program, command, out)
	if err != nil {
		return fail(notExecutable, err)
	}
	if err := out.drain(); err != nil {
		fmt.Fprintf(complain, "cannot keep the output of %q: %v\n", command[0], err)
		if code == 0 {
			return outputLost
		}
	}
	return code
}

// outputs are the pipes from which a command's output goes to files.
type outputs struct {
	fds   [3]uintptr // of the command
	pipes []*pipe
}

type pipe struct {
	read, write *os.File
	copied      chan error
}

// openOutputs opens the files and begins to copy. Both streams share a pipe when
// they share a file, so that they interleave as they are written.
func openOutputs(files [3]string) (*outputs, error) {
	o := &outputs{fds: [3]uintptr{0, 1, 2}}
	for fd := 1; fd <= 2; fd++ {
		switch {
		case files[fd] == "":
			continue
		case fd == 2 && files[2] == files[1]:
			o.fds[2] = o.fds[1]
			continue
		}
		file, err := os.OpenFile(files[fd], os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, err
		}
		p := &pipe{copied: make(chan error, 1)}
		if p.read, p.write, err = os.Pipe(); err != nil {
			return nil, err
		}
		o.fds[fd] = p.write.Fd()
		o.pipes = append(o.pipes, p)
		go p.copyTo(file)
	}
	return o, nil
}

func (p *pipe) copyTo(file *os.File) {
	_, err := io.Copy(file, p.read)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	// A command that still writes is told, by SIGPIPE, that nobody reads any more.
	p.copied <- errors.Join(err, file.Close(), p.read.Close())
}

// drain waits until what was written is in the files.
func (o *outputs) drain() (err error) {
	for _, p := range o.pipes {
		_ = p.read.SetReadDeadline(time.Now().Add(drainTime)) // closed already, when copying has failed
		err = errors.Join(err, <-p.copied)
	}
	return err
}

// supervise runs a command to its end, as the first process of a container has
// to: it hands signals on and waits for orphans.
func supervise(program string, command []string, o *outputs) (code int, err error) {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	pid, err := syscall.ForkExec(program, command, &syscall.ProcAttr{Env: os.Environ(), Files: o.fds[:]})
	for _, p := range o.pipes {
		err = errors.Join(err, p.write.Close()) // the command has its own
	}
	if err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			switch s {
			case unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG: // this process's own
			default:
				_ = unix.Kill(pid, s.(syscall.Signal)) // it may have ended
			}
		}
	}()
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("cannot wait for it: %w", err)
		case ended == pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case ended == pid:
			return status.ExitStatus(), nil
		}
	}
}

// lookPath finds a program as a container runtime does: a name without a slash
// is looked for in PATH, and the current directory only when PATH names it.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, runnable(name)
	}
	err := error(fs.ErrNotExist)
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if dir == "" {
			dir = "."
		}
		program := filepath.Join(dir, name)
		e := runnable(program)
		if e == nil {
			return program, nil
		}
		if !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	return "", err
}

func runnable(program string) error {
	info, err := os.Stat(program)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return unix.EISDIR
	}
	return unix.Access(program, unix.X_OK)
}
