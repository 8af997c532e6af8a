package group

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestWait(t *testing.T) {
	failure := errors.New("failure")
	g, ctx := WithContext(t.Context())
	g.SetLimit(2)
	g.Go(func() error { <-ctx.Done(); return ctx.Err() })
	g.Go(func() error { return failure })
	if err := g.Wait(); !errors.Is(err, failure) {
		t.Errorf("the error is %v, want the first one", err)
	}
}

// wreck panics where a stack names it.
func wreck() error { panic("wrecked") }

// A panic waits for the other functions, which are told to stop, and passes on
// through groups of groups.
func TestPanic(t *testing.T) {
	outer, outerCtx := WithContext(t.Context())
	others := 0
	outer.Go(func() error {
		inner, ctx := WithContext(outerCtx)
		inner.Go(wreck)
		inner.Go(func() error {
			<-ctx.Done()
			others++
			return nil
		})
		return inner.Wait()
	})
	defer func() {
		p, ok := recover().(*Panic)
		if !ok || p.Value != "wrecked" || !strings.Contains(p.String(), "group.wreck") {
			t.Errorf("it panics with %v", p)
		}
		if !errors.Is(outerCtx.Err(), context.Canceled) || others != 1 {
			t.Errorf("the context's error is %v; %d others ended", outerCtx.Err(), others)
		}
	}()
	err := outer.Wait()
	t.Errorf("it does not panic, and returns %v", err)
}
