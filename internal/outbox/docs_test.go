package outbox

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/deckhand/deckhand/journal/journaltest"
	"github.com/deckhand/deckhand/machine"
)

// block returns the n-th block of code in a language of docs/events.md.
func block(t *testing.T, language string, n int) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(found) <= n {
		t.Fatalf("docs/events.md has only %d blocks of %s", len(found), language)
	}
	return found[n][1]
}

func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile("../../docs/events.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func valid(t *testing.T, s *jsonschema.Schema, text string) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

// The schema takes every event that there can be, and the example, and refuses what
// is none.
func TestSchema(t *testing.T) {
	s := schema(t)
	j := told(t)
	write(t, j, "t1")
	notices := journaltest.Undelivered(t, j, "control")
	record := notices[0].Record
	for _, row := range machine.Table {
		record.From, record.Event, record.To, record.Kind = row.From, row.Event, row.To, machine.KindTransition
		notices = append(notices, machine.Notice{ID: notices[0].ID, Record: record})
		if row.From != "" {
			record.Event, record.To, record.Kind = "", record.From, machine.KindResume
			notices = append(notices, machine.Notice{ID: notices[0].ID, Record: record})
		}
	}
	for _, n := range notices {
		text, err := newEvent(source("0123456789abcdef"), n).encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := valid(t, s, string(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	example := block(t, "json", 0)
	if err := valid(t, s, example); err != nil {
		t.Errorf("the example: %v", err)
	}
	for _, change := range [][2]string{
		{`"specversion": "1.0"`, `"specversion": "2.0"`}, {`"id": "9b1f`, `"id": "xb1f`}, {`task.image_ready`, `task.image_gone`},
		{`"to": "Download"`, `"to": "Elsewhere"`}, {`"attempt": 1`, `"attempt": "1"`}, {`"kind": "transition"`, `"kind": "done"`}, {`"subject": "t1",`, ``},
	} {
		wrong := strings.Replace(example, change[0], change[1], 1)
		if wrong == example || valid(t, s, wrong) == nil {
			t.Errorf("an event with %q for %q is taken", change[1], change[0])
		}
	}
}

// The Python of the documentation verifies what a server is sent, with a secret
// that is made as documented.
func TestDocumentedVerification(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("sh", "-ec", strings.ReplaceAll(block(t, "sh", 0), "/etc/deckhand", dir)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	secret, err := os.ReadFile(filepath.Join(dir, "webhook.secret"))
	if err != nil {
		t.Fatal(err)
	}
	var headers map[string]string
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		text := make([]byte, r.ContentLength)
		if _, err := r.Body.Read(text); err != nil && err.Error() != "EOF" {
			t.Error(err)
		}
		body, headers = string(text), map[string]string{}
		for name := range r.Header {
			headers[strings.ToLower(name)] = r.Header.Get(name)
		}
	}))
	defer server.Close()
	w, err := NewWebhook(server.URL, strings.TrimSpace(string(secret)), "deckhand")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Deliver(t.Context(), Event{ID: "abc", Type: "ü"}); err != nil {
		t.Fatal(err)
	}
	verify := func(body string, change ...string) string {
		t.Helper()
		sent := map[string]string{}
		for name, value := range headers {
			sent[name] = value
		}
		if len(change) == 2 {
			sent[change[0]] = change[1]
		}
		input, err := json.Marshal(map[string]any{"secret": strings.TrimSpace(string(secret)), "headers": sent, "body": body})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("python3", "-c", block(t, "python", 0)+"\nimport json, sys\ni = json.load(sys.stdin)\nprint(verify(i['secret'], i['headers'], i['body'].encode()))\n")
		cmd.Stdin = strings.NewReader(string(input))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got := verify(body); got != "True" {
		t.Errorf("what was sent: %s", got)
	}
	for what, got := range map[string]string{
		"another body":      verify(body + " "),
		"another id":        verify(body, "webhook-id", "abd"),
		"another time":      verify(body, "webhook-timestamp", headers["webhook-timestamp"]+"0"),
		"another signature": verify(body, "webhook-signature", "v1,AAAA"),
	} {
		if got != "False" {
			t.Errorf("%s: %s", what, got)
		}
	}
}

// The program of the documentation mails what has failed, and nothing else.
func TestDocumentedProgram(t *testing.T) {
	script := block(t, "sh", 1)
	for _, c := range []struct {
		to    machine.State
		mails bool
	}{{machine.ExecutorError, true}, {machine.SystemError, true}, {machine.Complete, false}} {
		x, dir := program(t, strings.ReplaceAll(script, "mail -s", "DIR/mail -s"))
		if err := os.WriteFile(filepath.Join(dir, "mail"), []byte("#!/bin/sh\ncat > "+dir+"/mailed\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		e := newEvent("s", machine.Notice{ID: "abc", Record: machine.Record{To: c.to, Detail: []byte("{}")}})
		if err := x.Deliver(t.Context(), e); err != nil {
			t.Error(err)
		}
		mailed, err := os.ReadFile(filepath.Join(dir, "mailed"))
		if (err == nil) != c.mails || c.mails && !slices.Contains(strings.Fields(strings.NewReplacer(",", " ").Replace(string(mailed))), `"id":"abc"`) {
			t.Errorf("%s: mailed %q (%v)", c.to, mailed, err)
		}
	}
}
