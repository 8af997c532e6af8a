package journal

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/journal/journaltest"
)

// documented returns the patterns of the tables in one section of the document.
func documented(t *testing.T, section string) map[string]*regexp.Regexp {
	t.Helper()
	doc, err := os.ReadFile("../docs/journal.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(doc), "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	placeholders := strings.NewReplacer(
		"TASK", `(?s:.+)`, `\\0`, "\x00", "SEQ", `(?s:.{8})`, "CHUNK", `(?s:.{4})`, "NUMBER", `(?s:.{8})`, "NAME", `.+`,
		"N/", `[0-9]{6,}/`, "schema-S", `schema-[0-9]+`)
	patterns := map[string]*regexp.Regexp{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(text, -1) {
		patterns[m[1]] = regexp.MustCompile("^" + placeholders.Replace(regexp.QuoteMeta(m[1])) + "$")
	}
	if len(patterns) == 0 {
		t.Fatalf("no table in section %s", section)
	}
	return patterns
}

// everything makes a journal in which each file and key occurs.
func everything(t *testing.T) *Journal {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, dir, told)
	appendTest(t, j, journaltest.Task("past", 1)...)
	j = compacted(t, j)
	appendTest(t, j, journaltest.Task("t1", 1)...)
	if err := os.Mkdir(filepath.Join(dir, evidenceDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := backup(dir, j.current); err != nil {
		t.Fatal(err)
	}
	return j
}

func TestDocumentedFiles(t *testing.T) {
	j := everything(t)
	files, err := os.ReadDir(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		name := f.Name()
		if f.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	matchAll(t, documented(t, "Files"), names)
}

func TestDocumentedKeys(t *testing.T) {
	j := everything(t)
	var keys []string
	for e, err := range j.scan(nil) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(e.key))
	}
	for e, err := range j.past.from(nil) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(e.key))
	}
	matchAll(t, documented(t, "Keys"), keys)
}

// matchAll wants each name to match one pattern and each pattern a name.
func matchAll(t *testing.T, patterns map[string]*regexp.Regexp, names []string) {
	t.Helper()
	used := map[string]bool{}
	for _, name := range names {
		n := 0
		for p, re := range patterns {
			if re.MatchString(name) {
				used[p] = true
				n++
			}
		}
		if n != 1 {
			t.Errorf("%q matches %d lines of the document", name, n)
		}
	}
	for p := range patterns {
		if !used[p] {
			t.Errorf("the document has %q and the journal does not", p)
		}
	}
}

func TestDocumentedFigures(t *testing.T) {
	if Schema != 1 || maxTables != 12 || archiveSize != 1<<20 || DefaultRetention.Bytes != 8<<20 || chunkSize != 128<<10 ||
		maxTaskID != 1024 || memTableSize != 2<<20 || ballastSize != 4<<20 || ample != 64<<20 || maxEntry != 283114 ||
		slotCount*slotSpacing != 8<<10 || packHeader != 28 {
		t.Error("a figure changed that docs/journal.md states; change both")
	}
}

// A place in a table is named by the task and record that it belongs to, and by its key
// where it belongs to none.
func TestPlacesAreNamed(t *testing.T) {
	for want, key := range map[string][]byte{
		"record 7 of task t": recordKey("t", 7), "task t": headKey("t"), `the key "node"`: nodeKey,
	} {
		if got := describe(key); got != want {
			t.Errorf("%q is %s, want %s", key, got, want)
		}
	}
	if task, seq := whose(nodeKey); task != "" || seq != 0 {
		t.Errorf("the account of the node is that of record %d of task %q", seq, task)
	}
}
