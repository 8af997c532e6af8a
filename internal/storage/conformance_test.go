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
	t.Run("s3", func(t *testing.T) {
		s, _ := storagetest.Versitygw(t)
		storagetest.Run(t, s)
	})
	t.Run("gs", func(t *testing.T) {
		storagetest.Run(t, storagetest.FakeGCS(t))
	})
	t.Run("az", func(t *testing.T) {
		s, _, _ := storagetest.Azurite(t)
		storagetest.Run(t, s)
	})
	t.Run("https of Azure, signed", func(t *testing.T) {
		s, _, signature := storagetest.Azurite(t)
		t.Setenv("AZURE_STORAGE_KEY", "")
		s.URL = "https://devstoreaccount1.blob.core.windows.net/bucket/top?" + signature
		storagetest.Run(t, s)
	})
	t.Run("http", func(t *testing.T) {
		url, dir := storagetest.Nginx(t)
		storagetest.Run(t, storagetest.Tree(url, dir))
	})
}
