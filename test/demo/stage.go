package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/deckhand/deckhand/test/rig"
)

// The rig works for a test; here the stage is one.
var _ rig.TB = (*stage)(nil)

// Helper is for tests only.
func (s *stage) Helper() {}

// Cleanup has f called at the end, the last one first.
func (s *stage) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

// Logf prints a warning.
func (s *stage) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "demo: "+format+"\n", args...)
}

// Skipf is called when the machine lacks something: here that is the end.
func (s *stage) Skipf(format string, args ...any) { s.Fatalf(format, args...) }

// Fatalf says why, cleans up and ends the demo.
func (s *stage) Fatalf(format string, args ...any) {
	s.Logf(format, args...)
	s.end(1)
}

func (s *stage) check(err error) {
	if err != nil {
		s.Fatalf("%v", err)
	}
}

func (s *stage) end(code int) {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
	os.Exit(code)
}
