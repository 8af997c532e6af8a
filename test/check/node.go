package check

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// Node is what is on a node at one moment, as far as deckhand could have to do
// with it.
type Node struct {
	Engine
	Journal Journal
	// Root lists what lies below deckhand's root, the journal's directory left
	// out; JournalFiles what lies in that, the same kinds once.
	Root         []string
	JournalFiles []string
	// Outputs has a digest of each published file, by its path.
	Outputs map[string]string
}

// Tasks names the tasks that the journal knows, sorted.
func (n Node) Tasks() []string { return slices.Sorted(maps.Keys(n.Journal.Tasks)) }

// Place says where to look.
type Place struct {
	Root string // deckhand's
	// Docker is the address of an engine that nobody else uses meanwhile, such
	// as unix:///run/docker.sock.
	Docker string
	// DataRoot is where that engine keeps its data on this machine; empty leaves
	// its layers unmeasured.
	DataRoot string
	// Outputs is the directory below which tasks publish.
	Outputs string
}

// Look reads everything. A root that is not there yet is empty.
func (p Place) Look() (n Node, err error) {
	if n.Engine, err = ReadEngine(p.Docker, p.DataRoot); err != nil {
		return n, err
	}
	if err := n.ReadDisk(p.Root, p.Outputs); err != nil {
		return n, err
	}
	n.Journal, err = OpenJournal(filepath.Join(p.Root, "journal"))
	return n, err
}

// Replace replaces texts that differ from place to place, such as directories, in
// what the journal tells; oldnew is that of strings.NewReplacer.
func (n *Node) Replace(oldnew ...string) {
	r := strings.NewReplacer(oldnew...)
	for _, t := range n.Journal.Tasks {
		for _, a := range t.Attempts {
			for _, list := range [][]string{a.Published, a.Warnings} {
				for i := range list {
					list[i] = r.Replace(list[i])
				}
			}
		}
	}
}

// What may lie below a root when no process holds it.
var (
	rootFiles    = []string{"bin", "journal.id", "lock", "owner.json", "tasks"}
	journalFiles = []string{"BALLAST", "CURRENT", "LOCK", "ROOT_ID", "WITNESS", "generation"}
)

var generation = regexp.MustCompile(`^[0-9]{6,}$`)

// ReadDisk reads what is below a root and where outputs go.
func (n *Node) ReadDisk(root, outputs string) (err error) {
	n.Root, n.JournalFiles = nil, nil
	err = walk(root, func(name string, _ fs.DirEntry) error {
		if filepath.Dir(name) == "journal" {
			if generation.MatchString(filepath.Base(name)) {
				name = "generation"
			}
			if kind := filepath.Base(name); !slices.Contains(n.JournalFiles, kind) {
				n.JournalFiles = append(n.JournalFiles, kind)
			}
			return fs.SkipDir
		}
		// The program for containers has a name of its version.
		installed := filepath.Dir(name) == "bin" && filepath.Ext(name) != ".part"
		if name != "journal" && !installed {
			n.Root = append(n.Root, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.Outputs = map[string]string{}
	return walk(outputs, func(name string, e fs.DirEntry) error {
		content := e.Type().String()
		if e.Type().IsRegular() {
			raw, err := os.ReadFile(filepath.Join(outputs, name))
			if err != nil {
				return err
			}
			sum := sha256.Sum256(raw)
			content = fmt.Sprintf("%d bytes %s", len(raw), hex.EncodeToString(sum[:8]))
		}
		n.Outputs[name] = content
		return nil
	})
}

// walk calls each for what is below dir, which need not be there, with names
// relative to it. SkipDir leaves out what is below a directory and nothing else.
func walk(dir string, each func(name string, e fs.DirEntry) error) error {
	if dir == "" {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == dir {
			return nil
		}
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		err = each(name, e)
		if errors.Is(err, fs.SkipDir) && !e.IsDir() {
			err = nil
		}
		return err
	})
}

// Usage is what a directory takes on disk.
type Usage struct {
	Entries int   // of the directory itself
	Bytes   int64 // of all that is in it
}

// usageOf measures the layers of an engine. The directory of short names, which
// overlay2 keeps beside them, never shrinks.
func usageOf(dir string) (u Usage, err error) {
	err = walk(dir, func(name string, e fs.DirEntry) error {
		if name == "l" {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			return err
		}
		u.Bytes += st.Blocks * 512
		if filepath.Dir(name) == "." {
			u.Entries++
		}
		// What is mounted there lies elsewhere too.
		if e.IsDir() && filepath.Base(name) == "merged" {
			return fs.SkipDir
		}
		return nil
	})
	return u, err
}

// Journal is what the journal tells.
type Journal struct {
	RootID string
	Active *machine.TaskRef
	Images []machine.ImageRecord // the ledger
	Debts  []machine.Debt
	Tasks  map[string]Task
	// Problems are what journal verify finds.
	Problems []string
}

// Task is the journal's account of a task.
type Task struct {
	State    machine.State
	Fault    machine.Fault
	Reason   string
	Attempts []Attempt // oldest first
}

// Attempt is the account of one attempt.
type Attempt struct {
	Number    int
	Path      []machine.State // that it went through
	Resumed   int
	Executors map[string][]Result // how each ended, by its index
	Published []string            // outputs: path, URL and size
	Warnings  []string
}

// Result is how an executor ended.
type Result struct {
	ExitCode int    `json:"exit_code"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
	Reason   string `json:"reason"`
	OOM      bool   `json:"oom_killed"`
}

// refused says whether its command could not be started: then why is all that
// there is.
func (r Result) refused() bool { return r.Reason != "" && r.Stderr == r.Reason+"\n" }

func (t Task) last() Attempt {
	if len(t.Attempts) == 0 {
		return Attempt{}
	}
	return t.Attempts[len(t.Attempts)-1]
}

// ends describes how the executors ended, without what differs from run to run.
func (a Attempt) ends() []string {
	var list []string
	for executor, results := range a.Executors {
		for _, r := range results {
			list = append(list, fmt.Sprintf("%s: exit code %d, stdout %q, stderr %q, reason %q, out of memory %t",
				executor, r.ExitCode, r.Stdout, r.Stderr, r.Reason, r.OOM))
		}
	}
	return list
}

// Reader is the reading half of a journal.
type Reader interface {
	Node() (machine.Node, error)
	Heads() ([]machine.Head, error)
	Records(task string) iter.Seq2[machine.Record, error]
}

// OpenJournal reads and verifies the journal in dir, from a copy. Without a
// journal there it is empty.
func OpenJournal(dir string) (j Journal, err error) {
	report, err := journal.Verify(dir, machine.Legal)
	if errors.Is(err, fs.ErrNotExist) {
		return Journal{}, nil
	}
	if err != nil {
		return j, err
	}
	view, err := journal.OpenView(dir)
	if err != nil {
		return j, err
	}
	j, err = ReadJournal(view)
	for _, p := range report.Problems {
		j.Problems = append(j.Problems, fmt.Sprintf("task %q, record %d: %s", p.Task, p.Seq, p.What))
	}
	return j, errors.Join(err, view.Close())
}

// ReadJournal reads what a journal tells.
func ReadJournal(r Reader) (Journal, error) {
	node, err := r.Node()
	if err != nil {
		return Journal{}, err
	}
	j := Journal{RootID: node.RootID, Active: node.Active, Images: node.Images, Debts: node.Debts, Tasks: map[string]Task{}}
	heads, err := r.Heads()
	if err != nil {
		return Journal{}, err
	}
	for _, h := range heads {
		if h.Task == machine.NodeTask {
			continue // scrubs outside of any task
		}
		t := Task{State: h.State, Fault: h.Fault, Reason: h.Reason}
		for rec, err := range r.Records(h.Task) {
			if err == nil {
				err = t.add(rec)
			}
			if err != nil {
				return Journal{}, err
			}
		}
		j.Tasks[h.Task] = t
	}
	return j, nil
}

func (t *Task) add(rec machine.Record) error {
	if len(t.Attempts) == 0 || t.last().Number != rec.Attempt {
		t.Attempts = append(t.Attempts, Attempt{Number: rec.Attempt, Executors: map[string][]Result{}})
	}
	a := &t.Attempts[len(t.Attempts)-1]
	var d struct {
		What, Name, Message string
		Files               json.RawMessage // a list of published files, or a number of staged ones
	}
	if err := json.Unmarshal(rec.Detail, &d); err != nil {
		return fmt.Errorf("record %d of task %s: %w", rec.Seq, rec.Task, err)
	}
	switch {
	case rec.Kind == machine.KindTransition:
		a.Path = append(a.Path, rec.To)
	case rec.Kind == machine.KindResume:
		a.Resumed++
	case rec.Kind == machine.KindDone && d.What == "executor":
		var r Result
		if err := json.Unmarshal(rec.Detail, &r); err != nil {
			return fmt.Errorf("record %d of task %s: %w", rec.Seq, rec.Task, err)
		}
		a.Executors[d.Name] = append(a.Executors[d.Name], r)
	case rec.Kind == machine.KindDone && d.What == "outputs":
		var files []struct {
			Path string `json:"path"`
			URL  string `json:"url"`
			Size string `json:"size_bytes"`
		}
		if err := json.Unmarshal(d.Files, &files); err != nil {
			return fmt.Errorf("record %d of task %s: %w", rec.Seq, rec.Task, err)
		}
		for _, f := range files {
			a.Published = append(a.Published, fmt.Sprintf("%s at %s, %s bytes", f.Path, f.URL, f.Size))
		}
	case d.What == machine.WhatWarning:
		a.Warnings = append(a.Warnings, d.Message)
	}
	return nil
}
