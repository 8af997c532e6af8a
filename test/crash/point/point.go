// Package point is what a crash point does when it is passed. No product code
// imports it: package instrument writes its calls into a copy of the product's
// sources, around every effect on the world.
//
// The environment of an instrumented program says what is to happen:
//
//	CRASH_TRACE=FILE    each point that is passed is a line of FILE
//	CRASH_AT=POINT#N    the program ends by SIGKILL when it passes POINT for the N-th time
package point

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// Names of what a program is told by its environment. They are none of deckhand's
// own settings, which an unknown DECKHAND_ variable would be.
const (
	TraceVariable = "CRASH_TRACE"
	AtVariable    = "CRASH_AT"
)

// Ends of a point's name.
const (
	Before = " before"
	After  = " after"
	// Called: the effect is under way and has called back.
	Called = " called"
)

// Occurrence names the n-th time, from 1, that a point is passed.
func Occurrence(name string, n int) string { return fmt.Sprintf("%s#%d", name, n) }

// Hook, when it is set, takes the place of what the environment says: it is
// called with the name of each point that is passed. It is set before anything
// passes a point.
var Hook func(name string)

var (
	mu    sync.Mutex
	seen  = map[string]int{}
	trace = openTrace()
	at    = os.Getenv(AtVariable)
)

func openTrace() *os.File {
	name := os.Getenv(TraceVariable)
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		panic(err)
	}
	return f
}

// Pass passes a point.
func Pass(name string) {
	if Hook != nil {
		Hook(name)
		return
	}
	if trace == nil && at == "" {
		return
	}
	// One at a time, so that the trace ends where the program does.
	mu.Lock()
	defer mu.Unlock()
	seen[name]++
	here := Occurrence(name, seen[name])
	if trace != nil {
		if _, err := trace.WriteString(here + "\n"); err != nil {
			panic(err)
		}
	}
	if here == at {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // nothing after it runs
		select {}
	}
}

// R0 makes an effect between two points; R1 to R3 do so with results.
func R0(name string, effect func()) {
	Pass(name + Before)
	effect()
	Pass(name + After)
}

// R1 is R0 with a result.
func R1[A any](name string, effect func() A) A {
	Pass(name + Before)
	a := effect()
	Pass(name + After)
	return a
}

// R2 is R0 with two results.
func R2[A, B any](name string, effect func() (A, B)) (A, B) {
	Pass(name + Before)
	a, b := effect()
	Pass(name + After)
	return a, b
}

// R3 is R0 with three results.
func R3[A, B, C any](name string, effect func() (A, B, C)) (A, B, C) {
	Pass(name + Before)
	a, b, c := effect()
	Pass(name + After)
	return a, b, c
}
