package storage_test

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
)

func TestCRC32COfParts(t *testing.T) {
	table := crc32.MakeTable(crc32.Castagnoli)
	b := storagetest.Content(1 << 20)
	for range 100 {
		from := rand.IntN(len(b))
		to := from + rand.IntN(len(b)-from+1)
		got := storage.CRC32COf(crc32.Checksum(b[:from], table), crc32.Checksum(b[from:to], table), int64(to-from))
		if want := crc32.Checksum(b[:to], table); got != want {
			t.Fatalf("of %d and %d bytes: %08x, want %08x", from, to-from, got, want)
		}
	}
}

// inParts is a storage that takes large files in parts, behind a proxy.
type inParts struct {
	storagetest.Server
	proxy *storagetest.Proxy
	// part says that a request sends a part, complete that it makes an object of them.
	part, complete func(r *http.Request) bool
	// unfinished counts the uploads that somebody could go on with.
	unfinished func(t *testing.T) int
	// another begins an upload of a key as another tool would; nil where none can.
	another func(t *testing.T, key string)
	// sums says that the storage tells the checksum of the whole object.
	sums bool
	// aborts says that an upload can be removed.
	aborts bool
}

// partSize and the size of the file, which has four parts.
const (
	partSize   = storage.MinPart
	partedSize = 3*partSize + 4321
)

func TestUploadInParts(t *testing.T) {
	for name, start := range inPartsServers {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			content := storagetest.Content(partedSize)
			source := filepath.Join(t.TempDir(), "source")
			storagetest.Write(t, source, content)
			// object names a fresh object of a subtest and its URL.
			object := func(t *testing.T) (name, url string) {
				name = strings.ReplaceAll(filepath.Base(t.Name()), " ", "_")
				return name, storage.New(s.Options).Join(s.URL, name)
			}
			published := func(t *testing.T, name string) {
				t.Helper()
				if got := s.Load(t, name); !bytes.Equal(got, content) {
					t.Errorf("%d bytes were published, or others", len(got))
				}
				if n := s.unfinished(t); n != 0 {
					t.Errorf("%d uploads are left", n)
				}
			}
			put := func(t *testing.T, url string, upload *storage.Upload) error {
				t.Helper()
				meter := &progress.Meter{}
				meter.Reset("upload")
				err := putFile(s.Options, source, url, meter, upload)
				if done := meter.Snapshot().BytesDone; err == nil && done != partedSize {
					t.Errorf("the meter shows %d bytes", done)
				}
				return err
			}

			t.Run("killed and continued", func(t *testing.T) {
				name, url := object(t)
				upload, had := killedUpload(t, s, source, url)
				var sent atomic.Int64
				s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if s.part(r) {
						sent.Add(1)
					}
					next.ServeHTTP(w, r)
				})
				defer s.proxy.Handle(nil)
				if err := put(t, url, &storage.Upload{ID: upload}); err != nil {
					t.Fatal(err)
				}
				if want := 4 - had; int(sent.Load()) != want {
					t.Errorf("%d parts were sent, %d were missing", sent.Load(), want)
				}
				published(t, name)
			})

			t.Run("killed and aborted", func(t *testing.T) {
				if !s.aborts {
					return // the storage itself removes what is left
				}
				_, url := object(t)
				before := strings.Join(s.Names(t), "\n")
				upload, _ := killedUpload(t, s, source, url)
				if n := s.unfinished(t); n != 1 {
					t.Fatalf("%d uploads are left by the kill", n)
				}
				for range 2 {
					if err := storage.New(s.Options).Abort(t.Context(), url, storage.Unfinished{Tag: "tag", Upload: &storage.Upload{ID: upload}}); err != nil {
						t.Fatal(err)
					}
				}
				if n := s.unfinished(t); n != 0 {
					t.Errorf("%d uploads are left", n)
				}
				if after := strings.Join(s.Names(t), "\n"); after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
			})

			t.Run("another file than the one that was begun", func(t *testing.T) {
				name, url := object(t)
				other := filepath.Join(t.TempDir(), "source")
				storagetest.Write(t, other, make([]byte, partedSize))
				upload, _ := killedUpload(t, s, other, url)
				if err := put(t, url, &storage.Upload{ID: upload}); err != nil {
					t.Fatal(err)
				}
				published(t, name)
			})

			t.Run("the answer to the last request is lost", func(t *testing.T) {
				name, url := object(t)
				var sent, completed atomic.Int64
				s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if s.part(r) {
						sent.Add(1)
					}
					if s.complete(r) && completed.Add(1) == 1 {
						next.ServeHTTP(discard{http.Header{}}, r)
						panic(http.ErrAbortHandler)
					}
					next.ServeHTTP(w, r)
				})
				defer s.proxy.Handle(nil)
				if err := put(t, url, new(storage.Upload)); err != nil {
					t.Fatal(err)
				}
				if s.sums && (sent.Load() != 4 || completed.Load() != 1) {
					t.Errorf("%d parts were sent and completed %d times", sent.Load(), completed.Load())
				}
				published(t, name)
			})

			t.Run("parts are refused for a while", func(t *testing.T) {
				name, url := object(t)
				var n atomic.Int64
				s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if s.part(r) && n.Add(1)%2 == 1 {
						w.Header().Set("Connection", "close") // the body is not read
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					}
					next.ServeHTTP(w, r)
				})
				defer s.proxy.Handle(nil)
				if err := put(t, url, new(storage.Upload)); err != nil {
					t.Fatal(err)
				}
				published(t, name)
			})

			t.Run("a byte changes on the way", func(t *testing.T) {
				name, url := object(t)
				var n atomic.Int64
				s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if s.part(r) && n.Add(1) == 2 {
						r.Body = &flipper{r.Body, 1000}
					}
					next.ServeHTTP(w, r)
				})
				defer s.proxy.Handle(nil)
				if err := put(t, url, new(storage.Upload)); err != nil {
					t.Fatal(err)
				}
				if n.Load() < 5 {
					t.Error("the changed part was not sent again")
				}
				published(t, name)
			})
		})
	}
}

// discard is an answer that nobody gets.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// flipper changes the byte at an offset.
type flipper struct {
	io.ReadCloser
	at int
}

func (f *flipper) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	if f.at >= 0 && f.at < n {
		b[f.at] ^= 1
	}
	f.at -= n
	return n, err
}

// putFile publishes a file, on with an upload that it is told of and tells of.
func putFile(o storage.Options, source, url string, meter *progress.Meter, upload *storage.Upload) error {
	o.Parallel, o.RetryFor, o.Meter = 4, time.Minute, meter
	return putBy(storage.Hasten(storage.New(o), time.Minute), source, url, upload)
}

// putBy publishes a file as one that goes on with an upload, and learns its name.
func putBy(st *storage.Storage, source, url string, upload *storage.Upload) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return st.Put(context.Background(), storage.PutRequest{
		URL: url, File: f, Size: info.Size(), Tag: "tag", Upload: upload,
		Begin: func(_ context.Context, u storage.Upload) error { *upload = u; return nil },
	})
}

// killedUpload kills an upload of a file of four parts when two parts have
// arrived, and returns what names it and how many parts the storage has. It has a
// proxy of its own: what it asked for may come late, when others are counted.
func killedUpload(t *testing.T, s inParts, source, url string) (upload string, had int) {
	t.Helper()
	var mu sync.Mutex
	begun := 0
	arrived := make(chan struct{}, 4)
	killed := make(chan struct{})
	proxy := storagetest.NewProxy(t, s.proxy.URL)
	proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !s.part(r) {
			next.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		begun++
		late := begun > 2
		mu.Unlock()
		if late {
			<-killed
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
		arrived <- struct{}{}
	})
	by := func(endpoint string) string { return strings.Replace(endpoint, s.proxy.URL, proxy.URL, 1) }
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "STORAGE_TEST_PUT="+url, "STORAGE_TEST_SOURCE="+source,
		"STORAGE_TEST_S3="+by(s.Options.S3.Endpoint), "STORAGE_TEST_AZURE="+by(s.Options.Azure.Endpoint))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case <-arrived:
		case <-time.After(3 * time.Minute):
			t.Fatal("the upload does not get on")
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed
	close(killed)
	proxy.Close()
	lines := strings.Fields(string(said))
	if len(lines) == 0 {
		t.Fatal("it did not say which upload it began")
	}
	return lines[len(lines)-1], 2
}
