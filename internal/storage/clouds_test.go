package storage_test

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"github.com/deckhand/deckhand/internal/progress"
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

// open returns a Storage that waits little between its attempts, goes on with them for
// a while and gives up a silent server after idle, or a minute.
func (c cloud) open(retryFor, idle time.Duration) *storage.Storage {
	c.Options.RetryFor = retryFor
	return storage.Hasten(storage.New(c.Options), cmp.Or(idle, time.Minute))
}

// patience is how long a failure is outlasted that is to pass; one that is not needs little.
func patience(passes bool) time.Duration {
	if passes {
		return time.Minute
	}
	return 2 * time.Second
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

// stalling passes on so many bytes and then nothing.
type stalling struct {
	http.ResponseWriter
	left  int
	until <-chan struct{}
}

func (s *stalling) Write(b []byte) (int, error) {
	if len(b) > s.left {
		_, _ = s.ResponseWriter.Write(b[:s.left])
		s.Flush()
		<-s.until
		panic(http.ErrAbortHandler)
	}
	s.left -= len(b)
	return s.ResponseWriter.Write(b)
}

func (s *stalling) Flush() { s.ResponseWriter.(http.Flusher).Flush() }

// comeBack refuses for an hour.
func comeBack(status int) func(cloud, *testing.T, int, http.ResponseWriter, *http.Request, http.Handler) {
	return func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(status)
	}
}

func flip(b []byte) { b[len(b)/2] ^= 1 }

// An object with the name of a directory may have content, which no directory has.
func TestContentOfADirectoryIsNotDropped(t *testing.T) {
	for kind, open := range map[string]func(*testing.T) storagetest.Server{
		"gs":    func(t *testing.T) storagetest.Server { return storagetest.FakeGCS(t) },
		"azure": func(t *testing.T) storagetest.Server { s, _, _ := storagetest.Azurite(t); return s },
	} {
		t.Run(kind, func(t *testing.T) {
			s := open(t)
			for _, name := range []string{"above/below/", "itself/"} {
				top, _, _ := strings.Cut(name, "/")
				s.Store(t, top+"/file", []byte("content"))
				s.Store(t, name, []byte("content"))
				var err error
				for _, e := range storage.New(s.Options).List(t.Context(), s.URL+"/"+top) {
					err = e
				}
				if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), name+`" below it cannot be a file: it has 7 bytes`) {
					t.Errorf("%q: %v", name, err)
				}
			}
		})
	}
}

// A key may have a part that is longer than a file's name can be. That is found out before anything is
// fetched, and no node can have such a file.
func TestNamesThatNoFileCanHave(t *testing.T) {
	long := strings.Repeat("n", 255)
	s := storagetest.FakeGCS(t)
	for name, refused := range map[string]bool{"file/" + long: false, "directory/" + long + "/b": false, "longer file/" + long + "n": true, "longer directory/" + long + "n/b": true} {
		s.Store(t, name, []byte("content"))
		top, _, _ := strings.Cut(name, "/")
		var err error
		for _, e := range storage.New(s.Options).List(t.Context(), s.URL+"/"+top) {
			err = e
		}
		if refused != (err != nil && machine.FaultOf(err) == machine.TaskFault && strings.Contains(err.Error(), "255")) {
			t.Errorf("%s: %v", top, err)
		}
	}
}

// What is published was the file's content at some time, also when somebody writes to it
// while it is sent.
func TestFileThatChangesIsPublishedAgain(t *testing.T) {
	for kind, open := range clouds {
		for _, size := range []int{100, 3 * storage.MinPart / 2} {
			t.Run(fmt.Sprint(kind, " ", size), func(t *testing.T) {
				c := open(t)
				source := filepath.Join(t.TempDir(), "source")
				storagetest.Write(t, source, storagetest.Content(size))
				// Long ago: two writes within a tick of the kernel's clock have one time.
				if err := os.Chtimes(source, time.Time{}, time.Unix(1, 0)); err != nil {
					t.Fatal(err)
				}
				f, err := os.OpenFile(source, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				want := bytes.Repeat([]byte("new!"), size/4)
				c.spoil(c.writes, func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
					if n == 1 { // and the first piece has arrived
						b, _ := io.ReadAll(r.Body) // or the request fails
						r.Body = io.NopCloser(bytes.NewReader(b))
						if _, err := f.WriteAt(want, 0); err != nil {
							t.Error(err)
						}
					}
					next.ServeHTTP(w, r)
				})
				if err := putFile(c.Options, source, c.URL+"/changing", nil, &storage.Upload{}); err != nil {
					t.Fatal(err)
				}
				if got := c.Load(t, "changing"); !bytes.Equal(got, want) {
					t.Errorf("%d bytes are published, or not those that the file has", len(got))
				}
			})
		}
	}
}

// Blocks that another tool has left, whose names have another length, do not keep a blob
// from being published, and a lease is told for what it is.
func TestAzureBlobInOtherHands(t *testing.T) {
	s, client, _ := storagetest.Azurite(t)
	source := filepath.Join(t.TempDir(), "source")
	content := storagetest.Content(storage.MinPart + 1)
	storagetest.Write(t, source, content)
	block := base64.StdEncoding.EncodeToString([]byte("00001"))
	if _, err := client.NewBlockBlobClient("top/begun").StageBlock(t.Context(), block, streaming.NopCloser(strings.NewReader("theirs")), nil); err != nil {
		t.Fatal(err)
	}
	meter := &progress.Meter{}
	if err := putFile(s.Options, source, s.URL+"/begun", meter, &storage.Upload{}); err != nil {
		t.Fatal(err)
	}
	if got := s.Load(t, "begun"); !bytes.Equal(got, content) {
		t.Errorf("%d bytes are published, or others", len(got))
	}
	if done := meter.Snapshot().BytesDone; done != int64(len(content)) {
		t.Errorf("the meter shows %d bytes", done)
	}

	s.Store(t, "leased", []byte("theirs"))
	theirs, err := lease.NewBlobClient(client.NewBlobClient("top/leased"), nil)
	if err == nil {
		_, err = theirs.AcquireLease(t.Context(), 60, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	err = putFile(s.Options, source, s.URL+"/leased", nil, &storage.Upload{})
	if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "412 LeaseIdMissing") {
		t.Errorf("error %v of fault %q", err, machine.FaultOf(err))
	}
}

// A managed identity is waited for, and not done without.
func TestAzureIdentityIsWaitedFor(t *testing.T) {
	for _, name := range []string{"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_CONNECTION_STRING"} {
		t.Setenv(name, "") // so that it comes back
		os.Unsetenv(name)
	}
	service := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer SECRET" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, "content")
	}))
	defer service.Close()
	var asked atomic.Int64
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) <= 4 { // as often as the client tries
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, `{"access_token": "SECRET", "expires_on": "%d", "token_type": "Bearer"}`, time.Now().Add(time.Hour).Unix())
	}))
	defer source.Close()
	t.Setenv("IDENTITY_ENDPOINT", source.URL)
	t.Setenv("IDENTITY_HEADER", "x")
	options := storage.Options{Azure: storage.Azure{Account: "account", Endpoint: service.URL + "/{account}"}, RetryFor: 10 * time.Second}
	st := storage.Trust(storage.Hasten(storage.New(options), time.Minute), service)
	if _, _, err := fetchInto(t, st, "az://bucket/x", "file"); err != nil {
		t.Error(err)
	}
}

// Whoever answers for a cloud's server, what came without a length is not taken for whole.
func TestCloudsTellLengths(t *testing.T) {
	credentials(t)
	t.Setenv("STORAGE_EMULATOR_HOST", "host") // without credentials
	for kind, k := range kinds {
		t.Run(kind, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				raw("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nConnection: close\r\n\r\na cut fi")(nil, 0, w, r)
			}))
			defer server.Close()
			url := strings.Replace(k.url, "HOST", strings.TrimPrefix(server.URL, "http://"), 1)
			_, _, err := fetchInto(t, storage.New(k.options(server.URL)), url, "file")
			if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "neither a length nor a checksum") {
				t.Errorf("error %v of fault %q", err, machine.FaultOf(err))
			}
		})
	}
}

// Nor is an upload of which nobody has read the end taken for published.
func TestCloudsTakeTheWholeFile(t *testing.T) {
	credentials(t)
	for _, kind := range []string{"http", "s3", "azure with a key"} {
		t.Run(kind, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }))
			defer server.Close()
			options := kinds[kind].options(server.URL)
			options.RetryFor = time.Millisecond
			path := filepath.Join(t.TempDir(), "source")
			storagetest.Write(t, path, storagetest.Content(storage.MinPart))
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			url := strings.Replace(kinds[kind].url, "HOST", strings.TrimPrefix(server.URL, "http://"), 1)
			err = storage.Hasten(storage.New(options), time.Minute).Put(t.Context(), storage.PutRequest{URL: url, File: f, Size: storage.MinPart})
			if err == nil || machine.FaultOf(err) != machine.RetryLater {
				t.Errorf("error %v of fault %q", err, machine.FaultOf(err))
			}
		})
	}
}

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
		says   string        // then
		most   int64         // requests, where that matters
		idle   time.Duration // a minute when 0
	}{
		{name: "slow drip", want: content, idle: 2 * time.Second, handle: func(_ cloud, _ *testing.T, n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n == 1 {
				w = &stalling{ResponseWriter: w, left: 100_000, until: r.Context().Done()}
			}
			next.ServeHTTP(w, r)
		}},
		{name: "the whole for a range", want: content, handle: func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Header.Get("Range") != "" || r.Header.Get("X-Ms-Range") != "" {
				_, _ = w.Write(content)
				return
			}
			next.ServeHTTP(w, r)
		}},
		{name: "packed on the way", handle: func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			answer := httptest.NewRecorder()
			next.ServeHTTP(answer, r)
			var packed bytes.Buffer
			z := gzip.NewWriter(&packed)
			_, _ = z.Write(answer.Body.Bytes()) // to memory
			_ = z.Close()
			maps.Copy(w.Header(), answer.Header())
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Length", strconv.Itoa(packed.Len()))
			w.WriteHeader(answer.Code)
			_, _ = w.Write(packed.Bytes())
		}, fault: machine.TaskFault},
		{name: "a redirect in a circle", handle: func(_ cloud, _ *testing.T, _ int, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.String(), http.StatusTemporaryRedirect)
		}, fault: machine.TaskFault, most: 11},
		{name: "a signature that expires half-way", handle: func(_ cloud, _ *testing.T, n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n > 1 {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			next.ServeHTTP(cut(w, 100_000), r)
		}, fault: machine.TaskFault, says: "403"},
		{name: "429 for an hour", handle: comeBack(http.StatusTooManyRequests), fault: machine.RetryLater, says: "asks to wait 1h0m0s", most: 1},
		{name: "503 for an hour", handle: comeBack(http.StatusServiceUnavailable), fault: machine.RetryLater, says: "asks to wait 1h0m0s", most: 1},
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
		}, fault: machine.RetryLater, says: "(attempt "},
	}
	for name, start := range clouds {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					object := strings.ReplaceAll(row.name, " ", "_")
					c.Store(t, object, content)
					s := c.open(patience(row.want != nil), row.idle)
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
					if text := fmt.Sprint(err); !strings.Contains(text, "cannot download "+s.Join(c.URL, object)+": ") || !strings.Contains(text, row.says) {
						t.Errorf("the error does not say what failed, where and why (%s): %s", row.says, text)
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
		says   string        // then
		// listed says that parts are taken for what a list of them says, and that
		// what went in one request may be there.
		listed bool
		idle   time.Duration // a minute when 0
	}{
		{name: "a redirect half-way", handle: halfWay(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}), fault: machine.TaskFault, says: "redirect"},
		{name: "credentials that expire half-way", handle: halfWay(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
		}), fault: machine.TaskFault, says: "credentials may be missing, wrong or expired"},
		{name: "503 for an hour half-way", handle: halfWay(func(w http.ResponseWriter, r *http.Request) {
			comeBack(http.StatusServiceUnavailable)(cloud{}, nil, 0, w, r, nil)
		}), fault: machine.RetryLater, says: "asks to wait 1h0m0s"},
		{name: "another checksum in the answer once", handle: func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n == 1 {
				otherChecksum(w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		}},
		{name: "another checksum in every answer", handle: func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			otherChecksum(w, r, next)
		}, fault: machine.RetryLater, says: "the storage says that it has the ", listed: true},
		{name: "another ETag in every answer", handle: func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&altered{ResponseWriter: w, header: func(h http.Header) { h.Set("ETag", `"0123456789abcdef0123456789abcdef"`) }}, r)
		}},
		{name: "no answer", idle: 3 * time.Second, handle: func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n == 1 {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		}},
		{name: "429 for an hour", handle: func(_ int, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			comeBack(http.StatusTooManyRequests)(cloud{}, nil, 0, w, r, nil)
		}, fault: machine.RetryLater, says: "asks to wait 1h0m0s"},
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
						passes := row.fault == "" || row.listed && size == "large" && name != "gs"
						s := c.open(patience(passes), row.idle)
						c.spoil(c.writes, row.handle)
						var upload storage.Upload
						err := putBy(s, source, s.Join(c.URL, object), &upload)
						c.proxy.Handle(nil)
						if passes {
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
						if text := fmt.Sprint(err); !strings.Contains(text, "cannot upload to "+s.Join(c.URL, object)+": ") || !strings.Contains(text, row.says) {
							t.Errorf("%s: the error does not say what failed, where and why (%s): %s", size, row.says, text)
						}
						for _, n := range c.Names(t) {
							if strings.HasSuffix(n, object) && !row.listed {
								t.Errorf("%s: %s was published", size, n)
							}
						}
						// Azure drops its blocks itself.
						if err := s.Abort(t.Context(), s.Join(c.URL, object), storage.Unfinished{Tag: "tag", Upload: &upload}); err != nil {
							t.Error(err)
						}
					}
				})
			}
		})
	}
}

// halfWay spoils an upload of one request when that has come, and one in two
// parts when the first is there.
func halfWay(answer func(http.ResponseWriter, *http.Request)) func(int, http.ResponseWriter, *http.Request, http.Handler) {
	return func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.ContentLength == storage.MinPart {
			next.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		answer(w, r)
	}
}

// otherChecksum passes on an answer that tells of other bytes than were sent.
func otherChecksum(w http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(&altered{
		ResponseWriter: w,
		header: func(h http.Header) {
			for name, size := range map[string]int{"X-Amz-Checksum-Crc32c": 4, "Content-Md5": 16, "X-Ms-Content-Crc64": 8} {
				h.Set(name, b64(make([]byte, size)))
			}
		},
		body: func(b []byte) { // Google's resource of the object
			if _, after, ok := bytes.Cut(b, []byte(`"crc32c":"`)); ok {
				copy(after, "AAAAAA==")
			}
		},
	}, r)
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

// A URL of Azure's own is one also with the port that it means without one.
func TestAzureURLs(t *testing.T) {
	for url, want := range map[string]bool{
		"https://a.blob.core.windows.net/c/x": true, "https://a.blob.core.windows.net:443/c/x": true, "HTTPS://A.BLOB.CORE.WINDOWS.NET:443?comp=list": true,
		"https://a.blob.core.windows.net:/c/x": true, "https://a.blob.core.windows.net:8443/c/x": false, "http://a.blob.core.windows.net:443/c/x": false,
		"https://user:pw@a.blob.core.windows.net:443/c/x": true, "https://h:443/a.blob.core.windows.net:443": false,
	} {
		if is, _ := storage.IsAzure(url); is != want {
			t.Errorf("%s: %t", url, is)
		}
	}
	if _, host := storage.IsAzure("https://a.blob.core.windows.net:443/c/x"); host != "a.blob.core.windows.net" {
		t.Errorf("%s is asked", host)
	}
}
