package storage_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/machine"
)

// quick is a Storage that does not wait long between attempts. Rows that need
// one give up a silent server after idle.
func quick(retryFor, idle time.Duration) *storage.Storage {
	return storage.Hasten(storage.New(storage.Options{RetryFor: retryFor, Parallel: 4}), cmp.Or(idle, time.Minute))
}

// origin serves content as a good server does, until a row of the table spoils it.
type origin struct {
	content []byte
	etag    string // with quotes; empty for none

	mu       sync.Mutex
	requests []string // the Range of each, "-" for none
	sent     int
}

func (o *origin) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.requests)
}

// note counts a request and returns its number, from 1.
func (o *origin) note(r *http.Request) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	asked := r.Header.Get("Range")
	if asked == "" {
		asked = "-"
	}
	o.requests = append(o.requests, asked)
	return len(o.requests)
}

func (o *origin) serve(w http.ResponseWriter, r *http.Request) {
	if o.etag != "" {
		w.Header().Set("ETag", o.etag)
	}
	http.ServeContent(counter{w, o}, r, "", time.Time{}, bytes.NewReader(o.content))
}

type counter struct {
	http.ResponseWriter
	o *origin
}

func (c counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.o.mu.Lock()
	c.o.sent += n
	c.o.mu.Unlock()
	return n, err
}

// cut ends the connection after n bytes of the body.
func cut(w http.ResponseWriter, n int) http.ResponseWriter { return &cutter{w, n} }

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(b []byte) (int, error) {
	if len(b) > c.left {
		_, _ = c.ResponseWriter.Write(b[:c.left])
		c.Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(b)
	return c.ResponseWriter.Write(b)
}

func (c *cutter) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

func b64(sum []byte) string { return base64.StdEncoding.EncodeToString(sum) }

func TestFetchFromFaultyServers(t *testing.T) {
	const several = 3*storage.MinPart + 12345 // bytes: four parts
	a, b := storagetest.Content(several), storagetest.Content(several+1)
	c := bytes.Repeat([]byte{1}, several)
	small := storagetest.Content(70000)
	sha := sha256.Sum256(small)
	rightSHA := "sha-256=:" + b64(sha[:]) + ":"
	wrongSHA := "sha-256=:" + b64(make([]byte, 32)) + ":"
	sum := md5.Sum(small)
	wrongMD5 := b64(make([]byte, 16))

	// A row ends with the content want, or with an error of a fault that says
	// something.
	rows := []struct {
		name    string
		content []byte
		etag    string
		handle  func(o *origin, n int, w http.ResponseWriter, r *http.Request)
		want    []byte
		fault   machine.Fault
		says    string
		// most requests that the server may see; 0 for any number.
		most int
		// verified checksums of the file.
		verified int
		idle     time.Duration
	}{
		{name: "a good server", content: a, etag: `"a"`, want: a, most: 4,
			handle: func(o *origin, _ int, w http.ResponseWriter, r *http.Request) { o.serve(w, r) }},
		{name: "every connection is cut", content: a, etag: `"a"`, want: a,
			handle: func(o *origin, _ int, w http.ResponseWriter, r *http.Request) { o.serve(cut(w, 5<<20), r) }},
		{name: "a small file is cut", content: small, etag: `"a"`, want: small, most: 4,
			handle: func(o *origin, _ int, w http.ResponseWriter, r *http.Request) { o.serve(cut(w, 30000), r) }},
		{name: "cut once, without anything to pin", content: a, want: a, most: 2,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					w = cut(w, 5<<20)
				}
				o.serve(w, r)
			}},
		{name: "always cut, without anything to pin", content: small, fault: machine.RetryLater, says: "unexpected EOF",
			handle: func(o *origin, _ int, w http.ResponseWriter, r *http.Request) { o.serve(cut(w, 30000), r) }},
		{name: "a weak ETag pins nothing", content: small, etag: `W/"a"`, want: small, most: 2,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") != "" || r.Header.Get("If-Match") != "" {
					t.Errorf("asked for %q of %q", r.Header.Get("Range"), r.Header.Get("If-Match"))
				}
				if n == 1 {
					w = cut(w, 30000)
				}
				o.serve(w, r)
			}},
		{name: "the body is shorter than it says", content: small, fault: machine.RetryLater, says: "unexpected EOF",
			handle: func(o *origin, _ int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(len(o.content)+1))
				_, _ = w.Write(o.content)
			}},
		{name: "200 for a range", content: a, etag: `"a"`, want: a,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Accept-Ranges", "bytes")
				w.Header().Set("ETag", o.etag)
				w.Header().Set("Content-Length", strconv.Itoa(len(o.content)))
				if n == 1 {
					w = cut(w, 5<<20)
				}
				_, _ = w.Write(o.content)
			}},
		{name: "206 with another range", content: a, etag: `"a"`, want: a,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") == "" {
					o.serve(w, r)
					return
				}
				w.Header().Set("ETag", o.etag)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-99/%d", len(o.content)))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(o.content[:100])
			}},
		{name: "206 without Content-Range", content: a, etag: `"a"`, want: a,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") == "" {
					o.serve(w, r)
					return
				}
				w.Header().Set("ETag", o.etag)
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(o.content[:storage.MinPart])
			}},
		{name: "206 with a range that is longer than asked", content: a, etag: `"a"`, want: a,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				var begin int
				if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &begin); n == 1 {
					r.Header.Set("Range", fmt.Sprintf("bytes=%d-", begin))
				}
				o.serve(w, r)
			}},
		{name: "206 nobody asked for", content: small, etag: `"a"`, fault: machine.RetryLater, says: "does not keep to the range",
			handle: func(o *origin, _ int, w http.ResponseWriter, r *http.Request) {
				r.Header.Set("Range", "bytes=0-99")
				o.serve(w, r)
			}},
		{name: "changed between parts", content: a, etag: `"a"`, want: b,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if n > 1 {
					o = &origin{content: b, etag: `"b"`}
				}
				o.serve(w, r)
			}},
		{name: "changed between parts, and If-Match is ignored", content: a, etag: `"a"`, want: b,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				r.Header.Del("If-Match")
				if n > 1 {
					o = &origin{content: b, etag: `"b"`}
				}
				o.serve(w, r)
			}},
		{name: "changed between parts, as Last-Modified alone says", content: a, want: c,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				r.Header.Del("If-Unmodified-Since")
				content, at := a, time.Unix(1e9, 0)
				if n > 1 {
					content, at = c, at.Add(time.Second)
				}
				http.ServeContent(w, r, "", at, bytes.NewReader(content))
			}},
		{name: "changed between parts to the same length, and parts have no ETag", content: a, etag: `"a"`, want: a,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") != "" {
					o = &origin{content: make([]byte, len(a))}
				}
				r.Header.Del("If-Match")
				o.serve(w, r)
			}},
		{name: "mirrors that differ", content: a, want: a,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				(&origin{content: a, etag: fmt.Sprintf(`"%d"`, n)}).serve(w, r)
			}},
		{name: "a gzip surprise", content: small, etag: `"a"`, fault: machine.TaskFault, says: `Content-Encoding "gzip"`, most: 1,
			handle: func(o *origin, _ int, w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Accept-Encoding"); got != "identity" {
					t.Errorf("Accept-Encoding is %q", got)
				}
				w.Header().Set("Content-Encoding", "gzip")
				o.serve(w, r)
			}},
		{name: "a slow drip", idle: 2 * time.Second, content: small, etag: `"a"`, want: small, most: 1,
			handle: func(o *origin, _ int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(len(o.content)))
				for i := 0; i < len(o.content); i += 7000 {
					time.Sleep(250 * time.Millisecond) // together longer than the idle limit
					_, _ = w.Write(o.content[i:min(i+7000, len(o.content))])
					w.(http.Flusher).Flush()
				}
			}},
		{name: "silence half-way", idle: 300 * time.Millisecond, content: small, etag: `"a"`, want: small,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if n > 1 {
					o.serve(w, r)
					return
				}
				w.Header().Set("ETag", o.etag)
				w.Header().Set("Content-Length", strconv.Itoa(len(o.content)))
				_, _ = w.Write(o.content[:30000])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}},
		{name: "silence from the beginning", idle: 100 * time.Millisecond, content: small, fault: machine.RetryLater, says: "nothing came or went",
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{name: "429 and 503 for a while", content: small, want: small, most: 5,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				switch n {
				case 1, 3:
					w.WriteHeader(http.StatusTooManyRequests)
				case 2, 4:
					w.WriteHeader(http.StatusServiceUnavailable)
				default:
					o.serve(w, r)
				}
			}},
		{name: "a Retry-After beyond all patience", content: small, fault: machine.RetryLater, says: "asks to wait 2h", most: 1,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Retry-After", "7200")
				w.WriteHeader(http.StatusTooManyRequests)
			}},
		{name: "500 for ever", content: small, fault: machine.RetryLater, says: "500 Internal Server Error: out of order (attempt ",
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusInternalServerError)
				_, _ = io.WriteString(w, "out of\norder\x00")
			}},
		{name: "one connection only", content: a, etag: `"a"`, want: a,
			handle: func() func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				var busy sync.Mutex
				return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
					if !busy.TryLock() {
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					}
					defer busy.Unlock()
					o.serve(w, r)
				}
			}()},
		{name: "a redirect", content: a, etag: `"a"`, want: a,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/elsewhere" {
					http.Redirect(w, r, "/elsewhere", http.StatusFound)
					return
				}
				o.serve(w, r)
			}},
		{name: "a redirect in a circle", content: a, fault: machine.TaskFault, says: "stopped after 10 redirects",
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "/x", http.StatusFound)
			}},
		{name: "a redirect to nowhere", content: a, fault: machine.TaskFault, says: "302 Found", most: 1, handle: status(302)},
		{name: "a redirect to what is no URL", content: a, fault: machine.TaskFault, says: "redirects to what is no URL", most: 1,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "http://[::1/?sig=secret")
				w.WriteHeader(http.StatusFound)
			}},
		{name: "a redirect to a port that cannot be", content: a, fault: machine.TaskFault, says: "invalid port", most: 1,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://127.0.0.1:65536/", http.StatusFound)
			}},
		{name: "a redirect to another kind of URL", content: a, fault: machine.TaskFault, says: "unsupported protocol scheme", most: 1,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "ftp://example.org/x", http.StatusFound)
			}},
		{name: "a redirect to the metadata service", content: a, fault: machine.TaskFault, says: "metadata service", most: 1,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
			}},
		{name: "a signature that expires half-way", content: a, etag: `"a"`, fault: machine.TaskFault, says: "403 Forbidden",
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				if n > 1 {
					w.WriteHeader(http.StatusForbidden)
					return
				}
				o.serve(cut(w, 5<<20), r)
			}},
		{name: "401", fault: machine.TaskFault, says: "credentials", most: 1, handle: status(401)},
		{name: "403", fault: machine.TaskFault, says: "credentials", most: 1, handle: status(403)},
		{name: "404", fault: machine.TaskFault, says: "no such object", most: 1, handle: status(404)},
		{name: "410", fault: machine.TaskFault, says: "no such object", most: 1, handle: status(410)},
		{name: "501", fault: machine.TaskFault, says: "501", most: 1, handle: status(501)},
		{name: "204", fault: machine.TaskFault, says: "204", most: 1, handle: status(204)},
		{name: "right Repr-Digest", content: small, want: small, verified: 1, handle: with("Repr-Digest", rightSHA)},
		{name: "right Digest of two", content: small, want: small, verified: 2,
			handle: with("Digest", "SHA-256="+b64(sha[:])+",MD5="+b64(sum[:])+",unixsum=30637")},
		{name: "right Content-MD5", content: small, want: small, verified: 1, handle: with("Content-MD5", b64(sum[:]))},
		{name: "wrong Repr-Digest", content: small, fault: machine.TaskFault, says: "sha-256 checksum", most: 2, handle: with("Repr-Digest", wrongSHA)},
		{name: "wrong Content-Digest", content: small, fault: machine.TaskFault, says: "sha-256 checksum", most: 2, handle: with("Content-Digest", wrongSHA)},
		{name: "wrong Digest", content: small, fault: machine.TaskFault, says: "md5 checksum", most: 2, handle: with("Digest", "md5="+wrongMD5)},
		{name: "wrong Content-MD5", content: small, fault: machine.TaskFault, says: "md5 checksum", most: 2, handle: with("Content-MD5", wrongMD5)},
		{name: "wrong x-goog-hash", content: small, fault: machine.TaskFault, says: "crc32c checksum", most: 2, handle: with("X-Goog-Hash", "crc32c=AAAAAA==")},
		{name: "wrong x-amz-checksum", content: small, fault: machine.TaskFault, says: "crc64nvme checksum", most: 2,
			handle: with("X-Amz-Checksum-Crc64nvme", "AAAAAAAAAAA=")},
		{name: "wrong checksum of parts", content: a, etag: `"a"`, fault: machine.TaskFault, says: "sha-256 checksum", handle: with("Repr-Digest", wrongSHA)},
		{name: "corrupted on the way, once", content: a, etag: `"a"`, want: a, verified: 1,
			handle: func() func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				var once sync.Once
				whole := sha256.Sum256(a)
				return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Repr-Digest", "sha-256=:"+b64(whole[:])+":")
					serve := o
					if r.Header.Get("Range") != "" {
						once.Do(func() { serve = &origin{content: make([]byte, len(a)), etag: o.etag} })
					}
					serve.serve(w, r)
				}
			}()},
		{name: "checksums while every connection is cut", content: a, etag: `"a"`, want: a, verified: 1,
			handle: func() func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				whole := sha256.Sum256(a)
				return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Repr-Digest", "sha-256=:"+b64(whole[:])+":")
					o.serve(cut(w, 5<<20), r)
				}
			}()},
		{name: "no length, in chunks", content: small, want: small, most: 1,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				w.(http.Flusher).Flush()
				_, _ = w.Write(o.content)
			}},
		{name: "no length, cut in a chunk", content: small, want: small, most: 2,
			handle: func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
				w.(http.Flusher).Flush()
				if n == 1 {
					w = cut(w, 30000)
				}
				_, _ = w.Write(o.content)
			}},
		{name: "no length, ended by the end of the connection", content: small, fault: machine.TaskFault, says: "neither a length nor a checksum", most: 1,
			handle: raw("HTTP/1.0 200 OK\r\n\r\n" + string(small))},
		{name: "no length, but a checksum", content: small, want: small, most: 1, verified: 1,
			handle: raw("HTTP/1.0 200 OK\r\nRepr-Digest: " + rightSHA + "\r\n\r\n" + string(small))},
		{name: "no length, but a checksum, and cut", content: small, fault: machine.TaskFault, says: "sha-256 checksum", most: 2,
			handle: raw("HTTP/1.0 200 OK\r\nRepr-Digest: " + rightSHA + "\r\n\r\n" + string(small[:30000]))},
		{name: "no HTTP at all", fault: machine.RetryLater, says: "malformed HTTP", handle: raw("SSH-2.0-OpenSSH\r\n")},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			o := &origin{content: row.content, etag: row.etag}
			handler := func(w http.ResponseWriter, r *http.Request) { row.handle(o, o.note(r), w, r) }
			served(t, row.idle > 0, handler, func(t *testing.T, url string, at func(*storage.Storage) *storage.Storage) {
				retryFor := time.Minute
				if row.fault == machine.RetryLater {
					retryFor = 50 * time.Millisecond
				}
				dir, got, err := fetchInto(t, at(quick(retryFor, row.idle)), url+"/file?sig=secret", "file")
				if row.fault != "" {
					if err == nil || machine.FaultOf(err) != row.fault || !strings.Contains(err.Error(), row.says) {
						t.Errorf("error %v\nof fault %q, want %q that says %q", err, machine.FaultOf(err), row.fault, row.says)
					}
					if err != nil && (strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "/file")) {
						t.Errorf("the error tells too much or too little: %v", err)
					}
					if _, err := os.Lstat(filepath.Join(dir, "file")); err == nil {
						t.Error("there is a file under the final name")
					}
					if row.fault != machine.RetryLater {
						storagetest.Empty(t, dir)
					}
				} else {
					if err != nil {
						t.Fatal(err)
					}
					storagetest.Only(t, dir, "file", row.want)
					if got.Bytes != int64(len(row.want)) || len(got.Verified) != row.verified {
						t.Errorf("fetched %+v", got)
					}
				}
				if row.most > 0 && o.count() > row.most {
					t.Errorf("%d requests: %q", o.count(), o.requests)
				}
			})
		})
	}
}

// served tests against a server at a URL, which at has a Storage reach. A test in
// which somebody waits is in a bubble, whose clock stands still while anybody works:
// a busy machine is not taken for a silent server.
func served(t *testing.T, waits bool, handler http.HandlerFunc, test func(t *testing.T, url string, at func(*storage.Storage) *storage.Storage)) {
	if !waits {
		server := httptest.NewServer(handler)
		defer server.Close()
		test(t, server.URL, func(s *storage.Storage) *storage.Storage { return s })
		return
	}
	synctest.Test(t, func(t *testing.T) {
		l := pipes{make(chan net.Conn), make(chan struct{})}
		server := &http.Server{Handler: handler}
		go func() { _ = server.Serve(l) }() // until it is closed
		defer server.Close()
		test(t, "http://host", func(s *storage.Storage) *storage.Storage { return storage.Dial(s, l.dial) })
	})
}

// pipes is a listener in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.closed:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.closed); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func status(code int) func(*origin, int, http.ResponseWriter, *http.Request) {
	return func(_ *origin, _ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func with(field, value string) func(*origin, int, http.ResponseWriter, *http.Request) {
	return func(o *origin, _ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set(field, value)
		o.serve(w, r)
	}
}

// raw answers with these bytes and the end of the connection.
func raw(answer string) func(*origin, int, http.ResponseWriter, *http.Request) {
	return func(_ *origin, _ int, w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, answer)
		conn.Close()
	}
}

func fetchInto(t *testing.T, s *storage.Storage, url, name string) (string, storage.Fetched, error) {
	t.Helper()
	dir := t.TempDir()
	got, err := fetchTo(t, s, url, dir, name)
	return dir, got, err
}

func fetchTo(t *testing.T, s *storage.Storage, url, dir, name string) (storage.Fetched, error) {
	t.Helper()
	into, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	return s.Fetch(context.Background(), storage.FetchRequest{URL: url, Dir: into, Name: name})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	var times []time.Time
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if times = append(times, time.Now()); len(times) == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "content")
	}))
	defer server.Close()
	if _, _, err := fetchInto(t, quick(time.Minute, 0), server.URL, "file"); err != nil {
		t.Fatal(err)
	}
	if waited := times[1].Sub(times[0]); waited < time.Second {
		t.Errorf("came back after %s", waited)
	}
}

func TestConnectionRefused(t *testing.T) {
	_, _, err := fetchInto(t, quick(50*time.Millisecond, 0), "http://127.0.0.1:1/file", "file") // which no server is given
	if machine.FaultOf(err) != machine.RetryLater || err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v, fault %q", err, machine.FaultOf(err))
	}
}

func TestUnknownCertificate(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	_, _, err := fetchInto(t, quick(time.Minute, 0), server.URL, "file")
	if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("error %v, fault %q", err, machine.FaultOf(err))
	}
}

// What is wrong with a URL is told without what it may hold.
func TestMalformedURLsTellNoSecret(t *testing.T) {
	for _, url := range []string{
		"s3://KEY:SECRET@bucket/key", "s3://bucket?token=SECRET", "gs://user:SECRET@bucket/key", "az://account:SECRET@container/blob",
		"http://user:SECRET/word@host/file", "http://user:SECRET#word@host/file", "http://user:%SECRET@host/file",
		"https://user:SECRET?word@account.blob.core.windows.net/container/blob",
	} {
		err := storage.CheckInput(url, false)
		if err == nil || strings.Contains(err.Error(), "SE") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// A server may say anything, at any length, and repeat what it was asked.
func TestWhatServersSayIsBounded(t *testing.T) {
	credentials(t)
	long := "\x1b[31m" + strings.Repeat("word ", 1<<20)
	answers := map[string]string{
		"http": "404 Not Found" + long[:60000] + "\r\n\r\ncannot GET /file?token=SECRET%2B1&x=SECRET+2, which is /file?token=SECRET+1 x=SECRET 2 " + long,
		"s3": "403 Forbidden\r\nContent-Type: application/xml\r\n\r\n<Error><Code>" + strings.ReplaceAll(long, "\x1b", "&#x9b;") +
			"</Code><Message>" + strings.ReplaceAll(long, "\x1b", "&#x9b;") + "</Message></Error>",
		"azure with a key": "403 Forbidden\r\nx-ms-error-code: " + long[5:60000] + "\r\n\r\n",
	}
	for kind, answer := range answers {
		t.Run(kind, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				raw("HTTP/1.1 "+answer)(nil, 0, w, r)
			}))
			defer server.Close()
			url, _, _ := strings.Cut(strings.Replace(kinds[kind].url, "user:SECRETPASSWORD@HOST", strings.TrimPrefix(server.URL, "http://"), 1), "?")
			if kind == "http" {
				url += "?token=SECRET%2B1&x=SECRET+2"
			}
			_, _, err := fetchInto(t, cloud{Server: storagetest.Server{Options: kinds[kind].options(server.URL)}}.open(time.Millisecond, 0), url, "file")
			if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), " answers 40") {
				t.Fatalf("error %.500v of fault %q", err, machine.FaultOf(err))
			}
			if said := err.Error(); len(said) > 1000 || strings.ContainsAny(said, "\x1b\u009b") || strings.Contains(said, "SECRET") {
				t.Errorf("%d bytes: %.1000q", len(said), said)
			}
		})
	}
}

func TestCredentialsInURL(t *testing.T) {
	var elsewhere http.Header
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere = r.Header
		_, _ = io.WriteString(w, "content")
	}))
	defer other.Close()
	var target string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "user" || password != "pass word" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, target, http.StatusFound)
	}))
	defer server.Close()
	for _, target = range []string{other.URL, strings.Replace(other.URL, "127.0.0.1", "localhost", 1)} { // another port, and another host
		for userinfo, works := range map[string]bool{"user:pass%20word@": true, "user:wr0ngsecret@": false} {
			url := strings.Replace(server.URL, "http://", "http://"+userinfo, 1)
			_, _, err := fetchInto(t, quick(time.Second, 0), url+"/file?token=secret", "file")
			if works != (err == nil) {
				t.Errorf("%s: %v", userinfo, err)
			}
			if err != nil && strings.Contains(err.Error(), "wr0ngsecret") {
				t.Errorf("the error tells the password: %v", err)
			}
		}
		for _, name := range []string{"Authorization", "Referer"} {
			if got := elsewhere.Get(name); got != "" {
				t.Errorf("%s was given the %s %q", target, name, got)
			}
		}
	}
}

// A signature may be of no content type at all: one goes along only where the URL says that it is signed.
func TestContentTypeOfAPut(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, []byte("content"))
	const octets = "application/octet-stream"
	for query, want := range map[string][]string{
		"": nil,
		"?AWSAccessKeyId=a&Signature=c29tZQ%3D%3D&Expires=1900000000":                       nil,
		"?GoogleAccessId=a&Signature=c29tZQ%3D%3D&Expires=1900000000":                       nil,
		"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-SignedHeaders=host":                        nil,
		"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-SignedHeaders=content-type%3Bhost":         {octets},
		"?X-Goog-Algorithm=GOOG4-RSA-SHA256&x-goog-signedheaders=content-md5;Content-Type;": {octets},
		"?X-Amz-SignedHeaders=host%3Bx-amz-meta-content-type":                               nil,
	} {
		var got http.Header
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }))
		if err := putFile(storage.Options{}, source, server.URL+"/x"+query, nil, new(storage.Upload)); err != nil {
			t.Error(err)
		}
		server.Close()
		if is := got["Content-Type"]; !slices.Equal(is, want) {
			t.Errorf("%q is sent with the content type %q, want %q", query, is, want)
		}
	}
}

func TestPutToFaultyServers(t *testing.T) {
	content := storagetest.Content(3<<20 + 17)
	rows := []struct {
		name   string
		handle func(n int, w http.ResponseWriter, r *http.Request) (took []byte)
		fault  machine.Fault
		says   string
		most   int
		idle   time.Duration
	}{
		{name: "a good server", most: 1, handle: func(_ int, w http.ResponseWriter, r *http.Request) []byte {
			b, _ := io.ReadAll(r.Body)
			w.WriteHeader(http.StatusCreated)
			return b
		}},
		{name: "503 for a while", most: 3, handle: func(n int, w http.ResponseWriter, r *http.Request) []byte {
			b, _ := io.ReadAll(r.Body)
			if n < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return nil
			}
			return b
		}},
		{name: "content with it, unread", fault: machine.RetryLater, says: "before it has taken", handle: func(_ int, w http.ResponseWriter, _ *http.Request) []byte {
			w.WriteHeader(http.StatusOK)
			return nil
		}},
		{name: "503 for ever", fault: machine.RetryLater, says: "503", handle: func(_ int, w http.ResponseWriter, _ *http.Request) []byte {
			w.WriteHeader(http.StatusServiceUnavailable)
			return nil
		}},
		{name: "cut half-way", most: 2, handle: func(n int, _ http.ResponseWriter, r *http.Request) []byte {
			if n == 1 {
				_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
				panic(http.ErrAbortHandler)
			}
			b, _ := io.ReadAll(r.Body)
			return b
		}},
		{name: "no answer", idle: 3 * time.Second, handle: func(n int, _ http.ResponseWriter, r *http.Request) []byte {
			b, _ := io.ReadAll(r.Body)
			if n == 1 {
				<-r.Context().Done()
				return nil
			}
			return b
		}},
		{name: "expired signature", most: 1, fault: machine.TaskFault, says: "403 Forbidden: <Code>AccessDenied</Code> see https://host/doc",
			handle: func(_ int, w http.ResponseWriter, _ *http.Request) []byte {
				w.WriteHeader(http.StatusForbidden)
				_, _ = io.WriteString(w, "<Code>AccessDenied</Code>\n see https://host/doc?sig=secret "+strings.Repeat("x", 300))
				return nil
			}},
		{name: "one that knows no Expect", most: 2, handle: func(_ int, w http.ResponseWriter, r *http.Request) []byte {
			if r.Header.Get("Expect") != "" {
				w.WriteHeader(http.StatusExpectationFailed)
				return nil
			}
			b, _ := io.ReadAll(r.Body)
			return b
		}},
		{name: "S3 that did not get all in time", most: 2, handle: func(n int, w http.ResponseWriter, r *http.Request) []byte {
			b, _ := io.ReadAll(r.Body)
			if n == 1 {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n<Error><Code>RequestTimeout</Code><Message>Your socket connection")
				return nil
			}
			return b
		}},
		{name: "not allowed", most: 1, fault: machine.TaskFault, says: "405", handle: func(_ int, w http.ResponseWriter, _ *http.Request) []byte {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return nil
		}},
		{name: "a redirect that keeps the body", most: 2, handle: func(_ int, w http.ResponseWriter, r *http.Request) []byte {
			if r.URL.Path != "/elsewhere" {
				http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
				return nil
			}
			b, _ := io.ReadAll(r.Body)
			return b
		}},
		{name: "a redirect that drops the body", most: 1, fault: machine.TaskFault, says: "drops what is uploaded",
			handle: func(_ int, w http.ResponseWriter, r *http.Request) []byte {
				if r.Method == http.MethodPut {
					http.Redirect(w, r, "/elsewhere", http.StatusFound)
				}
				return nil
			}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var took []byte
			var requests int
			handler := func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				requests++
				n := requests
				mu.Unlock()
				if r.Method == http.MethodPut && r.ContentLength != int64(len(content)) {
					t.Errorf("request %d has the length %d", n, r.ContentLength)
				}
				// Who has taken nothing may end later than who has taken it.
				if b := row.handle(n, w, r); b != nil {
					mu.Lock()
					took = b
					mu.Unlock()
				}
			}
			served(t, row.idle > 0, handler, func(t *testing.T, url string, at func(*storage.Storage) *storage.Storage) {
				retryFor := time.Minute
				if row.fault == machine.RetryLater {
					retryFor = 50 * time.Millisecond
				}
				path := filepath.Join(t.TempDir(), "source")
				storagetest.Write(t, path, content)
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				err = at(quick(retryFor, row.idle)).Put(context.Background(), storage.PutRequest{URL: url + "/x?sig=secret", File: f, Size: int64(len(content))})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case row.fault == "" && err != nil:
					t.Error(err)
				case row.fault == "" && !bytes.Equal(took, content):
					t.Errorf("the server took %d bytes of %d, or others", len(took), len(content))
				case row.fault != "" && (err == nil || machine.FaultOf(err) != row.fault || !strings.Contains(err.Error(), row.says)):
					t.Errorf("error %v\nof fault %q, want %q that says %q", err, machine.FaultOf(err), row.fault, row.says)
				case err != nil && (strings.Contains(err.Error(), "secret") || len(err.Error()) > 500):
					t.Errorf("the error tells too much: %v", err)
				}
				if row.most > 0 && requests > row.most {
					t.Errorf("%d requests", requests)
				}
			})
		})
	}
}

// A URL that is signed for GET alone refuses HEAD. Small files behind such URLs cost a request more
// to look up, and no connection.
func TestLookUpOfSignedURLs(t *testing.T) {
	var connections atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Length", "4096")
		_, _ = w.Write(storagetest.Content(4 << 10))
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	s := quick(time.Minute, 0)
	for range 20 {
		if o, err := s.Stat(t.Context(), server.URL+"/x?signature=x"); err != nil || o.Size != 4<<10 {
			t.Fatalf("%+v, %v", o, err)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("20 files were looked up over %d connections", n)
	}
}

// A server may take its time with a large file that it has, as nginx does that copies it from
// where it came to: to send it again would only give it more to do.
func TestPutIsAnsweredLate(t *testing.T) {
	t.Parallel()
	content := storagetest.Content(storage.MinPart + 1)
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, content)
	const idle = 2 * time.Second // within which a busy machine moves something
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(2 * idle)
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"crc32c": %q}`, b64(binary.BigEndian.AppendUint32(nil, crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli)))))
	}))
	defer server.Close()
	for _, url := range []string{server.URL + "/x", "gs://bucket/x"} {
		asked.Store(0)
		o := storage.Options{RetryFor: time.Minute, GCS: storage.GCS{Endpoint: server.URL, Anonymous: true}}
		if err := putBy(storage.Hasten(storage.New(o), idle), source, url, nil); err != nil || asked.Load() != 1 {
			t.Errorf("%s: %v after %d requests", url, err, asked.Load())
		}
	}
}
