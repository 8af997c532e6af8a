package system

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/test/check"
	"github.com/deckhand/deckhand/test/rig"
)

// A file, a server and a program are told of tasks that end well and badly. What
// the server could not take while it was away, it is told by the next process,
// which has nothing else to do.
func TestEvents(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "events", rig.Spec{})
	var away atomic.Bool
	var mu sync.Mutex
	var sent []string
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if away.Load() {
			http.Error(rw, "away", http.StatusServiceUnavailable)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if id := r.Header.Get("webhook-id"); len(sent) == 0 || sent[len(sent)-1] != id {
			sent = append(sent, id)
		}
	}))
	defer server.Close()
	hook := w.Write(t, "hook", "#!/bin/sh\ncat >> "+w.Dir+"/told\n")
	if err := os.Chmod(hook, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.Dir, "events")
	w.Env = append(w.Env, "DECKHAND_EVENTS_FILE="+file, "DECKHAND_EVENTS_WEBHOOK_URL="+server.URL, "DECKHAND_EVENTS_EXEC="+hook, "DECKHAND_EVENTS_DRAIN=1h")
	run := func(id, script string, code int) {
		t.Helper()
		o := w.Run(t, tes.Task{ID: id, Executors: []tes.Executor{Sh(image.Digest, script)}})
		if o.Code != code {
			t.Fatalf("%s ended with %d:\n%s", id, o.Code, o.Stderr)
		}
	}
	run("good", "true", 0)
	away.Store(true)
	w.Env = append(w.Env, "DECKHAND_EVENTS_DRAIN=20s") // enough for the file
	run("bad", "exit 3", 1)
	if text := w.Read(t, "events"); !strings.Contains(text, `"to":"ExecutorError"`) {
		t.Errorf("the file is\n%s", text)
	}
	mu.Lock()
	if n := strings.Count(w.Read(t, "events"), "\n"); len(sent) == 0 || len(sent) >= n {
		t.Errorf("while it was away the server was sent %d of %d events", len(sent), n)
	}
	mu.Unlock()
	away.Store(false)
	w.Env = append(w.Env, "DECKHAND_EVENTS_DRAIN=1h")
	if r := w.Deckhand(t, "recover"); r.Code != 0 || !strings.Contains(r.Stdout, "nothing to recover") {
		t.Errorf("recover ended with %d:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}

	view, err := journal.OpenView(filepath.Join(w.Root, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	text := w.Read(t, "events")
	for _, problem := range check.Told(view, text, sent) {
		t.Error(problem)
	}
	// What it was told as the time was over it may be told again, as the webhook.
	told := ""
	for line := range strings.Lines(w.Read(t, "told")) {
		if !strings.HasSuffix(told, line) {
			told += line
		}
	}
	if told != text {
		t.Errorf("the program was told\n%s\nwant\n%s", told, text)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile("../../docs/events.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for line := range strings.Lines(text) {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err == nil {
			err = schema.Validate(v)
		}
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		order = append(order, fmt.Sprint(v.(map[string]any)["id"]))
	}
	if !slices.Equal(order, sent) {
		t.Errorf("the server was sent %v, want %v", sent, order)
	}
}
