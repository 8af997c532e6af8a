package journal

import (
	"os"
	"path/filepath"
)

// evidenceDir holds the files of a generation as a dead process left them:
// opening a database changes them, and a loss may show only then. It goes when
// the journal is next closed in order, and moves aside with a damaged journal.
const evidenceDir = "evidence"

// keepEvidence copies a generation.
func keepEvidence(dir, generation string) error {
	if err := dropEvidence(dir); err != nil {
		return err
	}
	return copyDatabase(generation, filepath.Join(dir, evidenceDir))
}

func dropEvidence(dir string) error {
	return os.RemoveAll(filepath.Join(dir, evidenceDir))
}

// copyDatabase copies the files of a closed database. Tables never change and
// are linked where that is possible.
func copyDatabase(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, f := range files {
		src, dst := filepath.Join(from, f.Name()), filepath.Join(to, f.Name())
		if filepath.Ext(src) == ".sst" && os.Link(src, dst) == nil {
			continue
		}
		if err := copyFile(src, dst); err != nil {
			return err
		}
	}
	return nil
}
