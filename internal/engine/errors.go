package engine

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/machine"
)

// What Docker itself says about an object.
var (
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("already exists")
	// ErrInUse: something else needs the object, so Docker does not remove it.
	ErrInUse = errors.New("in use")
	// ErrPlatform: this node's processor cannot run the image.
	ErrPlatform = errors.New("wrong platform")
	// ErrNoSpace: the disk on which Docker keeps its data is full.
	ErrNoSpace = errors.New("no space left")
)

// StartError says that a container's command could not be started. That is the
// task's own failure, with the exit code that a shell would give (POSIX, Shell
// Command Language, 2.8.2).
type StartError struct {
	ExitCode int    // 127: no such command; 126: it cannot be executed
	Message  string // what the container runtime said
}

func (e *StartError) Error() string { return "cannot start the command: " + e.Message }

// explain makes an error of Docker's one of ours: what could not be done, the
// kind of failure and whose it is. nil stays nil; an error of ours keeps its kind.
func explain(err error, format string, args ...any) error {
	if err == nil || isContext(err) {
		return err
	}
	doing := fmt.Sprintf(format, args...)
	var ours *machine.Error
	if errors.As(err, &ours) {
		return fmt.Errorf("cannot %s: %w", doing, err)
	}
	said := message(err)
	switch {
	case isNodeTrouble(said):
		return machine.Faultf(machine.NodeFault, "cannot %s: %s", doing, said)
	case cerrdefs.IsNotFound(err), going.MatchString(said), podmanGone.MatchString(said):
		return fmt.Errorf("cannot %s: %w: %s", doing, ErrNotFound, said)
	case cerrdefs.IsConflict(err), podmanInUse.MatchString(said):
		return fmt.Errorf("cannot %s: %w: %s", doing, ErrInUse, said)
	case podmanNode.MatchString(said):
		return machine.Faultf(machine.NodeFault, "cannot %s: %s", doing, said)
	case cerrdefs.IsInvalidArgument(err), podmanTask.MatchString(said):
		return machine.Faultf(machine.TaskFault, "cannot %s: %s", doing, said)
	}
	return machine.Faultf(machine.EngineFault, "cannot %s: Docker failed: %s", doing, said)
}

// message is what Docker said, without secrets.
func message(err error) string {
	return redact.Text(strings.TrimPrefix(err.Error(), "Error response from daemon: "))
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// full is what Docker says of a full disk, in the kernel's words: an ErrNoSpace.
type full string

func (f full) Error() string        { return string(f) }
func (f full) Is(target error) bool { return target == ErrNoSpace }

var noSpace = regexp.MustCompile(`(?i)no space left on device|disk quota exceeded`)

// nodeTrouble are failures of the node's storage, as the kernel words them.
var nodeTrouble = regexp.MustCompile(`(?i)no space left on device|disk quota exceeded|read-only file system|input/output error`)

func isNodeTrouble(said string) bool { return nodeTrouble.MatchString(said) }

// going is how Docker words a container that somebody is removing, or whose removal
// failed half-way: it is there, and good for nothing any more.
var going = regexp.MustCompile(`(?i)marked for removal`)

// How runc and crun word a command that cannot be started, or a working directory
// that cannot be made or entered. Their errors about
// mounts and devices use the same words of the kernel, but neither of these.
var (
	aboutCommand = regexp.MustCompile(`(?i)exec: "|executable|chdir to cwd|container init: mkdir |: exec /`)
	noCommand    = regexp.MustCompile(`(?i)not found|no such file or directory|not a directory`)
	badCommand   = regexp.MustCompile(`(?i)permission denied|is a directory|exec format error|argument list too long`)
)

// startError reads the runtime's error, nil when it is not about the command.
func startError(err error) *StartError {
	said := message(err)
	switch {
	case !aboutCommand.MatchString(said):
		return nil
	case badCommand.MatchString(said):
		return &StartError{126, said}
	case noCommand.MatchString(said):
		return &StartError{127, said}
	}
	return nil
}

// noDevice is how Docker words a start that fails because a device is not there
// (daemon/oci_linux.go, daemon/devices.go) or, with CDI, not registered.
var noDevice = regexp.MustCompile(`(?i)gathering device information|could not select device driver|` +
	`unresolvable CDI devices|CDI device injection failed|nvidia-container-cli`)

// misused is how Docker words a container that it cannot make or start for what
// the task or its image asks, the command aside.
var misused = regexp.MustCompile(`(?i)unable to find (?:user|group)|no matching entries in|` +
	`mount a directory onto a file|OOM-killed|Minimum memory limit|inside /proc|rootfs at "/(?:proc|sys)[/"]|mountpoint for |` +
	`cannot mkdir: .* is not a directory|file name too long|cannot overwrite (?:non-)?directory`)
