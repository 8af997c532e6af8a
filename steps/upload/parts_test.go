package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// partial is a storage whose uploads in parts do not end.
type partial struct {
	began   []storage.Upload  // what Begin is told, in order
	err     error             // of each Put
	uploads []*storage.Upload // that each Put was to go on with
	aborted map[string]storage.Unfinished
}

func (p *partial) Put(ctx context.Context, r storage.PutRequest) error {
	p.uploads = append(p.uploads, r.Upload)
	for _, upload := range p.began {
		if err := r.Begin(ctx, upload); err != nil {
			return err
		}
	}
	return p.err
}

func (p *partial) Abort(_ context.Context, url string, left storage.Unfinished) error {
	if left.Upload != nil {
		p.aborted[url] = left
	}
	return nil
}

func (p *partial) Join(url, name string) string { return url + "/" + name }

// What is known of an upload in parts is journaled before its parts are sent: the
// next process goes on with it, and a roll-back aborts it.
func TestUploadInPartsIsJournaled(t *testing.T) {
	plan := storage.Upload{Others: []string{"id-a", "id-b"}, Listed: true}
	for _, began := range [][]storage.Upload{
		{plan}, // killed before the storage told its ID
		{{}},   // nor what else there was
		{plan, {ID: "id-1"}},
		{plan, {ID: "id-1"}, plan, {ID: "id-2"}}, // the first was gone
	} {
		f := newFixture(t, map[string]string{"/o/x": "12"}, nil, tes.Output{Path: "/o/x", URL: "https://h/x?sig=secret"})
		p := &partial{began: began, err: machine.Faultf(machine.RetryLater, "down"), aborted: map[string]storage.Unfinished{}}
		f.step.Storage = p
		for range 2 {
			if err := f.step.Do(t.Context(), f.task, f.notes); !errors.Is(err, p.err) {
				t.Fatal(err)
			}
		}
		last := &began[len(began)-1]
		if p.uploads[0] != nil || !reflect.DeepEqual(p.uploads[1], last) {
			t.Errorf("%+v: the uploads to go on with were %+v", began, p.uploads)
		}
		f.task.Outcome = machine.SystemError
		if err := f.step.Undo(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
		if left := p.aborted["https://h/x"]; len(p.aborted) != 1 || !reflect.DeepEqual(left.Upload, last) || left.Tag == "" {
			t.Errorf("%+v: aborted are %+v", began, p.aborted)
		}
		for _, note := range f.notes.All(whatInParts) {
			if strings.Contains(string(note.Detail), "secret") {
				t.Errorf("the journal has a secret: %s", note.Detail)
			}
		}
	}
}

// What signs a URL is neither journaled nor logged, whether the file is published
// or refused by a server that repeats what it was asked.
func TestSignaturesAreNotNoted(t *testing.T) {
	for _, url := range []string{
		"/bucket/x?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET",
		"https://account.blob.core.windows.net/bucket/x?sv=2022-11-02&sig=SECRET",
	} {
		for _, status := range []int{http.StatusCreated, http.StatusForbidden} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.URL.RawQuery, "SECRET") {
					t.Errorf("asked for %s", r.URL)
				}
				w.WriteHeader(status)
				_, _ = fmt.Fprintf(w, "http://%s%s: %s", r.Host, r.URL, r.URL)
			}))
			defer server.Close()
			signed := url
			if strings.HasPrefix(url, "/") {
				signed = server.URL + url
			}
			f := newFixture(t, map[string]string{"/o/x": "12"}, nil, tes.Output{Path: "/o/x", URL: signed})
			var log bytes.Buffer
			f.step.Log = slog.New(slog.NewTextHandler(&log, nil))
			f.step.Storage = storage.New(storage.Options{Log: f.step.Log, Azure: storage.Azure{Endpoint: server.URL + "/{account}"}})
			f.task.Failed = true // what is refused becomes a warning
			if err := f.step.Do(t.Context(), f.task, f.notes); err != nil {
				t.Fatal(err)
			}
			noted := log.String()
			for _, what := range []string{WhatOutputs, whatInParts, whatUpload, machine.WhatWarning} {
				for _, note := range f.notes.All(what) {
					noted += string(note.Detail) + "\n"
				}
			}
			if refused := status == http.StatusForbidden; strings.Contains(noted, "403") != refused || !strings.Contains(noted, "/bucket/x") {
				t.Errorf("%d: noted is\n%s", status, noted)
			}
			if strings.Contains(noted, "SECRET") {
				t.Errorf("%d: a secret is noted:\n%s", status, noted)
			}
		}
	}
}
