// Package instrument puts a crash point before and after every effect that
// deckhand's code has on the world: it writes the calls into a copy of the
// sources, which the go command takes in place of the files on disk. So no effect
// is without points, and the program that ships has no trace of them (ADR 8).
package instrument

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/tools/go/packages"
)

const module = "github.com/deckhand/deckhand"

// product is what has points in all of its packages, but for internal/engine:
// that one's methods are the effects of those who call them.
const (
	product  = "./cmd/deckhand"
	noPoints = module + "/internal/engine"
)

// Result is what Module has written.
type Result struct {
	// Overlay is the file for the go command's flag -overlay.
	Overlay string
	// Effects are the names of all effects, sorted. Each has a point before it and
	// one after it.
	Effects []string
}

// Module instruments the module in dir and writes below out.
func Module(dir, out string) (Result, error) {
	packages, err := builtInto(dir, product)
	if err != nil {
		return Result{}, err
	}
	return instrument(dir, out, packages)
}

// builtInto lists the packages of the module that a program is built of.
func builtInto(dir, program string) ([]string, error) {
	cmd := exec.Command("go", "list", "-deps", program)
	cmd.Dir = dir
	listed, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages of %s: %w", program, err)
	}
	return slices.DeleteFunc(strings.Fields(string(listed)), func(path string) bool {
		return path == noPoints || !strings.HasPrefix(path, module+"/")
	}), nil
}

func instrument(dir, out string, patterns []string) (Result, error) {
	loaded, err := packages.Load(&packages.Config{
		Dir:  dir,
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedImports,
	}, patterns...)
	if err != nil {
		return Result{}, err
	}
	var r Result
	var failed []error
	replaced := map[string]string{} // by the file on disk
	for _, p := range loaded {
		for _, e := range p.Errors {
			failed = append(failed, e)
		}
		for _, file := range p.Syntax {
			w := &rewriter{pkg: p, file: file, numbers: map[string]int{}}
			ast.Inspect(file, w.visit)
			failed = append(failed, w.failed...)
			r.Effects = append(r.Effects, w.effects...)
			if len(w.edits) == 0 {
				continue
			}
			name := p.Fset.Position(file.Package).Filename
			text, err := os.ReadFile(name)
			if err != nil {
				return r, err
			}
			replaced[name] = filepath.Join(out, fmt.Sprintf("%03d-%s", len(replaced), filepath.Base(name)))
			failed = append(failed, os.WriteFile(replaced[name], w.apply(text), 0o600))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return Result{}, err
	}
	slices.Sort(r.Effects)
	text, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		return Result{}, err
	}
	r.Overlay = filepath.Join(out, "overlay.json")
	return r, os.WriteFile(r.Overlay, text, 0o600)
}

// Build instruments the module in dir and builds a program of it; out is a
// directory for that. It returns the program's path and the names of all effects.
func Build(dir, out, pkg string) (program string, effects []string, err error) {
	r, err := Module(dir, out)
	if err != nil {
		return "", nil, err
	}
	program = filepath.Join(out, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-overlay", r.Overlay, "-trimpath", "-o", program, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("build with crash points: %w\n%s", err, said)
	}
	return program, r.Effects, nil
}

// edit is text to be put into a file.
type edit struct {
	at   int
	text string
	// span is the length of the call that the text belongs to: of calls that begin
	// at one place the outer one comes first, of those that end there the inner one.
	span int
	end  bool
}

func (w *rewriter) apply(text []byte) []byte {
	slices.SortStableFunc(w.edits, func(a, b edit) int {
		switch {
		case a.at != b.at:
			return cmp.Compare(a.at, b.at)
		case a.end != b.end:
			if a.end {
				return -1
			}
			return 1
		case a.end:
			return cmp.Compare(a.span, b.span)
		}
		return cmp.Compare(b.span, a.span)
	})
	var out bytes.Buffer
	last := 0
	for _, e := range w.edits {
		out.Write(text[last:e.at])
		out.WriteString(e.text)
		last = e.at
	}
	out.Write(text[last:])
	return out.Bytes()
}

// relative is a package's path below the module.
func relative(path string) string { return strings.TrimPrefix(strings.TrimPrefix(path, module), "/") }
