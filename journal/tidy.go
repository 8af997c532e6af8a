package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// With little space left badger may die of SIGBUS, or hang, while it turns the
// log of a dead process into a table: in goroutines of its own, where no caller
// can catch it. So a child process does that, and may die of it: nothing is
// lost, and the journal can be opened when there is space again.
//
// The child is this program, which the environment tells what it is. That this
// is read in init, before any main or TestMain, keeps a program that does not
// know of it from running twice.

const (
	tidyVariable = "DECKHAND_JOURNAL_TIDY"
	// tidyDeadline is how long a child may take, from its start.
	tidyDeadline = 20 * time.Second

	tidyDamaged = 10 // exit codes of the child
	tidyFailed  = 11
)

func init() {
	if dir := os.Getenv(tidyVariable); dir != "" {
		os.Exit(tidyChild(dir))
	}
}

func tidyChild(dir string) int {
	db, err := openDatabase(databaseOptions(dir).WithLogger(exiter{}))
	if err == nil {
		err = closeDatabase(db)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	if errors.Is(err, ErrDamaged) {
		return tidyDamaged
	}
	return tidyFailed
}

// exiter is the child's logger. Badger tries a table that it cannot write again
// every second, for ever, and only logs that.
type exiter struct{}

func (exiter) Errorf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(tidyFailed)
}
func (exiter) Warningf(string, ...any) {}
func (exiter) Infof(string, ...any)    {}
func (exiter) Debugf(string, ...any)   {}

// tidy has a child open and close the database in dir. The child keeps the
// journal locked until it is gone, also when this process is gone before.
func tidy(dir string, lock *os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), tidyDeadline)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = []string{tidyVariable + "=" + dir}
	cmd.ExtraFiles = []*os.File{lock}
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	go func() {
		defer cancel()
		runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
		done <- cmd.Run()
	}()
	select {
	case err := <-done:
		return tidyError(err, said.String())
	case <-time.After(tidyDeadline + time.Second):
		// A process in an uninterruptible wait does not even die of SIGKILL.
		return fmt.Errorf("%w: badger hangs", ErrNoSpace)
	}
}

func tidyError(err error, said string) error {
	line, _, _ := bytes.Cut([]byte(said), []byte("\n"))
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return fmt.Errorf("cannot start the process that opens the journal: %w", err)
	case exit.ExitCode() == tidyDamaged:
		return fmt.Errorf("%w: %s", ErrDamaged, line)
	default: // SIGBUS ends a Go program with exit code 2
		return fmt.Errorf("%w: %w (%s)", ErrNoSpace, exit, line)
	}
}
