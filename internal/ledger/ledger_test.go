package ledger_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/ledger/ledgertest"
	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

const (
	tag   = "registry.test/app:1"
	other = "site.test/mirror:1"
)

func digestOf(name, content string) string {
	return ledgertest.Repository(name) + "@" + ledgertest.ID(content)
}

// record is what the ledger holds about content that deckhand pulled as ref.
func record(ref, content string) machine.ImageRecord {
	return machine.ImageRecord{
		Reference: ref, ImageID: ledgertest.ID(content), Digest: digestOf(ref, content),
		PulledByUs: true, Phase: machine.Present, Task: "t1",
	}
}

// notes are those of a node whose ledger holds images.
func notes(t *testing.T, images ...machine.ImageRecord) machine.Notes {
	t.Helper()
	n, err := machine.NodeNotes(journaltest.NewMemory())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Done(t.Context(), machine.Fact{What: "test", Name: "begin", Images: append([]machine.ImageRecord{}, images...)}); err != nil {
		t.Fatal(err)
	}
	return n
}

func untag(t *testing.T, s *ledgertest.Store, name string) {
	t.Helper()
	if err := s.RemoveImage(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	s.Removed = nil
}

func TestRemove(t *testing.T) {
	shared := record(tag, "x")
	shared.Shared, shared.Lone = true, true
	for _, test := range []struct {
		name    string
		record  machine.ImageRecord
		node    func(*ledgertest.Store)
		gone    bool
		names   []string // left
		pending bool
	}{
		{name: "by its tag", record: record(tag, "x"), gone: true,
			node: func(s *ledgertest.Store) { s.Load(tag, "x") }},
		{name: "by its digest", record: record(digestOf(tag, "x"), "x"), gone: true,
			node: func(s *ledgertest.Store) { s.Load(digestOf(tag, "x"), "x") }},
		{name: "gone already", record: record(tag, "x"), gone: true,
			node: func(*ledgertest.Store) {}},
		{name: "the tag has moved", record: record(tag, "x"), gone: true,
			node: func(s *ledgertest.Store) { s.Load(tag, "x"); s.Load(tag, "y") }},
		{name: "somebody tagged it", record: record(tag, "x"), names: []string{other},
			node: func(s *ledgertest.Store) { s.Load(tag, "x"); s.Tag("x", other) }},
		{name: "somebody tagged it in the same repository", record: record(tag, "x"),
			names: []string{"registry.test/app:mine", digestOf(tag, "x")},
			node:  func(s *ledgertest.Store) { s.Load(tag, "x"); s.Tag("x", "registry.test/app:mine") }},
		{name: "somebody pulled it by digest from elsewhere", record: record(tag, "x"), names: []string{digestOf(other, "x")},
			node: func(s *ledgertest.Store) { s.Load(tag, "x"); s.Load(digestOf(other, "x"), "x") }},
		{name: "the tag has moved and somebody pulled it by digest from elsewhere", record: record(tag, "x"),
			names: []string{digestOf(other, "x")},
			node: func(s *ledgertest.Store) {
				s.Load(tag, "x")
				s.Load(digestOf(other, "x"), "x")
				s.Load(tag, "y")
			}},
		{name: "it was there, perhaps by its digest", record: shared, pending: true, names: []string{tag, digestOf(tag, "x")},
			node: func(s *ledgertest.Store) { s.Load(digestOf(tag, "x"), "x"); s.Load(tag, "x") }},
		{name: "it was there, and its digest has gone since", record: shared, gone: true,
			node: func(s *ledgertest.Store) { s.Load(tag, "x"); untag(t, s, digestOf(tag, "x")) }},
		{name: "it was there, and has another tag", record: shared, pending: true, names: []string{"registry.test/app:mine", tag, digestOf(tag, "x")},
			node: func(s *ledgertest.Store) { s.Load(tag, "x"); s.Tag("x", "registry.test/app:mine") }},
		{name: "it was there, and has a tag elsewhere", record: shared, pending: true, names: []string{tag, other, digestOf(tag, "x")},
			node: func(s *ledgertest.Store) { s.Load(tag, "x"); s.Tag("x", other) }},
		{name: "in use", record: record(tag, "x"), pending: true, names: []string{tag, digestOf(tag, "x")},
			node: func(s *ledgertest.Store) { s.Load(tag, "x"); s.Use("x", true) }},
		{name: "in use under a tag that has moved", record: record(tag, "x"), pending: true, names: []string{digestOf(tag, "x")},
			node: func(s *ledgertest.Store) { s.Load(tag, "x"); s.Use("x", true); s.Load(tag, "y") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := ledgertest.NewStore()
			test.node(s)
			n := notes(t, test.record)
			freed, err := ledger.Remove(t.Context(), n, s, test.record)
			if errors.Is(err, engine.ErrInUse) != test.pending || !test.pending && err != nil {
				t.Fatalf("error %v, want pending %v", err, test.pending)
			}
			if s.Has("x") == test.gone {
				t.Errorf("the image is there: %v", s.Has("x"))
			}
			slices.Sort(test.names)
			if names := s.Names("x"); !slices.Equal(names, test.names) {
				t.Errorf("names left: %v, want %v", names, test.names)
			}
			if !test.gone && freed != 0 {
				t.Errorf("%d bytes freed by an image that stays", freed)
			}
			images := n.Images()
			if pending := len(images) == 1 && images[0].Phase == machine.Removing; pending != test.pending || !pending && len(images) > 0 {
				t.Errorf("ledger: %+v, want pending %v", images, test.pending)
			}
			if !test.pending && s.Fleeting {
				t.Error("a power cut brings back what the ledger has forgotten")
			}
			if s.Names("y") != nil && !s.Has("y") {
				t.Error("the image that the tag names now went as well")
			}
		})
	}
}

// An engine that does not answer deletes nothing and changes nothing.
func TestRemoveWithoutEngine(t *testing.T) {
	n := notes(t, record(tag, "x"))
	if _, err := ledger.Remove(t.Context(), n, silent{}, record(tag, "x")); machine.FaultOf(err) != machine.EngineFault {
		t.Errorf("error %v, want the engine's fault", err)
	}
	if images := n.Images(); len(images) != 1 || images[0].Phase != machine.Present {
		t.Errorf("ledger: %+v", images)
	}
}

// What a power cut may bring back stays in the ledger, also when it had gone before.
func TestRemovalThatMayNotLast(t *testing.T) {
	s := ledgertest.NewStore()
	s.Load(tag, "x")
	s.SyncErr = machine.Faultf(machine.NodeFault, "the disk does not answer")
	n := notes(t, record(tag, "x"))
	for _, there := range []bool{true, false} {
		if s.Has("x") != there {
			t.Fatalf("the image is there: %v", !there)
		}
		if _, err := ledger.Remove(t.Context(), n, s, record(tag, "x")); !errors.Is(err, s.SyncErr) {
			t.Errorf("error %v", err)
		}
		if images := n.Images(); len(images) != 1 || images[0].Phase != machine.Removing {
			t.Errorf("ledger: %+v", images)
		}
		if _, err := ledger.Settle(t.Context(), s, n.Images()); !there && !errors.Is(err, s.SyncErr) {
			t.Errorf("forgotten with %v", err)
		}
	}
	s.SyncErr = nil
	if _, err := ledger.Settle(t.Context(), s, n.Images()); err != nil || s.Fleeting {
		t.Errorf("%v, and a power cut brings back what the ledger has forgotten: %v", err, s.Fleeting)
	}
}

type silent struct{}

func (silent) Image(context.Context, string) (engine.Image, error) {
	return engine.Image{}, machine.Faultf(machine.EngineFault, "no answer")
}
func (silent) RemoveImage(context.Context, string) error {
	return machine.Faultf(machine.EngineFault, "no answer")
}
func (silent) Sync(context.Context) error { return machine.Faultf(machine.EngineFault, "no answer") }

func TestReconcile(t *testing.T) {
	pulling := machine.ImageRecord{Reference: tag, Phase: machine.Pulling, Begun: true, Task: "t1", Last: true}
	replacing := pulling
	replacing.Before, replacing.Had = []string{ledgertest.ID("x")}, ledgertest.ID("x")
	naming := pulling
	naming.Before = []string{ledgertest.ID("x")}
	foreign := record(tag, "x")
	foreign.PulledByUs = false
	for _, test := range []struct {
		name   string
		images []machine.ImageRecord
		load   []string // contents, as tag
		want   []string // reference, content and phase
	}{
		{"still there", []machine.ImageRecord{record(tag, "x")}, []string{"x"}, []string{tag + " x present"}},
		{"gone", []machine.ImageRecord{record(tag, "x")}, nil, nil},
		{"the pull had ended", []machine.ImageRecord{pulling}, []string{"x"}, []string{tag + " x present"}},
		{"the pull had not ended", []machine.ImageRecord{pulling}, nil, nil},
		{"the pull had not replaced ours", []machine.ImageRecord{record(tag, "x"), replacing}, []string{"x"}, []string{tag + " x present"}},
		{"the pull had not replaced another's", []machine.ImageRecord{replacing}, []string{"x"}, nil},
		{"the pull had named what was there", []machine.ImageRecord{naming}, []string{"x"}, []string{tag + " x present"}},
		{"the pull had replaced ours", []machine.ImageRecord{record(tag, "x"), replacing}, []string{"x", "y"}, []string{tag + " x present", tag + " y present"}},
		{"the pull had brought what we had", []machine.ImageRecord{record(tag, "x"), pulling}, []string{"x"}, []string{tag + " x present"}},
		{"another's", []machine.ImageRecord{foreign}, []string{"x"}, []string{tag + " x present"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := ledgertest.NewStore()
			for _, content := range test.load {
				s.Load(tag, content)
			}
			got, err := ledger.Reconcile(t.Context(), s, test.images)
			if err != nil {
				t.Fatal(err)
			}
			var found []string
			for _, r := range got {
				for _, content := range []string{"x", "y"} {
					if r.ImageID == ledgertest.ID(content) {
						found = append(found, r.Reference+" "+content+" "+string(r.Phase))
					}
				}
				if want := test.name != "another's"; r.PulledByUs != want || r.Digest == "" {
					t.Errorf("%+v: pulled by us should be %v, and the digest known", r, want)
				}
			}
			if !slices.Equal(found, test.want) {
				t.Errorf("ledger %v, want %v", found, test.want)
			}
			if len(s.Removed) > 0 {
				t.Errorf("it removed %v", s.Removed)
			}
		})
	}
	if _, err := ledger.Reconcile(t.Context(), silent{}, []machine.ImageRecord{pulling}); machine.FaultOf(err) != machine.EngineFault {
		t.Errorf("without an engine: %v", err)
	}
}

func TestSurplus(t *testing.T) {
	at := func(r machine.ImageRecord, task string, minute int) machine.ImageRecord {
		r.Task, r.Since, r.Bytes = task, time.Unix(int64(minute)*60, 0), 100
		return r
	}
	a, b, c := at(record("r.test/a:1", "a"), "t1", 1), at(record("r.test/b:1", "b"), "t2", 2), at(record("r.test/c:1", "c"), "t3", 3)
	b2 := at(record("r.test/b2:1", "b2"), "t2", 2)
	foreign := a
	foreign.PulledByUs = false
	pending := c
	pending.Phase = machine.Removing
	pulling := machine.ImageRecord{Reference: "r.test/a:1", Phase: machine.Pulling}
	moved := at(record("r.test/b:1", "old b"), "t3", 3)
	small := a
	small.Bytes = 1
	alias := at(record("r.test/alias:1", "c"), "t2", 2)
	all := []machine.ImageRecord{a, b, b2, c}
	for _, test := range []struct {
		name   string
		images []machine.ImageRecord
		wanted []machine.ImageRecord
		keep   int
		bytes  int64 // 0 for no limit; each image has 100
		want   []machine.ImageRecord
	}{
		{"nothing", nil, nil, 1, 0, nil},
		{"one task's stay", all, []machine.ImageRecord{a}, 1, 0, []machine.ImageRecord{c, b, b2}},
		{"two tasks' stay", all, []machine.ImageRecord{a}, 2, 0, []machine.ImageRecord{b, b2}},
		{"a set stays whole", all, []machine.ImageRecord{a}, 3, 0, nil},
		{"another's and a pull are no surplus", []machine.ImageRecord{foreign, pulling}, []machine.ImageRecord{b}, 1, 0, nil},
		{"a pending one goes and takes no place", []machine.ImageRecord{a, b, pending}, []machine.ImageRecord{a}, 2, 0, []machine.ImageRecord{pending}},
		{"a pending one that is wanted stays", []machine.ImageRecord{pending}, []machine.ImageRecord{c}, 1, 0, nil},
		{"what a wanted tag named before goes and takes no place", []machine.ImageRecord{a, b, moved}, []machine.ImageRecord{b}, 2, 0, []machine.ImageRecord{moved}},
		{"the bytes hold two", all, []machine.ImageRecord{a}, 9, 299, []machine.ImageRecord{b, b2}},
		{"the bytes hold three", all, []machine.ImageRecord{a}, 9, 300, []machine.ImageRecord{b2}},
		{"this task's images stay whatever they take", all, []machine.ImageRecord{a, b}, 9, 1, []machine.ImageRecord{c, b2}},
		{"fewer tasks than the bytes would hold", all, []machine.ImageRecord{a}, 2, 400, []machine.ImageRecord{b, b2}},
		{"an image with two names counts once", []machine.ImageRecord{a, c, alias}, []machine.ImageRecord{a}, 9, 200, nil},
		{"what goes takes no bytes", []machine.ImageRecord{a, b, pending}, []machine.ImageRecord{a}, 9, 200, []machine.ImageRecord{pending}},
		{"a small image that was used longer ago does not outlive a large one", []machine.ImageRecord{small, b, c}, []machine.ImageRecord{c}, 9, 150, []machine.ImageRecord{b, small}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var ids, names []string
			for _, w := range test.wanted {
				ids, names = append(ids, w.ImageID), append(names, w.Reference)
			}
			got := ledger.Surplus(test.images, ids, names, ledger.Keep{Tasks: test.keep, Bytes: test.bytes}, nil)
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("%+v\nwant %+v", got, test.want)
			}
		})
	}
}

// A layer takes its bytes once, however many of the images have it that stay. What
// nobody knows of is counted in each.
func TestSharedLayersCountOnce(t *testing.T) {
	// Below each other: base 100, tools 50; app1 and app2 stand on tools, app3 on base.
	minute := 0
	image := func(content string, layers ...int64) machine.ImageRecord {
		r := record("r.test/"+content+":1", content)
		minute++
		r.Task, r.Since, r.Layers = content, time.Unix(int64(minute)*60, 0), layers
		for _, b := range layers {
			r.Bytes += b
		}
		return r
	}
	app1, app2, app3, base := image("app1", 100, 50, 0, 7), image("app2", 100, 50, 9), image("app3", 100, 30), image("base", 100)
	chains := map[string][]string{
		app1.ImageID: {"base", "tools", "empty", "app1"}, app2.ImageID: {"base", "tools", "app2"},
		app3.ImageID: {"base", "app3"}, base.ImageID: {"base"},
	}
	unknown := func(r machine.ImageRecord) machine.ImageRecord { r.Layers = nil; return r }
	misread := func(r machine.ImageRecord) machine.ImageRecord { r.Layers = []int64{r.Bytes}; return r }
	for _, test := range []struct {
		name   string
		images []machine.ImageRecord
		bytes  int64 // the least that all of them have room in
	}{
		{"one", []machine.ImageRecord{app1}, 157},
		{"two", []machine.ImageRecord{app1, app2}, 166},
		{"three", []machine.ImageRecord{app1, app2, app3}, 196},
		{"in another order", []machine.ImageRecord{app3, app2, app1}, 196},
		{"with their base", []machine.ImageRecord{app1, base, app3}, 187},
		{"one unknown", []machine.ImageRecord{unknown(app1), app2, unknown(app3)}, 196},
		{"all unknown", []machine.ImageRecord{unknown(app1), unknown(app2)}, 157 + 159},
		{"all unknown but by their base", []machine.ImageRecord{unknown(app1), unknown(app3), unknown(base)}, 187},
		{"two unknown that share more than their base", []machine.ImageRecord{unknown(app1), unknown(app2), base}, 157 + 59},
		{"one with other layers than it says", []machine.ImageRecord{misread(app1), unknown(app3)}, 157 + 130},
		{"a stranger", []machine.ImageRecord{app1, image("other", 100, 1)}, 157 + 101},
	} {
		t.Run(test.name, func(t *testing.T) {
			for bytes, want := range map[int64]int{test.bytes: 0, test.bytes - 1: 1} {
				wanted := test.images[:1]
				got := ledger.Surplus(test.images, []string{wanted[0].ImageID}, []string{wanted[0].Reference}, ledger.Keep{Tasks: 9, Bytes: bytes}, chains)
				if len(test.images) > 1 && len(got) < want || want == 0 && len(got) > 0 {
					t.Errorf("with room for %d bytes %d images go", bytes, len(got))
				}
			}
		})
	}

	// What takes nothing more stays also where the task's own image is too large.
	keep := ledger.Keep{Tasks: 9, Bytes: 156}
	got := ledger.Surplus([]machine.ImageRecord{app1, base, app3}, []string{app1.ImageID}, []string{app1.Reference}, keep, chains)
	if len(got) != 1 || got[0].ImageID != app3.ImageID {
		t.Errorf("of images that are a part of one that is too large, %+v go", got)
	}
}

func TestOurs(t *testing.T) {
	images := []machine.ImageRecord{record(tag, "x")}
	for _, test := range []struct {
		name, ref, digest, content string
		want                       bool
	}{
		{"the tag that was pulled", tag, digestOf(tag, "x"), "x", true},
		{"the digest that came with it", digestOf(tag, "x"), digestOf(tag, "x"), "x", true},
		{"a tag of somebody else's", other, "", "x", false},
		{"a tag of somebody else's in the same repository", "registry.test/app:mine", digestOf(tag, "x"), "x", false},
		{"a digest from elsewhere", digestOf(other, "x"), digestOf(other, "x"), "x", false},
		{"another image under the tag", tag, digestOf(tag, "y"), "y", false},
	} {
		if _, got := ledger.Ours(images, test.ref, test.digest, ledgertest.ID(test.content)); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestRepoDigest(t *testing.T) {
	img := engine.Image{Digests: []string{"<none>@<none>", digestOf(other, "x"), digestOf("app", "x")}}
	for name, want := range map[string]string{
		"app": digestOf("app", "x"), "docker.io/library/app:2": digestOf("app", "x"), "index.docker.io/app": digestOf("app", "x"),
		other: digestOf(other, "x"), digestOf(other, "x"): digestOf(other, "x"),
		"somebody/app": "", "localhost:5000/app": "", "not a name": "",
	} {
		if got := ledger.RepoDigest(img, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestLone(t *testing.T) {
	const near = "registry.test/app:2"
	lone := record(near, "x")
	lone.Lone = true
	for _, test := range []struct {
		name          string
		tags, digests []string
		ours          []machine.ImageRecord
		lone          bool
	}{
		{name: "without a name", lone: true},
		{name: "its names have moved on, and it is ours", ours: []machine.ImageRecord{record(near, "x")}},
		{name: "by its digest alone", digests: []string{digestOf(tag, "x")}, lone: true},
		{name: "by its digest, with a tag elsewhere", digests: []string{digestOf(tag, "x")}, tags: []string{other}, lone: true},
		{name: "with a tag of the repository", digests: []string{digestOf(tag, "x")}, tags: []string{near}},
		{name: "with our tag", digests: []string{digestOf(tag, "x")}, tags: []string{near}, ours: []machine.ImageRecord{record(near, "x")}},
		{name: "with our tag, which came to a digest", digests: []string{digestOf(tag, "x")}, tags: []string{near}, ours: []machine.ImageRecord{lone}, lone: true},
		{name: "our tag was moved, the digest is there", digests: []string{digestOf(tag, "x")}, ours: []machine.ImageRecord{record(near, "x")}, lone: true},
		{name: "with a tag elsewhere alone", tags: []string{other}},
	} {
		t.Run(test.name, func(t *testing.T) {
			img := engine.Image{ID: ledgertest.ID("x"), Tags: test.tags, Digests: test.digests}
			if got := ledger.Lone(test.ours, tag, img); got != test.lone {
				t.Errorf("lone: %t, want %t", got, test.lone)
			}
		})
	}
}
