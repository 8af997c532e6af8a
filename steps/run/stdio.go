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

	"github.com/deckhand/deckhand/internal/ring"
)

// StdioCommand is the hidden command that runs inside a container, around the
// command of its executor:
//
//	deckhand exec-stdio GATE FAILED STDIN STDOUT STDERR COMMAND [ARGUMENT…]
//
// It begins when the file GATE is there; an empty name is no gate, and one of
// STDIN leaves that as it is. STDOUT and STDERR are files, or rings for the end of
// a stream that the document names no file for. It copies into them through pipes: a file would be
// truncated by a command that opens /dev/stderr. So every byte gets there, whatever
// happens to the process outside or to Docker, whose own log keeps lines of text,
// without a bound or without their end. The ring FAILED takes why it could not do
// this: Docker's log may be on the disk that is full.
const StdioCommand = "exec-stdio"

// ringMark begins the name of a ring.
const ringMark = "ring:"

// Exit codes of a command that could not be started, as in POSIX sh and Docker,
// and of one whose output could not be kept (EX_IOERR of sysexits).
const (
	notExecutable = 126
	notFound      = 127
	outputLost    = 74
)

// What a complaint begins with: about a command that does not run, and about
// output that could not be kept.
const (
	cannotStart = "cannot start "
	cannotKeep  = "cannot keep the output of "
)

// drainTime is how long output is still taken after a command's end from what it
// has left running; everything dies with the container.
const drainTime = time.Second

// ExecStdio does what the arguments of StdioCommand say, and returns the exit code
// of the command, as a shell gives it.
func ExecStdio(gate, failed string, files [3]string, command []string) int {
	complain := func(what string, err error) {
		var to io.WriteCloser = os.Stderr
		if r, err := ring.Append(failed); err == nil {
			to = r
		}
		fmt.Fprintf(to, "%s%q: %v\n", what, command[0], err)
		_ = to.Close() // the process ends
	}
	fail := func(code int, err error) int {
		complain(cannotStart, err)
		return code
	}
	// The kernel discards a signal to a container's first process until that has
	// asked for it. So does this one, which the command replaces, once the gate is open.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	early, err := wait(gate, signals)
	switch {
	case errors.Is(err, errStopped):
		return fail(terminated, err)
	case err != nil:
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
	out, err := openOutputs(files)
	if err != nil {
		return fail(notExecutable, err)
	}
	pid, err := start(program, command, out, early, signals)
	if err != nil {
		return fail(notExecutable, err)
	}
	ended := make(chan end, 1)
	go func() { ended <- await(pid) }()
	// A command whose output cannot be kept works for nothing: it ends with this
	// process, the first of the container.
	var e end
	select {
	case err = <-out.failed:
	case e = <-ended:
		if e.err != nil {
			return fail(notExecutable, e.err)
		}
		err = out.drain()
	}
	if err == nil {
		return e.code
	}
	var plain syscall.Errno
	if errors.As(err, &plain) {
		err = plain // the name of the file says nothing outside the container
	}
	complain(cannotKeep, err)
	if e.code != 0 {
		return e.code
	}
	return outputLost
}

// outputs are the pipes from which a command's output goes to files and rings.
type outputs struct {
	fds    [3]uintptr // of the command
	pipes  []*pipe
	failed chan error // why the first of them copies no more
}

type pipe struct {
	read, write *os.File
	copied      chan error
}

// openOutputs opens the files and begins to copy. Both streams share a pipe when
// they share a file, so that they interleave as they are written.
func openOutputs(files [3]string) (*outputs, error) {
	o := &outputs{failed: make(chan error, 2)}
	for fd := 1; fd <= 2; fd++ {
		if fd == 2 && files[2] == files[1] {
			o.fds[2] = o.fds[1]
			continue
		}
		file, err := openOutput(files[fd])
		if err != nil {
			return nil, err
		}
		p := &pipe{copied: make(chan error, 1)}
		if p.read, p.write, err = os.Pipe(); err != nil {
			return nil, err
		}
		o.fds[fd] = p.write.Fd()
		o.pipes = append(o.pipes, p)
		go o.copy(p, file)
	}
	return o, nil
}

func openOutput(name string) (io.WriteCloser, error) {
	if file, ok := strings.CutPrefix(name, ringMark); ok {
		return ring.Append(file)
	}
	return os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
}

func (o *outputs) copy(p *pipe, file io.WriteCloser) {
	_, err := io.Copy(file, p.read)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	err = errors.Join(err, file.Close(), p.read.Close())
	p.copied <- err
	if err != nil {
		o.failed <- err
	}
}

// drain waits until what was written is in the files.
func (o *outputs) drain() (err error) {
	for _, p := range o.pipes {
		_ = p.read.SetReadDeadline(time.Now().Add(drainTime)) // closed already, when copying has failed
		err = errors.Join(err, <-p.copied)
	}
	return err
}

// start starts a command and hands signals on to it, as the first process of a
// container has to: early too, which came before there was a command, if it is one.
func start(program string, command []string, o *outputs, early os.Signal, signals <-chan os.Signal) (pid int, err error) {
	pid, err = syscall.ForkExec(program, command, &syscall.ProcAttr{Env: os.Environ(), Files: o.fds[:]})
	for _, p := range o.pipes {
		err = errors.Join(err, p.write.Close()) // the command has its own
	}
	if err != nil {
		return 0, err
	}
	go func() {
		for s := early; ; s = <-signals {
			switch s {
			case nil, unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG: // this process's own
			default:
				_ = unix.Kill(pid, s.(syscall.Signal)) // it may have ended
			}
		}
	}()
	return pid, nil
}

// end is how a command ended.
type end struct {
	code int
	err  error // it cannot be told
}

// await waits for a command's end, and for orphans until then.
func await(pid int) end {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return end{err: fmt.Errorf("cannot wait for it: %w", err)}
		case ended == pid && status.Signaled():
			return end{code: 128 + int(status.Signal())}
		case ended == pid:
			return end{code: status.ExitStatus()}
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
