package storage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"iter"
	"net/http"
	neturl "net/url"
	"os"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/deckhand/deckhand/machine"
)

// Azure says how Azure Blob Storage is reached.
type Azure struct {
	// Account that az:// URLs mean; empty for that of the environment.
	Account string
	// Endpoint is the URL of the service, with {account} for the account;
	// empty for https://{account}.blob.core.windows.net.
	Endpoint string
	// Anonymous sends requests without credentials other than a URL's own.
	Anonymous bool
}

// azureHosts end the names of the service's hosts, in each of its clouds.
var azureHosts = []string{
	".blob.core.windows.net", ".blob.storage.azure.net", ".blob.core.usgovcloudapi.net", ".blob.core.chinacloudapi.cn",
}

// isAzure matches az://container/blob and the service's own URLs.
func isAzure(url string) bool {
	if hasScheme("az")(url) {
		return true
	}
	if !hasScheme("https")(url) {
		return false
	}
	_, rest, _ := strings.Cut(url, "://")
	host := strings.ToLower(withoutPort(rest[:(strings.IndexAny(rest+"/", "/?#"))]))
	for _, suffix := range azureHosts {
		if strings.HasSuffix(host, suffix) {
			return true
		}
	}
	return false
}

// withoutPort leaves out the port that https has anyway.
func withoutPort(host string) string {
	return strings.TrimSuffix(strings.TrimSuffix(host, ":443"), ":")
}

// azureURL is a URL of a blob, or of a directory of blobs.
type azureURL struct {
	account string // empty: the configured one
	host    string // of a URL of the service's own
	bucketURL
	query string // a SAS, or empty
}

func parseAzure(url string) (azureURL, error) {
	if hasScheme("az")(url) {
		u, err := parseBucketURL(url)
		return azureURL{bucketURL: u}, err
	}
	u, _, err := parseHTTP(url)
	if err != nil {
		return azureURL{}, err
	}
	account, _, _ := strings.Cut(u.Hostname(), ".")
	name, key, _ := strings.Cut(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	if key, err = neturl.PathUnescape(key); err != nil || name == "" {
		return azureURL{}, machine.Faultf(machine.TaskFault, "it names no container: https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB")
	}
	return azureURL{account: account, host: withoutPort(u.Host), bucketURL: bucketURL{name, key}, query: u.RawQuery}, nil
}

func checkAzure(url string, directory bool) error {
	parse := parseBlob
	if directory {
		parse = parseAzure
	}
	_, err := parse(url)
	return err
}

// parseBlob is parseAzure for the URL of one blob.
func parseBlob(url string) (azureURL, error) {
	u, err := parseAzure(url)
	if err == nil && (u.key == "" || strings.HasSuffix(u.key, "/")) {
		err = machine.Faultf(machine.TaskFault, "%w", errNoName)
	}
	return u, err
}

// azureStore reads and writes block blobs.
type azureStore struct {
	storage *Storage

	setup sync.Mutex // protects what follows
	ready bool
	token azcore.TokenCredential // nil when there is none
	none  error                  // why
}

func newAzure(s *Storage) Store { return &azureStore{storage: s} }

// azureEnvironment is what the Azure tools read from the environment.
type azureEnvironment struct{ account, key, sas, endpoint string }

func readAzureEnvironment() azureEnvironment {
	e := azureEnvironment{
		account: os.Getenv("AZURE_STORAGE_ACCOUNT"), key: os.Getenv("AZURE_STORAGE_KEY"),
		sas: strings.TrimPrefix(os.Getenv("AZURE_STORAGE_SAS_TOKEN"), "?"),
	}
	for _, field := range strings.Split(os.Getenv("AZURE_STORAGE_CONNECTION_STRING"), ";") {
		name, value, _ := strings.Cut(field, "=")
		switch strings.TrimSpace(name) {
		case "AccountName":
			e.account = value
		case "AccountKey":
			e.key = value
		case "SharedAccessSignature":
			e.sas = strings.TrimPrefix(value, "?")
		case "BlobEndpoint":
			e.endpoint = value
		}
	}
	return e
}

// azureTarget is where requests about a container go, and what they are signed with.
type azureTarget struct {
	url     string // of the container, without a query
	query   string
	key     *blob.SharedKeyCredential
	token   azcore.TokenCredential
	options policy.ClientOptions
}

// target settles the endpoint and the credentials of a URL: its own signature,
// then what the environment has for the account, then the identity of the node.
func (t *azureStore) target(ctx context.Context, u azureURL) (azureTarget, error) {
	opts, env := t.storage.opts.Azure, readAzureEnvironment()
	account := cmp.Or(u.account, opts.Account, env.account)
	if account == "" {
		return azureTarget{}, machine.Faultf(machine.TaskFault,
			"it names no account; set storage.azure.account, or write https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB")
	}
	endpoint := opts.Endpoint
	switch {
	case endpoint != "":
	case u.host != "":
		endpoint = "https://" + u.host
	case env.endpoint != "" && env.account == account:
		endpoint = env.endpoint
	default:
		endpoint = "https://{account}.blob.core.windows.net"
	}
	to := azureTarget{
		url:   strings.TrimSuffix(strings.ReplaceAll(endpoint, "{account}", account), "/") + "/" + neturl.PathEscape(u.bucket),
		query: u.query,
		options: policy.ClientOptions{
			Retry:     policy.RetryOptions{MaxRetries: -1}, // attempts are Storage's
			Telemetry: policy.TelemetryOptions{ApplicationID: "deckhand"},
			Transport: &http.Client{
				Transport:     t.storage.transport,
				CheckRedirect: stay,
			},
		},
	}
	if u.query != "" || opts.Anonymous {
		return to, nil
	}
	if env.account == account {
		switch {
		case env.key != "":
			key, err := blob.NewSharedKeyCredential(account, env.key)
			if err != nil {
				return to, machine.Faultf(machine.NodeFault, "the key of the account in the environment is not valid: %w", err)
			}
			to.key = key
			return to, nil
		case env.sas != "":
			to.query = env.sas
			return to, nil
		}
	}
	var err error
	to.token, err = t.identity(ctx)
	return to, err
}

// identity returns the identity of the node or of whoever is logged in; nil
// when there is none.
func (t *azureStore) identity(ctx context.Context) (azcore.TokenCredential, error) {
	t.setup.Lock()
	defer t.setup.Unlock()
	if t.ready {
		return t.token, nil
	}
	ctx, w := newWatch(ctx, t.storage.assembly()) // the client's own attempts may take more than a minute
	defer w.end()
	token, err := azidentity.NewDefaultAzureCredential(nil)
	if err == nil {
		_, err = token.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://storage.azure.com/.default"}})
	}
	if ctx.Err() != nil {
		return nil, w.cause(ctx.Err())
	}
	if identityMayCome(err) {
		return nil, passing(fmt.Errorf("the Azure credentials of this node cannot be had now: %s", strings.Join(strings.Fields(err.Error()), " ")))
	}
	t.ready = true
	if err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		t.none = fmt.Errorf("no Azure credentials were found: %s", first)
		t.storage.opts.Log.Info("requests to Azure are sent without credentials", "because", t.none)
		return nil, nil
	}
	t.token = token
	return token, nil
}

// identityMayCome tells a source of tokens that fails at the moment from one that is not
// there, which is another error, or refuses. Without an answer the network failed.
func identityMayCome(err error) bool {
	var failed *azidentity.AuthenticationFailedError
	if !errors.As(err, &failed) {
		return false
	}
	var pass *passingError
	return failed.RawResponse == nil || errors.As(statusFault(failed.RawResponse.StatusCode, nil, err), &pass)
}

// blob returns a client of one blob.
func (t *azureStore) blob(ctx context.Context, u azureURL) (*blockblob.Client, error) {
	to, err := t.target(ctx, u)
	if err != nil {
		return nil, err
	}
	url, options := to.url+"/"+escapeName(u.key)+query(to.query), &blockblob.ClientOptions{ClientOptions: to.options}
	var c *blockblob.Client
	switch {
	case to.key != nil:
		c, err = blockblob.NewClientWithSharedKeyCredential(url, to.key, options)
	case to.token != nil:
		c, err = blockblob.NewClient(url, to.token, options)
	default:
		c, err = blockblob.NewClientWithNoCredential(url, options)
	}
	return c, t.fault(err)
}

// container returns a client of a container.
func (t *azureStore) container(ctx context.Context, u azureURL) (*container.Client, error) {
	to, err := t.target(ctx, u)
	if err != nil {
		return nil, err
	}
	url, options := to.url+query(to.query), &container.ClientOptions{ClientOptions: to.options}
	var c *container.Client
	switch {
	case to.key != nil:
		c, err = container.NewClientWithSharedKeyCredential(url, to.key, options)
	case to.token != nil:
		c, err = container.NewClient(url, to.token, options)
	default:
		c, err = container.NewClientWithNoCredential(url, options)
	}
	return c, t.fault(err)
}

func query(q string) string {
	if q == "" {
		return ""
	}
	return "?" + q
}

// fault says what an error of the client means.
func (t *azureStore) fault(err error) error {
	if err == nil {
		return nil
	}
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) || answer.RawResponse == nil {
		return asPassing(err)
	}
	said := fmt.Errorf("the storage answers %d %s", answer.StatusCode, excerpt(strings.NewReader(cmp.Or(answer.ErrorCode, http.StatusText(answer.StatusCode))), ""))
	switch answer.ErrorCode {
	case "Md5Mismatch", "Crc64Mismatch", "OperationTimedOut":
		return passing(said)
	case "InvalidBlockList", "InvalidBlobOrBlock":
		return fmt.Errorf("%w: %w", errNoUpload, said)
	case "ContainerNotFound":
		return machine.Faultf(machine.TaskFault, "%w; there is no such container", said)
	}
	switch answer.StatusCode {
	case http.StatusPreconditionFailed:
		if answer.ErrorCode == "ConditionNotMet" { // and not that somebody has a lease on it
			return ErrChanged
		}
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w: it is shorter now", ErrChanged)
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict:
		t.setup.Lock()
		defer t.setup.Unlock()
		if t.none != nil {
			said = fmt.Errorf("%w (asked without credentials: %w)", said, t.none)
		}
	}
	return statusFault(answer.StatusCode, answer.RawResponse.Header, said)
}

// azureObject reads an answer. A Content-Encoding is how the blob was stored.
func azureObject(resp *http.Response) (Object, error) {
	o := storedObject(resp)
	o.Ranges = true
	return o, nil
}

func (t *azureStore) Stat(ctx context.Context, url string) (Object, error) {
	u, err := parseBlob(url)
	if err != nil {
		return Object{}, err
	}
	c, err := t.blob(ctx, u)
	if err != nil {
		return Object{}, err
	}
	ctx, w := newWatch(ctx, t.storage.pause.idle)
	defer w.end()
	var resp *http.Response
	if _, err := c.GetProperties(policy.WithCaptureResponse(ctx, &resp), nil); err != nil {
		return Object{}, t.fault(w.cause(err))
	}
	return azureObject(resp)
}

func (t *azureStore) Open(ctx context.Context, url string, r Range) (*Reader, error) {
	u, err := parseBlob(url)
	if err != nil {
		return nil, err
	}
	c, err := t.blob(ctx, u)
	if err != nil {
		return nil, err
	}
	options := &blob.DownloadStreamOptions{}
	if r.partial() {
		options.Range = blob.HTTPRange{Offset: r.Offset, Count: max(r.Length, 0)}
	}
	if r.Version != "" {
		etag := azcore.ETag(strings.TrimPrefix(r.Version, "etag "))
		options.AccessConditions = &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &etag}}
	}
	ctx, w := newWatch(ctx, t.storage.pause.idle)
	var resp *http.Response
	if _, err := c.DownloadStream(policy.WithCaptureResponse(ctx, &resp), options); err != nil {
		err = w.cause(err)
		w.end()
		return nil, t.fault(err)
	}
	w.rest()
	return newReader(resp, w, r, azureObject)
}

func (t *azureStore) List(ctx context.Context, url string) iter.Seq2[Object, error] {
	u, err := parseAzure(url)
	if err != nil {
		return func(yield func(Object, error) bool) { yield(Object{}, describe(err, "list", url, 1)) }
	}
	return listPages(ctx, t.storage, url, u.bucketURL, t.Join, func(ctx context.Context, next string) ([]listed, string, error) {
		c, err := t.container(ctx, u)
		if err != nil {
			return nil, "", err
		}
		ctx, w := newWatch(ctx, t.storage.pause.idle)
		defer w.end()
		prefix := u.prefix()
		options := &container.ListBlobsFlatOptions{Prefix: &prefix, Include: container.ListBlobsInclude{Metadata: true}}
		if next != "" {
			options.Marker = &next
		}
		page, err := c.NewListBlobsFlatPager(options).NextPage(ctx)
		if err != nil {
			return nil, "", t.fault(w.cause(err))
		}
		var found []listed
		for _, item := range page.Segment.BlobItems {
			l := listed{key: *item.Name, size: -1}
			if p := item.Properties; p != nil {
				if p.ContentLength != nil {
					l.size = *p.ContentLength
				}
				if p.LastModified != nil {
					l.modified = *p.LastModified
				}
				if p.ETag != nil {
					l.version = `etag "` + strings.Trim(string(*p.ETag), `"`) + `"`
				}
			}
			for name, value := range item.Metadata {
				// So does a hierarchical namespace mark its directories.
				if strings.EqualFold(name, "hdi_isfolder") && value != nil && *value == "true" {
					l.dir = true
				}
			}
			found = append(found, l)
		}
		next = ""
		if page.NextMarker != nil {
			next = *page.NextMarker
		}
		return found, next, nil
	})
}

// Join encodes the name in a URL of the service's own, and leaves its signature behind it.
func (t *azureStore) Join(url, name string) string {
	if hasScheme("az")(url) {
		return joinRaw(url, name)
	}
	return joinEscaped(url, name)
}

// azureMaxBlocks is how many blocks a blob may have.
const azureMaxBlocks = 50_000

// Put sends a file with its MD5, or in blocks with their CRC-64, which the
// storage verifies. The MD5 stays with the blob, so that whoever reads it can
// verify it.
func (t *azureStore) Put(ctx context.Context, url string, src *Source) error {
	u, err := parseBlob(url)
	if err != nil {
		return err
	}
	c, err := t.blob(ctx, u)
	if err != nil {
		return err
	}
	if src.Size > minPart {
		up := &azureUpload{azureStore: t, blob: c, src: src}
		up.md5 = sync.OnceValues(func() ([]byte, error) { return t.storage.sumOf(src, 0, src.Size, md5.New()) })
		err := t.storage.putParts(ctx, src, up, azureMaxBlocks)
		if !errors.Is(err, errOtherBlocks) || src.Size > azureMaxWhole {
			return err
		}
		src.lose() // what goes as one takes the place of all blocks
	}
	return t.putWhole(ctx, c, src)
}

// azureMaxWhole is the size of the largest blob that may be sent in one request.
const azureMaxWhole = 5000 << 20

// errOtherBlocks says that a blob has blocks which were not committed and whose names
// have another length, which those of all blocks of a blob must have.
var errOtherBlocks = machine.Faultf(machine.TaskFault,
	"an upload by another tool that was not ended keeps it from taking blocks; the service drops them a week after the last one came")

// putWhole sends a file in one request.
func (t *azureStore) putWhole(ctx context.Context, c *blockblob.Client, src *Source) error {
	sum, err := t.storage.sumOf(src, 0, src.Size, md5.New())
	if err != nil {
		return err
	}
	ctx, w := newWatch(ctx, t.storage.pause.idle)
	defer w.end()
	w.answer = t.storage.answer(src.Size)
	media := octetStream
	src.sending = src.Section(ctx, 0, src.Size)
	out, err := c.Upload(ctx, streaming.NopCloser(w.around(src.sending)), &blockblob.UploadOptions{
		TransactionalValidation: blob.TransferValidationTypeMD5(sum),
		HTTPHeaders:             &blob.HTTPHeaders{BlobContentType: &media, BlobContentMD5: sum},
	})
	if err != nil {
		return t.fault(w.cause(err))
	}
	if err := src.taken(); err != nil {
		return err
	}
	return confirmed("MD5", hex.EncodeToString(out.ContentMD5), hex.EncodeToString(sum))
}

// Abort leaves blocks that were not committed to the service. Nobody sees them,
// a later upload of the blob drops them, and after a week the service does. To
// remove them at once one would have to publish an empty blob first.
func (t *azureStore) Abort(context.Context, string, Unfinished) error { return nil }

// azureUpload is an upload in blocks. What names a block says whose it is, where
// it belongs and what it holds, and so does the list of a blob's blocks.
type azureUpload struct {
	*azureStore
	blob *blockblob.Client
	src  *Source
	md5  func() ([]byte, error) // of the file
}

func (m *azureUpload) hash() hash.Hash { return crc64.New(crc64NVME) }

// others are none: beginning makes nothing at the service that could be lost.
func (*azureUpload) others(context.Context) ([]string, error) { return nil, nil }

func (*azureUpload) forsake(context.Context, Upload) error { return nil }

func (m *azureUpload) begin(context.Context) (string, error) {
	return hex.EncodeToString(m.owner()), nil
}

// owner is what the names of this publisher's blocks begin with.
func (m *azureUpload) owner() []byte {
	sum := sha256.Sum256([]byte(m.src.Tag))
	return sum[:8]
}

func (m *azureUpload) blockID(p filePart) string {
	id := binary.BigEndian.AppendUint32(m.owner(), uint32(p.index))
	return base64.StdEncoding.EncodeToString(append(id, p.sum...))
}

func (m *azureUpload) list(ctx context.Context, _ string) (map[int]sentPart, error) {
	ctx, w := newWatch(ctx, m.storage.pause.idle)
	defer w.end()
	out, err := m.blob.GetBlockList(ctx, blockblob.BlockListTypeAll, nil)
	if err != nil {
		if fault := m.fault(w.cause(err)); machine.FaultOf(fault) != machine.TaskFault || !isNotFound(err) {
			return nil, fault
		}
		return nil, nil // no blob and no block
	}
	parts := map[int]sentPart{}
	for _, b := range out.UncommittedBlocks {
		id, err := base64.StdEncoding.DecodeString(*b.Name)
		if err == nil && len(id) == 20 && bytes.HasPrefix(id, m.owner()) {
			parts[int(binary.BigEndian.Uint32(id[8:]))] = sentPart{size: *b.Size, sum: id[12:]}
		}
	}
	if len(parts) == 0 && len(out.CommittedBlocks) > 0 {
		return nil, errNoUpload
	}
	return parts, nil
}

func isNotFound(err error) bool {
	var answer *azcore.ResponseError
	return errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound
}

func (m *azureUpload) send(ctx context.Context, _ string, p filePart) (sentPart, error) {
	go func() { _, _ = m.md5() }() // beside what is sent; complete takes the result
	ctx, w := newWatch(ctx, m.storage.pause.idle)
	defer w.end()
	body := streaming.NopCloser(w.around(m.src.Section(ctx, p.offset, p.size)))
	out, err := m.blob.StageBlock(ctx, m.blockID(p), body, &blockblob.StageBlockOptions{
		TransactionalValidation: blob.TransferValidationTypeCRC64(binary.BigEndian.Uint64(p.sum)),
	})
	if err = m.fault(w.cause(err)); errors.Is(err, errNoUpload) {
		err = errOtherBlocks
	}
	if err != nil {
		return sentPart{}, err
	}
	// The service writes the number with its low byte first, as the SDK does.
	sent := binary.LittleEndian.AppendUint64(nil, binary.BigEndian.Uint64(p.sum))
	return sentPart{size: p.size, sum: p.sum}, confirmed("CRC-64", hex.EncodeToString(out.ContentCRC64), hex.EncodeToString(sent))
}

func (m *azureUpload) complete(ctx context.Context, _ string, parts []filePart, _ []sentPart) error {
	sum, err := m.md5()
	if err != nil {
		return err
	}
	ids := make([]string, len(parts))
	for i, p := range parts {
		ids[i] = m.blockID(p)
	}
	ctx, w := newWatch(ctx, m.storage.assembly())
	defer w.end()
	media := octetStream
	_, err = m.blob.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: &media, BlobContentMD5: sum},
	})
	return m.fault(w.cause(err))
}

func (m *azureUpload) published(ctx context.Context, parts []filePart) (bool, error) {
	ctx, w := newWatch(ctx, m.storage.pause.idle)
	defer w.end()
	out, err := m.blob.GetBlockList(ctx, blockblob.BlockListTypeCommitted, nil)
	if err != nil {
		return false, m.fault(w.cause(err))
	}
	if len(out.CommittedBlocks) != len(parts) {
		return false, nil
	}
	for i, b := range out.CommittedBlocks {
		if *b.Name != m.blockID(parts[i]) || *b.Size != parts[i].size {
			return false, nil
		}
	}
	return true, nil
}
