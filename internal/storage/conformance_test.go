package storage_test

import (
	"testing"

	"github.com/deckhand/deckhand/internal/storage/storagetest"
)

func TestConformance(t *testing.T) {
	t.Run("path", func(t *testing.T) {
		dir := t.TempDir()
		s := storagetest.Tree(dir, dir)
		s.Directories = true
		storagetest.Run(t, s)
	})
	t.Run("file", func(t *testing.T) {
		dir := t.TempDir()
		s := storagetest.Tree("file://"+dir, dir)
		s.Directories = true
		storagetest.Run(t, s)
	})
	t.Run("http", func(t *testing.T) {
		url, dir := storagetest.Nginx(t)
		storagetest.Run(t, storagetest.Tree(url, dir))
	})
}
