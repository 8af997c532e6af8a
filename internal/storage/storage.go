// Package storage brings inputs to the node and publishes outputs. A Store
// knows one kind of URL; Storage adds to all of them what a transfer needs to
// be right: retries, resumption, verification, limits and progress.
//
// A new scheme is one file with a Store, and one line in the table schemes.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/machine"
)

// Store is one kind of storage. Its methods make one attempt each; an error
// that another attempt may mend is made with passing, every other one carries
// its fault. URLs are as the task's author wrote them.
type Store interface {
	// Stat describes one object or directory without reading it.
	Stat(ctx context.Context, url string) (Object, error)
	// Open reads a range of an object. It returns ErrChanged when r.Version is
	// set and the object is no longer that one.
	Open(ctx context.Context, url string, r Range) (*Reader, error)
	// List yields what is below a directory, with names relative to it: a
	// directory comes before what it holds.
	List(ctx context.Context, url string) iter.Seq2[Object, error]
	// Put publishes a file, whole or not at all, over whatever was there.
	Put(ctx context.Context, url string, src *Source) error
	// Abort removes what an unfinished Put left behind. Nothing left is success.
	Abort(ctx context.Context, url string, left Unfinished) error
	// Join returns the URL of a slash-separated name below a directory.
	Join(url, name string) string
}

// Object describes what is at a URL.
type Object struct {
	// URL opens the object. Set by List.
	URL string
	// Name is relative to the listed directory, with slashes. Set by List.
	Name string
	// Size in bytes, -1 when the source does not tell.
	Size int64
	// Version pins the content: two reads with the same version read the same
	// bytes. It is empty when the source offers nothing to rely on.
	Version string
	// Checksums of the whole content, as far as the source offers them.
	Checksums []Checksum
	// Ranges says that the source can be read from any offset.
	Ranges bool
	// ModTime is zero and Mode is 0 when the source does not tell.
	ModTime time.Time
	Mode    fs.FileMode
}

// Range is a part of an object.
type Range struct {
	Offset int64
	Length int64 // -1: to the end
	// Version that the object must have; empty for any.
	Version string
}

// Reader is an object opened for reading.
type Reader struct {
	io.ReadCloser
	// Object describes the whole object, whatever range is read.
	Object Object
	// Offset of the first byte. It is 0 when a source without ranges was asked
	// for more: then the reader yields the whole object.
	Offset int64
}

// Options are limits that all transfers of a Storage share.
type Options struct {
	// RetryFor is how long a transfer goes on without getting any further
	// while its failures are passing ones; 15 minutes when 0.
	RetryFor time.Duration
	// Parallel is how many streams are open at a time; 8 when 0.
	Parallel int
	// Memory bounds the buffers of all streams, in bytes; 64 MiB when 0.
	Memory int64
	// Bandwidth in bytes a second; no limit when 0.
	Bandwidth int64
	// S3 says how s3:// is reached.
	S3 S3
	// GCS says how gs:// is reached.
	GCS GCS
	// Azure says how az:// and https://*.blob.core.windows.net are reached.
	Azure Azure
	// Meter counts bytes; may be nil.
	Meter *progress.Meter
	// Log tells of retries; may be nil.
	Log *slog.Logger
}

// scheme is a kind of URL and the store for it.
type scheme struct {
	name  string // as users write it
	match func(url string) bool
	// check says what is wrong with a URL that matches, which is that of a directory
	// or of one file.
	check func(url string, directory bool) error
	// directories can be listed, so that one can be an input.
	directories bool
	store       func(s *Storage) Store
}

// schemes holds every kind of URL; the first that matches is taken, so that a
// service with URLs of its own may stand before http.
var schemes = []scheme{
	{"file", isLocal, checkLocal, true, newLocal},
	{"s3", hasScheme("s3"), checkBucketURL, true, newS3},
	{"gs", hasScheme("gs"), checkBucketURL, true, newGCS},
	{"az and URLs of Azure Blob Storage", isAzure, checkAzure, true, newAzure},
	{"http, https", hasScheme("http", "https"), checkHTTP, false, newHTTP},
}

// Storage moves files between the node and wherever URLs lead. It is safe for
// concurrent use.
type Storage struct {
	opts   Options
	stores []Store // one for each of schemes
	// transport carries the requests of all stores.
	transport *http.Transport
	streams   *semaphore.Weighted
	limit     *rate.Limiter // nil without a limit
	buffers   sync.Pool     // of *[]byte, all of the same size
	pause     pause
}

const (
	minBuffer = 64 << 10
	// maxBuffer: with more, nothing gets faster.
	maxBuffer = 1 << 20
)

// New returns a Storage for all schemes.
func New(opts Options) *Storage {
	if opts.RetryFor == 0 {
		opts.RetryFor = 15 * time.Minute
	}
	if opts.Parallel == 0 {
		opts.Parallel = 8
	}
	if opts.Memory == 0 {
		opts.Memory = 64 << 20
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	// Fewer streams rather than buffers too small to be worth having.
	opts.Parallel = max(1, min(opts.Parallel, int(opts.Memory/minBuffer)))
	size := min(maxBuffer, opts.Memory/int64(opts.Parallel))
	s := &Storage{
		opts:    opts,
		streams: semaphore.NewWeighted(int64(opts.Parallel)),
		buffers: sync.Pool{New: func() any { b := make([]byte, size); return &b }},
		pause:   defaultPause,

		transport: newTransport(opts.Parallel),
	}
	if opts.Bandwidth > 0 {
		s.limit = rate.NewLimiter(rate.Limit(opts.Bandwidth), int(max(size, opts.Bandwidth/10)))
	}
	for _, sch := range schemes {
		s.stores = append(s.stores, sch.store(s))
	}
	return s
}

// Parallel is how many transfers are worth having under way at a time.
func (s *Storage) Parallel() int { return s.opts.Parallel }

// For returns the store of a URL. A URL that no store has is the task's fault.
func (s *Storage) For(url string) (Store, error) {
	i, err := schemeOf(url)
	if err != nil {
		return nil, machine.Faultf(machine.TaskFault, "cannot use URL %q: %w", redact.URL(url), err)
	}
	return s.stores[i], nil
}

// CheckInput says why nothing can be fetched from a URL, without asking
// anybody: its scheme is not supported, or it is malformed, or it is a
// directory where there are none.
func CheckInput(url string, directory bool) error {
	i, err := schemeOf(url)
	if err != nil {
		return err
	}
	if directory && !schemes[i].directories {
		return errNoDirectories
	}
	return schemes[i].check(url, directory)
}

// CheckOutput says why nothing can be published at a URL, which is that of a
// directory or of one file, without asking anybody.
func CheckOutput(url string, directory bool) error {
	i, err := schemeOf(url)
	if err != nil {
		return err
	}
	if !directory && isLocal(url) && strings.HasSuffix(url, "/") {
		return errNoName
	}
	return schemes[i].check(url, directory)
}

// errNoName: a slash at the end of a URL makes it that of a directory, and so does a
// bucket without a key.
var errNoName = errors.New("it names a directory; a file needs a name")

// schemeOf finds the kind of a URL, as an index into schemes.
func schemeOf(url string) (int, error) {
	for i, sch := range schemes {
		if sch.match(url) {
			return i, nil
		}
	}
	var known []string
	for _, sch := range schemes {
		known = append(known, sch.name)
	}
	supported := strings.Join(known, ", ") + " and absolute paths"
	name, _, ok := strings.Cut(url, ":")
	if !ok || strings.ContainsAny(name, "/?#") {
		return 0, fmt.Errorf("it has no scheme and is no absolute path; supported: %s", supported)
	}
	return 0, fmt.Errorf("scheme %q is not supported; supported: %s", name, supported)
}

// Stat describes what is at a URL at this moment. It gives no version: what is
// fetched later may be newer, and that is all right.
func (s *Storage) Stat(ctx context.Context, url string) (Object, error) {
	store, err := s.For(url)
	if err != nil {
		return Object{}, err
	}
	var o Object
	err = s.retry(ctx, "look up", url, nil, func(ctx context.Context) error {
		o, err = store.Stat(ctx, url)
		return err
	})
	o.Version = ""
	return o, err
}

// List yields what is below a directory, which is what a DIRECTORY input
// copies; see Store.List. A store that has no directories says so.
func (s *Storage) List(ctx context.Context, url string) iter.Seq2[Object, error] {
	store, err := s.For(url)
	if err != nil {
		return func(yield func(Object, error) bool) { yield(Object{}, err) }
	}
	return store.List(ctx, url)
}

// Join returns the URL of a slash-separated name below a directory, which
// takes part in the URL's own encoding. The caller has checked the URL with For.
func (s *Storage) Join(url, name string) string {
	store, err := s.For(url)
	if err != nil {
		return strings.TrimSuffix(url, "/") + "/" + name
	}
	return store.Join(url, name)
}

// hasScheme matches URLs of these schemes, whatever their case.
func hasScheme(names ...string) func(string) bool {
	return func(url string) bool {
		name, _, ok := strings.Cut(url, "://")
		return ok && slices.Contains(names, strings.ToLower(name))
	}
}
