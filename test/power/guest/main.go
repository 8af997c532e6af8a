// Command guest is what the machines whose power the tests cut run: it makes a node
// of the machine, runs tasks on it and tells the host what came of them.
//
// Its arguments are what to do, one after the other:
//
//	others   put things on the node that are not deckhand's
//	NAME     run the task document NAME to its end
//	save     make everything durable
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/test/check"
)

func main() {
	if err := work(os.Args[1:]); err != nil {
		say("failed", err.Error())
	}
}

// Where things are. The system disk is read-only.
const (
	data    = "/data"        // the data disk
	port    = "/dev/ttyS1"   // to the host
	socket  = "/run/d.sock"  // of Docker
	tasks   = "/tasks"       // task documents
	root    = data + "/root" // deckhand's
	docker  = data + "/docker"
	outputs = data + "/out"
)

// work does what it is told, and looks at the node after each task.
func work(words []string) error {
	if err := start(); err != nil {
		return err
	}
	watch, err := check.NewWatch("unix://" + socket)
	if err != nil {
		return err
	}
	watch.Tell(func(e check.Event) { sayJSON("event", e) })
	for _, word := range words {
		var err error
		switch word {
		case "others":
			err = others()
		case "save":
			unix.Sync()
			say("saved")
		default:
			err = run(word, watch)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	say("done")
	return nil
}
