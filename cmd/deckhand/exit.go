package main

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// Exit codes. Engines act on them: a change is a new major version.
const (
	exitComplete      = 0
	exitExecutorError = 1
	exitUsage         = 2
	exitSystemError   = 3
	exitCanceled      = 4
	exitDefect        = 70
	exitRetry         = 75
	exitUnfit         = 78
)

const exitCodesHelp = `Exit codes of "deckhand run":

     0  Complete
     1  ExecutorError: the task's own command failed; its code is in the result
     2  bad command line, task document or configuration
     3  SystemError: a staging, image or node failure that a retry will not mend
     4  Canceled (SIGINT, "deckhand cancel")
    70  a defect in deckhand; the journal is intact. Please report it
    75  interrupted (SIGTERM), a passing failure, or the node is busy: run it again
    78  this node is unfit (no Docker, disk full, journal unusable): run it elsewhere

With --exit-policy=engine every final state that was reported exits 0.

"deckhand status" exits 0 for a task that is Complete, 1 for one that ended
otherwise, 3 while it is unfinished or running, 4 when it is unknown.
"deckhand journal verify" exits 0 when the journal is sound and 1 when it is not.
"deckhand doctor" exits 1 when something fails and, with --strict, 2 when there are
only warnings.
`

// exit is an error that has its own exit code. Without a cause nothing is printed.
type exit struct {
	code  int
	cause error
}

func (e *exit) Error() string {
	if e.cause == nil {
		return ""
	}
	return e.cause.Error()
}
func (e *exit) Unwrap() error { return e.cause }

// usage marks an error as the caller's to mend.
func usage(format string, args ...any) error {
	return &exit{exitUsage, fmt.Errorf(format, args...)}
}

// exitCode is the only place that turns an error into an exit code.
func exitCode(err error) int {
	if err == nil {
		return exitComplete
	}
	var own *exit
	if errors.As(err, &own) {
		return own.code
	}
	if errors.Is(err, node.ErrFilesystem) || errors.Is(err, node.ErrRootName) {
		return exitUsage // another node would not do better
	}
	if journalUnusable(err) {
		return exitUnfit
	}
	return faultCode(machine.FaultOf(err))
}

func faultCode(f machine.Fault) int {
	switch f {
	case machine.RetryLater, machine.Lost:
		return exitRetry
	case machine.NodeFault, machine.EngineFault:
		return exitUnfit
	default:
		return exitSystemError
	}
}

// headCode is the exit code of an attempt that has ended.
func headCode(h machine.Head) int {
	switch h.State {
	case machine.Complete:
		return exitComplete
	case machine.ExecutorError:
		return exitExecutorError
	case machine.Canceled:
		return exitCanceled
	case machine.Interrupted:
		return exitRetry
	default:
		return faultCode(h.Fault)
	}
}

// message is an error as people see it: without secrets, and without what
// would move a terminal's cursor.
func message(err error) string {
	lines := strings.Split(redact.Text(err.Error()), "\n")
	for i, line := range lines {
		lines[i] = printable(strings.ReplaceAll(line, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// protect turns a panic into exit code 70. Nothing is lost by it: the journal
// holds what had happened, and the next start goes on from there.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &exit{exitDefect, fmt.Errorf("this is a defect in deckhand: %v\nThe journal is intact and the next run goes on from it. Please report this:\n%s", p, debug.Stack())}
		}
	}()
	return f()
}

// journalUnusable says whether an error is the journal's own.
func journalUnusable(err error) bool {
	var write *machine.JournalError
	var open *journal.OpenError
	if errors.As(err, &open) {
		return !errors.Is(err, journal.ErrLocked) // only in use
	}
	return errors.As(err, &write) || errors.Is(err, journal.ErrNoSpace) || errors.Is(err, journal.ErrDamaged) ||
		errors.Is(err, journal.ErrNewerSchema)
}
