package storage_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/machine"
)

// serviceAccount writes the key file of an account whose tokens come from a URL,
// and has the environment name it.
func serviceAccount(t *testing.T, tokens string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "node@example.org", "token_uri": tokens,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "account.json")
	storagetest.Write(t, file, text)
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
}

// Requests carry a token of the account that the environment names. One that
// Google refuses is the node's fault, and neither key nor token is told.
func TestGoogleCredentials(t *testing.T) {
	var refuse bool
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if refuse {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error": "invalid_grant", "error_description": "account not found"}`))
			return
		}
		_, _ = w.Write([]byte(`{"access_token": "SECRET", "token_type": "Bearer", "expires_in": 3600}`))
	}))
	t.Cleanup(tokens.Close)
	serviceAccount(t, tokens.URL)
	s := storagetest.FakeGCS(t)
	proxy := storagetest.NewProxy(t, s.Options.GCS.Endpoint)
	s.Options.GCS = storage.GCS{Endpoint: proxy.URL}
	content := storagetest.Content(1000)
	s.Store(t, "x", content)
	proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("Authorization") != "Bearer SECRET" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	dir, _, err := fetchInto(t, storage.New(s.Options), s.URL+"/x", "file")
	if err != nil {
		t.Fatal(err)
	}
	storagetest.Only(t, dir, "file", content)

	refuse = true
	_, _, err = fetchInto(t, storage.New(s.Options), s.URL+"/x", "file")
	if err == nil || machine.FaultOf(err) != machine.NodeFault || !strings.Contains(err.Error(), "account not found") {
		t.Errorf("refused: %v of fault %q", err, machine.FaultOf(err))
	}

	s.Options.GCS.Anonymous = true
	_, _, err = fetchInto(t, storage.New(s.Options), s.URL+"/x", "file")
	if err == nil || machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "401") {
		t.Errorf("anonymous: %v of fault %q", err, machine.FaultOf(err))
	}
}

// Whoever gives out tokens may be silent, too, or have too much to do.
func TestGoogleTokenIsAskedForAgain(t *testing.T) {
	var asked atomic.Int64
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			_, _ = io.Copy(io.Discard, r.Body) // or the end of the connection would not be seen
			<-r.Context().Done()
			return
		case 2:
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"access_token": "SECRET", "token_type": "Bearer", "expires_in": 3600}`))
	}))
	defer tokens.Close()
	serviceAccount(t, tokens.URL)
	google := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("content")) }))
	defer google.Close()
	s := storage.Hasten(storage.New(storage.Options{GCS: storage.GCS{Endpoint: google.URL}}), time.Second)
	dir, _, err := fetchInto(t, s, "gs://bucket/x", "file")
	if err != nil {
		t.Fatal(err)
	}
	storagetest.Only(t, dir, "file", []byte("content"))
}

// Another name would be that of another file, too.
func TestGoogleNamesAreText(t *testing.T) {
	s := storagetest.FakeGCS(t)
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, []byte("content"))
	err := putFile(s.Options, source, s.URL+"/\xff", nil, nil)
	if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "UTF-8") || len(s.Names(t)) > 0 {
		t.Errorf("error %v, objects %q", err, s.Names(t))
	}
}

// A token is for Google alone.
func TestGoogleTokenIsNotCarriedElsewhere(t *testing.T) {
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"access_token": "SECRET", "token_type": "Bearer", "expires_in": 3600}`))
	}))
	defer tokens.Close()
	serviceAccount(t, tokens.URL)
	var told []string
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		told = append(told, r.Header.Get("Authorization"))
	}))
	defer other.Close()
	google := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.Replace(other.URL, "127.0.0.1", "localhost", 1), http.StatusTemporaryRedirect)
	}))
	defer google.Close()
	s := storage.New(storage.Options{GCS: storage.GCS{Endpoint: google.URL}})
	if _, _, err := fetchInto(t, s, "gs://bucket/x", "file"); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("a redirect ends with %v", err)
	}
	if len(told) > 0 {
		t.Errorf("another host was asked, with %q", told)
	}
}

// An object that was stored compressed comes as it was stored: its checksums are
// of those bytes.
func TestGooglePackedObject(t *testing.T) {
	s := storagetest.FakeGCS(t)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte(strings.Repeat("a line\n", 1000))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(s.Options.GCS.Endpoint+"/upload/storage/v1/b/bucket/o?uploadType=media&contentEncoding=gzip&name=top/packed",
		"text/plain", bytes.NewReader(packed.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	dir, got, err := fetchInto(t, storage.New(s.Options), s.URL+"/packed", "file")
	if err != nil {
		t.Fatal(err)
	}
	storagetest.Only(t, dir, "file", packed.Bytes())
	if len(got.Verified) != 2 {
		t.Errorf("verified by %v", got.Verified)
	}
}
