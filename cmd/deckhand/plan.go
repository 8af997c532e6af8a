package main

import (
	"path/filepath"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
)

// plan is what `run --dry-run` prints.
type plan struct {
	Task      string      `json:"task"`
	Directory string      `json:"directory"`
	Images    []string    `json:"images"`
	Inputs    []planFile  `json:"inputs"`
	Mounts    []planMount `json:"mounts"`
	// Merges are copied into containers where an image has files too, and mounted
	// otherwise; only a run finds that out.
	Merges    []planMount `json:"merges"`
	Executors [][]string  `json:"executors"`
	Outputs   []planFile  `json:"outputs"`
	Warnings  []string    `json:"warnings"`
}

type planFile struct {
	Path string       `json:"path"`
	URL  string       `json:"url,omitempty"`
	Type tes.FileType `json:"type"`
}

type planMount struct {
	Container string `json:"container"`
	Node      string `json:"node"`
}

func newPlan(conf *config.Loaded, d *document) plan {
	tree := worktree.New(filepath.Join(conf.Root, "tasks", taskDir(d.id)), 1, d.task)
	p := plan{
		Task: d.id, Directory: tree.Dir, Images: d.task.Images(), Inputs: []planFile{}, Mounts: []planMount{}, Merges: []planMount{},
		Outputs: []planFile{}, Warnings: append([]string{}, d.warnings...),
	}
	for _, in := range d.task.Inputs {
		p.Inputs = append(p.Inputs, planFile{in.Path, redact.URL(in.URL), in.Type})
	}
	for _, m := range tree.Plan.Mounts {
		p.Mounts = append(p.Mounts, planMount{m.Target, tree.Source(m)})
	}
	for _, m := range tree.Plan.Merges {
		p.Merges = append(p.Merges, planMount{m.Target, tree.Source(m)})
	}
	for _, e := range d.task.Executors {
		p.Executors = append(p.Executors, e.Command)
	}
	for _, out := range d.task.Outputs {
		p.Outputs = append(p.Outputs, planFile{out.Path, redact.URL(out.URL), out.Type})
	}
	return p
}
