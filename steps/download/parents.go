package download

import (
	"os"
	"path"
	"sync/atomic"

	"github.com/deckhand/deckhand/internal/worktree"
)

// parents opens the directories that files are put into. Files come in the order of the
// tree, many of one directory after each other, so the last one stays open.
type parents struct {
	tree *worktree.Tree
	last *parent
	at   worktree.Place // of the last one
}

// parent is a directory that is closed when nobody uses it any more.
type parent struct {
	*os.File
	users atomic.Int32
}

// of returns the directory of a container path, which the caller releases, and the
// file's name in it.
func (ps *parents) of(p string) (*parent, string, error) {
	at := ps.tree.Where(p)
	name := path.Base(at.Name)
	at.Name = path.Dir(at.Name)
	if ps.last == nil || at != ps.at {
		dir, _, err := ps.tree.Parent(p)
		if err != nil {
			return nil, "", err
		}
		ps.close()
		ps.last, ps.at = &parent{File: dir}, at
		ps.last.users.Add(1)
	}
	ps.last.users.Add(1)
	return ps.last, name, nil
}

// close lets go of the last one.
func (ps *parents) close() {
	if ps.last != nil {
		ps.last.release()
		ps.last = nil
	}
}

func (p *parent) release() {
	if p.users.Add(-1) == 0 {
		_ = p.Close() // it was only looked into
	}
}
