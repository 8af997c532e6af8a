package storage_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
)

var inPartsServers = map[string]func(t *testing.T) inParts{
	"s3": func(t *testing.T) inParts {
		server, client := storagetest.Versitygw(t)
		proxy := storagetest.NewProxy(t, server.Options.S3.Endpoint)
		server.Options.S3.Endpoint = proxy.URL
		return inParts{
			Server: server, proxy: proxy, sums: true, aborts: true,
			part:     func(r *http.Request) bool { return r.Method == http.MethodPut && r.URL.Query().Has("partNumber") },
			complete: func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") },
			unfinished: func(t *testing.T) int {
				t.Helper()
				return len(uploads(t, client))
			},
			another: func(t *testing.T, key string) { began(t, client, key) },
		}
	},
	"azure": func(t *testing.T) inParts {
		server, client, _ := storagetest.Azurite(t)
		account := strings.TrimSuffix(client.URL(), "/bucket")
		proxy := storagetest.NewProxy(t, strings.TrimSuffix(account, "/devstoreaccount1"))
		server.Options.Azure.Endpoint = proxy.URL + "/{account}"
		comp := func(r *http.Request, what string) bool {
			return r.Method == http.MethodPut && r.URL.Query().Get("comp") == what
		}
		return inParts{
			Server: server, proxy: proxy, sums: true,
			part:     func(r *http.Request) bool { return comp(r, "block") },
			complete: func(r *http.Request) bool { return comp(r, "blocklist") },
			unfinished: func(t *testing.T) int {
				return len(storagetest.AzureBlobs(t, client, true)) - len(storagetest.AzureBlobs(t, client, false))
			},
		}
	},
}

// began makes an upload of a key as another tool would.
func began(t *testing.T, client *s3.Client, key string) (id string) {
	t.Helper()
	out, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: aws.String("bucket"), Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	return *out.UploadId
}

// uploads are those that nobody has ended.
func uploads(t *testing.T, client *s3.Client) (ids []string) {
	t.Helper()
	out, err := client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String("bucket")})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range out.Uploads {
		ids = append(ids, *u.UploadId)
	}
	slices.Sort(ids)
	return ids
}

// Credentials that somebody is to give are waited for, and not done without.
func TestS3CredentialsAreWaitedFor(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, "content")
	}))
	defer service.Close()
	for name, fail := range map[string]http.HandlerFunc{
		"busy":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"throttled": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
		"cut":       func(w http.ResponseWriter, r *http.Request) { raw("")(nil, 0, w, r) },
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) <= 5 { // more than the client tries
					fail(w, r)
					return
				}
				_, _ = io.WriteString(w, `{"AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c", "Expiration": "2099-01-01T00:00:00Z"}`)
			}))
			defer source.Close()
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", source.URL)
			st := storage.Hasten(storage.New(storage.Options{S3: storage.S3{Endpoint: service.URL, PathStyle: true}}), time.Minute)
			if _, _, err := fetchInto(t, st, "s3://bucket/x", "file"); err != nil {
				t.Error(err)
			}
		})
	}
}

// The journal hides what in a key looks like a secret. The upload is found nevertheless.
func TestS3UploadOfAHiddenKeyIsAborted(t *testing.T) {
	server, client := storagetest.Versitygw(t)
	other := began(t, client, "top/sig=2/x")
	ours := began(t, client, "top/sig=1/x")
	url := redact.URL("s3://bucket/top/sig=1/x")
	if strings.Contains(url, "sig=1") {
		t.Fatalf("%s tells all", url)
	}
	left := storage.Unfinished{Upload: &storage.Upload{ID: ours}}
	for range 2 { // the second time there is none
		if err := storage.New(server.Options).Abort(t.Context(), url, left); err != nil {
			t.Fatal(err)
		}
	}
	if got := uploads(t, client); !slices.Equal(got, []string{other}) {
		t.Errorf("there are %q, and another's is %s", got, other)
	}
}

// An upload whose name did not become known is one without a part that was not
// there before; others stay.
func TestS3UnknownUploadIsAborted(t *testing.T) {
	server, client := storagetest.Versitygw(t)
	left, before := began(t, client, "top/x"), began(t, client, "top/x")
	parted, longer := began(t, client, "top/x"), began(t, client, "top/xy")
	_, err := client.UploadPart(t.Context(), &s3.UploadPartInput{
		Bucket: aws.String("bucket"), Key: aws.String("top/x"), UploadId: &parted, PartNumber: aws.Int32(1),
	})
	if err != nil {
		t.Fatal(err)
	}
	all := []string{left, before, parted, longer}
	for _, row := range []struct {
		name string
		left *storage.Upload
		want []string
	}{
		{"not made in parts", nil, all},
		{"others are not known", &storage.Upload{}, all},
		{"others are known", &storage.Upload{Listed: true, Others: []string{before}}, []string{before, parted, longer}},
	} {
		err := storage.New(server.Options).Abort(t.Context(), server.URL+"/x", storage.Unfinished{Tag: "tag", Upload: row.left})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(row.want)
		if is := uploads(t, client); !slices.Equal(is, row.want) {
			t.Errorf("%s: left are %q, want %q", row.name, is, row.want)
		}
	}
}

// An upload whose name did not become known, and that is owed since some moment, is one that
// was begun before it, whatever the clocks of the storage and of this node say.
func TestS3UnknownUploadOfAMomentIsAborted(t *testing.T) {
	const owed = time.Hour
	for _, row := range []struct {
		name  string
		ahead time.Duration // of the storage's clock
		dated bool          // it tells what its clock says
	}{
		{"clocks agree", 0, true},
		{"the storage is ahead", 24 * time.Hour, true},
		{"the storage is behind", -24 * time.Hour, true},
		{"the storage tells no time", 0, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			var aborted []string
			start := time.Now().UTC()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Date"] = nil
				if row.dated {
					w.Header().Set("Date", time.Now().Add(row.ahead).UTC().Format(http.TimeFormat))
				}
				switch q := r.URL.Query(); {
				case r.Method == http.MethodDelete:
					aborted = append(aborted, q.Get("uploadId"))
					w.WriteHeader(http.StatusNoContent)
				case q.Has("uploads"):
					_, _ = io.WriteString(w, "<ListMultipartUploadsResult>")
					for _, u := range []struct {
						id  string
						ago time.Duration
					}{{"there before", owed + time.Hour}, {"ours", owed + time.Minute}, {"at once", owed}, {"another's", owed - time.Minute}} {
						fmt.Fprintf(w, "<Upload><Key>x</Key><UploadId>%s</UploadId><Initiated>%s</Initiated></Upload>", u.id, start.Add(row.ahead-u.ago).Format(time.RFC3339Nano))
					}
					_, _ = io.WriteString(w, "<Upload><Key>x</Key><UploadId>of no time</UploadId></Upload></ListMultipartUploadsResult>")
				default:
					_, _ = io.WriteString(w, "<ListPartsResult></ListPartsResult>")
				}
			}))
			defer server.Close()
			st := storage.New(storage.Options{S3: storage.S3{Endpoint: server.URL, PathStyle: true, Anonymous: true}})
			err := st.Abort(t.Context(), "s3://bucket/x", storage.Unfinished{
				Upload: &storage.Upload{Listed: true, Others: []string{"there before"}}, Before: start.Add(-owed),
			})
			if got := strings.Join(aborted, ", "); err != nil || got != "ours, at once" {
				t.Errorf("aborted are %s, and the error is %v", got, err)
			}
		})
	}
}

// An upload that was made while its answer, or the process, was lost is not left
// when the file is published; nor is it where a dead process may have made one.
// One that another tool had begun stays.
func TestS3UnnamedUploadIsNotLeft(t *testing.T) {
	for _, row := range []struct {
		name   string
		killed bool // not only the answer is lost
		// lists says how the storage answers when it is asked for uploads.
		lists func(w http.ResponseWriter, r *http.Request, next http.Handler)
		more  int    // uploads that are left then
		warns string // why
	}{
		{name: "the answer is lost"},
		{name: "the process was killed", killed: true},
		{name: "uploads may not be listed", killed: true, more: 1, warns: "403", lists: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusForbidden)
		}},
		{name: "uploads cannot be listed", killed: true, more: 1, warns: "501", lists: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusNotImplemented)
		}},
		{name: "there are more uploads than one answer tells", killed: true, more: 1, warns: "too many to note them, 2 or more", lists: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			answer := httptest.NewRecorder()
			next.ServeHTTP(answer, r)
			_, _ = io.WriteString(w, strings.Replace(answer.Body.String(), "<IsTruncated>false", "<IsTruncated>true", 1))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := inPartsServers["s3"](t)
			content := storagetest.Content(storage.MinPart + 1)
			source := filepath.Join(t.TempDir(), "source")
			storagetest.Write(t, source, content)
			for range 2 {
				s.another(t, "top/x")
			}
			var begun, asked atomic.Int64
			s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Query().Has("uploads") && r.Method == http.MethodPost && begun.Add(1) == 1 {
					next.ServeHTTP(discard{http.Header{}}, r)
					if row.killed {
						w.WriteHeader(http.StatusForbidden) // so that this Put goes no further
						return
					}
					panic(http.ErrAbortHandler)
				}
				if r.URL.Query().Has("uploads") && r.Method == http.MethodGet {
					asked.Add(1)
					if row.lists != nil {
						row.lists(w, r, next)
						return
					}
				}
				next.ServeHTTP(w, r)
			})
			var log bytes.Buffer
			s.Options.RetryFor, s.Options.Log = time.Minute, slog.New(slog.NewTextHandler(&log, nil))
			st := storage.Hasten(storage.New(s.Options), time.Minute)
			f, err := os.Open(source)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var journal storage.Upload
			req := storage.PutRequest{
				URL: s.URL + "/x", File: f, Size: int64(len(content)), Tag: "tag",
				Begin: func(_ context.Context, u storage.Upload) error { journal = u; return nil },
			}
			err = st.Put(t.Context(), req)
			if row.killed {
				if err == nil || s.unfinished(t) != 3 || asked.Load() != 1 {
					t.Fatalf("error %v, %d uploads are left, and they were listed %d times", err, s.unfinished(t), asked.Load())
				}
				if journal.Listed != (row.lists == nil) || journal.Listed != (len(journal.Others) == 2) {
					t.Errorf("noted is %+v", journal)
				}
				req.Upload = &journal
				err = st.Put(t.Context(), req)
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := 2 + row.more; begun.Load() != 2 || s.unfinished(t) != want {
				t.Errorf("%d uploads were begun, and %d are left, want %d", begun.Load(), s.unfinished(t), want)
			}
			warned := strings.Contains(log.String(), "one whose name is lost")
			if warned != (row.lists != nil) || !strings.Contains(log.String(), row.warns) {
				t.Errorf("the log says\n%s", log.String())
			}
			if got := s.Load(t, "x"); !bytes.Equal(got, content) {
				t.Errorf("%d bytes were published, or others", len(got))
			}
		})
	}
}

// Uploads of others that are too many to be noted are left alone.
func TestS3TooManyUploadsToNote(t *testing.T) {
	s := inPartsServers["s3"](t)
	content := storagetest.Content(storage.MinPart + 1)
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, content)
	const others = 600 // IDs of 36 bytes
	for range others {
		s.another(t, "top/x")
	}
	f, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var noted []storage.Upload
	err = storage.New(s.Options).Put(t.Context(), storage.PutRequest{
		URL: s.URL + "/x", File: f, Size: int64(len(content)), Tag: "tag",
		Begin: func(_ context.Context, u storage.Upload) error { noted = append(noted, u); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(noted) != 2 || noted[0].ID != "" || noted[0].Listed || noted[0].Others != nil || noted[1].ID == "" {
		t.Errorf("noted are %+v", noted)
	}
	if n := s.unfinished(t); n != others {
		t.Errorf("%d uploads are left of %d", n, others)
	}
}

// A publisher whose upload somebody took for a lost one begins anew.
func TestS3UploadIsAbortedByAnother(t *testing.T) {
	s := inPartsServers["s3"](t)
	content := storagetest.Content(storage.MinPart + 1)
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, content)
	other := storage.New(s.Options)
	var once sync.Once
	s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if s.part(r) {
			once.Do(func() {
				left := storage.Unfinished{Tag: "other", Upload: &storage.Upload{Listed: true}}
				if err := other.Abort(t.Context(), s.URL+"/x", left); err != nil {
					t.Error(err)
				}
			})
		}
		next.ServeHTTP(w, r)
	})
	if err := putFile(s.Options, source, s.URL+"/x", nil, new(storage.Upload)); err != nil {
		t.Fatal(err)
	}
	if got := s.Load(t, "x"); !bytes.Equal(got, content) || s.unfinished(t) != 0 {
		t.Errorf("%d bytes were published, or others; %d uploads are left", len(got), s.unfinished(t))
	}
}

// A key may have characters that XML cannot hold: then a listing is asked for in another encoding.
func TestS3KeysThatXMLCannotHold(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		asked = append(asked, q.Get("continuation-token")+" "+q.Get("encoding-type"))
		if q.Get("encoding-type") == "url" {
			fmt.Fprint(w, `<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>top/a%01b+c%2Bd%25</Key><Size>1</Size></Contents></ListBucketResult>`)
		} else if q.Get("continuation-token") == "2" {
			fmt.Fprint(w, `<ListBucketResult><Contents><Key>top/a&#x1;b c+d%</Key><Size>1</Size></Contents></ListBucketResult>`)
		} else {
			fmt.Fprint(w, `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>2</NextContinuationToken>`+
				`<Contents><Key>top/a b+c%20</Key><Size>1</Size></Contents></ListBucketResult>`)
		}
	}))
	defer server.Close()
	credentials(t)
	st := storage.Hasten(storage.New(storage.Options{RetryFor: time.Millisecond, S3: storage.S3{Endpoint: server.URL, PathStyle: true}}), time.Minute)
	var names []string
	for o, err := range st.List(t.Context(), "s3://bucket/top") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	if want := []string{"a b+c%20", "a\x01b c+d%"}; !slices.Equal(names, want) {
		t.Errorf("listed are %q, want %q", names, want)
	}
	if want := []string{" ", "2 ", "2 url"}; !slices.Equal(asked, want) {
		t.Errorf("asked for are %q, want %q", asked, want)
	}
}

// An answer that is cut is no refusal, and the SDK does not write about it into what the program writes.
func TestS3AnswerThatIsCut(t *testing.T) {
	said, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	stderr := os.Stderr
	t.Cleanup(func() { os.Stderr = stderr })
	s := inPartsServers["s3"](t)
	for i := range 3 {
		s.Store(t, fmt.Sprintf("many/%d", i), []byte("x"))
	}
	content := storagetest.Content(storage.MinPart + 1)
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, content)
	var answered sync.Map // the first one of each kind is cut
	s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		kind := []string{r.Method}
		for name := range r.URL.Query() {
			kind = append(kind, name)
		}
		slices.Sort(kind)
		if _, known := answered.LoadOrStore(strings.Join(kind, " "), true); !known {
			w = cut(w, 100) // in the middle of the XML
		}
		next.ServeHTTP(w, r)
	})
	st := storage.Hasten(storage.New(s.Options), time.Minute)
	os.Stderr = said
	n := 0
	for _, err := range st.List(t.Context(), s.URL+"/many") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 3 {
		t.Errorf("%d of 3 are listed", n)
	}
	if text, err := os.ReadFile(said.Name()); err != nil || len(text) > 0 {
		t.Errorf("on stderr is %q (%v)", text, err)
	}
	if err := putBy(st, source, s.URL+"/x", new(storage.Upload)); err != nil {
		t.Fatal(err)
	}
	if got := s.Load(t, "x"); !bytes.Equal(got, content) || s.unfinished(t) != 0 {
		t.Errorf("%d bytes were published, or others; %d uploads are left", len(got), s.unfinished(t))
	}
}

// A bucket may be in another region than the configured one: its service says so, and is asked
// there, for a file as well as for parts.
func TestS3BucketElsewhere(t *testing.T) {
	var got []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if !strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/s3/") {
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-1")
			w.WriteHeader(http.StatusMovedPermanently)
			return
		}
		got = b
	}))
	defer server.Close()
	credentials(t)
	t.Setenv("AWS_ENDPOINT_URL_S3", server.URL)
	var log bytes.Buffer
	st := storage.New(storage.Options{S3: storage.S3{PathStyle: true}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	content := storagetest.Content(100_000)
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, content)
	if err := putBy(storage.Hasten(st, time.Minute), source, "s3://bucket/x", nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes were sent", len(got))
	}
	if log.Len() > 0 {
		t.Errorf("the log has %s", log.String())
	}
}
