// Command deckhand runs one GA4GH TES task on this node and leaves the node clean.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/own"
	"github.com/deckhand/deckhand/steps/run"
)

// Set by the linker.
var (
	version = "development"
	commit  = "unknown"
	date    = "unknown"
)

func main() {
	// The task beside this process can use the memory; the processor time is small.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	os.Exit(deckhand(helper.CheckStatic))
}

// deckhand is the whole program; it returns the exit code. fit says whether containers
// can run it.
func deckhand(fit func() error) int {
	// Inside a task's container nothing else of this program is wanted.
	if len(os.Args) > 7 && os.Args[1] == run.StdioCommand {
		return run.ExecStdio(os.Args[2], os.Args[3], [3]string(os.Args[4:7]), os.Args[7:])
	}
	if len(os.Args) > 2 && os.Args[1] == run.BlockCommand {
		if err := run.ExecBlock(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if len(os.Args) > 1 && own.Is(os.Args[1]) {
		if err := own.Exec(context.Background(), os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, fit: fit}
	err := protect(func() error { return newRootCommand(a).Execute() })
	if err != nil && err.Error() != "" {
		fmt.Fprintf(os.Stderr, "deckhand: %s\n", message(err))
	}
	return exitCode(err)
}
