package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
)

const successorFile = "successor.json"

// Succeed announces that this process is about to fence the owner of root and
// to go on with its task. An owner that is stopped after that leaves without
// rolling back. done takes the announcement back; it is called with the lock held.
func Succeed(root string) (done func() error, err error) {
	self, err := Self()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(self)
	if err != nil {
		return nil, err
	}
	name := filepath.Join(root, successorFile)
	if err := os.WriteFile(name, text, 0o600); err != nil {
		return nil, err
	}
	return func() error {
		if err := os.Remove(name); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}, nil
}

// Successor says whether another living process has announced that it goes on
// with the task of root's owner.
func Successor(root string) bool {
	text, err := os.ReadFile(filepath.Join(root, successorFile))
	if err != nil {
		return false
	}
	var p Process
	if json.Unmarshal(text, &p) != nil || p.PID == os.Getpid() {
		return false
	}
	alive, err := p.Alive()
	return err == nil && alive
}
