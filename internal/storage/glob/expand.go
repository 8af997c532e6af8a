package glob

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"strings"
	"syscall"
)

// Directories is where Expand looks for matches.
type Directories interface {
	// ReadDir lists a directory, named by its absolute path. What it does about
	// symbolic links is its own affair. It must not wait when dir is no
	// directory (a FIFO), and it is where a caller ends an expansion that takes
	// too long: links that lead back up can make one endless for all that matters.
	// It ends after the first error.
	ReadDir(dir string) iter.Seq2[fs.DirEntry, error]
}

// Expand yields the absolute paths that an absolute pattern matches, in the
// order in which directories are listed. Only directories that can hold a match are read. One
// that does not exist, or is no directory, holds none; any other error is
// yielded, and the expansion ends with it.
func Expand(d Directories, pattern string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if !strings.HasPrefix(pattern, "/") {
			yield("", fmt.Errorf("cannot expand the pattern %q: it is not absolute", pattern))
			return
		}
		var components []component
		for _, p := range split(path.Clean(pattern)[1:]) {
			components = append(components, compile(p))
		}
		expand(d, "/", components, yield)
	}
}

// expand yields what components match below dir. It is false when the caller
// wants no more.
func expand(d Directories, dir string, components []component, yield func(string, error) bool) bool {
	for len(components) > 1 {
		name, literal := components[0].literal()
		if !literal {
			break
		}
		dir, components = path.Join(dir, name), components[1:]
	}
	for e, err := range d.ReadDir(dir) {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
			return true
		case err != nil:
			yield("", fmt.Errorf("cannot look for outputs in %s: %w", dir, err))
			return false
		}
		if !components[0].match(e.Name()) {
			continue
		}
		found := path.Join(dir, e.Name())
		if len(components) == 1 {
			if !yield(found, nil) {
				return false
			}
		} else if e.IsDir() || e.Type()&fs.ModeSymlink != 0 {
			if !expand(d, found, components[1:], yield) {
				return false
			}
		}
	}
	return true
}
