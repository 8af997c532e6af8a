package slurm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the page shows is what the tests here run.
func TestPageShowsTheFiles(t *testing.T) {
	page, err := os.ReadFile(pages + "slurm.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(pages + "slurm/*")
	if err != nil || len(files) != 5 {
		t.Fatalf("the files of the page are %v (%v)", files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "\n```"+language[filepath.Ext(file)]+"\n"+string(b)+"```\n") {
			t.Errorf("slurm.md does not show %s as it is", file)
		}
	}
}

var language = map[string]string{".sh": "sh", ".conf": "ini"}
