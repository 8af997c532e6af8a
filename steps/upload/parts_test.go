package upload

import (
	"context"
	"errors"
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
