// Package group runs functions side by side as errgroup does. A panic in one of
// them reaches whoever waits for the group: alone it would end the process at
// once, with the runtime's exit code and past every deferred call.
package group

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Group is a set of functions that run side by side.
type Group struct {
	functions *errgroup.Group
	panicked  atomic.Pointer[Panic] // the first one
}

// Panic is what Wait panics with.
type Panic struct {
	Value any    // of the function's panic
	Stack []byte // where that was
}

func (p *Panic) String() string {
	return fmt.Sprintf("%v\n%s", p.Value, p.Stack)
}

// errPanicked stops the other functions of the group.
var errPanicked = errors.New("panic")

// WithContext returns a group and a context that ends with the first of its
// functions that fails or panics, at the latest with Wait.
func WithContext(ctx context.Context) (*Group, context.Context) {
	functions, ctx := errgroup.WithContext(ctx)
	return &Group{functions: functions}, ctx
}

// SetLimit bounds how many functions run at a time; Go waits for the others.
func (g *Group) SetLimit(n int) { g.functions.SetLimit(n) }

// Go runs a function.
func (g *Group) Go(f func() error) {
	g.functions.Go(func() (err error) {
		defer func() {
			if value := recover(); value != nil {
				p, ok := value.(*Panic) // of a group inside
				if !ok {
					p = &Panic{value, debug.Stack()}
				}
				g.panicked.CompareAndSwap(nil, p)
				err = errPanicked
			}
		}()
		return f()
	})
}

// Wait waits for all functions and returns the first error. It panics when one
// of them did.
func (g *Group) Wait() error {
	err := g.functions.Wait()
	if p := g.panicked.Load(); p != nil {
		panic(p)
	}
	return err
}
