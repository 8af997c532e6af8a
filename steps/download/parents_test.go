package download

import (
	"path/filepath"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
)

// The directory of files that follow each other is opened once, and closed when the last
// of them is done with it.
func TestParents(t *testing.T) {
	f := newFixture(t, tes.Input{Path: "/data/a/1", URL: "/x"}, tes.Input{Path: "/etc/one", URL: "/x"})
	parents := parents{tree: f.tree}
	var all []*parent
	for _, want := range []struct {
		path string
		same bool // as the one before
	}{
		{"/data/a/1", false}, {"/data/a/2", true}, {"/data/a/b/3", false}, {"/etc/one", false}, {"/data/a/b/4", false},
	} {
		dir, name, err := parents.of(want.path)
		if err != nil {
			t.Fatal(err)
		}
		place := f.tree.Where(want.path)
		if at := filepath.Join(dir.Name(), name); at != filepath.Join(place.Base, place.Name) {
			t.Errorf("%s is to be %s, want %v", want.path, at, place)
		}
		if len(all) > 0 && (dir == all[len(all)-1]) != want.same {
			t.Errorf("%s: the same directory as before: %v", want.path, !want.same)
		}
		all = append(all, dir)
	}
	parents.close()
	for _, dir := range all {
		if _, err := dir.Stat(); err != nil {
			t.Errorf("%s is closed while it is used: %v", dir.Name(), err)
		}
	}
	for _, dir := range all {
		dir.release()
	}
	for _, dir := range all {
		if _, err := dir.Stat(); err == nil {
			t.Errorf("%s stays open", dir.Name())
		}
	}
}
