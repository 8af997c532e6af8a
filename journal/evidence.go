package journal

import (
	"os"
	"path/filepath"
)

// evidenceDir holds the files of a generation as a dead process left them:
// opening a database changes them, and a loss may show only then. It goes when
// the journal is next closed in order, and moves aside with a damaged journal.
const evidenceDir = "evidence"

// keepEvidence copies a generation. Tables never change and are linked where
// that is possible.
func keepEvidence(dir, generation string) error {
	if err := dropEvidence(dir); err != nil {
		return err
	}
	to := filepath.Join(dir, evidenceDir)
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(generation)
	if err != nil {
		return err
	}
	for _, f := range files {
		from, to := filepath.Join(generation, f.Name()), filepath.Join(to, f.Name())
		if filepath.Ext(f.Name()) == ".sst" && os.Link(from, to) == nil {
			continue
		}
		if err := copyFile(from, to); err != nil {
			return err
		}
	}
	return nil
}

func dropEvidence(dir string) error {
	return os.RemoveAll(filepath.Join(dir, evidenceDir))
}
