package storage

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// FetchRequest names an object and where it goes.
type FetchRequest struct {
	URL string
	// Dir is the directory that the file goes to, and Name is its name there.
	Dir  *os.File
	Name string
	// Version that the object must have, as List gave it; empty for any.
	Version string
	// Mode of the file; 0 takes the source's permissions, and lets
	// all read it, and run it where its owner may.
	Mode fs.FileMode
	// NoSync leaves it to the caller to make the file durable, with one
	// syncfs(2) for many files, before it relies on it.
	NoSync bool
	// Fresh says that no other process can have left anything of the file.
	Fresh bool
}

// Fetched says what came.
type Fetched struct {
	Bytes   int64
	Version string
	// Verified are the checksums that the source offered and the file has.
	Verified []Checksum
}

// partSuffix ends the name of a file that is not whole. It is reserved: an
// input of such a name could be taken for the beginning of another one.
const partSuffix = ".deckhand-part"

// partName returns the name that a file has, in the same directory, until it is whole.
func partName(name, tag string) string {
	hidden := "." + name + tag + partSuffix
	if len(hidden) > unix.NAME_MAX {
		sum := sha256.Sum256([]byte(name))
		hidden = "." + hex.EncodeToString(sum[:16]) + tag + partSuffix
	}
	return hidden
}

// maxMismatches is how often a file may come with wrong checksums: a second
// time it is not the way that corrupts it.
const maxMismatches = 2

// Fetch brings one object to a file. The file appears under its name when it is
// whole, has the length and every checksum that the source offers, and is
// durable (unless NoSync); before that it has no name, or is a hidden file beside it
// when it is worth continuing. What another process of the same boot left of such a
// one is continued when the object is still the same.
//
// The meter counts bytes as they come; totals and files are the caller's.
//
// Errors: TaskFault when the source will not give the object, NodeFault when
// the disk is full or cannot be written, RetryLater when the source failed for
// Options.RetryFor. After an error there is no file under the name; a hidden
// one stays when another Fetch could go on with it.
func (s *Storage) Fetch(ctx context.Context, req FetchRequest) (Fetched, error) {
	store, err := s.For(req.URL)
	if err != nil {
		return Fetched{}, err
	}
	if strings.HasSuffix(req.Name, partSuffix) {
		return Fetched{}, machine.Faultf(machine.TaskFault,
			"cannot download to %s: names that end in %s are reserved; choose another", req.Name, partSuffix)
	}
	if strings.Contains(req.Name, "/") {
		return Fetched{}, fmt.Errorf("cannot download to %q: it is no name in a directory", req.Name)
	}
	f := &fetch{s: s, store: store, req: req, name: partName(req.Name, "")}
	err = s.retry(ctx, "download", req.URL, f.moved, f.attempt)
	f.close()
	if err == nil {
		return Fetched{Bytes: f.plan.size, Version: f.object.Version, Verified: f.verified()}, nil
	}
	s.opts.Meter.AddBytes(-f.moved())
	if ctx.Err() == nil && machine.FaultOf(err) != machine.RetryLater {
		_ = removeIn(req.Dir, f.name) // or it was never made
	}
	return Fetched{}, err
}

// fetch is one Fetch under way.
type fetch struct {
	s     *Storage
	store Store
	req   FetchRequest
	name  string // of the part file, if it has one

	// Known once the source has answered, until reset.
	object Object
	part   *partFile
	plan   *plan
	trail  *trailer  // nil for a file that is not worth continuing
	check  *verifier // nil until the parts are known that checksums are made of

	looked     bool // for a leftover
	single     bool // ranges of this source cannot be trusted
	mismatches int
}

// moved is how many bytes are on disk.
func (f *fetch) moved() int64 {
	if f.plan == nil {
		return 0
	}
	return f.plan.written()
}

func (f *fetch) verified() []Checksum {
	if f.check == nil {
		return nil
	}
	return f.check.want
}

func (f *fetch) close() {
	if f.part != nil {
		_ = f.part.Close() // synced before, where that matters
		f.part = nil
	}
}

// reset forgets everything that has come.
func (f *fetch) reset() {
	if f.part != nil {
		_ = f.part.remove() // whoever makes the next one tells
	}
	f.close()
	f.s.opts.Meter.AddBytes(-f.moved())
	f.plan, f.trail, f.check = nil, nil, nil
}

// attempt begins, or goes on with what is there.
func (f *fetch) attempt(ctx context.Context) error {
	if !f.looked && !f.req.Fresh {
		f.takeUp()
	}
	f.looked = true
	err := f.bring(ctx)
	var wrong *mismatchError
	switch {
	case err == nil:
		return f.fault(f.publish())
	case errors.As(err, &wrong):
		f.reset()
		if f.mismatches++; f.mismatches >= maxMismatches {
			return machine.Faultf(machine.TaskFault, "%w, and again when it was read anew", wrong)
		}
		return passing(wrong)
	case errors.Is(err, ErrChanged) && f.req.Version != "":
		return machine.Faultf(machine.TaskFault, "it changed since it was listed: %w", err)
	case errors.Is(err, ErrChanged), errors.Is(err, errNoRanges):
		// Or it is not one object but mirrors that differ: one stream sees one of them.
		f.single = true
		f.reset()
		return passing(err)
	case f.plan != nil && (f.object.Version == "" || f.moved() == 0):
		f.reset() // nothing to go on with
	}
	return err
}

// bring fills the part file and verifies it.
func (f *fetch) bring(ctx context.Context) error {
	if err := f.s.streams.Acquire(ctx, 1); err != nil {
		return err
	}
	defer f.s.streams.Release(1)
	if f.plan != nil {
		return f.fill(ctx, nil)
	}
	first, err := f.store.Open(ctx, f.req.URL, Range{Length: -1, Version: f.req.Version})
	if err != nil {
		return err
	}
	defer first.Close()
	f.object = first.Object
	if src, ok := first.ReadCloser.(*os.File); ok {
		return f.copyFrom(ctx, src)
	}
	if err := f.begin(); err != nil {
		return err
	}
	return f.fill(ctx, first)
}

// begin makes the part file for the object.
func (f *fetch) begin() error {
	o := f.object
	plan := newPlan(o.Size, f.partSize())
	need := o.Size
	var err error
	if len(plan.parts) > 1 {
		f.trail = newTrailer(f.req.URL, o, plan)
		need += f.trail.length()
		f.part, err = createPart(f.req.Dir, f.name)
	} else {
		f.part, err = createUnnamed(f.req.Dir, f.name, f.mode())
	}
	if err != nil {
		f.trail = nil
		return f.fault(err)
	}
	f.plan = plan
	if need >= minPreallocate {
		err = preallocate(f.part.File, need)
	}
	if err == nil && f.trail != nil {
		err = f.trail.write(f.part.File)
	}
	return f.fault(err)
}

// partSize is that of an object's parts; its own size when it is one part.
func (f *fetch) partSize() int64 {
	o := f.object
	if f.single || !o.Ranges || o.Version == "" || o.Size <= minPart {
		return o.Size
	}
	// The record of parts is bounded, whatever the size of the object.
	const most, unit = 16 << 10, 1 << 20
	return max(minPart, (o.Size/most/unit+1)*unit)
}

// takeUp goes on with a part file that an earlier process left, if it can. One that it
// cannot go on with goes.
func (f *fetch) takeUp() {
	part, err := openPart(f.req.Dir, f.name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var trail *trailer
	var plan *plan
	if err == nil {
		trail, plan, err = readTrailer(part.File)
	}
	if err != nil || trail.URL != urlHash(f.req.URL) || (f.req.Version != "" && f.req.Version != trail.Object.Version) {
		_ = removeIn(f.req.Dir, f.name) // whoever makes the next one tells
		if part != nil {
			_ = part.Close() // was only read
		}
		return
	}
	f.part, f.trail, f.plan = part, trail, plan
	f.object = trail.Object
	f.s.opts.Meter.AddBytes(f.moved())
}

// copyFrom copies a file of this node.
func (f *fetch) copyFrom(ctx context.Context, src *os.File) error {
	part, err := createUnnamed(f.req.Dir, f.name, f.mode())
	if err != nil {
		return f.fault(err)
	}
	f.part, f.plan = part, newPlan(f.object.Size, f.object.Size)
	p := f.plan.claim()
	err = copyFile(part.File, src, f.object.Size, func(n, moved int64) error {
		f.plan.advance(p, n)
		f.s.opts.Meter.AddBytes(n)
		return f.s.pace(ctx, moved)
	})
	switch now := unchanged(src, f.object); {
	case err == nil:
		err = now
	case errors.Is(err, ErrChanged) && now == nil:
		err = machine.Faultf(machine.TaskFault, "it has less than its size says: the kernel makes it up; copy it to a file first")
	}
	if err != nil {
		f.reset() // a copy is not continued: it costs little
		return f.fault(err)
	}
	f.plan.finish(p, 0)
	return nil
}

// openToAll lets everybody read a file, and run it where its owner may: executors run as
// whatever user their image names.
func openToAll(mode fs.FileMode) fs.FileMode {
	if mode&0o100 != 0 {
		mode |= 0o111
	}
	return mode | 0o644
}

// mode is that of the whole file.
func (f *fetch) mode() fs.FileMode { return cmp.Or(f.req.Mode, openToAll(f.object.Mode.Perm())) }

// publish makes the file durable and gives it its name.
func (f *fetch) publish() error {
	if f.trail != nil {
		// The record of parts goes only when it is not needed any more: syncing
		// a large file takes a while, and whoever is killed meanwhile has
		// everything to go on with.
		if !f.req.NoSync {
			if err := unix.Fdatasync(int(f.part.Fd())); err != nil {
				return err
			}
		}
		if err := f.part.Truncate(f.plan.size); err != nil {
			return err
		}
	}
	if err := f.part.setMode(f.mode()); err != nil {
		return err
	}
	if f.req.NoSync {
		return f.part.publish(f.req.Name)
	}
	if err := f.part.Sync(); err != nil {
		return err
	}
	if err := f.part.publish(f.req.Name); err != nil {
		return err
	}
	return f.req.Dir.Sync()
}

// fault gives an error of the destination its fault. What the file itself has
// taken so far counts as free: it goes with the file.
func (f *fetch) fault(err error) error {
	return ioFault(err, f.object.Size, func() int64 {
		free := freeBytesAt(f.req.Dir.Name())
		var st unix.Stat_t
		if free < 0 || f.part == nil || unix.Fstat(int(f.part.Fd()), &st) != nil {
			return free
		}
		return free + st.Blocks*512
	})
}

// pace lets n bytes through the bandwidth limit.
func (s *Storage) pace(ctx context.Context, n int64) error {
	if s.limit == nil {
		return nil
	}
	for burst := int64(s.limit.Burst()); n > 0; n -= burst {
		if err := s.limit.WaitN(ctx, int(min(n, burst))); err != nil {
			return err
		}
	}
	return nil
}
