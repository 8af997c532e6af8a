package storage

import (
	"cmp"
	"context"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
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
}

// Put publishes a file, whole or not at all, over whatever is at the URL. The
// meter counts bytes as they go; totals and files are the caller's.
//
// Errors: TaskFault when the storage will not take it, NodeFault when a local
// disk is full or cannot be written, RetryLater when the storage failed for
// Options.RetryFor.
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
	var sent atomic.Int64 // in this attempt
	src := &Source{File: req.File, Size: req.Size, Mode: req.Mode, Tag: req.Tag, count: func(ctx context.Context, n int64) error {
		sent.Add(n)
		return s.count(ctx, n)
	}}
	return s.retry(ctx, "upload to", req.URL, nil, func(ctx context.Context) error {
		err := store.Put(ctx, req.URL, src)
		// What was sent in vain does not count, nor what was sent twice.
		if err != nil {
			s.opts.Meter.AddBytes(-sent.Swap(0))
		} else {
			s.opts.Meter.AddBytes(req.Size - sent.Load())
		}
		return err
	})
}

// Abort removes what an unfinished Put with that tag left behind.
func (s *Storage) Abort(ctx context.Context, url, tag string) error {
	store, err := s.For(url)
	if err != nil {
		return err
	}
	return s.retry(ctx, "clean up after an upload to", url, nil, func(ctx context.Context) error {
		return store.Abort(ctx, url, tag)
	})
}

// Source is a file to be published.
type Source struct {
	File *os.File
	Size int64
	Mode fs.FileMode
	Tag  string

	count func(ctx context.Context, n int64) error
}

// Section reads n bytes of the file from an offset, within the bandwidth limit
// and counted. Sections may be read again and at the same time.
func (s *Source) Section(ctx context.Context, offset, n int64) io.Reader {
	return &section{ctx: ctx, source: s, r: io.NewSectionReader(s.File, offset, n)}
}

type section struct {
	ctx    context.Context
	source *Source
	r      io.Reader
}

func (s *section) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if n > 0 {
		err = cmp.Or(s.source.count(s.ctx, int64(n)), err)
	}
	return n, err
}
