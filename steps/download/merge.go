package download

import (
	"cmp"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/internal/sorted"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// The files of all inputs are laid into one tree. Where two inputs bring
// something to one place, the one whose path says more about it wins: a file
// given by itself over one in a directory, a directory within another over what
// the outer one has there. So the order of the inputs does not matter.

// outerFirst returns the indices of inputs in the order in which they are to be listed:
// what is outside before what lies in it. What is listed later wins.
func outerFirst(inputs []tes.Input) []int {
	order := make([]int, len(inputs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(len(path.Clean(inputs[a].Path)), len(path.Clean(inputs[b].Path)))
	})
	return order
}

// inTree orders paths so that what is below a directory follows it at once: a slash
// comes before every other byte.
func inTree(a, b string) int {
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == b[i]:
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		default:
			return cmp.Compare(a[i], b[i])
		}
	}
	return cmp.Compare(len(a), len(b))
}

// place is what comes of one path.
type place struct {
	path string
	kind placeKind
	item // of a file
	// staged is how many bytes of the file are journaled as staged, -1 when none are.
	staged int64
}

type placeKind byte

const (
	aFile   placeKind = iota
	aDir              // to be made for itself: it may be empty
	leftOut           // something at it or below it is left out
)

// merged lays what was listed into one tree, as it comes in the order of the paths: what
// an entry leaves out of those listed before it is at its path, above or below.
func merged(entries iter.Seq2[sorted.Entry, error]) iter.Seq2[place, error] {
	return func(yield func(place, error) bool) {
		m := merge{yield: yield}
		for e, err := range entries {
			var x entry
			if err == nil {
				x, err = decode(e)
			}
			if err != nil {
				yield(place{}, err)
				return
			}
			if !m.add(x) {
				return
			}
		}
		if m.done() {
			m.close("")
		}
	}
}

// merge is under way: at the path of which entries come now, below files that something
// else may have to give way to, or that have to give way.
type merge struct {
	yield func(place, error) bool
	above []*contested

	path   string
	file   entry // the last one that was listed; without a turn when there is none
	dir    entry // the last directory, so too
	staged int64
}

// contested is a file, while entries below its path may follow.
type contested struct {
	place
	turn uint64
	wins bool // so far
	told bool
}

// add takes an entry; it says whether more are wanted, as all methods do.
func (m *merge) add(x entry) bool {
	if x.path != m.path {
		if !m.done() || !m.close(x.path) {
			return false
		}
		m.path, m.file, m.dir, m.staged = x.path, entry{}, entry{}, -1
	}
	switch x.kind {
	case stagedEntry:
		m.staged = x.size
	case dirEntry:
		m.dir = x
	case fileEntry:
		m.file = x
	}
	return true
}

// close ends the places that p is not below: nothing follows that could take them.
func (m *merge) close(p string) bool {
	for len(m.above) > 0 {
		last := m.above[len(m.above)-1]
		if strings.HasPrefix(p, last.path+"/") {
			return true
		}
		m.above = m.above[:len(m.above)-1]
		if last.wins && !m.yield(last.place, nil) {
			return false
		}
	}
	return true
}

// done decides about the place of which all entries have come.
func (m *merge) done() bool {
	newest := m.file
	if m.dir.turn > newest.turn {
		newest = m.dir
	}
	if newest.turn == 0 {
		return true // it is only journaled
	}
	var beaten uint64 // by the newest file above
	for _, c := range m.above {
		if c.wins && c.input == newest.input {
			return m.yield(place{}, impossible(c.path))
		}
		beaten = max(beaten, c.turn)
		c.wins = c.wins && c.turn > newest.turn
		if !m.tell(c) {
			return false
		}
	}
	if m.file.turn > beaten && m.dir.turn > beaten && m.file.input == m.dir.input {
		return m.yield(place{}, impossible(m.path))
	}
	if m.file.turn > 0 {
		c := &contested{
			place: place{m.path, aFile, m.file.item, m.staged}, turn: m.file.turn, wins: m.file.turn > max(beaten, m.dir.turn),
		}
		m.above = append(m.above, c)
		if m.dir.turn > 0 && !m.tell(c) {
			return false
		}
	}
	if m.dir.turn > max(beaten, m.file.turn) {
		return m.yield(place{path: m.path, kind: aDir}, nil)
	}
	return true
}

// impossible is the error of what no input has overruled: a bucket can hold it, a
// directory cannot.
func impossible(p string) error {
	return machine.Faultf(machine.TaskFault,
		"input %s: its directory has an object of this name and others below it, and a file cannot be a directory; rename one, or give each as an input of its own", p)
}

// tell says once that something is left out where a file and a directory meet.
func (m *merge) tell(c *contested) bool {
	if c.told {
		return true
	}
	c.told = true
	return m.yield(place{path: c.path, kind: leftOut}, nil)
}
