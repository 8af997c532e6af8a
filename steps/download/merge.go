package download

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/internal/tes"
)

// told bounds the warnings about a merge: each is a record of the journal.
const told = 20

// merge lays the files of all inputs into one tree. Where two inputs bring
// something to one place, the one whose path says more about it wins: a file
// given by itself over one in a directory, a directory within another over what
// the outer one has there. So the order of the inputs does not matter.
type merge struct {
	files map[string]item // by their paths in the container
	// dirs holds every directory that a file or an input needs: true for those
	// that have to be made for themselves.
	dirs    map[string]bool
	dropped []string // sentences
}

// newMerge returns an empty merge, and the inputs in the order in which they are
// to be added: what is outside before what lies in it.
func newMerge(inputs []tes.Input) (*merge, []tes.Input) {
	outerFirst := slices.Clone(inputs)
	slices.SortStableFunc(outerFirst, func(a, b tes.Input) int {
		return cmp.Compare(len(path.Clean(a.Path)), len(path.Clean(b.Path)))
	})
	return &merge{files: map[string]item{}, dirs: map[string]bool{}}, outerFirst
}

// file adds a file; it takes the place of what is there.
func (m *merge) file(i item) {
	m.above(i.path)
	if _, isDir := m.dirs[i.path]; isDir {
		m.drop(i.path + "/")
	}
	m.files[i.path] = i
}

// dir adds a directory, which may stay empty.
func (m *merge) dir(p string) {
	m.above(path.Join(p, "x"))
	m.dirs[p] = true
}

// above makes directories of everything that leads to a path.
func (m *merge) above(p string) {
	for d := path.Dir(p); d != "/"; d = path.Dir(d) {
		if _, ok := m.files[d]; ok {
			m.drop(d)
		}
		if _, ok := m.dirs[d]; !ok {
			m.dirs[d] = false
		}
	}
}

// drop leaves out a file, or with a slash at its end a directory and everything
// in it, for something that comes to its place.
func (m *merge) drop(place string) {
	m.dropped = append(m.dropped, fmt.Sprintf(
		"%s of an input directory is left out: something whose path says more is to be there", strings.TrimSuffix(place, "/")))
	dir, isDir := strings.CutSuffix(place, "/")
	if !isDir {
		delete(m.files, place)
		return
	}
	for p := range m.files {
		if strings.HasPrefix(p, place) {
			delete(m.files, p)
		}
	}
	for p := range m.dirs {
		if p == dir || strings.HasPrefix(p, place) {
			delete(m.dirs, p)
		}
	}
}

// result returns the files, sorted by their paths, the directories to be made
// for themselves, and what was left out.
func (m *merge) result() (files []item, dirs, leftOut []string) {
	for _, i := range m.files {
		files = append(files, i)
	}
	slices.SortFunc(files, func(a, b item) int { return strings.Compare(a.path, b.path) })
	for d, own := range m.dirs {
		if own {
			dirs = append(dirs, d)
		}
	}
	slices.Sort(dirs)
	leftOut = m.dropped
	if more := len(leftOut) - told; more > 0 {
		leftOut = append(leftOut[:told:told], fmt.Sprintf("%d more places of input directories are left out", more))
	}
	return files, dirs, leftOut
}
