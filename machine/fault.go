package machine

import (
	"errors"
	"fmt"
)

// Fault says whose failure an error is, and so what should happen to the task.
type Fault string

const (
	// RetryLater: the same run may succeed later, here. Ends Interrupted, exit 75.
	RetryLater Fault = "retry later"
	// TaskFault: no retry will mend it (no such input, no such image). Ends SystemError, exit 3.
	TaskFault Fault = "task"
	// NodeFault: this node cannot run it (disk full, not permitted). Ends SystemError, exit 78.
	NodeFault Fault = "node"
	// EngineFault: Docker does not answer or does not work. Ends SystemError, exit 78.
	EngineFault Fault = "engine"
	// Lost: the container went with the node. Another attempt follows at once,
	// up to the limit.
	Lost Fault = "lost"
)

// Error is an error that carries its Fault. What a step returns without one
// counts as TaskFault.
type Error struct {
	Fault Fault
	Err   error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Faultf makes an Error; it formats as fmt.Errorf does, %w included.
func Faultf(f Fault, format string, args ...any) error {
	return &Error{Fault: f, Err: fmt.Errorf(format, args...)}
}

// FaultOf returns the fault that err carries: the outermost one, or TaskFault.
func FaultOf(err error) Fault {
	var e *Error
	if errors.As(err, &e) {
		return e.Fault
	}
	return TaskFault
}

// ErrLost says that something which the notes promise is gone for good, such as
// the container of a node that was restarted: the attempt cannot go on, another may.
var ErrLost = errors.New("lost")

// ExecutorFailure is returned by the Run step when one of the task's own
// commands failed. It is no failure of the step: outputs are still uploaded.
type ExecutorFailure struct {
	Executor int    `json:"executor"` // index in the document
	ExitCode int    `json:"exit_code"`
	Reason   string `json:"reason"`
}

func (e *ExecutorFailure) Error() string {
	return fmt.Sprintf("executor %d ended with exit code %d: %s", e.Executor, e.ExitCode, e.Reason)
}
