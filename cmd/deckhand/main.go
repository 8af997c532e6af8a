// Command deckhand runs one GA4GH TES task on this node and leaves the node clean.
package main

import (
	"fmt"
	"os"

	"github.com/deckhand/deckhand/steps/run"
)

// Set by the linker.
var (
	version = "development"
	commit  = "unknown"
	date    = "unknown"
)

func main() { os.Exit(deckhand()) }

// deckhand is the whole program; it returns the exit code.
func deckhand() int {
	// Inside a task's container nothing else of this program is wanted.
	if len(os.Args) > 5 && os.Args[1] == run.StdioCommand {
		return run.ExecStdio([3]string(os.Args[2:5]), os.Args[5:], os.Stderr)
	}
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	err := protect(func() error { return newRootCommand(a).Execute() })
	if err != nil && err.Error() != "" {
		fmt.Fprintf(os.Stderr, "deckhand: %s\n", message(err))
	}
	return exitCode(err)
}
