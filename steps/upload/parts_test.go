package upload

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// partial is a storage whose uploads in parts do not end.
type partial struct {
	began   []string // what Begin is told, in order
	err     error    // of each Put
	uploads []string // that each Put was to go on with
	unnamed []bool   // that each Put was to look for
	aborted map[string]storage.Unfinished
}

func (p *partial) Put(ctx context.Context, r storage.PutRequest) error {
	p.uploads, p.unnamed = append(p.uploads, r.Upload), append(p.unnamed, r.Unnamed)
	for _, upload := range p.began {
		if err := r.Begin(ctx, upload); err != nil {
			return err
		}
	}
	return p.err
}

func (p *partial) Abort(_ context.Context, url string, left storage.Unfinished) error {
	if left.InParts {
		p.aborted[url] = left
	}
	return nil
}

func (p *partial) Join(url, name string) string { return url + "/" + name }

// What an upload in parts is called is journaled before its parts are sent: the
// next process goes on with it, and a roll-back aborts it.
func TestUploadInPartsIsJournaled(t *testing.T) {
	for _, row := range []struct{ began, next, upload string }{
		{"", "", ""}, // killed before the storage told its name
		{" id-1", "id-1", "id-1"},
		{" id-1  id-2", "id-2", "id-2"}, // the first was gone
	} {
		f := newFixture(t, map[string]string{"/o/x": "12"}, nil, tes.Output{Path: "/o/x", URL: "https://h/x?sig=secret"})
		p := &partial{began: strings.Split(row.began, " "), err: machine.Faultf(machine.RetryLater, "down"), aborted: map[string]storage.Unfinished{}}
		f.step.Storage = p
		for range 2 {
			if err := f.step.Do(t.Context(), f.task, f.notes); !errors.Is(err, p.err) {
				t.Fatal(err)
			}
		}
		if p.uploads[0] != "" || p.uploads[1] != row.next {
			t.Errorf("%q: the uploads to go on with were %q", row.began, p.uploads)
		}
		if p.unnamed[0] || p.unnamed[1] != (row.next == "") {
			t.Errorf("%q: the uploads to look for were %v", row.began, p.unnamed)
		}
		f.task.Outcome = machine.SystemError
		if err := f.step.Undo(t.Context(), f.task, f.notes); err != nil {
			t.Fatal(err)
		}
		if left := p.aborted["https://h/x"]; len(p.aborted) != 1 || left.Upload != row.upload || !left.InParts || left.Tag == "" {
			t.Errorf("%q: aborted are %+v", row.began, p.aborted)
		}
		for _, note := range f.notes.All(whatInParts) {
			if strings.Contains(string(note.Detail), "secret") {
				t.Errorf("the journal has a secret: %s", note.Detail)
			}
		}
	}
}
