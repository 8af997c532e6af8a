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

// StdinCommand is the hidden command that runs inside a container whose
// executor has a stdin: `deckhand exec-stdin FILE COMMAND [ARGUMENT…]`.
const StdinCommand = "exec-stdin"

// Exit codes of a command that could not be started, as in POSIX sh and Docker.
const (
	notExecutable = 126
	notFound      = 127
)

// ExecStdin replaces this process by a command whose standard input is file.
// It returns only when that fails, with the exit code that says how.
func ExecStdin(file string, command []string, stderr io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(stderr, "cannot start %q: %v\n", command[0], err)
		return code
	}
	in, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(notExecutable, fmt.Errorf("cannot open its standard input %s: %w", file, err))
	}
	if err := unix.Dup2(in, 0); err != nil {
		return fail(notExecutable, fmt.Errorf("cannot make %s its standard input: %w", file, err))
	}
	program, err := lookPath(command[0])
	if err != nil {
		code := notExecutable
		if errors.Is(err, fs.ErrNotExist) {
			code = notFound
		}
		return fail(code, err)
	}
	err = unix.Exec(program, command, os.Environ())
	return fail(notExecutable, err)
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
