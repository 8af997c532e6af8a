package storage_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

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
				out, err := client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String("bucket")})
				if err != nil {
					t.Fatal(err)
				}
				return len(out.Uploads)
			},
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

// An upload whose name did not become known is one without a part; others stay.
func TestS3UnknownUploadIsAborted(t *testing.T) {
	server, client := storagetest.Versitygw(t)
	begin := func(key string) *string {
		out, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: aws.String("bucket"), Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		return out.UploadId
	}
	left, other, longer := begin("top/x"), begin("top/x"), begin("top/xy")
	_, err := client.UploadPart(t.Context(), &s3.UploadPartInput{
		Bucket: aws.String("bucket"), Key: aws.String("top/x"), UploadId: other, PartNumber: aws.Int32(1),
	})
	if err != nil {
		t.Fatal(err)
	}
	st := storage.New(server.Options)
	abort := func(left storage.Unfinished) {
		t.Helper()
		if err := st.Abort(t.Context(), server.URL+"/x", left); err != nil {
			t.Fatal(err)
		}
	}
	there := func() map[string]bool {
		out, err := client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String("bucket")})
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{}
		for _, u := range out.Uploads {
			ids[*u.UploadId] = true
		}
		return ids
	}
	abort(storage.Unfinished{Tag: "tag"})
	if is := there(); len(is) != 3 {
		t.Errorf("an upload that was not made in parts took %v away", is)
	}
	abort(storage.Unfinished{Tag: "tag", InParts: true})
	if is := there(); is[*left] || !is[*other] || !is[*longer] {
		t.Errorf("left are %v of %s, %s with a part, and %s of another key", is, *left, *other, *longer)
	}
}

// An upload that was made while its answer, or the process, was lost is not left
// when the file is published; nor is it where a dead process may have made one.
func TestS3UnnamedUploadIsNotLeft(t *testing.T) {
	for name, killed := range map[string]bool{"the answer is lost": false, "the process was killed": true} {
		t.Run(name, func(t *testing.T) {
			s := inPartsServers["s3"](t)
			content := storagetest.Content(storage.MinPart + 1)
			source := filepath.Join(t.TempDir(), "source")
			storagetest.Write(t, source, content)
			var begun atomic.Int64
			s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Query().Has("uploads") && r.Method == http.MethodPost && begun.Add(1) == 1 {
					next.ServeHTTP(discard{http.Header{}}, r)
					if killed {
						w.WriteHeader(http.StatusForbidden) // so that this Put goes no further
						return
					}
					panic(http.ErrAbortHandler)
				}
				next.ServeHTTP(w, r)
			})
			s.Options.RetryFor = time.Minute
			st := storage.Hasten(storage.New(s.Options), time.Minute)
			f, err := os.Open(source)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			req := storage.PutRequest{URL: s.URL + "/x", File: f, Size: int64(len(content)), Tag: "tag"}
			err = st.Put(t.Context(), req)
			if killed {
				if err == nil || s.unfinished(t) != 1 {
					t.Fatalf("error %v, and %d uploads are left", err, s.unfinished(t))
				}
				req.Unnamed = true
				err = st.Put(t.Context(), req)
			}
			if err != nil {
				t.Fatal(err)
			}
			if begun.Load() != 2 || s.unfinished(t) != 0 {
				t.Errorf("%d uploads were begun and %d are left", begun.Load(), s.unfinished(t))
			}
			if got := s.Load(t, "x"); !bytes.Equal(got, content) {
				t.Errorf("%d bytes were published, or others", len(got))
			}
		})
	}
}

// A publisher whose upload somebody took for a forsaken one begins anew.
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
				if err := other.Abort(t.Context(), s.URL+"/x", storage.Unfinished{Tag: "other", InParts: true}); err != nil {
					t.Error(err)
				}
			})
		}
		next.ServeHTTP(w, r)
	})
	if err := putFile(s.Options, source, s.URL+"/x", nil, new(string)); err != nil {
		t.Fatal(err)
	}
	if got := s.Load(t, "x"); !bytes.Equal(got, content) || s.unfinished(t) != 0 {
		t.Errorf("%d bytes were published, or others; %d uploads are left", len(got), s.unfinished(t))
	}
}
