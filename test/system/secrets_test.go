package system

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// No signature, no credential and no value of an executor's environment gets
// into the files of the root, logs, or anything that deckhand prints: of a task
// that succeeds, of some that fail at their secret URLs, and of one that is killed.
func TestNoSecretIsKept(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t" // each of them begins so
	w := NewWorld(t)
	image := w.Image(t, "secrets", rig.Spec{})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch user, _, _ := r.BasicAuth(); {
		case strings.HasPrefix(r.URL.Path, "/refused"), user != "" && user != "me":
			http.Error(rw, "no: "+r.URL.String(), http.StatusForbidden) // servers say it again
		case r.Method == http.MethodGet:
			fmt.Fprint(rw, "input")
		}
	}))
	defer server.Close()
	login := strings.Replace(server.URL, "http://", "http://me:"+secret+"-password@", 1)
	w.Env = append(w.Env, "AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY="+secret+"-key", "AWS_SESSION_TOKEN="+secret+"-session",
		"DECKHAND_STORAGE_S3_ENDPOINT="+server.URL, "DECKHAND_STORAGE_S3_REGION=us-east-1", "DECKHAND_TRANSFER_RETRY_FOR=1s",
		"DECKHAND_EVENTS_FILE="+filepath.Join(w.Dir, "events"), "DECKHAND_EVENTS_WEBHOOK_URL="+login+"/refused?token="+secret+"-webhook", "DECKHAND_EVENTS_DRAIN=100ms")
	task := func(id, script string) tes.Task {
		e := Sh(image.Digest, script)
		e.Env = map[string]string{"PASSWORD": secret + "-environment"}
		return tes.Task{
			ID: id, Executors: []tes.Executor{e}, Volumes: []string{"/data"},
			Inputs: []tes.Input{
				{Path: "/in/sas", URL: server.URL + "/f?sv=2025&sig=" + secret + "-sas"},
				{Path: "/in/aws", URL: server.URL + "/f?X-Amz-Credential=" + secret + "-id&X-Amz-Signature=" + secret + "-aws"},
				{Path: "/in/login", URL: login + "/f"},
			},
			Outputs: []tes.Output{{Path: "/data/out", URL: server.URL + "/put?sig=" + secret + "-put"}},
			Resources: tes.Resources{BackendParameters: map[string]string{
				"some_token": secret + "-parameter",
			}},
		}
	}
	var printed strings.Builder // all that anybody could read
	read := func(args ...string) {
		r := w.Deckhand(t, args...)
		printed.WriteString(r.Stdout + r.Stderr)
	}
	tell := func(id string) {
		for _, args := range [][]string{
			{"status", id}, {"status", id, "--json"}, {"logs", id}, {"plan", w.Save(t, task("planned", "true"))},
			{"journal", "inspect", id}, {"journal", "inspect", id, "--json"}, {"journal", "export"}, {"journal", "list"}, {"journal", "report"}, {"journal", "report", id}, {"status"}, {"doctor"}, {"config"},
		} {
			read(args...)
		}
	}

	killed := task("killed", "echo x > /data/out; sleep 300")
	b := w.Start(t, killed)
	b.Until(t, "executor started")
	tell("killed")
	if err := b.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, log := b.End(t)
	printed.WriteString(log)
	tell("killed")
	scan(t, w.Root, secret, "killed", true) // as it lies there
	for id, change := range map[string]func(*tes.Task){
		"whole":          func(*tes.Task) {},
		"refused-input":  func(k *tes.Task) { k.Inputs[0].URL = server.URL + "/refused?sig=" + secret + "-in" },
		"refused-login":  func(k *tes.Task) { k.Inputs[2].URL = strings.Replace(login, "me:", "you:", 1) + "/f" },
		"refused-output": func(k *tes.Task) { k.Outputs[0].URL = server.URL + "/refused?sig=" + secret + "-out" },
		"refused-s3":     func(k *tes.Task) { k.Inputs[0].URL = "s3://refused/key" },
		"no-such-program": func(k *tes.Task) {
			k.Executors[0].Command = tes.Arguments{"/no/such/program"}
		},
	} {
		k := task(id, "echo x > /data/out")
		change(&k)
		o := w.Run(t, k)
		if (o.Code == 0) != (id == "whole") {
			t.Errorf("%s ended with %d:\n%s", id, o.Code, o.Stderr)
		}
		printed.WriteString(o.Stderr)
		tell(id)
	}
	scan(t, w.Root, secret, "refused-output", false)
	read("journal", "prune", "--keep", "3") // moves the others into compressed history
	read("journal", "export")
	scan(t, w.Root, secret, "", false)
	if events := w.Read(t, "events"); !strings.Contains(events, "refused-output") || !strings.Contains(printed.String(), "sink=webhook") {
		t.Error("no events were told")
	} else {
		printed.WriteString(events)
	}
	for _, line := range strings.Split(printed.String(), "\n") {
		if strings.Contains(line, secret) {
			t.Errorf("printed: %s", line)
		}
	}
	w.Clean(t)
}

// scan looks for secret in every file below root, and in everything that was
// deflated in the journal's files. Where the task's directory is there, what it
// was given is in it: it is left out. It also finds known, or sees nothing.
func scan(t *testing.T, root, secret, known string, tasks bool) {
	t.Helper()
	found := known == ""
	look := func(name string, text []byte) {
		if at := bytes.Index(text, []byte(secret)); at >= 0 {
			t.Errorf("%s holds %q", name, text[max(0, at-100):min(len(text), at+40)])
		}
		found = found || bytes.Contains(text, []byte(known))
	}
	deflated := 0
	inflate, out := flate.NewReader(nil), bytes.Buffer{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && tasks && path == filepath.Join(root, "tasks") {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		look(path, text)
		if filepath.Ext(path) != ".sst" {
			return nil
		}
		for at := range text {
			// A pack begins anywhere in a table; a stream that is none ends at once.
			if err := inflate.(flate.Resetter).Reset(bytes.NewReader(text[at:]), nil); err != nil {
				return err
			}
			out.Reset()
			if n, _ := io.Copy(&out, io.LimitReader(inflate, 1<<20)); n > 200 {
				deflated++
				look(path+", deflated", out.Bytes())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !found {
		t.Errorf("no file holds %q: this scan sees nothing", known)
	}
	if known == "" && deflated == 0 {
		t.Error("nothing below the root is deflated: this scan sees no history")
	}
}
