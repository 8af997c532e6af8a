package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deckhand/deckhand/internal/redact"
)

// PutRequest names a file and where it is published.
type PutRequest struct {
	URL  string
	File *os.File
	Size int64 // bytes to publish, which the file has
	// Mode of the published file where the storage has modes; 0 takes the
	// file's own, readable by all.
	Mode fs.FileMode
	// Tag tells this publisher (root, task and attempt) from others of the same
	// URL. A Put takes the place of an unfinished one with the same tag.
	Tag string
	// Upload is what Begin was told last by an unfinished Put of the same file:
	// this one goes on with it, or removes what may be left of it. Nil for none.
	Upload *Upload
	// Begin, when not nil, is told before an upload in parts is made at the
	// storage, and again before the first part is sent, then with its ID. Its
	// error ends the Put.
	Begin func(ctx context.Context, upload Upload) error
}

// Put publishes a file, whole or not at all, over whatever is at the URL. The
// meter counts bytes as they go; totals and files are the caller's.
//
// Errors: TaskFault when the storage will not take it, NodeFault when a local
// disk is full or cannot be written, RetryLater when the storage failed for
// Options.RetryFor. After an error an upload in parts may be left; Abort ends it.
func (s *Storage) Put(ctx context.Context, req PutRequest) error {
	store, err := s.For(req.URL)
	if err != nil {
		return err
	}
	if req.Mode == 0 {
		info, err := req.File.Stat()
		if err != nil {
			return err
		}
		req.Mode = info.Mode().Perm() | 0o644
	}
	if err := s.streams.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.streams.Release(1)
	src := &Source{
		File: req.File, Size: req.Size, Mode: req.Mode, Tag: req.Tag,
		url: redact.URL(req.URL), upload: req.Upload, begin: req.Begin, pace: s.pace, meter: s.opts.Meter.AddBytes,
	}
	return s.retry(ctx, "upload to", req.URL, src.moved, func(ctx context.Context) error {
		before, err := req.File.Stat()
		if err == nil {
			err = store.Put(ctx, req.URL, src)
		}
		if err == nil {
			err = unwritten(req.File, before)
		}
		src.settle(err == nil)
		return err
	})
}

// answer is how long a storage may be silent when it has a whole file. It may copy a large one to
// its place, and to send that again would only give it more to do.
func (s *Storage) answer(size int64) time.Duration {
	if size <= minPart {
		return s.pause.idle
	}
	return s.assembly()
}

// unwritten says whether a file is as it was: what was published of one that was written to
// may never have been in it.
func unwritten(f *os.File, before fs.FileInfo) error {
	now, err := f.Stat()
	if err == nil && (now.Size() != before.Size() || !now.ModTime().Equal(before.ModTime())) {
		err = passing(ErrChanged)
	}
	return err
}

// Upload is what is known of an upload in parts. It has no secret.
type Upload struct {
	// ID names it; empty before the storage has told it: the upload may have been
	// made or not.
	ID string `json:"upload"`
	// Others are the IDs of the uploads of the same object that were there before,
	// which are not to be taken for this one; used while ID is empty.
	Others []string `json:"others,omitempty"`
	// Listed says that Others are all there were.
	Listed bool `json:"listed,omitempty"`
}

// Unfinished is what is known of a Put that did not end.
type Unfinished struct {
	Tag string `json:"tag"`
	// Upload is what Begin was told last; nil when it was not called.
	Upload *Upload `json:"upload,omitempty"`
	// Before, when not zero, is when the Put was over for certain, by the clock of this node: an
	// upload without a name that was begun later is somebody else's.
	Before time.Time `json:"-"`
}

// Abort removes what an unfinished Put left behind.
func (s *Storage) Abort(ctx context.Context, url string, left Unfinished) error {
	store, err := s.For(url)
	if err != nil {
		return err
	}
	return s.retry(ctx, "clean up after an upload to", url, nil, func(ctx context.Context) error {
		return store.Abort(ctx, url, left)
	})
}

// confirmed holds the checksum that a storage says it has, if it does, against
// that of what was sent.
func confirmed(algorithm, has, sent string) error {
	if has == "" || has == sent {
		return nil
	}
	return passing(fmt.Errorf("the storage says that it has the %s %s, and that of what was sent is %s", algorithm, has, sent))
}

// Source is a file to be published.
type Source struct {
	File *os.File
	Size int64
	Mode fs.FileMode
	Tag  string

	url    string  // redacted
	upload *Upload // begun, under way or left; nil for none
	// unexpected says that the server does not want to be asked before (RFC 9110, 10.1.1).
	unexpected bool
	begin      func(ctx context.Context, upload Upload) error
	pace       func(ctx context.Context, n int64) error
	meter      func(n int64)

	mu      sync.Mutex
	sending *section // the whole, where it goes as one
	counted int64    // bytes that the meter shows
	kept    int64    // bytes that the storage has for good, in parts
}

// began tells of an upload in parts, or of the plan to make one.
func (s *Source) began(ctx context.Context, upload Upload) error {
	s.upload = &upload
	if s.begin == nil {
		return nil
	}
	return s.begin(ctx, upload)
}

// moved is how many bytes need not be sent again.
func (s *Source) moved() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
}

// keep adds bytes that the storage has for good. Those that were not sent by
// this Put are shown as done too.
func (s *Source) keep(n int64, sent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept += n
	if !sent {
		s.counted += n
		s.meter(n)
	}
}

// taken says whether a server that is content with the whole file has read it to its end.
func (s *Source) taken() error {
	if s.Size == 0 || s.sending.read.Load() >= s.Size {
		return nil
	}
	return passing(errors.New("the server says that all is well before it has taken the whole file"))
}

// lose forgets what was kept: the storage will say what it has.
func (s *Source) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meter(-s.counted)
	s.kept, s.counted = 0, 0
}

// settle makes the meter show what an attempt has come to: what was sent in
// vain does not count, nor what was sent twice.
func (s *Source) settle(published bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if published {
		s.kept = s.Size
	}
	s.meter(s.kept - s.counted)
	s.counted = s.kept
}

// count tells of n bytes that are being sent, moved of them over a wire or a disk.
func (s *Source) count(ctx context.Context, n, moved int64) error {
	s.mu.Lock()
	s.counted += n
	s.meter(n)
	s.mu.Unlock()
	return s.pace(ctx, moved)
}

// Section reads n bytes of the file from an offset, within the bandwidth limit
// and counted. Sections may be read again and at the same time.
func (s *Source) Section(ctx context.Context, offset, n int64) *section {
	return &section{ctx: ctx, source: s, ReadSeeker: io.NewSectionReader(s.File, offset, n)}
}

type section struct {
	ctx    context.Context
	source *Source
	io.ReadSeeker
	read atomic.Int64 // bytes, as far as it was read last
}

func (s *section) Read(b []byte) (int, error) {
	n, err := s.ReadSeeker.Read(b)
	s.read.Add(int64(n))
	if n > 0 {
		err = cmp.Or(s.source.count(s.ctx, int64(n), int64(n)), err)
	}
	return n, err
}

func (s *section) Seek(offset int64, whence int) (int64, error) {
	at, err := s.ReadSeeker.Seek(offset, whence)
	s.read.Store(at)
	return at, err
}
