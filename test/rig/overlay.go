package rig

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Overlay returns a file for -overlay of the go command: with it, a text of one
// source file of this module, which is there once, is another one. Tests build
// what is broken on purpose so.
func Overlay(tb TB, name, was, is string) string {
	tb.Helper()
	_, here, _, _ := runtime.Caller(0)
	original := filepath.Join(filepath.Dir(here), "..", "..", name)
	text, err := os.ReadFile(original)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	if strings.Count(string(text), was) != 1 {
		tb.Fatalf("%s does not have %q once", name, was)
	}
	dir, err := os.MkdirTemp("", "overlay")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	changed, overlay := filepath.Join(dir, filepath.Base(name)), filepath.Join(dir, "overlay.json")
	err = os.WriteFile(changed, []byte(strings.Replace(string(text), was, is, 1)), 0o600)
	if err == nil {
		err = os.WriteFile(overlay, mustJSON(map[string]any{"Replace": map[string]string{original: changed}}), 0o600)
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return overlay
}
