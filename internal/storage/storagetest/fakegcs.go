package storagetest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/deckhand/deckhand/internal/storage"
)

// FakeGCS starts a server of Google Cloud Storage's JSON API on loopback, with
// one bucket, and stops it at the end of the test.
func FakeGCS(t testing.TB) Server {
	t.Helper()
	address := freeAddress(t)
	host, port := split(address)
	serve(t, exec.Command(tool(t, "bin/fake-gcs-server"), "-scheme", "http", "-host", host, "-port", port, "-public-host", address,
		"-backend", "memory", "-log-level", "warn"), address, filepath.Join(t.TempDir(), "log"))

	at := "http://" + address
	ask := func(t testing.TB, method, path string, body []byte) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, at+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, answer
	}
	if code, answer := ask(t, http.MethodPost, "/storage/v1/b", []byte(`{"name": "bucket"}`)); code != http.StatusOK {
		t.Fatalf("no bucket: %d %s", code, answer)
	}
	return Server{
		URL:         "gs://bucket/top",
		Directories: true,
		Options:     storage.Options{GCS: storage.GCS{Endpoint: at, Anonymous: true}},
		Store: func(t *testing.T, name string, content []byte) {
			t.Helper()
			path := "/upload/storage/v1/b/bucket/o?uploadType=media&name=" + url.QueryEscape("top/"+name)
			if code, answer := ask(t, http.MethodPost, path, content); code != http.StatusOK {
				t.Fatalf("storing %s: %d %s", name, code, answer)
			}
		},
		Load: func(t *testing.T, name string) []byte {
			t.Helper()
			code, content := ask(t, http.MethodGet, "/storage/v1/b/bucket/o/"+url.PathEscape("top/"+name)+"?alt=media", nil)
			if code != http.StatusOK {
				t.Errorf("%s: %d %s", name, code, content)
			}
			return content
		},
		Names: func(t *testing.T) []string {
			t.Helper()
			code, answer := ask(t, http.MethodGet, "/storage/v1/b/bucket/o", nil)
			var page struct{ Items []struct{ Name string } }
			if err := json.Unmarshal(answer, &page); err != nil || code != http.StatusOK {
				t.Fatalf("%d %s: %v", code, answer, err)
			}
			var names []string
			for _, i := range page.Items {
				names = append(names, i.Name)
			}
			return names
		},
	}
}
