package helper

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"sync"
)

// name tells this version of the binary from another, whatever its file's time.
var name = sync.OnceValues(func() (string, error) {
	self, err := openSelf()
	if err != nil {
		return "", err
	}
	defer func() { _ = self.Close() }() // read-only
	return nameOf(self)
})

func openSelf() (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("cannot read the deckhand binary: %w", err)
	}
	return self, nil
}

// nameOf names a binary after its content: by the hash of it that Go's linker has
// put there, which is read in no time, or else by one of our own.
func nameOf(binary *os.File) (string, error) {
	info, err := binary.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot read the deckhand binary: %w", err)
	}
	content := sha256.New()
	if id := buildID(binary); id != nil {
		content.Write(id)
	} else if _, err := io.Copy(content, io.NewSectionReader(binary, 0, info.Size())); err != nil {
		return "", fmt.Errorf("cannot read the deckhand binary: %w", err)
	}
	return fmt.Sprintf("deckhand-%x-%x", info.Size(), content.Sum(nil)[:16]), nil
}

// buildID is the note of Go's linker when it has four parts, the last of them a
// hash of the binary; nil otherwise. Some builds, such as those of Nix and Bazel,
// put nothing or a constant there.
func buildID(binary io.ReaderAt) []byte {
	f, err := elf.NewFile(binary)
	if err != nil {
		return nil
	}
	section := f.Section(".note.go.buildid")
	if section == nil {
		return nil
	}
	note, err := section.Data()
	if err != nil || bytes.Count(note, []byte("/")) != 3 {
		return nil
	}
	return note
}
