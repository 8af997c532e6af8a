package storage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	neturl "net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"github.com/deckhand/deckhand/machine"
)

// GCS says how Google Cloud Storage is reached.
type GCS struct {
	// Endpoint is the URL of the service; empty for that of
	// STORAGE_EMULATOR_HOST, else https://storage.googleapis.com.
	Endpoint string
	// Anonymous sends requests without credentials.
	Anonymous bool
}

// gcsScope allows reading and writing objects.
const gcsScope = "https://www.googleapis.com/auth/devstorage.read_write"

// gcsStore reads and writes objects over the JSON API.
type gcsStore struct {
	storage  *Storage
	endpoint string // without a slash at its end

	setup sync.Mutex // protects what follows
	http  *httpStore // nil until it is needed
	none  error      // why there are no credentials
}

func newGCS(s *Storage) Store {
	endpoint := s.opts.GCS.Endpoint
	if host := os.Getenv("STORAGE_EMULATOR_HOST"); endpoint == "" && host != "" {
		endpoint = host
		if !hasScheme("http", "https")(host) {
			endpoint = "http://" + host
		}
	}
	if endpoint == "" {
		endpoint = "https://storage.googleapis.com"
	}
	return &gcsStore{storage: s, endpoint: strings.TrimSuffix(endpoint, "/")}
}

// client settles the credentials, of which there may be none.
func (t *gcsStore) client(ctx context.Context) (*httpStore, error) {
	t.setup.Lock()
	defer t.setup.Unlock()
	if t.http != nil {
		return t.http, nil
	}
	client := &http.Client{CheckRedirect: stay, Transport: t.storage.transport}
	if !t.storage.opts.GCS.Anonymous && os.Getenv("STORAGE_EMULATOR_HOST") == "" {
		// What they make lives as long as the process, not as this request, so that its
		// end does not end a request for a token.
		patient := context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, &http.Client{Timeout: t.storage.pause.idle})
		credentials, err := google.FindDefaultCredentials(patient, gcsScope)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			t.none = fmt.Errorf("no Google credentials were found: %w", err)
			t.storage.opts.Log.Info("requests to Google are sent without credentials", "because", t.none)
		} else {
			client.Transport = &oauth2.Transport{Base: t.storage.transport, Source: credentials.TokenSource}
		}
	}
	t.http = &httpStore{storage: t.storage, client: client}
	return t.http, nil
}

// send sends a request that has no body.
func (t *gcsStore) send(ctx context.Context, url string, header http.Header) (*http.Response, *watch, error) {
	h, err := t.client(ctx)
	if err != nil {
		return nil, nil, err
	}
	resp, w, err := h.request(ctx, http.MethodGet, url, header, nil)
	return resp, w, tokenFault(err)
}

// tokenFault tells credentials that Google refuses from a network that fails.
func tokenFault(err error) error {
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) || refused.Response == nil {
		return err
	}
	said := fmt.Errorf("%s: %s", excerpt(strings.NewReader(refused.Response.Status), ""), excerpt(bytes.NewReader(refused.Body), ""))
	var pass *passingError
	later := fmt.Errorf("the Google credentials of this node cannot be had now: %w", said)
	if fault := statusFault(refused.Response.StatusCode, refused.Response.Header, later); errors.As(fault, &pass) {
		return fault
	}
	return machine.Faultf(machine.NodeFault, "the node's Google credentials are refused: %w", said)
}

// answer reads a JSON answer.
func (t *gcsStore) answer(resp *http.Response, w *watch, into any) error {
	body := &httpBody{resp.Body, w}
	defer body.Close()
	if resp.StatusCode != http.StatusOK {
		return t.fault(resp, body)
	}
	if err := json.NewDecoder(body).Decode(into); err != nil {
		return readFault(w.cause(fmt.Errorf("cannot read the storage's answer: %w", err)))
	}
	return nil
}

// fault says what an answer other than success means.
func (t *gcsStore) fault(resp *http.Response, body io.Reader) error {
	said := fmt.Errorf("the storage answers %s", excerpt(strings.NewReader(resp.Status), ""))
	text, _ := io.ReadAll(io.LimitReader(body, 64<<10)) // what there is will do
	var answer struct{ Error struct{ Message string } }
	if json.Unmarshal(text, &answer) == nil && answer.Error.Message != "" {
		said = fmt.Errorf("%w: %s", said, excerpt(strings.NewReader(answer.Error.Message), ""))
	}
	switch resp.StatusCode {
	case http.StatusPreconditionFailed:
		return ErrChanged
	case http.StatusBadRequest:
		// So it says that what came has not the checksum that was announced.
		if strings.Contains(answer.Error.Message, "match calculated") {
			return passing(said)
		}
	case http.StatusUnauthorized, http.StatusForbidden:
		t.setup.Lock()
		defer t.setup.Unlock()
		if t.none != nil {
			said = fmt.Errorf("%w (asked without credentials: %w)", said, t.none)
		}
	}
	return statusFault(resp.StatusCode, resp.Header, said)
}

func (t *gcsStore) objectURL(u bucketURL) string {
	return t.endpoint + "/storage/v1/b/" + neturl.PathEscape(u.bucket) + "/o/" + neturl.PathEscape(u.key)
}

// gcsResource is what the service says about an object.
type gcsResource struct {
	Name       string    `json:"name"`
	Size       string    `json:"size"`
	Generation string    `json:"generation"`
	Updated    time.Time `json:"updated"`
	MD5        string    `json:"md5Hash"` // base64; objects that were composed have none
	CRC32C     string    `json:"crc32c"`  // base64
}

func (g gcsResource) listed() listed {
	l := listed{key: g.Name, size: -1, version: gcsVersion(g.Generation), modified: g.Updated}
	if size, err := strconv.ParseInt(g.Size, 10, 64); err == nil {
		l.size = size
	}
	return l
}

// gcsVersion is a version by the generation of an object, which names its content.
func gcsVersion(generation string) string {
	if generation == "" {
		return ""
	}
	return "generation " + generation
}

func (t *gcsStore) Stat(ctx context.Context, url string) (Object, error) {
	u, err := parseObjectURL(url)
	if err != nil {
		return Object{}, err
	}
	resp, w, err := t.send(ctx, t.objectURL(u), http.Header{})
	if err != nil {
		return Object{}, err
	}
	var g gcsResource
	if err := t.answer(resp, w, &g); err != nil {
		return Object{}, err
	}
	l := g.listed()
	o := Object{Size: l.size, Version: l.version, ModTime: l.modified, Ranges: true}
	for _, c := range []struct {
		algorithm Algorithm
		text      string
	}{{CRC32C, g.CRC32C}, {MD5, g.MD5}} {
		if sum, err := base64.StdEncoding.DecodeString(c.text); err == nil {
			if c, ok := newChecksum(c.algorithm, sum); ok {
				o.Checksums = append(o.Checksums, c)
			}
		}
	}
	return o, nil
}

// Open reads an object as it is stored. Without "gzip" the service unpacks what
// was stored with that encoding, and its length and checksums say nothing then.
func (t *gcsStore) Open(ctx context.Context, url string, r Range) (*Reader, error) {
	u, err := parseObjectURL(url)
	if err != nil {
		return nil, err
	}
	query := "?alt=media"
	if generation, ok := strings.CutPrefix(r.Version, "generation "); ok {
		query += "&ifGenerationMatch=" + neturl.QueryEscape(generation)
	}
	header := http.Header{"Accept-Encoding": {"gzip"}}
	if r.partial() {
		header.Set("Range", r.header())
	}
	resp, w, err := t.send(ctx, t.objectURL(u)+query, header)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		return newReader(resp, w, r, gcsObject)
	}
	body := &httpBody{resp.Body, w}
	return nil, errors.Join(t.fault(resp, body), body.Close())
}

// gcsObject reads an answer. A Content-Encoding is how the object was stored.
func gcsObject(resp *http.Response) (Object, error) {
	o := storedObject(resp)
	o.Version, o.Ranges = gcsVersion(resp.Header.Get("X-Goog-Generation")), true
	return o, nil
}

func (t *gcsStore) List(ctx context.Context, url string) iter.Seq2[Object, error] {
	u, err := parseBucketURL(url)
	if err != nil {
		return func(yield func(Object, error) bool) { yield(Object{}, describe(err, "list", url, 1)) }
	}
	return listPages(ctx, t.storage, url, u, joinRaw, func(ctx context.Context, next string) ([]listed, string, error) {
		query := neturl.Values{
			"prefix": {u.prefix()}, "fields": {"items(name,size,generation,updated),nextPageToken"},
		}
		if next != "" {
			query.Set("pageToken", next)
		}
		resp, w, err := t.send(ctx, t.endpoint+"/storage/v1/b/"+neturl.PathEscape(u.bucket)+"/o?"+query.Encode(), http.Header{})
		if err != nil {
			return nil, "", err
		}
		var page struct {
			Items         []gcsResource `json:"items"`
			NextPageToken string        `json:"nextPageToken"`
		}
		if err := t.answer(resp, w, &page); err != nil {
			return nil, "", err
		}
		var found []listed
		for _, g := range page.Items {
			found = append(found, g.listed())
		}
		return found, page.NextPageToken, nil
	})
}

func (t *gcsStore) Join(url, name string) string { return joinRaw(url, name) }

// Put sends a file in one request with its checksums, which the service verifies
// before the object is there. Uploads in sessions could go on after a cut, but
// whoever knows the name of a session may write to it, and names are journaled.
func (t *gcsStore) Put(ctx context.Context, url string, src *Source) error {
	u, err := parseObjectURL(url)
	if err != nil {
		return err
	}
	if !utf8.ValidString(u.key) { // JSON would change it
		return machine.Faultf(machine.TaskFault, "its name is no UTF-8, as names in Google Cloud Storage are")
	}
	h, err := t.client(ctx)
	if err != nil {
		return err
	}
	crc, err := t.storage.sumOf(src, 0, src.Size, hashes[CRC32C]())
	if err != nil {
		return err
	}
	// crypto/md5 is slow beside it: a large object has the CRC alone, as do those
	// that Google's own tools compose.
	resource := map[string]string{"name": u.key, "contentType": octetStream, "crc32c": base64.StdEncoding.EncodeToString(crc)}
	if src.Size <= minPart {
		sum, err := t.storage.sumOf(src, 0, src.Size, md5.New())
		if err != nil {
			return err
		}
		resource["md5Hash"] = base64.StdEncoding.EncodeToString(sum)
	}
	text, err := json.Marshal(resource)
	if err != nil {
		return err
	}
	ctx, w := newWatch(ctx, t.storage.pause.idle)
	defer w.end()
	w.answer = t.storage.answer(src.Size)
	body := newRelated(text, w.around(src.Section(ctx, 0, src.Size)), src.Size)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		t.endpoint+"/upload/storage/v1/b/"+neturl.PathEscape(u.bucket)+"/o?uploadType=multipart", body)
	if err != nil {
		return machine.Faultf(machine.TaskFault, "it is no valid URL: %w", err)
	}
	req.ContentLength = body.size
	req.Header.Set("Content-Type", "multipart/related; boundary="+relatedBoundary)
	req.Header.Set("User-Agent", "deckhand")
	if src.Size >= minExpect {
		req.Header.Set("Expect", "100-continue")
		req.Close = true // see httpStore.request
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return tokenFault(requestFault(w.cause(err)))
	}
	var g gcsResource
	if err := t.answer(resp, w, &g); err != nil {
		return err
	}
	return confirmed("CRC-32C", cmp.Or(g.CRC32C, "none"), resource["crc32c"])
}

// related is the body of a request with a resource and what it describes (RFC 2387).
type related struct {
	io.Reader
	size int64
}

// relatedBoundary stands in no resource; what is in the file does not matter,
// for the service looks for it behind a line's end of its own.
var relatedBoundary = "deckhand-" + strconv.FormatInt(time.Now().UnixNano(), 36)

func newRelated(resource []byte, content io.Reader, size int64) *related {
	head := fmt.Appendf(nil, "--%s\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n%s\r\n--%s\r\nContent-Type: %s\r\n\r\n",
		relatedBoundary, resource, relatedBoundary, octetStream)
	tail := fmt.Appendf(nil, "\r\n--%s--\r\n", relatedBoundary)
	return &related{
		io.MultiReader(bytes.NewReader(head), content, bytes.NewReader(tail)), int64(len(head)) + size + int64(len(tail)),
	}
}

// Abort has nothing to do: the service keeps nothing of a request that was cut.
func (t *gcsStore) Abort(context.Context, string, Unfinished) error { return nil }
