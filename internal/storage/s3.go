package storage

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"iter"
	"net"
	"net/http"
	neturl "net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/retryafter"
	"github.com/deckhand/deckhand/machine"
)

// S3 says how the object stores that speak Amazon's protocol are reached. What
// is left empty comes from where the AWS tools take it: environment, shared
// configuration, the node's role.
type S3 struct {
	// Endpoint is the URL of another service than Amazon's.
	Endpoint string
	Region   string
	// PathStyle puts the bucket into the path instead of the host's name.
	PathStyle bool
	// Anonymous sends requests without credentials.
	Anonymous bool
}

// s3Store reads and writes s3://bucket/key.
type s3Store struct {
	storage *Storage

	setup     sync.Mutex // protects what follows
	config    *aws.Config
	anonymous error                 // why requests are sent without credentials
	clients   map[string]*s3.Client // by region
	regions   map[string]string     // of buckets that are elsewhere
}

func newS3(s *Storage) Store {
	return &s3Store{storage: s, clients: map[string]*s3.Client{}, regions: map[string]string{}}
}

// client returns what speaks to the region of a bucket.
func (t *s3Store) client(ctx context.Context, bucket string) (*s3.Client, error) {
	t.setup.Lock()
	defer t.setup.Unlock()
	if t.config == nil {
		if err := t.configure(ctx); err != nil {
			return nil, err
		}
	}
	region := cmp.Or(t.regions[bucket], t.config.Region)
	if c := t.clients[region]; c != nil {
		return c, nil
	}
	opts := t.storage.opts.S3
	c := s3.NewFromConfig(*t.config, func(o *s3.Options) {
		o.Region = region
		o.UsePathStyle = opts.PathStyle
		if opts.Endpoint != "" {
			o.BaseEndpoint = &opts.Endpoint
		}
		if t.anonymous != nil {
			o.Credentials = aws.AnonymousCredentials{}
		}
		// Attempts are Storage's, and so are the checksums.
		o.Retryer = aws.NopRetryer{}
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.HTTPClient = &http.Client{
			Transport:     t.storage.transport,
			CheckRedirect: stay,
		}
	})
	t.clients[region] = c
	return c, nil
}

var errAnonymous = errors.New("storage.s3.anonymous is set")

func (t *s3Store) configure(ctx context.Context) error {
	opts := t.storage.opts.S3
	c, err := config.LoadDefaultConfig(ctx, config.WithRegion(opts.Region), config.WithLogger(logging.Nop{}))
	if err != nil {
		return machine.Faultf(machine.NodeFault, "the AWS configuration of this node cannot be used: %w", err)
	}
	c.Region = cmp.Or(c.Region, "us-east-1")
	if opts.Anonymous {
		t.anonymous = errAnonymous
	} else if _, err := c.Credentials.Retrieve(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if credentialsMayCome(err) {
			return passing(fmt.Errorf("the AWS credentials of this node cannot be had now: %w", err))
		}
		t.anonymous = fmt.Errorf("no AWS credentials were found: %w", err)
		t.storage.opts.Log.Info("requests to S3 are sent without credentials", "because", t.anonymous)
	}
	t.config = &c
	return nil
}

// credentialsMayCome tells a source of credentials that fails at the moment from one that
// is not there, as the metadata service is not outside of Amazon.
func credentialsMayCome(err error) bool {
	var answer interface{ HTTPStatusCode() int }
	if errors.As(err, &answer) && answer.HTTPStatusCode() > 0 {
		var pass *passingError
		return errors.As(statusFault(answer.HTTPStatusCode(), nil, err), &pass)
	}
	var op *smithy.OperationError
	if errors.As(err, &op) && op.Service() == "ec2imds" {
		return false
	}
	var failed net.Error
	return errors.As(err, &failed)
}

// s3Call makes one request. A bucket that is in another region is asked for there.
func s3Call[Out any](ctx context.Context, t *s3Store, bucket string, do func(*s3.Client) (Out, error)) (Out, error) {
	for moved := false; ; moved = true {
		var none Out
		c, err := t.client(ctx, bucket)
		if err != nil {
			return none, err
		}
		out, err := do(c)
		if err == nil {
			return out, nil
		}
		if moved || !t.elsewhere(bucket, c.Options().Region, err) {
			return none, t.fault(err)
		}
	}
}

// s3Ask is s3Call for a request that moves no object: it ends when the storage is silent
// for too long.
func s3Ask[Out any](ctx context.Context, t *s3Store, bucket string, idle time.Duration, do func(context.Context, *s3.Client) (Out, error)) (Out, error) {
	ctx, w := newWatch(ctx, idle)
	defer w.end()
	out, err := s3Call(ctx, t, bucket, func(c *s3.Client) (Out, error) { return do(ctx, c) })
	return out, w.cause(err)
}

// elsewhere says whether an error tells of another region that the bucket is in.
func (t *s3Store) elsewhere(bucket, asked string, err error) bool {
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.HTTPStatusCode() == 0 || t.storage.opts.S3.Endpoint != "" {
		return false
	}
	region := answer.Response.Header.Get("X-Amz-Bucket-Region")
	if region == "" || region == asked {
		return false
	}
	t.setup.Lock()
	defer t.setup.Unlock()
	t.regions[bucket] = region
	return true
}

// fault says what an error of the client means.
func (t *s3Store) fault(err error) error {
	var api smithy.APIError
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.HTTPStatusCode() == 0 {
		return asPassing(unwrapOperation(err))
	}
	status := answer.HTTPStatusCode()
	if status == http.StatusOK && !errors.As(err, &api) {
		return passing(fmt.Errorf("the storage's answer cannot be read: %w", answer.Err))
	}
	code, message := "", http.StatusText(status)
	if errors.As(err, &api) {
		code = excerpt(strings.NewReader(api.ErrorCode()), "")
		message = excerpt(strings.NewReader(cmp.Or(api.ErrorMessage(), message)), "")
	}
	said := fmt.Errorf("the storage answers %d %s: %s", status, code, message)
	switch code {
	case "NoSuchUpload":
		return fmt.Errorf("%w: %w", errNoUpload, said)
	case "RequestTimeout", "SlowDown", "InternalError", "OperationAborted", "Throttling", "ThrottlingException", "BadDigest", "XAmzContentChecksumMismatch",
		"InvalidPart": // the next attempt asks which parts there are
		return &passingError{said, retryafter.Of(answer.Response.Header)}
	case "NoSuchBucket":
		return machine.Faultf(machine.TaskFault, "%w; there is no such bucket", said)
	}
	switch status {
	case http.StatusPreconditionFailed:
		return ErrChanged
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w: it is shorter now", ErrChanged)
	case http.StatusUnauthorized, http.StatusForbidden:
		if t.anonymous != nil {
			said = fmt.Errorf("%w (asked without credentials: %w)", said, t.anonymous)
		}
	}
	return statusFault(status, answer.Response.Header, said)
}

// unwrapOperation drops what the client says around a failure: operation,
// request ids.
func unwrapOperation(err error) error {
	var op *smithy.OperationError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// Stat asks with HEAD, which also tells the checksums.
func (t *s3Store) Stat(ctx context.Context, url string) (Object, error) {
	u, err := parseObjectURL(url)
	if err != nil {
		return Object{}, err
	}
	in := &s3.HeadObjectInput{Bucket: &u.bucket, Key: &u.key}
	out, err := s3Ask(ctx, t, u.bucket, t.storage.pause.idle, func(ctx context.Context, c *s3.Client) (*s3.HeadObjectOutput, error) {
		return c.HeadObject(ctx, in, withChecksums)
	})
	if err != nil {
		return Object{}, err
	}
	return s3Object(s3Answer(out.ResultMetadata))
}

// withChecksums asks for the checksums of the whole object. It is not asked for
// in the input, because the client would compute them too.
var withChecksums = s3.WithAPIOptions(smithyhttp.SetHeaderValue("x-amz-checksum-mode", "ENABLED"))

// s3Answer is what the storage answered, as it came.
func s3Answer(m middleware.Metadata) *http.Response {
	return awsmiddleware.GetRawResponse(m).(*smithyhttp.Response).Response
}

// s3Object reads an answer. A Content-Encoding is how the object was stored.
func s3Object(resp *http.Response) (Object, error) {
	o := storedObject(resp)
	o.Ranges = true
	o.Checksums = append(o.Checksums, compositeChecksums(resp)...)
	return o, nil
}

// PartSize asks with HEAD for one part, which those may do that may read the object.
func (t *s3Store) PartSize(ctx context.Context, url, version string, part int) (size int64, parts int, err error) {
	u, err := parseObjectURL(url)
	etag, pinned := strings.CutPrefix(version, "etag ")
	if err != nil || !pinned {
		return 0, 0, err
	}
	in := &s3.HeadObjectInput{Bucket: &u.bucket, Key: &u.key, PartNumber: aws.Int32(int32(part))}
	out, err := s3Ask(ctx, t, u.bucket, t.storage.pause.idle, func(ctx context.Context, c *s3.Client) (*s3.HeadObjectOutput, error) {
		return c.HeadObject(ctx, in)
	})
	switch {
	case errors.Is(err, ErrChanged): // 416, where there is no such part
		return 0, 0, nil
	case err != nil:
		return 0, 0, err
	case aws.ToString(out.ETag) != etag:
		return 0, 0, ErrChanged
	}
	return aws.ToInt64(out.ContentLength), int(aws.ToInt32(out.PartsCount)), nil
}

func (t *s3Store) Open(ctx context.Context, url string, r Range) (*Reader, error) {
	u, err := parseObjectURL(url)
	if err != nil {
		return nil, err
	}
	in := &s3.GetObjectInput{Bucket: &u.bucket, Key: &u.key}
	if r.partial() {
		in.Range = aws.String(r.header())
	}
	if r.Version != "" {
		in.IfMatch = aws.String(strings.TrimPrefix(r.Version, "etag "))
	}
	ctx, w := newWatch(ctx, t.storage.pause.idle)
	out, err := s3Call(ctx, t, u.bucket, func(c *s3.Client) (*s3.GetObjectOutput, error) {
		return c.GetObject(ctx, in, withChecksums)
	})
	if err != nil {
		err = w.cause(err)
		w.end()
		return nil, err
	}
	w.rest()
	return newReader(s3Answer(out.ResultMetadata), w, r, s3Object)
}

func (t *s3Store) List(ctx context.Context, url string) iter.Seq2[Object, error] {
	u, err := parseBucketURL(url)
	if err != nil {
		return func(yield func(Object, error) bool) { yield(Object{}, describe(err, "list", url, 1)) }
	}
	return listPages(ctx, t.storage, url, u, joinRaw, func(ctx context.Context, next string) ([]listed, string, error) {
		in := &s3.ListObjectsV2Input{Bucket: &u.bucket, Prefix: aws.String(u.prefix())}
		if next != "" {
			in.ContinuationToken = &next
		}
		ask := func(ctx context.Context, c *s3.Client) (*s3.ListObjectsV2Output, error) {
			return c.ListObjectsV2(ctx, in)
		}
		out, err := s3Ask(ctx, t, u.bucket, t.storage.pause.idle, ask)
		var syntax *xml.SyntaxError
		if errors.As(err, &syntax) {
			// So is an answer whose keys have characters that XML cannot hold. Not every
			// service can encode them, or does it well: it is asked for where it must be.
			in.EncodingType = types.EncodingTypeUrl
			out, err = s3Ask(ctx, t, u.bucket, t.storage.pause.idle, ask)
		}
		if err != nil {
			return nil, "", err
		}
		page := make([]listed, 0, len(out.Contents))
		for _, o := range out.Contents {
			key := aws.ToString(o.Key)
			if out.EncodingType == types.EncodingTypeUrl {
				if key, err = neturl.QueryUnescape(key); err != nil {
					return nil, "", machine.Faultf(machine.TaskFault, "the storage tells a key that cannot be read: %w", err)
				}
			}
			l := listed{key: key, size: aws.ToInt64(o.Size), modified: aws.ToTime(o.LastModified)}
			if o.ETag != nil {
				l.version = "etag " + *o.ETag
			}
			page = append(page, l)
		}
		return page, aws.ToString(out.NextContinuationToken), nil
	})
}

func (t *s3Store) Join(url, name string) string { return joinRaw(url, name) }

// s3MaxParts is how many parts an upload may have.
const s3MaxParts = 10_000

// Put sends a file with its checksum, or in parts with theirs, which the
// storage verifies.
func (t *s3Store) Put(ctx context.Context, url string, src *Source) error {
	u, err := parseObjectURL(url)
	if err != nil {
		return err
	}
	up := &s3Upload{t, u, src}
	if src.Size > minPart {
		return t.storage.putParts(ctx, src, up, s3MaxParts)
	}
	sum, err := t.storage.sumOf(src, 0, src.Size, up.hash())
	if err != nil {
		return err
	}
	ctx, w := newWatch(ctx, t.storage.pause.idle)
	defer w.end()
	in := &s3.PutObjectInput{
		Bucket: &u.bucket, Key: &u.key, ContentLength: &src.Size,
		ChecksumCRC32C: base64Of(sum), ContentType: aws.String(octetStream),
	}
	out, err := s3Call(ctx, t, u.bucket, func(c *s3.Client) (*s3.PutObjectOutput, error) {
		src.sending = src.Section(ctx, 0, src.Size) // from its beginning also when it goes to another region
		in.Body = w.around(src.sending)
		return c.PutObject(ctx, in, unsigned)
	})
	if err == nil {
		err = src.taken()
	}
	if err != nil {
		return w.cause(err)
	}
	return confirmed("CRC-32C", aws.ToString(out.ChecksumCRC32C), *in.ChecksumCRC32C)
}

// unsigned leaves the body out of the signature: its checksum is in it.
var unsigned = s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)

// Abort ends an upload in parts, also one whose name did not become known.
func (t *s3Store) Abort(ctx context.Context, url string, left Unfinished) error {
	u, err := parseObjectURL(url)
	if err != nil || left.Upload == nil {
		return err
	}
	if left.Upload.ID != "" {
		if before, _, hidden := strings.Cut(u.key, redact.Hidden); hidden {
			return t.abortBelow(ctx, bucketURL{u.bucket, before}, left.Upload.ID)
		}
		return t.abort(ctx, u, left.Upload.ID)
	}
	return t.abortUnnamed(ctx, u, *left.Upload, left.Before)
}

// abortBelow ends an upload of which only the beginning of the key is known: where a key
// has what looks like a signature, such as sig=1/x, the journal hides it.
func (t *s3Store) abortBelow(ctx context.Context, u bucketURL, upload string) error {
	for out, err := range t.unfinished(ctx, u) {
		if err != nil {
			return err
		}
		for _, found := range out.Uploads {
			if aws.ToString(found.UploadId) == upload {
				return t.abort(ctx, bucketURL{u.bucket, aws.ToString(found.Key)}, upload)
			}
		}
	}
	return nil
}

// abortUnnamed ends the uploads of a key that were not there before and have no
// part. Another publisher of the key may have begun one in the meantime, which
// cannot be told from ours: it finds its upload gone, as after any clean-up. The meantime
// ends at a moment, unless that is zero.
func (t *s3Store) abortUnnamed(ctx context.Context, u bucketURL, left Upload, before time.Time) error {
	if !left.Listed {
		return nil // any of them may be another's
	}
	for out, err := range t.unfinished(ctx, u) {
		if err != nil {
			return err
		}
		last := s3Moment(out, before)
		for upload := range uploadsOf(out, u.key) {
			id := aws.ToString(upload.UploadId)
			if slices.Contains(left.Others, id) || !before.IsZero() && (upload.Initiated == nil || upload.Initiated.After(last)) {
				continue
			}
			parts, err := (&s3Upload{t, u, nil}).list(ctx, id)
			if err == nil && len(parts) == 0 {
				err = t.abort(ctx, u, id)
			}
			if err != nil && !errors.Is(err, errNoUpload) {
				return err
			}
		}
	}
	return nil
}

// momentSlack is for what s3Moment cannot tell: dates have whole seconds, answers take their
// time, and the servers of a storage may differ a little.
const momentSlack = 10 * time.Second

// s3Moment is the latest that the storage's clock, as an answer that has just come tells it, may have
// shown at a moment of this node's. What is compared is how long ago it was: neither clock need be right.
func s3Moment(out *s3.ListMultipartUploadsOutput, moment time.Time) time.Time {
	now := time.Now()
	there, err := http.ParseTime(s3Answer(out.ResultMetadata).Header.Get("Date"))
	if err != nil {
		there = now
	}
	return there.Add(moment.Sub(now) + momentSlack)
}

// unfinished lists the uploads in parts of all keys that begin with that of u, answer by
// answer. It ends after the first error.
func (t *s3Store) unfinished(ctx context.Context, u bucketURL) iter.Seq2[*s3.ListMultipartUploadsOutput, error] {
	return func(yield func(*s3.ListMultipartUploadsOutput, error) bool) {
		in := &s3.ListMultipartUploadsInput{Bucket: &u.bucket, Prefix: &u.key}
		for {
			out, err := s3Ask(ctx, t, u.bucket, t.storage.pause.idle, func(ctx context.Context, c *s3.Client) (*s3.ListMultipartUploadsOutput, error) {
				return c.ListMultipartUploads(ctx, in)
			})
			// A server may not say how to go on.
			if !yield(out, err) || err != nil || !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextKeyMarker) == "" {
				return
			}
			in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
		}
	}
}

// uploadsOf yields the uploads of exactly this key.
func uploadsOf(out *s3.ListMultipartUploadsOutput, key string) iter.Seq[types.MultipartUpload] {
	return func(yield func(types.MultipartUpload) bool) {
		for _, upload := range out.Uploads {
			if aws.ToString(upload.Key) == key && !yield(upload) {
				return
			}
		}
	}
}

func (t *s3Store) abort(ctx context.Context, u bucketURL, upload string) error {
	in := &s3.AbortMultipartUploadInput{Bucket: &u.bucket, Key: &u.key, UploadId: &upload}
	_, err := s3Ask(ctx, t, u.bucket, t.storage.pause.idle, func(ctx context.Context, c *s3.Client) (*s3.AbortMultipartUploadOutput, error) {
		return c.AbortMultipartUpload(ctx, in)
	})
	if errors.Is(err, errNoUpload) {
		return nil
	}
	return err
}

// s3Upload is a multipart upload. The checksum is of the whole object, so that
// whoever reads it can verify it.
type s3Upload struct {
	*s3Store
	u   bucketURL
	src *Source
}

func (m *s3Upload) hash() hash.Hash { return crc32.New(castagnoli) }

func (m *s3Upload) forsake(ctx context.Context, lost Upload) error {
	return m.abortUnnamed(ctx, m.u, lost, time.Time{})
}

// maxOthers bounds what is noted of the uploads that were there, in bytes: it
// must fit into one record. It is about a hundred of Amazon's IDs.
const maxOthers = 16 << 10

// others asks once: an answer has a thousand, of all keys that begin with this one.
func (m *s3Upload) others(ctx context.Context) ([]string, error) {
	in := &s3.ListMultipartUploadsInput{Bucket: &m.u.bucket, Prefix: &m.u.key}
	out, err := s3Ask(ctx, m.s3Store, m.u.bucket, m.storage.pause.idle, func(ctx context.Context, c *s3.Client) (*s3.ListMultipartUploadsOutput, error) {
		return c.ListMultipartUploads(ctx, in)
	})
	if err != nil {
		return nil, err
	}
	var ids []string
	size := 0
	for upload := range uploadsOf(out, m.u.key) {
		ids = append(ids, aws.ToString(upload.UploadId))
		size += len(aws.ToString(upload.UploadId))
	}
	if aws.ToBool(out.IsTruncated) || size > maxOthers {
		return nil, machine.Faultf(machine.TaskFault, "there are too many to note them, %d or more; abort those that nobody needs", len(ids))
	}
	return ids, nil
}

func (m *s3Upload) begin(ctx context.Context) (string, error) {
	in := &s3.CreateMultipartUploadInput{
		Bucket: &m.u.bucket, Key: &m.u.key, ContentType: aws.String(octetStream),
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumType: types.ChecksumTypeFullObject,
	}
	out, err := s3Ask(ctx, m.s3Store, m.u.bucket, m.storage.pause.idle, func(ctx context.Context, c *s3.Client) (*s3.CreateMultipartUploadOutput, error) {
		return c.CreateMultipartUpload(ctx, in)
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.UploadId), nil
}

func (m *s3Upload) list(ctx context.Context, upload string) (map[int]sentPart, error) {
	parts := map[int]sentPart{}
	in := &s3.ListPartsInput{Bucket: &m.u.bucket, Key: &m.u.key, UploadId: &upload}
	for {
		out, err := s3Ask(ctx, m.s3Store, m.u.bucket, m.storage.pause.idle, func(ctx context.Context, c *s3.Client) (*s3.ListPartsOutput, error) {
			return c.ListParts(ctx, in)
		})
		if err != nil {
			return nil, err
		}
		for _, p := range out.Parts {
			sum, _ := base64.StdEncoding.DecodeString(aws.ToString(p.ChecksumCRC32C)) // without one the part is sent again
			parts[int(aws.ToInt32(p.PartNumber))-1] = sentPart{aws.ToInt64(p.Size), sum, aws.ToString(p.ETag)}
		}
		if !aws.ToBool(out.IsTruncated) {
			return parts, nil
		}
		in.PartNumberMarker = out.NextPartNumberMarker
	}
}

func (m *s3Upload) send(ctx context.Context, upload string, p filePart) (sentPart, error) {
	ctx, w := newWatch(ctx, m.storage.pause.idle)
	defer w.end()
	in := &s3.UploadPartInput{
		Bucket: &m.u.bucket, Key: &m.u.key, UploadId: &upload, PartNumber: aws.Int32(int32(p.index + 1)),
		Body: w.around(m.src.Section(ctx, p.offset, p.size)), ContentLength: &p.size,
		ChecksumCRC32C: base64Of(p.sum),
	}
	out, err := s3Call(ctx, m.s3Store, m.u.bucket, func(c *s3.Client) (*s3.UploadPartOutput, error) {
		return c.UploadPart(ctx, in, unsigned)
	})
	if err != nil {
		return sentPart{}, w.cause(err)
	}
	return sentPart{p.size, p.sum, aws.ToString(out.ETag)}, confirmed("CRC-32C", aws.ToString(out.ChecksumCRC32C), *in.ChecksumCRC32C)
}

func (m *s3Upload) complete(ctx context.Context, upload string, parts []filePart, sent []sentPart) error {
	list := make([]types.CompletedPart, len(sent))
	for i, p := range sent {
		list[i] = types.CompletedPart{
			PartNumber: aws.Int32(int32(i + 1)), ETag: aws.String(p.etag),
			ChecksumCRC32C: base64Of(p.sum),
		}
	}
	in := &s3.CompleteMultipartUploadInput{
		Bucket: &m.u.bucket, Key: &m.u.key, UploadId: &upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: list},
		ChecksumCRC32C: base64Of(wholeCRC32C(parts)), ChecksumType: types.ChecksumTypeFullObject,
		MpuObjectSize: &m.src.Size,
	}
	out, err := s3Ask(ctx, m.s3Store, m.u.bucket, m.storage.assembly(), func(ctx context.Context, c *s3.Client) (*s3.CompleteMultipartUploadOutput, error) {
		return c.CompleteMultipartUpload(ctx, in)
	})
	if err != nil || out.ChecksumType == types.ChecksumTypeComposite || strings.Contains(aws.ToString(out.ChecksumCRC32C), "-") {
		return err // of the parts' checksums, each of which was confirmed
	}
	return confirmed("CRC-32C", aws.ToString(out.ChecksumCRC32C), *in.ChecksumCRC32C)
}

// base64Of is a checksum as S3 writes it.
func base64Of(sum []byte) *string { return aws.String(base64.StdEncoding.EncodeToString(sum)) }

// wholeCRC32C is the checksum of a file, from those of its parts.
func wholeCRC32C(parts []filePart) []byte {
	var whole uint32
	for _, p := range parts {
		whole = crc32cOf(whole, binary.BigEndian.Uint32(p.sum), p.size)
	}
	return binary.BigEndian.AppendUint32(nil, whole)
}

func (m *s3Upload) published(ctx context.Context, parts []filePart) (bool, error) {
	o, err := m.Stat(ctx, "s3://"+m.u.bucket+"/"+m.u.key)
	if err != nil {
		var pass *passingError
		if errors.As(err, &pass) || ctx.Err() != nil {
			return false, err
		}
		return false, nil // there is none, or we may not know
	}
	want, _ := newChecksum(CRC32C, wholeCRC32C(parts))
	return o.Size == m.src.Size && slices.Contains(o.Checksums, want), nil
}
