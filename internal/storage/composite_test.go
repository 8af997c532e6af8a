package storage_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/crc32"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/machine"
)

// storeInParts uploads parts of these sizes as another tool would, and returns the whole.
// Without an algorithm the parts have no checksum but their ETags.
func storeInParts(t *testing.T, client *s3.Client, key string, algorithm types.ChecksumAlgorithm, sizes ...int) []byte {
	t.Helper()
	bucket := aws.String("bucket")
	in := &s3.CreateMultipartUploadInput{Bucket: bucket, Key: &key, ChecksumAlgorithm: algorithm}
	if algorithm != "" {
		in.ChecksumType = types.ChecksumTypeComposite
	}
	begun, err := client.CreateMultipartUpload(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var whole []byte
	var parts []types.CompletedPart
	for i, size := range sizes {
		content := storagetest.Content(size + i)[:size]
		whole = append(whole, content...)
		number := aws.Int32(int32(i + 1))
		out, err := client.UploadPart(t.Context(), &s3.UploadPartInput{
			Bucket: bucket, Key: &key, UploadId: begun.UploadId, PartNumber: number, Body: bytes.NewReader(content), ChecksumAlgorithm: algorithm,
		})
		if err != nil {
			t.Fatal(err)
		}
		part := types.CompletedPart{PartNumber: number, ETag: out.ETag}
		if algorithm != "" {
			part.ChecksumCRC32, part.ChecksumCRC32C, part.ChecksumSHA1, part.ChecksumSHA256 = out.ChecksumCRC32, out.ChecksumCRC32C, out.ChecksumSHA1, out.ChecksumSHA256
		}
		parts = append(parts, part)
	}
	_, err = client.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: bucket, Key: &key, UploadId: begun.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil {
		t.Fatal(err)
	}
	return whole
}

// partHead says whether a request asks for a part of an object.
func partHead(r *http.Request) bool {
	return r.Method == http.MethodHead && r.URL.Query().Has("partNumber")
}

// asAmazon reaches versitygw under a name of Amazon's: what it says of an ETag counts then.
func asAmazon(t *testing.T, proxy *storagetest.Proxy, opts storage.Options) *storage.Storage {
	t.Setenv("HTTP_PROXY", "")
	opts.S3 = storage.S3{Endpoint: "http://s3.us-east-1.amazonaws.com", PathStyle: true}
	return storage.Dial(storage.Hasten(storage.New(opts), time.Minute), func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, strings.TrimPrefix(proxy.URL, "http://"))
	})
}

// An object that was uploaded in parts is held against the checksum of their checksums.
// Its parts are asked for as little as can be.
func TestS3CompositeChecksums(t *testing.T) {
	const mib = 1 << 20
	server, client := storagetest.Versitygw(t)
	proxy := storagetest.NewProxy(t, server.Options.S3.Endpoint)
	server.Options.S3.Endpoint = proxy.URL
	layouts := []struct {
		name  string
		sizes []int
		heads int64 // for a right file
		wrong int64 // more, for each wrong one
	}{
		{"one part", []int{6 * mib}, 0, 0},
		{"two parts", []int{5 * mib, 7 * mib}, 1, 1},
		{"equal parts", []int{6 * mib, 6 * mib, 6 * mib}, 1, 4},
		{"equal parts but the last", []int{6 * mib, 6 * mib, 6 * mib, 12345}, 1, 5},
		{"equal parts but the last, which is larger", []int{5 * mib, 5 * mib, 7 * mib}, 1, 4},
		{"unequal parts that could be equal", []int{6 * mib, 7 * mib, 8 * mib, 12345}, 5, 5},
		{"unequal parts", []int{5 * mib, 6 * mib, 7 * mib}, 4, 4},
		{"unequal parts, the first is too large", []int{12 * mib, 5 * mib, 5 * mib}, 4, 4},
	}
	algorithms := map[types.ChecksumAlgorithm]storage.Algorithm{
		"":                            storage.MD5, // of the ETag
		types.ChecksumAlgorithmCrc32:  storage.CRC32,
		types.ChecksumAlgorithmCrc32c: storage.CRC32C,
		types.ChecksumAlgorithmSha1:   storage.SHA1,
		types.ChecksumAlgorithmSha256: storage.SHA256,
	}
	for algorithm, name := range algorithms {
		for i, layout := range layouts {
			if i != 3 && name != storage.MD5 && name != storage.CRC32C {
				continue // the parts are found in one way for all
			}
			t.Run(string(name)+" "+layout.name, func(t *testing.T) {
				key := fmt.Sprint(name, len(layout.sizes), layout.sizes[0])
				content := storeInParts(t, client, "top/"+key, algorithm, layout.sizes...)
				opts := server.Options
				opts.RetryFor = time.Minute
				s := storage.Hasten(storage.New(opts), time.Minute)
				if algorithm == "" {
					s = asAmazon(t, proxy, opts)
				}
				for _, row := range []struct {
					name  string
					flips int64 // so many reads have a wrong byte
				}{{"right", 0}, {"a wrong byte once", 1}, {"a wrong byte", 1 << 30}} {
					var heads, gets atomic.Int64
					proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
						spoilt := &altered{ResponseWriter: w}
						if algorithm == "" {
							spoilt.header = func(h http.Header) { h.Set("Server", "AmazonS3"); h.Del("X-Amz-Checksum-Crc64nvme") }
						}
						if partHead(r) {
							heads.Add(1)
						} else if gets.Add(1) <= row.flips {
							spoilt.body = flip
						}
						next.ServeHTTP(spoilt, r)
					})
					dir, got, err := fetchInto(t, s, server.URL+"/"+key, "file")
					want := layout.heads
					switch row.name {
					case "a wrong byte once":
						want += layout.wrong
						fallthrough
					case "right":
						if err != nil {
							t.Fatalf("%s: %v", row.name, err)
						}
						storagetest.Only(t, dir, "file", content)
						if len(got.Verified) != 1 || got.Verified[0].Algorithm != name || got.Verified[0].Parts != len(layout.sizes) {
							t.Errorf("%s: verified by %v", row.name, got.Verified)
						}
					default:
						want = 2 * max(layout.wrong, layout.heads)
						if err == nil || machine.FaultOf(err) != machine.TaskFault ||
							!strings.Contains(err.Error(), fmt.Sprintf("checksum of the checksums of its %d parts is ", len(layout.sizes))) {
							t.Errorf("%s: error %v", row.name, err)
						}
					}
					if heads.Load() != want {
						t.Errorf("%s: parts were asked for %d times, want %d", row.name, heads.Load(), want)
					}
				}
			})
		}
	}
}

// An object that was not uploaded in parts, or has a checksum of its whole content, costs no
// more requests than it did.
func TestS3ObjectOfOnePartIsAskedForOnce(t *testing.T) {
	s := inPartsServers["s3"](t)
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, storagetest.Content(storage.MinPart+1))
	if err := putFile(s.Options, source, s.URL+"/ours", nil, new(storage.Upload)); err != nil {
		t.Fatal(err)
	}
	s.Store(t, "whole", storagetest.Content(70_000))
	for key, want := range map[string]int64{"ours": 2, "whole": 1} {
		var requests atomic.Int64
		s.proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			requests.Add(1)
			next.ServeHTTP(w, r)
		})
		if _, got, err := fetchInto(t, storage.New(s.Options), s.URL+"/"+key, "file"); err != nil || len(got.Verified) != 1 {
			t.Errorf("%s is verified by %v (%v)", key, got.Verified, err)
		}
		if requests.Load() > want {
			t.Errorf("%s took %d requests", key, requests.Load())
		}
	}
}

// partsServer is a service with one object, which was uploaded in parts.
type partsServer struct {
	content []byte
	sizes   []int
	header  http.Header // of the object
	heads   atomic.Int64
	// head answers a request for a part in place of a good service; nil for none.
	head func(n int64, w http.ResponseWriter, r *http.Request, good http.HandlerFunc)
	// get spoils an answer to a request for content; nil for none.
	get  func(n int64, w http.ResponseWriter) http.ResponseWriter
	gets atomic.Int64
}

// newPartsServer has parts of these sizes, and the CRC-32C of their CRC-32Cs.
func newPartsServer(sizes ...int) *partsServer {
	table := crc32.MakeTable(crc32.Castagnoli)
	total := 0
	for _, size := range sizes {
		total += size
	}
	content := storagetest.Content(total)
	sum, at := crc32.New(table), 0
	for _, size := range sizes {
		part := crc32.New(table)
		part.Write(content[at : at+size])
		sum.Write(part.Sum(nil))
		at += size
	}
	return &partsServer{content: content, sizes: sizes, header: http.Header{
		"Etag":                  {`"a"`},
		"X-Amz-Checksum-Crc32c": {fmt.Sprintf("%s-%d", b64(sum.Sum(nil)), len(sizes))},
		"X-Amz-Checksum-Type":   {"COMPOSITE"},
	}}
}

func (p *partsServer) good(w http.ResponseWriter, r *http.Request) {
	number, err := strconv.Atoi(r.URL.Query().Get("partNumber"))
	if err != nil || number < 1 || number > len(p.sizes) {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	w.Header().Set("X-Amz-Mp-Parts-Count", strconv.Itoa(len(p.sizes)))
	w.Header().Set("Content-Length", strconv.Itoa(p.sizes[number-1]))
	w.WriteHeader(http.StatusPartialContent)
}

func (p *partsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	maps.Copy(w.Header(), p.header)
	switch {
	case !partHead(r):
		if n := p.gets.Add(1); p.get != nil {
			w = p.get(n, w)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p.content))
	case p.head != nil:
		p.head(p.heads.Add(1), w, r, p.good)
	default:
		p.heads.Add(1)
		p.good(w, r)
	}
}

// open returns a Storage for which the server is a service of this host.
func (p *partsServer) open(t *testing.T, host string) *storage.Storage {
	t.Helper()
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	t.Setenv("HTTP_PROXY", "")
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	st := storage.New(storage.Options{RetryFor: time.Minute, S3: storage.S3{Endpoint: "http://" + host, PathStyle: true}})
	return storage.Dial(storage.Hasten(st, time.Hour), func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	})
}

// Where a service does not tell the parts, or tells what cannot be, a right file is not
// refused: only its length is known. What passes is outlasted.
func TestS3PartsThatAreNotTold(t *testing.T) {
	answers := func(code int) func(int64, http.ResponseWriter, *http.Request, http.HandlerFunc) {
		return func(_ int64, w http.ResponseWriter, _ *http.Request, _ http.HandlerFunc) { w.WriteHeader(code) }
	}
	tells := func(from int64, name, value string) func(int64, http.ResponseWriter, *http.Request, http.HandlerFunc) {
		return func(n int64, w http.ResponseWriter, r *http.Request, good http.HandlerFunc) {
			good(&altered{ResponseWriter: w, header: func(h http.Header) {
				if n >= from && value == "" {
					h.Del(name)
				} else if n >= from {
					h.Set(name, value)
				}
			}}, r)
		}
	}
	rows := []struct {
		name     string
		sizes    []int
		head     func(n int64, w http.ResponseWriter, r *http.Request, good http.HandlerFunc)
		verified int
		heads    int64 // at most
		gets     int64 // 1 when 0
	}{
		{name: "told", sizes: []int{10, 10, 5}, verified: 1, heads: 1},
		{name: "busy", sizes: []int{10, 10, 5}, verified: 1, heads: 3, head: func(n int64, w http.ResponseWriter, r *http.Request, good http.HandlerFunc) {
			if n < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			good(w, r)
		}},
		{name: "not known", sizes: []int{10, 10, 5}, heads: 1, head: answers(http.StatusNotImplemented)},
		{name: "not allowed", sizes: []int{10, 10, 5}, heads: 1, head: answers(http.StatusForbidden)},
		{name: "gone", sizes: []int{10, 10, 5}, heads: 1, head: answers(http.StatusNotFound)},
		{name: "no such part", sizes: []int{10, 10, 5}, heads: 1, head: answers(http.StatusRequestedRangeNotSatisfiable)},
		{name: "no number of parts", sizes: []int{10, 10, 5}, heads: 1, head: tells(1, "X-Amz-Mp-Parts-Count", "")},
		{name: "another number of parts", sizes: []int{10, 10, 5}, heads: 1, head: tells(1, "X-Amz-Mp-Parts-Count", "4")},
		{name: "a part longer than the whole", sizes: []int{10, 10, 5}, heads: 1, head: tells(1, "Content-Length", "26")},
		{name: "the whole for each part", sizes: []int{10, 10, 5}, heads: 4, head: tells(1, "Content-Length", "25")},
		{name: "parts shorter than the whole", sizes: []int{5, 11, 10}, heads: 4, head: tells(3, "Content-Length", "1")},
		{name: "the second is not told", sizes: []int{5, 6, 7}, heads: 4, head: tells(3, "X-Amz-Mp-Parts-Count", "")},
		{name: "the second is not told, and all could be equal", sizes: []int{7, 6, 5}, heads: 4, head: tells(3, "X-Amz-Mp-Parts-Count", "")},
		// It is read anew.
		{name: "of another object", sizes: []int{10, 10, 5}, verified: 1, heads: 2, gets: 2, head: func(n int64, w http.ResponseWriter, r *http.Request, good http.HandlerFunc) {
			if n == 1 {
				w.Header().Set("ETag", `"b"`)
			}
			good(w, r)
		}},
		{name: "parts without bytes", sizes: []int{0, 7, 0, 9, 0}, verified: 1, heads: 6},
		{name: "nothing in one part", sizes: []int{0}, verified: 1},
		{name: "as many parts as there can be", sizes: slices.Repeat([]int{1, 2, 3, 4}, 2500), verified: 1, heads: 10_001},
		{name: "more parts than there can be", sizes: slices.Repeat([]int{1}, 10_001)},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			p := newPartsServer(row.sizes...)
			p.head = row.head
			dir, got, err := fetchInto(t, p.open(t, "127.0.0.1"), "s3://bucket/x", "file")
			if err != nil {
				t.Fatal(err)
			}
			storagetest.Only(t, dir, "file", p.content)
			if len(got.Verified) != row.verified {
				t.Errorf("verified by %v", got.Verified)
			}
			if p.heads.Load() > row.heads || p.gets.Load() != cmp.Or(row.gets, 1) {
				t.Errorf("parts were asked for %d times, at most %d are needed; it was read %d times", p.heads.Load(), row.heads, p.gets.Load())
			}
		})
	}
}

// A storage that is silent when it is asked for parts does not hold up a download that has
// to go on.
func TestS3SilenceAboutParts(t *testing.T) {
	p := newPartsServer(10, 10, 5)
	asked := make(chan struct{})
	p.head = func(n int64, w http.ResponseWriter, r *http.Request, good http.HandlerFunc) {
		if n == 1 {
			close(asked)
			<-r.Context().Done()
			return
		}
		good(w, r)
	}
	p.get = func(n int64, w http.ResponseWriter) http.ResponseWriter {
		if n == 1 {
			return &stalling{w, 3, asked}
		}
		return w
	}
	dir, got, err := fetchInto(t, p.open(t, "127.0.0.1"), "s3://bucket/x", "file")
	if err != nil || len(got.Verified) != 1 {
		t.Fatalf("verified by %v (%v)", got.Verified, err)
	}
	storagetest.Only(t, dir, "file", p.content)
}

// An ETag with a "-" counts where it is known of what it is made.
func TestS3ETagOfParts(t *testing.T) {
	const theirs, amazon = "objects.example.org", "s3.us-east-1.amazonaws.com"
	for _, row := range []struct {
		name, host string
		header     http.Header
		counts     bool
	}{
		{"of Amazon", amazon, http.Header{"Server": {"AmazonS3"}}, true},
		{"of Amazon, with a key of its own", amazon, http.Header{"Server": {"AmazonS3"}, "X-Amz-Server-Side-Encryption": {"AES256"}}, true},
		{"encrypted by KMS", amazon, http.Header{"Server": {"AmazonS3"}, "X-Amz-Server-Side-Encryption": {"aws:kms"}}, false},
		{"encrypted twice by KMS", amazon, http.Header{"Server": {"AmazonS3"}, "X-Amz-Server-Side-Encryption": {"aws:kms:dsse"}}, false},
		{"with the customer's key", amazon, http.Header{"Server": {"AmazonS3"}, "X-Amz-Server-Side-Encryption-Customer-Algorithm": {"AES256"}}, false},
		{"of a service behind Amazon's name", amazon, http.Header{"Server": {"MinIO"}}, false},
		{"of another service", theirs, http.Header{"Server": {"AmazonS3"}}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPartsServer(10, 10, 5)
			p.header = row.header
			p.header["Etag"] = []string{`"0123456789abcdef0123456789abcdef-3"`} // not the content's
			dir, got, err := fetchInto(t, p.open(t, row.host), "s3://bucket/x", "file")
			if row.counts {
				if err == nil || machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "its md5 checksum of the checksums of its 3 parts is ") {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || len(got.Verified) != 0 || p.heads.Load() != 0 {
				t.Fatalf("verified by %v (%v), %d requests for parts", got.Verified, err, p.heads.Load())
			}
			storagetest.Only(t, dir, "file", p.content)
		})
	}
}

// What a killed process has fetched is verified with the rest by the one that goes on, and
// is not fetched again when it is right.
func TestS3CompositeChecksumAfterKill(t *testing.T) {
	for name, spoil := range map[string]func([]byte){"right": nil, "a wrong byte": flip} {
		t.Run(name, func(t *testing.T) { killAndGoOn(t, spoil) })
	}
}

func killAndGoOn(t *testing.T, spoil func([]byte)) {
	server, client := storagetest.Versitygw(t)
	proxy := storagetest.NewProxy(t, server.Options.S3.Endpoint)
	server.Options.S3.Endpoint = proxy.URL
	content := storeInParts(t, client, "top/x", types.ChecksumAlgorithmCrc32, slices.Repeat([]int{6 << 20}, 8)...)
	killed := make(chan struct{})
	proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		var begin int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &begin); n == 1 {
			<-killed
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(cut(&altered{ResponseWriter: w, body: spoil}, 2*storage.MinPart-1), r)
	})
	dir := t.TempDir()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "STORAGE_TEST_FETCH="+server.URL+"/x", "STORAGE_TEST_DIR="+dir, "STORAGE_TEST_S3="+proxy.URL)
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(dir, ".file.deckhand-part")
	for deadline := time.Now().Add(3 * time.Minute); recorded(part, len(content)) < 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the download does not get on")
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed
	close(killed)
	var anew atomic.Int64
	proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && r.Header.Get("Range") == "" {
			anew.Add(1)
		}
		next.ServeHTTP(w, r)
	})
	server.Options.RetryFor = time.Minute
	got, err := fetchTo(t, storage.Hasten(storage.New(server.Options), time.Minute), server.URL+"/x", dir, "file")
	if err != nil || len(got.Verified) != 1 {
		t.Fatalf("verified by %v (%v)", got.Verified, err)
	}
	storagetest.Only(t, dir, "file", content)
	if want := spoil != nil; (anew.Load() > 0) != want {
		t.Errorf("it was read from its beginning %d times", anew.Load())
	}
}
