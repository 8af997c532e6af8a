package storage_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/machine"
)

// kinds are URLs of every kind that a network leads to, and how it is reached
// at one host.
var kinds = map[string]struct {
	url     string
	options func(host string) storage.Options
}{
	"http": {"http://user:SECRETPASSWORD@HOST/file?X-Amz-Signature=SECRETSIGNATURE&X-Amz-Expires=60", func(string) storage.Options { return storage.Options{} }},
	"s3": {"s3://bucket/file", func(host string) storage.Options {
		return storage.Options{S3: storage.S3{Endpoint: host, PathStyle: true}}
	}},
	"gs": {"gs://bucket/file", func(host string) storage.Options { return storage.Options{GCS: storage.GCS{Endpoint: host}} }},
	"azure with a SAS": {"https://account.blob.core.windows.net/bucket/file?sv=2022-11-02&sr=b&sig=SECRETSIGNATURE", func(host string) storage.Options {
		return storage.Options{Azure: storage.Azure{Endpoint: host + "/{account}"}}
	}},
	"azure with a key": {"az://bucket/file", func(host string) storage.Options {
		return storage.Options{Azure: storage.Azure{Endpoint: host + "/{account}"}}
	}},
}

// credentials are in the environment: what they are must not be told.
func credentials(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "SECRETKEY")
	t.Setenv("AWS_SESSION_TOKEN", "SECRETTOKEN")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AZURE_STORAGE_ACCOUNT", "account")
	t.Setenv("AZURE_STORAGE_KEY", "U0VDUkVUS0VZU0VDUkVUS0VZ")
}

// network is one in memory, for a bubble whose clock does not wait.
type network struct {
	dialled []time.Time
	answer  func(conn net.Conn) error // at once, or instead of a connection
}

func (n *network) dial(context.Context, string, string) (net.Conn, error) {
	n.dialled = append(n.dialled, time.Now())
	ours, theirs := net.Pipe()
	if err := n.answer(theirs); err != nil {
		return nil, err
	}
	return ours, nil
}

// says answers every connection with one status.
func says(status int, header ...string) func(net.Conn) error {
	return func(conn net.Conn) error {
		go func() {
			defer conn.Close()
			r, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				return
			}
			if r.Header.Get("Expect") == "" {
				_, _ = io.Copy(io.Discard, r.Body)
			}
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\n%s\r\n\r\n", status, http.StatusText(status),
				strings.Join(append(header, "Content-Length: 0", "Connection: close"), "\r\n"))
		}()
		return nil
	}
}

func refused(net.Conn) error { return syscall.ECONNREFUSED }

// transfers are the two that a task waits for.
var transfers = map[string]func(t *testing.T, s *storage.Storage, url string) error{
	"download": func(t *testing.T, s *storage.Storage, url string) error {
		_, _, err := fetchInto(t, s, url, "file")
		return err
	},
	"upload to": func(t *testing.T, s *storage.Storage, url string) error {
		path := filepath.Join(t.TempDir(), "source")
		storagetest.Write(t, path, storagetest.Content(1000))
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return s.Put(context.Background(), storage.PutRequest{URL: url, File: f, Size: 1000, Tag: "tag"})
	},
}

// eachTransfer runs a test for both transfers and every kind of URL, in a bubble.
func eachTransfer(t *testing.T, test func(t *testing.T, n *network, move func() error)) {
	credentials(t)
	t.Setenv("STORAGE_EMULATOR_HOST", "host") // without credentials
	for kind, k := range kinds {
		for operation, transfer := range transfers {
			t.Run(kind+"/"+operation, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := &network{}
					s := storage.Dial(storage.New(k.options("http://host")), n.dial)
					test(t, n, func() error { return transfer(t, s, strings.Replace(k.url, "HOST", "host", 1)) })
				})
			})
		}
	}
}

// A quarter of an hour without a server is outlasted by default.
func TestRetriesOutlastAQuarterOfAnHour(t *testing.T) {
	eachTransfer(t, func(t *testing.T, n *network, move func() error) {
		start := time.Now()
		n.answer = func(conn net.Conn) error {
			if time.Since(start) < 15*time.Minute {
				return refused(conn)
			}
			return says(http.StatusForbidden)(conn)
		}
		// It answers again, if not as one would like.
		if err := move(); machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// Nobody is waited for for ever.
func TestRetriesEnd(t *testing.T) {
	eachTransfer(t, func(t *testing.T, n *network, move func() error) {
		n.answer = refused
		start := time.Now()
		err := move()
		if machine.FaultOf(err) != machine.RetryLater || err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("error %v of fault %q", err, machine.FaultOf(err))
		}
		if took := time.Since(start); took < 15*time.Minute || took > 16*time.Minute {
			t.Errorf("it is given up after %s", took)
		}
		if !strings.HasSuffix(fmt.Sprint(err), fmt.Sprintf("(attempt %d)", len(n.dialled))) {
			t.Errorf("after %d attempts it says: %v", len(n.dialled), err)
		}
	})
}

// Pauses grow to half a minute, and are spread by a half to both sides, so that
// a server which comes back does not meet all tasks of a cluster at once.
func TestPausesAreSpread(t *testing.T) {
	var low, high bool
	seen := map[time.Duration]bool{}
	eachTransfer(t, func(t *testing.T, n *network, move func() error) {
		n.answer = refused
		_ = move() // in vain
		if len(n.dialled) < 20 {
			t.Fatalf("%d attempts", len(n.dialled))
		}
		for i := range len(n.dialled) - 1 {
			pause := n.dialled[i+1].Sub(n.dialled[i])
			middle := min(30*time.Second, time.Duration(float64(500*time.Millisecond)*math.Pow(1.5, float64(i))))
			if pause < middle/2 || pause > middle*3/2+time.Nanosecond {
				t.Errorf("pause %d is %s, of %s", i+1, pause, middle)
			}
			low, high = low || pause < middle*3/4, high || pause > middle*5/4
			if seen[pause] {
				t.Errorf("a pause of %s has been there before", pause)
			}
			seen[pause] = true
		}
	})
	if !low || !high {
		t.Errorf("pauses are spread to the shorter: %t, to the longer: %t", low, high)
	}
}

// What no waiting mends is not waited for.
func TestPermanentFailuresFailAtOnce(t *testing.T) {
	for name, answer := range map[string]func(net.Conn) error{
		"400": says(http.StatusBadRequest), "401": says(http.StatusUnauthorized), "403": says(http.StatusForbidden),
		"404": says(http.StatusNotFound), "410": says(http.StatusGone), "501": says(http.StatusNotImplemented),
		"no such host": func(net.Conn) error { return &net.DNSError{Err: "no such host", IsNotFound: true} },
	} {
		t.Run(name, func(t *testing.T) {
			eachTransfer(t, func(t *testing.T, n *network, move func() error) {
				n.answer = answer
				start := time.Now()
				err := move()
				if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), name) {
					t.Errorf("error %v of fault %q", err, machine.FaultOf(err))
				}
				if waited := time.Since(start); waited != 0 || len(n.dialled) != 1 {
					t.Errorf("%d requests, and %s of waiting", len(n.dialled), waited)
				}
			})
		})
	}
}

// What a server asks for is waited for, not less, and a little more, so that not all whom
// it has told the same come back at once.
func TestPausesAreAsLongAsAsked(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			eachTransfer(t, func(t *testing.T, n *network, move func() error) {
				n.answer = func(conn net.Conn) error {
					if len(n.dialled) > 3 {
						return says(http.StatusForbidden)(conn)
					}
					return says(status, "Retry-After: 120")(conn)
				}
				_ = move() // the last answer is no better, but another
				if len(n.dialled) != 4 {
					t.Fatalf("%d attempts", len(n.dialled))
				}
				for i := range 3 {
					if pause := n.dialled[i+1].Sub(n.dialled[i]); pause <= 2*time.Minute || pause > 2*time.Minute+45*time.Second {
						t.Errorf("pause %d is %s", i+1, pause)
					}
				}
			})
		})
	}
}

// emptyHanded answers as a storage does that has nothing, and takes everything.
func emptyHanded(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	q := r.URL.Query()
	what := ""
	switch {
	case r.Method == http.MethodGet && q.Has("uploads"):
		what = "ListMultipartUploadsResult"
	case r.Method == http.MethodGet && q.Has("uploadId"):
		what = "ListPartsResult"
	case r.Method == http.MethodGet && q.Get("comp") == "blocklist":
		what = "BlockList"
	case r.Method == http.MethodPost && q.Has("uploads"):
		what = "InitiateMultipartUploadResult"
	case r.Method == http.MethodPost:
		what = "CompleteMultipartUploadResult"
	case q.Has("comp"):
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("ETag", `"a"`)
	}
	if what != "" {
		w.Header().Set("Content-Type", "application/xml")
		_, _ = fmt.Fprintf(w, "<%s><UploadId>id</UploadId></%s>", what, what)
	}
}

// Whatever a storage does not answer is asked again.
func TestSilenceIsNotWaitedForForEver(t *testing.T) {
	credentials(t)
	asks := func(method string, query ...string) func(*http.Request) bool {
		return func(r *http.Request) bool {
			return r.Method == method && !slices.ContainsFunc(query, func(name string) bool { return !r.URL.Query().Has(name) })
		}
	}
	comp := func(method, what string) func(*http.Request) bool {
		return func(r *http.Request) bool { return r.Method == method && r.URL.Query().Get("comp") == what }
	}
	part := map[string]func(*http.Request) bool{"s3": asks(http.MethodPut, "partNumber"), "azure with a key": comp(http.MethodPut, "block")}
	for _, row := range []struct {
		kind, name string
		silent     func(*http.Request) bool
	}{
		{"s3", "uploads", asks(http.MethodGet, "uploads")},
		{"s3", "begin", asks(http.MethodPost, "uploads")},
		{"s3", "part", part["s3"]},
		{"s3", "parts", asks(http.MethodGet, "uploadId")},
		{"s3", "complete", asks(http.MethodPost, "uploadId")},
		{"s3", "abort", asks(http.MethodDelete, "uploadId")},
		{"azure with a key", "block", part["azure with a key"]},
		{"azure with a key", "blocks", comp(http.MethodGet, "blocklist")},
		{"azure with a key", "commit", comp(http.MethodPut, "blocklist")},
	} {
		t.Run(row.kind+"/"+row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := pipes{make(chan net.Conn), make(chan struct{})}
				var silent, refused sync.Once
				server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					answer := emptyHanded
					if part[row.kind](r) { // so that the next attempt asks what there is
						refused.Do(func() {
							answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
						})
					}
					if row.silent(r) {
						silent.Do(func() {
							answer = func(_ http.ResponseWriter, r *http.Request) {
								_, _ = io.Copy(io.Discard, r.Body) // or the end of the connection would not be seen
								<-r.Context().Done()
							}
						})
					}
					answer(w, r)
				})}
				go func() { _ = server.Serve(l) }() // until it is closed
				defer server.Close()
				s := storage.Dial(storage.New(kinds[row.kind].options("http://host")), l.dial)
				const size = storage.MinPart + 1
				f, err := os.Create(filepath.Join(t.TempDir(), "source"))
				if err == nil {
					err = f.Truncate(size)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				url := kinds[row.kind].url
				if err := s.Put(ctx, storage.PutRequest{URL: url, File: f, Size: size, Tag: "tag"}); err != nil {
					t.Errorf("upload: %v", err)
				}
				if err := s.Abort(ctx, url, storage.Unfinished{Tag: "tag", Upload: &storage.Upload{ID: "id"}}); err != nil {
					t.Errorf("abort: %v", err)
				}
			})
		})
	}
}

// A failure names operation, URL, attempt and cause, and neither it nor the log
// tells a secret, whatever the server repeats.
func TestFailuresTellEnoughAndNoSecret(t *testing.T) {
	credentials(t)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token": "SECRETTOKEN", "token_type": "Bearer", "expires_in": 3600}`)
	}))
	t.Cleanup(tokens.Close)
	serviceAccount(t, tokens.URL)
	signature := regexp.MustCompile(`[A-Za-z0-9+/=_-]{20,}$`)
	for kind, k := range kinds {
		for operation, transfer := range transfers {
			for status, fault := range map[int]machine.Fault{http.StatusForbidden: machine.TaskFault, http.StatusServiceUnavailable: machine.RetryLater} {
				t.Run(fmt.Sprintf("%s/%s/%d", kind, operation, status), func(t *testing.T) {
					secrets := []string{"SECRET", "U0VDUkVU"}
					server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						secrets = append(secrets, signature.FindString(r.Header.Get("Authorization")))
						said := fmt.Sprintf("http://%s%s is wrong (%s); Authorization: %s", r.Host, r.URL, r.URL, r.Header.Get("Authorization"))
						if kind == "gs" {
							w.Header().Set("Content-Type", "application/json")
							said = fmt.Sprintf(`{"error": {"message": %q}}`, said)
						} else if kind != "http" {
							w.Header().Set("Content-Type", "application/xml")
							said = "<Error><Code>Wrong</Code><Message>" + strings.ReplaceAll(said, "&", "&amp;") + "</Message></Error>"
						}
						w.WriteHeader(status)
						_, _ = io.WriteString(w, said)
					}))
					defer server.Close()
					var log bytes.Buffer
					options := k.options(server.URL)
					options.RetryFor = time.Millisecond
					options.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
					url := strings.Replace(k.url, "HOST", strings.TrimPrefix(server.URL, "http://"), 1)
					err := transfer(t, storage.Hasten(storage.New(options), time.Minute), url)
					if err == nil || machine.FaultOf(err) != fault {
						t.Fatalf("error %v of fault %q, want %q", err, machine.FaultOf(err), fault)
					}
					bare, _, _ := strings.Cut(strings.Replace(url, "user:SECRETPASSWORD@", "", 1), "?")
					want := []string{"cannot " + operation + " " + bare + ": ", fmt.Sprint(status)}
					if fault == machine.RetryLater {
						want = append(want, "(attempt ")
						for _, w := range []string{`operation=`, operation, "url=" + bare, "attempt=1", fmt.Sprint(status)} {
							if !strings.Contains(log.String(), w) {
								t.Errorf("the log does not say %q:\n%s", w, log.String())
							}
						}
					}
					for _, w := range want {
						if !strings.Contains(err.Error(), w) {
							t.Errorf("the error does not say %q: %v", w, err)
						}
					}
					for _, secret := range slices.DeleteFunc(secrets, func(s string) bool { return s == "" }) {
						if strings.Contains(err.Error(), secret) || strings.Contains(log.String(), secret) {
							t.Errorf("%s is told:\n%v\n%s", secret, err, log.String())
						}
					}
				})
			}
		}
	}
}
