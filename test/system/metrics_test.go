package system

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// control is a client for what the process that holds the root answers.
func (w *World) control() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dir, err := os.Open(w.Root) // the name of a socket may be short only
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/control.sock", dir.Fd()))
	}}}
}

// What tasks came to is served while one runs, and is in the file for the node
// exporter when it has ended, also of a task whose process was killed.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "metrics", rig.Spec{})
	file := filepath.Join(w.Dir, "node.prom")
	w.Env = append(w.Env, "DECKHAND_METRICS_TEXTFILE="+file)
	task := func(id, script string) tes.Task {
		return tes.Task{
			ID: id, Executors: []tes.Executor{Sh(image.Digest, script)}, Volumes: []string{"/data"},
			Inputs:  []tes.Input{{URL: w.Write(t, "in", "0123456789"), Path: "/in"}},
			Outputs: []tes.Output{{URL: filepath.Join(w.Dir, "out", id), Path: "/data/out"}},
		}
	}
	if o := w.Run(t, task("good", "echo out > /data/out")); o.Code != 0 {
		t.Fatal(o.Stderr)
	}
	b := w.Start(t, task("killed", "sleep 300"))
	b.Until(t, "executor started")
	response, err := w.control().Get("http://deckhand/metrics")
	if err != nil {
		t.Fatal(err)
	}
	served, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK || !strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("served %s, %v (%v)", response.Status, response.Header, err)
	}
	check := func(who, text string, want map[string]string) {
		t.Helper()
		for name, value := range want {
			if !regexp.MustCompile(`(?m)^deckhand_` + name + ` ` + value + `$`).MatchString(text) {
				t.Errorf("%s does not say that deckhand_%s is %s:\n%s", who, name, value, text)
			}
		}
	}
	check("the socket", string(served), map[string]string{
		`attempts_total\{root="[0-9a-f]{16}",state="Complete"\}`: "1", `downloaded_bytes_total\{.*\}`: "10", `uploaded_bytes_total\{.*\}`: "4",
		`executors_total\{exit_code="0",root=".*"\}`: "1", `state_seconds_total\{.*state="Run"\}`: `[0-9.e+-]+`,
	})
	if err := b.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.End(t)
	if r := w.Deckhand(t, "recover"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	want := map[string]string{
		`attempts_total\{.*state="Complete"\}`: "1", `attempts_total\{.*state="Interrupted"\}`: "1", `resumed_total\{.*\}`: "1", `downloaded_bytes_total\{.*\}`: "20",
		`images_total\{pull="pulled",.*\}`: "1", `images_total\{pull="reused",.*\}`: "1", `journal_reserve_bytes\{.*\}`: "4.194304e\\+06",
	}
	check("the file", w.Read(t, "node.prom"), want)
	check("the command", w.Deckhand(t, "metrics").Stdout, want)
}
