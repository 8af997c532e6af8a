package journal

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// entry is the first record of an attempt.
func entry(task string, attempt int) machine.Entry {
	return journaltest.Task(task, attempt)[0]
}

// Random histories of several tasks, with crashes, reopenings, compactions and
// prunings in between, read the same in this journal and in the one in memory.
func TestProperty(t *testing.T) {
	if err := flag.Set("rapid.checks", strconv.Itoa(campaign(6, 300))); err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		p := &pair{t: t, dir: filepath.Join(base, fmt.Sprint(n), "journal"), now: time.Unix(1767225600, 0), mem: journaltest.NewMemory()}
		p.mem.BootID, p.mem.Now = "boot", p.time
		if err := os.Mkdir(filepath.Dir(p.dir), 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(filepath.Dir(p.dir))
		p.open()
		defer func() { _ = p.j.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"append":  p.append,
			"again":   p.append, // more often than the rest
			"task":    p.task,
			"reopen":  p.reopen,
			"crash":   p.crash,
			"rewrite": p.rewrite,
			"prune":   p.prune,
			"":        p.compare,
		})
	})
}

// pair is a journal and its model.
type pair struct {
	t   *rapid.T
	dir string
	now time.Time
	j   *Journal
	mem *journaltest.Memory
}

func (p *pair) time() time.Time { return p.now }

func (p *pair) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) open() {
	j, err := Open(p.dir, Options{BootID: "boot", Now: p.time})
	p.must(err)
	p.j = j
}

func (p *pair) write(e machine.Entry) {
	got, err := p.j.Append(context.Background(), e)
	p.must(err)
	want, err := p.mem.Append(context.Background(), e)
	p.must(err)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		p.t.Fatalf("Append returned\n%+v, in memory\n%+v", got, want)
	}
}

func (p *pair) name(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "a/", "b", "ü", "task 4"}).Draw(t, "task")
}

func (p *pair) append(t *rapid.T) {
	p.now = p.now.Add(time.Duration(rapid.Int64Range(0, 1e12).Draw(t, "later")))
	e := entry(p.name(t), rapid.IntRange(1, 3).Draw(t, "attempt"))
	e.Record.Kind = rapid.SampledFrom([]machine.Kind{machine.KindIntent, machine.KindTransition}).Draw(t, "kind")
	e.Record.Reason = rapid.String().Draw(t, "reason")
	e.Head.State = rapid.SampledFrom(machine.States).Draw(t, "state")
	e.Head.Reason = rapid.String().Draw(t, "head reason")
	detail, err := json.Marshal(rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "detail"))
	p.must(err)
	e.Record.Detail = detail
	if rapid.Bool().Draw(t, "node") {
		e.Node = &machine.Node{Images: []machine.ImageRecord{{Reference: rapid.StringMatching(`[a-z]+:[0-9]`).Draw(t, "image")}}}
	}
	p.write(e)
}

func (p *pair) task(t *rapid.T) {
	for _, e := range journaltest.Task(p.name(t), 1) {
		p.write(e)
	}
}

func (p *pair) reopen(*rapid.T) {
	p.must(p.j.Close())
	p.open()
}

// crash goes on with the files as a kill would leave them.
func (p *pair) crash(*rapid.T) {
	left := p.dir + ".left"
	p.must(os.CopyFS(left, os.DirFS(p.dir)))
	p.must(p.j.Close())
	p.must(os.RemoveAll(p.dir))
	p.must(os.Rename(left, p.dir))
	p.open()
}

func (p *pair) rewrite(*rapid.T) {
	p.must(p.j.Close())
	p.must(compact(p.dir))
	p.open()
}

func (p *pair) prune(t *rapid.T) {
	r := Retention{Keep: rapid.IntRange(1, 4).Draw(t, "keep")}
	v, err := OpenView(p.dir)
	p.must(err)
	announced, err := PruneView(v, r, p.now)
	p.must(err)
	p.must(v.Close())
	p.must(p.j.Close())
	pruned, err := Prune(p.dir, Options{Now: p.time}, r)
	p.must(err)
	if fmt.Sprint(pruned) != fmt.Sprint(announced) {
		t.Fatalf("pruned %+v and had announced %+v", pruned, announced)
	}
	p.open()
	for _, task := range pruned.Tasks {
		head, found, err := p.mem.Head(task)
		p.must(err)
		if !found || !head.State.Final() {
			t.Fatalf("pruned %s, which is in %q", task, head.State)
		}
		p.mem.Forget(task)
	}
}

func (p *pair) compare(t *rapid.T) {
	got, err := trySnapshot(p.j)
	p.must(err)
	want, err := trySnapshot(p.mem)
	p.must(err)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("the journal holds\n%v\nin memory\n%v", got, want)
	}
	node, err := p.j.Node()
	p.must(err)
	model, err := p.mem.Node()
	p.must(err)
	if fmt.Sprint(node.Active, node.Images) != fmt.Sprint(model.Active, model.Images) {
		t.Fatalf("node %+v, in memory %+v", node, model)
	}
}
