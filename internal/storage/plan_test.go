package storage

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestPlan(t *testing.T) {
	p := newPlan(35, 10)
	first, second := p.claim(), p.claim()
	if len(p.parts) != 4 || first.begin != 0 || second.begin != 10 || p.parts[3].end != 35 {
		t.Fatalf("parts %+v", p.parts)
	}
	p.advance(first, 10)
	p.advance(second, 4)
	p.release(second)
	if there, _ := p.wait(0); there != 10 {
		t.Errorf("%d bytes are there without a gap, want 10", there)
	}
	// A stream that has read the first part would go on at 10, where the second
	// part has its bytes already.
	if next := p.finish(first, 35); next != nil {
		t.Errorf("the stream goes on with %+v", next)
	}
	if there, _ := p.wait(10); there != 14 {
		t.Errorf("%d bytes are there without a gap, want 14", there)
	}
	if again := p.claim(); again != second || again.at != 14 {
		t.Errorf("claimed %+v, want the part that was given back", again)
	}
	p.advance(second, 6)
	if next := p.finish(second, 30); next != p.parts[2] {
		t.Errorf("the stream does not go on but with %+v", next)
	}
	// The last part is not in a stream that ends at 30.
	p.advance(p.parts[2], 10)
	if next := p.finish(p.parts[2], 30); next != nil || !p.unclaimed() || p.whole() {
		t.Errorf("the stream goes on with %+v", next)
	}
	last := p.claim()
	p.advance(last, 5)
	p.finish(last, 35)
	if p.claim() != nil || p.unclaimed() || !p.whole() || p.written() != 35 {
		t.Errorf("not whole: %d bytes", p.written())
	}
}

// curt is a store whose readers end early without saying so.
type curt struct {
	Store
	content []byte
}

func (c curt) Open(_ context.Context, _ string, r Range) (*Reader, error) {
	rest := c.content[r.Offset:]
	return &Reader{
		ReadCloser: io.NopCloser(bytes.NewReader(rest[:min(len(rest), 1000)])),
		Object:     Object{Size: int64(len(c.content)), Version: "1", Ranges: true},
		Offset:     r.Offset,
	}, nil
}

func TestEarlyEndOfAReaderIsNotTheEnd(t *testing.T) {
	s := Hasten(New(Options{}), time.Minute)
	content := bytes.Repeat([]byte("0123456789"), 499)
	s.stores[0] = curt{content: content}
	dir := t.TempDir()
	into, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	if _, err := s.Fetch(context.Background(), FetchRequest{URL: "/any", Dir: into, Name: "file"}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "file")); !bytes.Equal(got, content) {
		t.Errorf("%d bytes came of %d, or others", len(got), len(content))
	}
}
