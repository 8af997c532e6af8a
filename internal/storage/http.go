package storage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/netip"
	neturl "net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/retryafter"
	"github.com/deckhand/deckhand/machine"
)

// httpStore reads with GET and publishes with PUT, as to a pre-signed URL.
type httpStore struct {
	storage *Storage
	client  *http.Client
}

func newHTTP(s *Storage) Store {
	return &httpStore{storage: s, client: &http.Client{CheckRedirect: checkRedirect, Transport: s.transport}}
}

// newTransport returns what carries the requests of all stores.
func newTransport(parallel int) *http.Transport {
	dialer := &net.Dialer{Timeout: 30 * time.Second, Control: refuseMetadata}
	// Not HTTP/2: its streams share one connection, which is slower than several.
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   30 * time.Second,
		MaxIdleConnsPerHost:   parallel,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true,
		ExpectContinueTimeout: time.Second, // not every server knows Expect
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
	}
}

// metadata are the addresses at which a cloud gives a node its credentials. A
// task may not read those through us, its containers cannot either.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),         // link-local: AWS, Azure, Google, OpenStack
	netip.MustParsePrefix("fd00:ec2::/32"),          // AWS over IPv6
	netip.MustParsePrefix("fd20:ce::254/128"),       // Google over IPv6
	netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), // Oracle over IPv6
	netip.MustParsePrefix("168.63.129.16/32"),       // Azure's wire server
	netip.MustParsePrefix("100.100.100.200/32"),     // Alibaba
}

var errMetadata = errors.New("a task may not read the node's metadata service")

func refuseMetadata(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	for _, p := range metadata {
		if p.Contains(at.Addr().Unmap()) {
			return errMetadata
		}
	}
	return nil
}

var errRedirectedPut = errors.New("the server redirects in a way that drops what is uploaded; use the URL that it redirects to")

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	// 301, 302 and 303 turn a PUT into a GET, whose success would mean nothing.
	if req.Method != via[0].Method && via[0].Method == http.MethodPut {
		return errRedirectedPut
	}
	if !sameOrigin(via[0].URL, req.URL) {
		req.Header.Del("Authorization")
	}
	req.Header.Del("Referer") // which net/http sets, signature included
	return nil
}

// sameOrigin says whether credentials for one URL may go to another. For net/http it is one
// host, and hosts below it; but another port may be another's. A host that moves from http to
// https stays the same.
func sameOrigin(from, to *neturl.URL) bool {
	if from.Scheme == "http" && to.Scheme == "https" && from.Port() == "" && to.Port() == "" {
		return from.Hostname() == to.Hostname()
	}
	return from.Scheme == to.Scheme && from.Host == to.Host
}

// stay takes a redirect for the answer: a storage's requests carry credentials that are
// meant for it alone.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// parseHTTP makes a URL of what people write: bytes that may not stand in a URL
// are encoded, and what is encoded stays as it is. Credentials come apart.
func parseHTTP(url string) (*neturl.URL, *neturl.Userinfo, error) {
	scheme, rest, _ := strings.Cut(url, "://")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	var b strings.Builder
	b.Grow(len(rest))
	for i := end; i < len(rest); i++ {
		switch c := rest[i]; {
		case c <= ' ', c >= 0x7f, strings.IndexByte("\"<>\\^`{|}", c) >= 0, c == '%' && !isEscape(rest[i:]):
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	u, err := neturl.Parse(scheme + "://" + rest[:end] + b.String())
	if err != nil {
		if strings.Contains(rest, "@") { // what it says would repeat some of a password
			return nil, nil, machine.Faultf(machine.TaskFault,
				"it is no valid URL; in a password, slash, question mark, number sign and percent sign are written %%2F, %%3F, %%23 and %%25")
		}
		// The error of net/url repeats the URL.
		var e *neturl.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return nil, nil, machine.Faultf(machine.TaskFault, "it is no valid URL: %w", err)
	}
	if u.Hostname() == "" {
		return nil, nil, machine.Faultf(machine.TaskFault, "it is no valid URL: it names no host")
	}
	if p := u.Port(); p != "" {
		if _, err := strconv.ParseUint(p, 10, 16); err != nil {
			return nil, nil, machine.Faultf(machine.TaskFault, "it is no valid URL: there is no port %s", p)
		}
	}
	u.Host = strings.TrimSuffix(u.Host, ":") // nobody has written the port
	user := u.User
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	return u, user, nil
}

func isEscape(s string) bool {
	return len(s) >= 3 && strings.Trim(s[1:3], "0123456789abcdefABCDEF") == ""
}

// minExpect is the size from which an upload first asks whether it is welcome
// (RFC 9110, 10.1.1); it costs a connection and a round trip.
const minExpect = 256 << 10

// request sends one request under a watch that ends it when nothing moves.
func (h *httpStore) request(ctx context.Context, method, url string, header http.Header, src *Source) (*http.Response, *watch, error) {
	u, user, err := parseHTTP(url)
	if err != nil {
		return nil, nil, err
	}
	ctx, w := newWatch(ctx, h.storage.pause.idle)
	req, err := http.NewRequestWithContext(ctx, method, "", nil)
	if err != nil {
		w.end()
		return nil, nil, err
	}
	req.URL, req.Host, req.Header = u, u.Host, header // it was parsed already
	if header.Get("Accept-Encoding") == "" {
		header.Set("Accept-Encoding", "identity")
	}
	header.Set("User-Agent", "deckhand")
	if user != nil {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	}
	if src != nil {
		req.ContentLength = src.Size
		w.answer = h.storage.answer(src.Size)
		if src.Size >= minExpect && !src.unexpected {
			header.Set("Expect", "100-continue")
			// With Close the body is not sent after a refusal. Else a server that
			// hangs up on it could hide its answer.
			req.Close = true
		}
		req.Body = http.NoBody
		if src.Size > 0 {
			req.GetBody = func() (io.ReadCloser, error) {
				src.sending = src.Section(ctx, 0, src.Size)
				return io.NopCloser(w.around(src.sending)), nil
			}
			req.Body, _ = req.GetBody()
		}
	}
	resp, err := h.client.Do(req)
	if err != nil {
		err = w.cause(err)
		w.end()
		return nil, nil, requestFault(err)
	}
	w.rest()
	return resp, w, nil
}

// requestFault tells what another attempt cannot mend: what is left passes.
func requestFault(err error) error {
	var (
		dns         *net.DNSError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		address     *net.AddrError
		outer       *neturl.Error
	)
	if errors.As(err, &outer) {
		err = outer.Err // without the URL, which the caller names
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &certificate), errors.As(err, &record), errors.As(err, &address),
		errors.Is(err, errMetadata), errors.Is(err, errRedirectedPut),
		strings.HasPrefix(err.Error(), "stopped after"), strings.HasPrefix(err.Error(), "unsupported protocol scheme"):
		return machine.Faultf(machine.TaskFault, "%w", err)
	case strings.HasPrefix(err.Error(), "failed to parse Location header"):
		return machine.Faultf(machine.TaskFault, "the server redirects to what is no URL") // which may be signed
	}
	var fault *machine.Error
	if errors.As(err, &fault) {
		return err
	}
	return passing(err)
}

// worthReading is the length of a body that has come, or nearly so, with the answer's
// head: to read it costs less than the next connection.
const worthReading = 64 << 10

// Stat asks with HEAD. A URL that is signed for GET alone refuses that, so a
// GET is tried then, whose body is not read, unless it is short.
func (h *httpStore) Stat(ctx context.Context, url string) (Object, error) {
	resp, w, err := h.request(ctx, http.MethodHead, url, http.Header{}, nil)
	if err != nil {
		return Object{}, err
	}
	w.end()
	_ = resp.Body.Close() // a HEAD has none
	if resp.StatusCode == http.StatusOK {
		return httpObject(resp)
	}
	r, err := h.Open(ctx, url, Range{Length: -1})
	if err != nil {
		return Object{}, err
	}
	if size := r.Object.Size; size >= 0 && size <= worthReading {
		_, _ = io.Copy(io.Discard, r) // nothing is wanted of it
	}
	return r.Object, r.Close()
}

// Open reads a range. The version is asked for (If-Match, RFC 9110, 13.1.1, or
// If-Unmodified-Since) and compared with that of the answer as well.
func (h *httpStore) Open(ctx context.Context, url string, r Range) (*Reader, error) {
	header := http.Header{}
	if r.partial() {
		header.Set("Range", r.header())
	}
	if r.Version != "" {
		kind, value, _ := strings.Cut(r.Version, " ")
		header.Set(versionHeaders[kind], value)
	}
	resp, w, err := h.request(ctx, http.MethodGet, url, header, nil)
	if err != nil {
		return nil, err
	}
	return newReader(resp, w, r, httpObject)
}

// newReader makes a Reader of an answer to a GET, which it holds against what
// was asked for. object reads what the answer says about the whole object.
func newReader(resp *http.Response, w *watch, r Range, object func(*http.Response) (Object, error)) (*Reader, error) {
	reader := &Reader{ReadCloser: &httpBody{resp.Body, w}}
	if err := reader.accept(resp, r, object); err != nil {
		return nil, errors.Join(err, reader.Close())
	}
	return reader, nil
}

func (reader *Reader) accept(resp *http.Response, r Range, object func(*http.Response) (Object, error)) (err error) {
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		if !r.partial() {
			return errNoRanges
		}
	case http.StatusPreconditionFailed:
		return ErrChanged
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w: it is shorter now", ErrChanged)
	default:
		return statusError(resp)
	}
	o, err := object(resp)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusPartialContent {
		begin, end, size, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil || begin != r.Offset || r.Length >= 0 && end != begin+r.Length ||
			resp.ContentLength >= 0 && resp.ContentLength != end-begin {
			return fmt.Errorf("%w: it answers %q", errNoRanges, resp.Header.Get("Content-Range"))
		}
		o.Size, o.Ranges, reader.Offset = size, true, begin
	}
	if o.Size < 0 && len(resp.TransferEncoding) == 0 && resp.ProtoMajor < 2 && len(o.Checksums) == 0 {
		return machine.Faultf(machine.TaskFault,
			"the server sends neither a length nor a checksum: a cut file could not be told from a whole one")
	}
	if r.Version != "" && o.Version != r.Version {
		return ErrChanged
	}
	reader.Object = o
	return nil
}

// partial says that less than the whole object may be wanted.
func (r Range) partial() bool { return r.Offset > 0 || r.Length >= 0 }

// header is the range as HTTP asks for it (RFC 9110, 14.2).
func (r Range) header() string {
	if r.Length < 0 {
		return fmt.Sprintf("bytes=%d-", r.Offset)
	}
	return fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1)
}

// versionHeaders are the conditions that pin the two kinds of version.
var versionHeaders = map[string]string{"etag": "If-Match", "modified": "If-Unmodified-Since"}

// httpVersion returns what pins the content: a strong ETag, or a date of last
// change that is strong in the sense of RFC 9110, 8.8.2.2: a change after the
// answer would show.
func httpVersion(h http.Header) string {
	if etag := h.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return "etag " + etag
	}
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	if date, err := http.ParseTime(h.Get("Date")); err != nil || date.Sub(modified) < time.Second {
		return ""
	}
	return "modified " + h.Get("Last-Modified")
}

// httpObject reads what an answer to GET or HEAD says about the object.
func httpObject(resp *http.Response) (Object, error) {
	h := resp.Header
	if coding := h.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return Object{}, machine.Faultf(machine.TaskFault,
			"the server sends it with Content-Encoding %q although none was asked for; what is stored cannot be told from what is sent: "+
				"mend the object's metadata or the proxy", coding)
	}
	return storedObject(resp), nil
}

// storedObject reads what an answer says about an object, whose bytes are sent
// as they are stored.
func storedObject(resp *http.Response) Object {
	h := resp.Header
	o := Object{
		Size: resp.ContentLength, Version: httpVersion(h),
		Ranges:    strings.EqualFold(h.Get("Accept-Ranges"), "bytes"),
		Checksums: httpChecksums(resp),
	}
	o.ModTime, _ = http.ParseTime(h.Get("Last-Modified"))
	return o
}

// parseContentRange reads "bytes 0-4/5" (RFC 9110, 14.4); end is exclusive.
func parseContentRange(s string) (begin, end, size int64, err error) {
	var last int64
	if _, err := fmt.Sscanf(s, "bytes %d-%d/%d", &begin, &last, &size); err != nil {
		return 0, 0, 0, err
	}
	if begin < 0 || last < begin || last >= size {
		return 0, 0, 0, errors.New("not a range")
	}
	return begin, last + 1, size, nil
}

// statusError says what an answer other than success means.
func statusError(resp *http.Response) error {
	text := "the server answers " + excerpt(strings.NewReader(resp.Status), "")
	said := excerpt(resp.Body, resp.Request.URL.RawQuery)
	if said != "" {
		text += ": " + said
	}
	if resp.StatusCode == http.StatusBadRequest && strings.Contains(said, "<Code>RequestTimeout</Code>") {
		return passing(errors.New(text)) // so says S3 that it did not get all in time
	}
	return statusFault(resp.StatusCode, resp.Header, errors.New(text))
}

// statusFault gives the error that an answer makes its fault, by the status.
func statusFault(code int, h http.Header, err error) error {
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return machine.Faultf(machine.TaskFault, "%w; credentials may be missing, wrong or expired", err)
	case code == http.StatusNotFound, code == http.StatusGone:
		return machine.Faultf(machine.TaskFault, "%w; there is no such object", err)
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests,
		code >= 500 && code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported:
		return &passingError{err, retryafter.Of(h)}
	}
	return machine.Faultf(machine.TaskFault, "%w", err)
}

// maxExcerpt is how many bytes of what a server says are repeated.
const maxExcerpt = 200

// excerpt is the beginning of what a server says, on one line and without secrets, such as
// the query of the request, if it repeats that.
func excerpt(said io.Reader, query string) string {
	b, _ := io.ReadAll(io.LimitReader(said, 4<<10)) // what there is will do
	text := string(b)
	for _, pair := range strings.Split(query, "&") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			name, value = "", pair
		}
		if value == "" {
			continue
		}
		text = strings.ReplaceAll(text, pair, name+"="+redact.Hidden)
		if plain, err := neturl.QueryUnescape(pair); err == nil {
			text = strings.ReplaceAll(text, plain, name+"="+redact.Hidden)
		}
	}
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	text = redact.Text(strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return -1
		}
		return r
	}, text))
	return strings.ToValidUTF8(text[:min(len(text), maxExcerpt)], "")
}

func checkHTTP(url string, _ bool) error {
	_, _, err := parseHTTP(url)
	return err
}

var errNoDirectories = errors.New("http has no directories; name each file, or use an archive")

// List refuses: HTTP has no directories.
func (h *httpStore) List(_ context.Context, url string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		yield(Object{}, machine.Faultf(machine.TaskFault,
			"cannot list %s: %w", redact.URL(url), errNoDirectories))
	}
}

// Put sends the file with its length. Its type is for the server to say: a signature of the older
// versions is of the content type, which is most often none.
func (h *httpStore) Put(ctx context.Context, url string, src *Source) error {
	header := http.Header{}
	if signsType(url) {
		header.Set("Content-Type", octetStream)
	}
	resp, w, err := h.request(ctx, http.MethodPut, url, header, src)
	if err != nil {
		return err
	}
	body := &httpBody{resp.Body, w}
	defer body.Close()
	if resp.StatusCode == http.StatusExpectationFailed && !src.unexpected {
		src.unexpected = true
		return passing(statusError(resp))
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return statusError(resp)
	}
	if err := src.taken(); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(body, worthReading)) // so that the connection is used again
	return nil
}

// signsType says whether a URL is signed for a content type, without which it is refused. Which one
// it does not tell.
func signsType(url string) bool {
	_, query, _ := strings.Cut(url, "?")
	for _, pair := range strings.Split(strings.ToLower(query), "&") {
		name, value, _ := strings.Cut(pair, "=")
		if name == "x-amz-signedheaders" || name == "x-goog-signedheaders" {
			return slices.Contains(strings.Split(strings.ReplaceAll(value, "%3b", ";"), ";"), "content-type")
		}
	}
	return false
}

// Abort has nothing to do: a server keeps nothing of a PUT that was cut.
func (h *httpStore) Abort(context.Context, string, Unfinished) error { return nil }

// Join adds to the path.
func (h *httpStore) Join(url, name string) string { return joinEscaped(url, name) }

// httpBody is a response's body under watch.
type httpBody struct {
	body  io.ReadCloser
	watch *watch
}

func (b *httpBody) Read(p []byte) (int, error) {
	b.watch.expect()
	n, err := b.body.Read(p)
	b.watch.rest()
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.watch.cause(err)
	}
	return n, err
}

func (b *httpBody) Close() error {
	b.watch.end()
	_ = b.body.Close() // nothing is lost: what counts was read
	return nil
}
