package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/deckhand/deckhand/internal/group"
)

// errNoRanges says that a source did not answer a range with that range.
var errNoRanges = errors.New("the server does not keep to the range that it was asked for")

// workers fill the parts of one file, each over a stream of its own. One that
// fails for a passing reason leaves its part to the others.
type workers struct {
	*fetch
	group *group.Group
	ctx   context.Context // of the group

	once   sync.Once
	failed error // the first passing failure
}

// fill brings every part that is missing and verifies the whole. first, when
// not nil, is open at the beginning of the object. The caller holds one stream.
func (f *fetch) fill(ctx context.Context, first *Reader) error {
	w := &workers{fetch: f}
	if f.plan.size >= 0 && f.plan.size <= worthWriting && mostParts(f.object.Checksums) <= 1 {
		return w.fillSmall(ctx, first)
	}
	w.group, w.ctx = group.WithContext(ctx)
	verifier, _ := group.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.plan.start()
	verifier.Go(func() error { return f.verify(ctx) })
	w.group.Go(func() error { return w.work(first) })
	err := w.group.Wait()
	if err == nil && !f.plan.whole() {
		err = w.failed
	}
	if err != nil {
		cancel()
	}
	f.plan.stop()
	if wrong := verifier.Wait(); err == nil {
		err = wrong
	}
	return err
}

// fillSmall is fill for a file that comes in one piece, of which nothing more is asked: to start
// others takes longer than to do it all in turn.
func (w *workers) fillSmall(ctx context.Context, first *Reader) error {
	w.ctx = ctx
	err := w.work(first)
	switch {
	case err != nil:
		return err
	case !w.plan.whole():
		return w.failed
	}
	return w.verify(ctx)
}

// work fills parts until none is left to claim.
func (w *workers) work(first *Reader) error {
	for {
		p := w.plan.claim()
		if p == nil {
			return nil
		}
		err := w.bringParts(p, first)
		var pass *passingError
		if errors.As(err, &pass) {
			w.once.Do(func() { w.failed = err })
			return nil
		}
		if err != nil {
			return err
		}
		first = nil
	}
}

// help puts another worker on the file when there is a part for it and a stream
// to spare. Each part that is begun brings one at most, so that a server which
// refuses more connections is not stormed.
func (w *workers) help() {
	if !w.plan.unclaimed() || !w.s.streams.TryAcquire(1) {
		return
	}
	w.group.Go(func() error {
		defer w.s.streams.Release(1)
		return w.work(nil)
	})
}

// bringParts fills p and, as long as nobody else has them, the parts after it
// that the reader yields.
func (w *workers) bringParts(p *part, r *Reader) (err error) {
	defer func() {
		if p != nil {
			w.plan.release(p)
		}
	}()
	end := w.plan.size // of what r yields
	if r == nil {
		if r, err = w.openPart(p); err != nil {
			return err
		}
		end = p.end
	}
	defer r.Close()
	for {
		w.help()
		if err := w.copyPart(p, r); err != nil {
			return err
		}
		if w.trail != nil {
			if err := w.trail.done(w.part.File, p); err != nil {
				return w.fault(err)
			}
		}
		next := w.plan.finish(p, end)
		if p = next; p == nil {
			return nil
		}
	}
}

// openPart opens what is missing of p.
func (w *workers) openPart(p *part) (*Reader, error) {
	want := Range{Offset: p.at, Length: -1, Version: w.object.Version}
	if p.end >= 0 {
		want.Length = p.end - p.at
	}
	r, err := w.store.Open(w.ctx, w.req.URL, want)
	if err != nil {
		return nil, err
	}
	if r.Offset != want.Offset {
		err = errNoRanges
	} else if r.Object.Size != w.object.Size {
		err = fmt.Errorf("%w: it had %d bytes and now has %d", ErrChanged, w.object.Size, r.Object.Size)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// copyPart reads the rest of p.
func (w *workers) copyPart(p *part, r io.Reader) error {
	buf := w.s.buffers.Get().(*[]byte)
	defer w.s.buffers.Put(buf)
	begun := p.at // of what nobody brings to the disk yet
	for p.end < 0 || p.at < p.end {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		b := *buf
		if p.end >= 0 {
			b = b[:min(int64(len(b)), p.end-p.at)]
		}
		n, ended, err := w.read(r, b)
		if n > 0 {
			if _, err := w.part.WriteAt(b[:n], p.at); err != nil {
				return w.fault(err)
			}
			w.plan.advance(p, int64(n))
			if p.at-begun >= writeBackEvery {
				writeBack(w.part.File, begun, p.at-begun)
				begun = p.at
			}
		}
		switch {
		case ended && p.end < 0:
			w.plan.bound(p)
			return nil
		case ended && p.at < p.end:
			return passing(fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, p.at, w.object.Size))
		case err != nil:
			return readFault(err)
		}
	}
	return nil
}

// worthWriting is how many bytes are written together at least. A source that yields
// little at a time, as TLS does with its records of 16 KiB, would cost a write for each;
// with many more they have left the processor's cache before they are written.
const worthWriting = 128 << 10

// read reads into b what is worth writing, and counts what comes. It says whether the
// source has ended.
func (w *workers) read(r io.Reader, b []byte) (n int, ended bool, err error) {
	for n < min(len(b), worthWriting) {
		came, err := r.Read(b[n:])
		n += came
		w.s.opts.Meter.AddBytes(int64(came))
		if stopped := w.s.pace(w.ctx, int64(came)); stopped != nil {
			return n, false, stopped
		}
		if err == io.EOF {
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

// verify computes the checksums of what is there without a gap, while the rest
// still comes, and compares them when all has come.
func (f *fetch) verify(ctx context.Context) error {
	if f.check == nil {
		parts, err := f.findLayout(ctx, false)
		if err != nil {
			return err
		}
		f.check = newVerifier(f.object.Checksums, parts)
	}
	if f.check.none() {
		return nil
	}
	buf := f.s.buffers.Get().(*[]byte)
	defer f.s.buffers.Put(buf)
	for {
		there, running := f.plan.wait(f.check.seen)
		for f.check.seen < there {
			n, err := f.part.ReadAt((*buf)[:min(int64(len(*buf)), there-f.check.seen)], f.check.seen)
			if n == 0 && err != nil {
				return f.fault(err)
			}
			f.check.add((*buf)[:n])
		}
		if f.plan.whole() && f.check.seen == f.plan.size {
			err := f.check.compare()
			var wrong *mismatchError
			if !errors.As(err, &wrong) || wrong.want.Parts == 0 || !f.check.parts.guessed {
				return err
			}
			// Its parts may be others than they were taken for.
			parts, err := f.findLayout(ctx, true)
			if err != nil {
				return err
			}
			f.check = newVerifier(f.object.Checksums, parts)
			continue
		}
		if !running {
			return nil
		}
	}
}
