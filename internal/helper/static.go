package helper

import (
	"debug/elf"
	"slices"

	"github.com/deckhand/deckhand/machine"
)

// CheckStatic refuses this binary when it is linked to libraries, which an image need
// not have: its containers could not start, and it would look like a fault of the task.
func CheckStatic() error {
	self, err := openSelf()
	if err != nil {
		return machine.Faultf(machine.NodeFault, "%w", err)
	}
	defer func() { _ = self.Close() }() // read-only
	f, err := elf.NewFile(self)
	if err != nil {
		return machine.Faultf(machine.NodeFault, "cannot read the deckhand binary: %w", err)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return machine.Faultf(machine.NodeFault, "this deckhand needs a dynamic linker, which images need not have, and containers run it; "+
			"build it with \"make build\", or with CGO_ENABLED=0 and without -buildmode=pie")
	}
	return nil
}
