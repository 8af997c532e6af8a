package journal

import (
	"errors"
	"os"
	"path/filepath"
)

// evidenceDir holds a generation as a dead process left it, which was read and
// never opened. It goes when the journal is next closed in order, and moves
// aside with a damaged journal.
const evidenceDir = "evidence"

// keepEvidence moves a generation there, which is not the journal's any more.
// With little space it leaves it to be removed.
func keepEvidence(dir, generation string) error {
	free, err := freeBytes(dir)
	if err != nil || free < ample {
		return errors.Join(err, dropEvidence(dir))
	}
	if err := dropEvidence(dir); err != nil {
		return err
	}
	if err := os.Rename(generation, filepath.Join(dir, evidenceDir)); err != nil {
		return err
	}
	return syncDir(dir)
}

func dropEvidence(dir string) error {
	return os.RemoveAll(filepath.Join(dir, evidenceDir))
}
