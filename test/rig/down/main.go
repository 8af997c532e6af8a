// Command down stops the private Docker Engine of the tests and deletes its data.
package main

import (
	"fmt"
	"os"

	"github.com/deckhand/deckhand/test/rig"
)

func main() {
	if err := rig.Down(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot stop the engine in "+rig.Dir()+":", err)
		os.Exit(1)
	}
}
