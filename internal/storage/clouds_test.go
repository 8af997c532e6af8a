package storage_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/machine"
)

// cloud is an object store behind a proxy.
type cloud struct {
	storagetest.Server
	proxy *storagetest.Proxy
	// reads and writes tell requests for an object's bytes, and with them.
	reads, writes func(*http.Request) bool
}

var clouds = map[string]func(t *testing.T) cloud{
	"s3": func(t *testing.T) cloud {
		s := inPartsServers["s3"](t)
		return cloud{
			s.Server, s.proxy,
			func(r *http.Request) bool { return r.Method == http.MethodGet && !r.URL.Query().Has("list-type") },
			func(r *http.Request) bool { return r.Method == http.MethodPut },
		}
	},
	"azure": func(t *testing.T) cloud {
		s := inPartsServers["azure"](t)
		return cloud{
			s.Server, s.proxy,
			func(r *http.Request) bool { return r.Method == http.MethodGet && !r.URL.Query().Has("comp") },
			func(r *http.Request) bool {
				return r.Method == http.MethodPut && r.URL.Query().Get("comp") != "blocklist"
			},
		}
	},
	"gs": func(t *testing.T) cloud {
		s := storagetest.FakeGCS(t)
		proxy := storagetest.NewProxy(t, s.Options.GCS.Endpoint)
		s.Options.GCS.Endpoint = proxy.URL
		return cloud{
			s, proxy,
			func(r *http.Request) bool { return r.URL.Query().Get("alt") == "media" },
			func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/upload/") },
		}
	},
}

// open returns a Storage that waits little between its attempts.
func (c cloud) open() *storage.Storage {
	c.Options.RetryFor = 2 * time.Second
	return storage.Hasten(storage.New(c.Options), time.Minute)
}

// spoil hands the requests that meant selects to handle, with their number, from 1.
func (c cloud) spoil(meant func(*http.Request) bool, handle func(n int, w http.ResponseWriter, r *http.Request, next http.Handler)) *atomic.Int64 {
	n := &atomic.Int64{}
	c.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !meant(r) {
			next.ServeHTTP(w, r)
			return
		}
		handle(int(n.Add(1)), w, r, next)
	})
	return n
}

// altered passes on an answer whose header or body is not what the server has sent.
type altered struct {
	http.ResponseWriter
	header func(http.Header)
	body   func([]byte)
}

func (a *altered) WriteHeader(code int) {
	if a.header != nil {
		a.header(a.Header())
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *altered) Write(b []byte) (int, error) {
	if a.body != nil {
		b = bytes.Clone(b)
		a.body(b)
		a.body = nil
	}
	return a.ResponseWriter.Write(b)
}

func (a *altered) Flush() { a.ResponseWriter.(http.Flusher).Flush() }

func flip(b []byte) { b[len(b)/2] ^= 1 }

// What a cloud's server, or somebody before it, does wrong never becomes a wrong
// file. A row ends with the content, or with an error of a fault and no file.
func TestFetchFromFaultyClouds(t *testing.T) {
	content := storagetest.Content(storage.MinPart + 12345) // two parts
	other := bytes.Clone(content)
	for i := range other {
		other[i] ^= 0xff
	}
	rows := []struct {
		name   string
		handle func(c cloud, t *testing.T, n int, w http.ResponseWriter, r *http.Request, next http.Handler)
		want   []byte        // nil: it cannot be had
		fault  machine.Fault // then
		most   int64         // requests, where that matters
	}{
		{name: "cut", want: content, handle: func(_ cloud, _ *testing.T, n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n <= 3 {
				w = cut(w, 100_000)
			}
			next.ServeHTTP(w, r)
		}},
		{name: "busy", want: content, handle: func(_ cloud, _ *testing.T, n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n <= 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		}},
		// It is read without ranges then.
		{name: "another range", want: content, handle: func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&altered{ResponseWriter: w, header: func(h http.Header) {
				if h.Get("Content-Range") != "" {
					h.Set("Content-Range", "bytes 1-5/6")
				}
			}}, r)
		}},
		{name: "changed meanwhile", want: other, handle: func(c cloud, t *testing.T, n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n == 2 {
				c.Store(t, "changed_meanwhile", other)
			}
			next.ServeHTTP(w, r)
		}},
		{name: "wrong byte once", want: content, handle: func(_ cloud, _ *testing.T, n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n == 1 {
				w = &altered{ResponseWriter: w, body: flip}
			}
			next.ServeHTTP(w, r)
		}},
		{name: "wrong bytes", handle: func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&altered{ResponseWriter: w, body: flip}, r)
		}, fault: machine.TaskFault},
		{name: "refused", handle: func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusForbidden)
		}, fault: machine.TaskFault, most: 2},
		{name: "gone", handle: func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusNotFound)
		}, fault: machine.TaskFault, most: 2},
		{name: "never well", handle: func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusInternalServerError)
		}, fault: machine.RetryLater},
	}
	for name, start := range clouds {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					object := strings.ReplaceAll(row.name, " ", "_")
					c.Store(t, object, content)
					s := c.open()
					requests := c.spoil(c.reads, func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
						row.handle(c, t, n, w, r, next)
					})
					defer c.proxy.Handle(nil)
					dir, _, err := fetchInto(t, s, s.Join(c.URL, object), "file")
					if row.want != nil {
						if err != nil {
							t.Fatal(err)
						}
						storagetest.Only(t, dir, "file", row.want)
						return
					}
					if err == nil || machine.FaultOf(err) != row.fault {
						t.Errorf("error %v of fault %q, want %q", err, machine.FaultOf(err), row.fault)
					}
					if _, err := os.Lstat(filepath.Join(dir, "file")); err == nil {
						t.Error("there is a file under the final name")
					}
					if row.most > 0 && requests.Load() > row.most {
						t.Errorf("%d requests", requests.Load())
					}
				})
			}
		})
	}
}

// What does not arrive as it was sent is not published.
func TestPutToFaultyClouds(t *testing.T) {
	rows := []struct {
		name   string
		handle func(n int, w http.ResponseWriter, r *http.Request, next http.Handler)
		fault  machine.Fault // empty: it is published all the same
	}{
		{name: "cut", handle: func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n <= 2 {
				_, _ = io.CopyN(io.Discard, r.Body, 10_000)
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		}},
		{name: "answer lost", handle: func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(w, r)
			if n == 1 {
				panic(http.ErrAbortHandler)
			}
		}},
		{name: "busy", handle: func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n <= 2 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		}},
		{name: "wrong bytes", handle: func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			r.Body = struct {
				io.Reader
				io.Closer
			}{&flipped{r.Body, 20_000}, r.Body}
			next.ServeHTTP(w, r)
		}, fault: machine.RetryLater},
		{name: "refused", handle: func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusForbidden)
		}, fault: machine.TaskFault},
	}
	for name, start := range clouds {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					for size, content := range map[string][]byte{
						"small": storagetest.Content(70_000), "large": storagetest.Content(storage.MinPart + 12345),
					} {
						object := strings.ReplaceAll(row.name, " ", "_") + "_" + size
						source := filepath.Join(t.TempDir(), "source")
						storagetest.Write(t, source, content)
						s := c.open()
						c.spoil(c.writes, row.handle)
						upload := ""
						err := putBy(s, source, s.Join(c.URL, object), &upload)
						c.proxy.Handle(nil)
						if row.fault == "" {
							if err != nil {
								t.Errorf("%s: %v", size, err)
							} else if got := c.Load(t, object); !bytes.Equal(got, content) {
								t.Errorf("%s: %d bytes were published, or others", size, len(got))
							}
							continue
						}
						if err == nil || machine.FaultOf(err) != row.fault {
							t.Errorf("%s: error %v of fault %q, want %q", size, err, machine.FaultOf(err), row.fault)
						}
						for _, n := range c.Names(t) {
							if strings.HasSuffix(n, object) {
								t.Errorf("%s: %s was published", size, n)
							}
						}
						// Azure drops its blocks itself.
						if err := s.Abort(t.Context(), s.Join(c.URL, object), storage.Unfinished{Tag: "tag", InParts: true, Upload: upload}); err != nil {
							t.Error(err)
						}
					}
				})
			}
		})
	}
}

// flipped reads a body of which one bit is another, after so many bytes.
type flipped struct {
	io.Reader
	after int
}

func (f *flipped) Read(b []byte) (int, error) {
	n, err := f.Reader.Read(b)
	if f.after >= 0 && f.after < n {
		b[f.after] ^= 1
	}
	f.after -= n
	return n, err
}
