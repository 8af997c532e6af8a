package journal

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// View is a journal as it was when the view was opened. It holds the tables open:
// a run that begins may remove them. It needs no lock and no space, works while a
// run writes and after a crash, and changes nothing.
type View struct {
	reader
	contents *contents
	doubt    error
}

// viewAttempts is how often a journal is read that changes meanwhile;
// viewPatience, how often that may fail in the same way: then it is damaged.
const (
	viewAttempts = 50
	viewPatience = 3
)

// OpenView reads the journal in dir. Without a journal the error is
// fs.ErrNotExist.
func OpenView(dir string) (*View, error) {
	said, doubt := testimonyIn(dir) // first: a run that goes on only adds to it
	v, err := openView(dir, testimony{})
	if err != nil {
		return nil, machine.Faultf(machine.NodeFault, "cannot read the journal %s: %w", dir, err)
	}
	if v.doubt = doubt; doubt == nil {
		found, err := v.tip()
		v.doubt = cmp.Or(err, said.contradicts(found))
	}
	return v, nil
}

// Doubt says what is known to be missing from the journal, nil when nothing is:
// the next Open refuses it with ErrDamaged. Verify tells more.
func (v *View) Doubt() error { return v.doubt }

// openView compares what it reads with what the witness said before; with
// nothing, when the testimony is empty.
func openView(dir string, said testimony) (*View, error) {
	var last error
	same := 0
	for range viewAttempts {
		v, err := tryView(dir, said)
		if err == nil {
			return v, nil
		}
		if errors.Is(err, errNoJournal) || errors.Is(err, ErrNewerSchema) {
			return nil, err
		}
		if same++; last == nil || err.Error() != last.Error() {
			same = 1
		}
		if last = err; same == viewPatience {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return nil, missing(last)
}

// errNoJournal: there is none in the directory.
var errNoJournal = fmt.Errorf("there is no journal: %w", os.ErrNotExist)

func tryView(dir string, said testimony) (*View, error) {
	c, found, err := readCurrent(dir)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, cmp.Or(damagedWithoutCurrent(dir), errNoJournal)
	}
	if c.Schema != Schema {
		return nil, fmt.Errorf("it has schema %d and this release reads %d; the next run upgrades it", c.Schema, Schema)
	}
	if said.Generation != c.Generation {
		said.Manifest = fingerprint{}
	}
	generation, _, err := readContents(filepath.Join(dir, generationName(c.Generation)), said.Manifest, true)
	if err != nil {
		return nil, err
	}
	v := &View{contents: generation}
	past, err := openHistory(dir, c)
	if err == nil {
		err = past.pin()
	}
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	v.reader = reader{generation, past}
	// A generation that was replaced may have been read while it was removed.
	if now, _, err := readCurrent(dir); err != nil || now.Generation != c.Generation {
		return nil, errors.Join(cmp.Or(err, fmt.Errorf("generation %d was replaced meanwhile", c.Generation)), v.Close())
	}
	return v, nil
}

// Close lets go of the tables.
func (v *View) Close() error { return errors.Join(v.contents.close(), v.past.close()) }
