package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/machine"
)

// partUpload is an upload of a large file in parts, at a storage which keeps
// them until they are completed or aborted, whoever began it.
type partUpload interface {
	// others lists the uploads of the object that are there, all of them.
	others(ctx context.Context) (ids []string, err error)
	// forsake removes what a begin made whose answer was lost.
	forsake(ctx context.Context, lost Upload) error
	// begin makes the upload and returns what names it, which is no secret.
	begin(ctx context.Context) (string, error)
	// list returns the parts that the storage has, by their index, or errNoUpload.
	list(ctx context.Context, upload string) (map[int]sentPart, error)
	// hash is of the algorithm by which parts are told apart.
	hash() hash.Hash
	// send sends one part, whose sum the storage verifies.
	send(ctx context.Context, upload string, p filePart) (sentPart, error)
	// complete publishes all parts as one object.
	complete(ctx context.Context, upload string, parts []filePart, sent []sentPart) error
	// published says whether the object is what complete would publish: an
	// upload that is gone may have been completed.
	published(ctx context.Context, parts []filePart) (bool, error)
}

// errNoUpload says that the storage has no such upload.
var errNoUpload = errors.New("the upload in parts is gone")

// filePart is one part of a file.
type filePart struct {
	index  int
	offset int64
	size   int64
	sum    []byte
}

// sentPart is a part as the storage has it.
type sentPart struct {
	size int64
	sum  []byte // nil when the storage does not tell
	etag string
}

// partSize returns the size of the parts of a file, of which there are at most most.
func partSize(size int64, most int64) int64 {
	const unit = 1 << 20
	return max(minPart, (size/most/unit+1)*unit)
}

// filePartsOf divides a file.
func filePartsOf(size, most int64) []filePart {
	step := partSize(size, most)
	var parts []filePart
	for at := int64(0); at < size; at += step {
		parts = append(parts, filePart{index: len(parts), offset: at, size: min(step, size-at)})
	}
	return parts
}

// putParts publishes a file by an upload in parts. It goes on with src.upload
// when there is one, and sends the parts that are missing there.
func (s *Storage) putParts(ctx context.Context, src *Source, up partUpload, most int64) error {
	parts := filePartsOf(src.Size, most)
	src.lose()
	there := map[int]sentPart{}
	if src.upload != nil && src.upload.ID != "" {
		var err error
		there, err = up.list(ctx, src.upload.ID)
		if errors.Is(err, errNoUpload) {
			return s.putPartsAnew(ctx, src, up, parts)
		}
		if err != nil {
			return err
		}
	}
	return s.sendParts(ctx, src, up, parts, there)
}

// putPartsAnew is for an upload that is gone: it was completed, and the answer
// lost, or somebody removed it.
func (s *Storage) putPartsAnew(ctx context.Context, src *Source, up partUpload, parts []filePart) error {
	for i := range parts {
		if err := s.sum(src, &parts[i], up.hash()); err != nil {
			return err
		}
	}
	done, err := up.published(ctx, parts)
	if err != nil || done {
		return err
	}
	src.upload = nil
	return s.sendParts(ctx, src, up, parts, nil)
}

// sendParts sends the parts that are not there, over as many streams as there
// are to spare, and completes the upload. The caller holds one stream.
func (s *Storage) sendParts(ctx context.Context, src *Source, up partUpload, parts []filePart, there map[int]sentPart) error {
	if src.upload == nil || src.upload.ID == "" {
		if err := s.beginParts(ctx, src, up); err != nil {
			return err
		}
	}
	w := &partWorkers{s: s, src: src, up: up, parts: parts, there: there, sent: make([]sentPart, len(parts))}
	err := w.run(ctx)
	if err == nil {
		err = up.complete(ctx, src.upload.ID, parts, w.sent)
	}
	if errors.Is(err, errNoUpload) {
		return passing(err) // the next attempt finds out what became of it
	}
	return err
}

// beginParts makes an upload. What tells it from those of others is noted
// before, so that one whose answer is lost with this process can be found.
func (s *Storage) beginParts(ctx context.Context, src *Source, up partUpload) error {
	if src.upload != nil {
		if err := s.goOn(src, up.forsake(ctx, *src.upload)); err != nil {
			return err
		}
	}
	others, err := up.others(ctx)
	if err := s.goOn(src, err); err != nil {
		return err
	}
	if err := src.began(ctx, Upload{Others: others, Listed: err == nil}); err != nil {
		return err
	}
	id, err := up.begin(ctx)
	if err != nil {
		return err
	}
	return src.began(ctx, Upload{ID: id})
}

// assembly is how long a storage may be silent while it puts the parts of an object
// together: as long as one that fails is waited for.
func (s *Storage) assembly() time.Duration { return max(s.pause.idle, s.opts.RetryFor) }

// goOn lets whoever may not list uploads publish all the same.
func (s *Storage) goOn(src *Source, err error) error {
	var fault *machine.Error
	if errors.As(err, &fault) && fault.Fault == machine.TaskFault {
		s.opts.Log.Warn("unfinished uploads cannot be told from those of others; one whose name is lost with this process stays at the storage",
			"url", src.url, "error", redact.Text(err.Error()))
		return nil
	}
	return err
}

// partWorkers send the parts of one file, each over a stream of its own. One
// that fails for a passing reason leaves its part to the next attempt, and the
// others go on.
type partWorkers struct {
	s     *Storage
	src   *Source
	up    partUpload
	parts []filePart
	there map[int]sentPart
	sent  []sentPart

	group  *group.Group
	next   atomic.Int64
	once   sync.Once
	failed error // the first passing failure
}

func (w *partWorkers) run(ctx context.Context) error {
	w.group, ctx = group.WithContext(ctx)
	w.group.Go(func() error { return w.work(ctx) })
	return cmp.Or(w.group.Wait(), w.failed)
}

func (w *partWorkers) work(ctx context.Context) error {
	for {
		i := int(w.next.Add(1)) - 1
		if i >= len(w.parts) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if i+1 < len(w.parts) && w.s.streams.TryAcquire(1) {
			w.group.Go(func() error {
				defer w.s.streams.Release(1)
				return w.work(ctx)
			})
		}
		err := w.send(ctx, i)
		var pass *passingError
		if errors.As(err, &pass) {
			w.once.Do(func() { w.failed = err })
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// send sends a part unless the storage has it.
func (w *partWorkers) send(ctx context.Context, i int) (err error) {
	p, there := &w.parts[i], w.there[i]
	if err := w.s.sum(w.src, p, w.up.hash()); err != nil {
		return err
	}
	if there.size == p.size && there.sum != nil && bytes.Equal(there.sum, p.sum) {
		w.sent[i] = there
		w.src.keep(p.size, false)
		return nil
	}
	if w.sent[i], err = w.up.send(ctx, w.src.upload.ID, *p); err == nil {
		w.src.keep(p.size, true)
	}
	return err
}

// sum computes the checksum of a part.
func (s *Storage) sum(src *Source, p *filePart, h hash.Hash) error {
	if p.sum != nil {
		return nil
	}
	sum, err := s.sumOf(src, p.offset, p.size, h)
	p.sum = sum
	return err
}

// sumOf computes the checksum of a piece of a file, which has just been written
// or is about to be sent: it is read from memory.
func (s *Storage) sumOf(src *Source, offset, size int64, h hash.Hash) ([]byte, error) {
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	r := struct{ io.Reader }{io.NewSectionReader(src.File, offset, size)} // CopyBuffer is to use the buffer
	n, err := io.CopyBuffer(h, r, *buf)
	if err == nil && n != size {
		err = fmt.Errorf("%w: it became shorter", ErrChanged)
	}
	return h.Sum(nil), err
}
