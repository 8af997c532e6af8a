package run

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// StdioCommand is the hidden command that runs inside a container whose
// executor names files for its streams:
//
//	deckhand exec-stdio STDIN STDOUT STDERR COMMAND [ARGUMENT…]
//
// An empty name leaves a stream as it is. It opens the files and becomes the
// command. So every byte goes straight to its file, whatever happens to the
// process outside or to Docker, whose own log keeps lines of text.
const StdioCommand = "exec-stdio"

// Exit codes of a command that could not be started, as in POSIX sh and Docker.
const (
	notExecutable = 126
	notFound      = 127
)

// ExecStdio replaces this process by a command with files as its standard
// streams. It returns only when that fails, with the exit code that says how.
func ExecStdio(files [3]string, command []string, complain io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(complain, "cannot start %q: %v\n", command[0], err)
		return code
	}
	program, err := lookPath(command[0])
	if err != nil {
		code := notExecutable
		if errors.Is(err, fs.ErrNotExist) {
			code = notFound
		}
		return fail(code, err)
	}
	for fd, name := range files {
		if name == "" {
			continue
		}
		// Both output streams may have one file, so they append.
		flags := unix.O_WRONLY | unix.O_APPEND
		if fd == 0 {
			flags = unix.O_RDONLY
		}
		opened, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail(notExecutable, fmt.Errorf("cannot open %s as its %s: %w", name, streams[fd], err))
		}
		if err := unix.Dup2(opened, fd); err != nil {
			return fail(notExecutable, fmt.Errorf("cannot make %s its %s: %w", name, streams[fd], err))
		}
	}
	return fail(notExecutable, unix.Exec(program, command, os.Environ()))
}

// streams names the standard streams by their descriptors.
var streams = [3]string{"standard input", "standard output", "standard error"}

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
