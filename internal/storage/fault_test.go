package storage

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// A share that is away for a moment does not cost a task its outputs.
func TestIOFault(t *testing.T) {
	for number, passes := range map[unix.Errno]bool{unix.ESTALE: true, unix.ETIMEDOUT: true, unix.ENOTCONN: false, unix.EIO: false} {
		err := ioFault(&os.PathError{Op: "write", Path: "/x", Err: number}, 1, nil)
		var pass *passingError
		if errors.As(err, &pass) != passes || !passes && machine.FaultOf(err) != machine.NodeFault {
			t.Errorf("%v: %#v", number, err)
		}
	}
}

// What a disk says is not taken for what a network says, whose errors have the same type.
func TestReadFault(t *testing.T) {
	for _, row := range []struct {
		err    error
		passes bool
		fault  machine.Fault
	}{
		{&os.PathError{Op: "read", Path: "/x", Err: unix.EIO}, false, machine.NodeFault},
		{&os.PathError{Op: "stat", Path: "/x", Err: unix.ENOTCONN}, false, machine.NodeFault}, // whoever served a mount is gone
		{&os.PathError{Op: "read", Path: "/x", Err: unix.ESTALE}, true, ""},
		{&os.PathError{Op: "open", Path: "/x", Err: unix.EMFILE}, true, ""},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", unix.EHOSTUNREACH)}, true, ""},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", unix.EIO)}, true, ""},
		{io.ErrUnexpectedEOF, true, ""},
	} {
		err := readFault(row.err)
		var pass *passingError
		if errors.As(err, &pass) != row.passes || !row.passes && machine.FaultOf(err) != row.fault {
			t.Errorf("%v: %#v", row.err, err)
		}
	}
}
