package ring

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func newRing(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ring")
	if err := Make(name); err != nil {
		t.Fatal(err)
	}
	return name
}

func writer(t *testing.T, name string) *Writer {
	t.Helper()
	w, err := Append(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// Whatever is written in whatever pieces, the end of it is read, also by who goes
// on reading, and the file does not grow.
func TestRing(t *testing.T) {
	name := newRing(t)
	blocks := func() (size int64) {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := blocks()
	w := writer(t, name)
	follower, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	random := rand.New(rand.NewPCG(1, 2))
	var stream, followed bytes.Buffer
	for range 300 {
		p := make([]byte, random.IntN(10_000))
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		if random.IntN(20) == 0 {
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			w = writer(t, name) // a writer that goes on
		}
		stream.Write(p)
		if n, err := w.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		if lost, err := follower.Next(&followed); lost != 0 || err != nil {
			t.Fatalf("the follower has lost %d bytes, %v", lost, err)
		}
		r, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		var end bytes.Buffer
		lost, err := r.Next(&end)
		r.Close()
		kept := min(Kept, stream.Len())
		if err != nil || !bytes.Equal(end.Bytes(), stream.Bytes()[stream.Len()-kept:]) || lost != int64(stream.Len()-kept) {
			t.Fatalf("after %d bytes %d are read and %d lost, %v; or others", stream.Len(), end.Len(), lost, err)
		}
	}
	if !bytes.Equal(followed.Bytes(), stream.Bytes()) {
		t.Errorf("the follower has %d of %d bytes, or others", followed.Len(), stream.Len())
	}
	if after := blocks(); after != before {
		t.Errorf("the file has grown from %d to %d bytes", before, after)
	}
}

// A reader beside a writer that overtakes it gets no byte that belongs elsewhere.
func TestReadWhileWritten(t *testing.T) {
	name := newRing(t)
	w := writer(t, name)
	done := make(chan error)
	const pieces = 2000
	go func() {
		p := make([]byte, 30_001) // of no common divisor with the file
		for i := range pieces {
			for j := range p {
				p[j] = byte((i*len(p) + j) % 251)
			}
			if _, err := w.Write(p); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	r, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	at := 0
	read := func() {
		var part bytes.Buffer
		lost, err := r.Next(&part)
		if err != nil {
			t.Fatal(err)
		}
		at += int(lost)
		for i, b := range part.Bytes() {
			if b != byte((at+i)%251) {
				t.Fatalf("byte %d is %d, of %d after %d lost ones", at+i, b, part.Len(), lost)
			}
		}
		at += part.Len()
	}
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if read(); at != pieces*30_001 {
				t.Errorf("%d bytes, want %d", at, pieces*30_001)
			}
			return
		default:
			read()
		}
	}
}

// A ring that is there stays as it is; one that a dying process has not made whole
// is made anew.
func TestMakeAgain(t *testing.T) {
	name := newRing(t)
	if _, err := writer(t, name).Write([]byte("kept")); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(t.TempDir(), "half")
	if err := os.WriteFile(half, []byte("1234567"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{name: "kept", half: ""} {
		if err := Make(file); err != nil {
			t.Fatal(err)
		}
		r, err := Open(file)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := r.Next(&got); err != nil || got.String() != want {
			t.Errorf("%q, %v; want %q", &got, err, want)
		}
		r.Close()
	}
}

// Whatever a task has put there, reading ends, with no more than fits.
func TestReadWhatATaskPutThere(t *testing.T) {
	for _, content := range [][]byte{
		nil, []byte("short"), bytes.Repeat([]byte{0xff}, header+capacity), bytes.Repeat([]byte{0x7f}, header+10), bytes.Repeat([]byte{0x7f}, 2*capacity),
	} {
		name := filepath.Join(t.TempDir(), "ring")
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := r.Next(&got); got.Len() > Kept || err != nil || (got.Len() > 0) != (len(content) >= header+capacity) {
			t.Errorf("%d bytes are read of %d, %v", got.Len(), len(content), err)
		}
		r.Close()
	}
}

var _ io.WriteCloser = (*Writer)(nil)
