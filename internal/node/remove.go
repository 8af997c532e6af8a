package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/progress"
)

// Removed says what a deletion did.
type Removed struct {
	// Entries that are gone: files, directories, links, sockets, all alike.
	Entries int64
	// Bytes that came back: the blocks of what lost its last name.
	Bytes int64
	// Kept lists what could not be deleted, at most keptListed of them; KeptTotal counts all.
	Kept      []Left
	KeptTotal int64
}

// Left is something that could not be deleted. Directories above it stay as
// well and are not listed.
type Left struct {
	Path string // as it is now
	Why  string
}

const (
	keptListed = 100

	// maxDepth bounds the descriptors open at a time to maxDepth a worker, and as
	// many a directory that waits for one. What lies deeper is moved up.
	maxDepth   = 24
	maxWorkers = 4
)

// RemoveTree deletes base/name and all that is in it. base is trusted and may be
// reached by any path; name is one path element, and it and everything below may
// be written by somebody hostile, even now:
//
//   - No symbolic link is followed: every step is one openat2(2) or unlinkat(2)
//     relative to a directory held open.
//   - No mount point is crossed, bind mounts included.
//   - Depth costs neither memory nor descriptors: a directory maxDepth below
//     base/name is moved up into base/name, which serves as the queue.
//
// Names are bytes. Missing is fine. What cannot be deleted is reported in
// Removed.Kept, not as an error: immutable files (chattr +i is not undone: it is
// not ours), mounts, what the system refuses. The error is that of ctx, of name
// or of base; Removed holds in any case what was done, and the meter counts it
// meanwhile.
func RemoveTree(ctx context.Context, base, name string, meter *progress.Meter) (Removed, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return Removed{}, fmt.Errorf("cannot delete %q in %s: not a name of one path element", name, base)
	}
	fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return Removed{}, nil
	}
	if err != nil {
		return Removed{}, fmt.Errorf("cannot delete %q in %s: %w", name, base, err)
	}
	defer unix.Close(fd)

	most := min(runtime.GOMAXPROCS(0), maxWorkers)
	r := &remover{ctx: ctx, meter: meter, workers: make(chan struct{}, most), waiting: make(chan struct{}, most)}
	parent := &dir{fd: fd, name: base, depth: -1}
	for {
		before := r.entries.Load()
		r.kept, r.keptTotal, r.again = nil, 0, false
		r.mark = fmt.Sprintf(".deckhand-%016x-", rand.Uint64())
		r.workers <- struct{}{}
		r.remove(parent, name, unix.DT_UNKNOWN)
		<-r.workers
		// Space that came free, or a name that came late, is worth another round
		// as long as rounds get somewhere.
		if !r.again || r.entries.Load() == before || ctx.Err() != nil {
			break
		}
	}
	done := Removed{Entries: r.entries.Load(), Bytes: r.bytes.Load(), Kept: r.kept, KeptTotal: r.keptTotal}
	if err := ctx.Err(); err != nil {
		return done, fmt.Errorf("deletion of %s stopped: %w", filepath.Join(base, name), err)
	}
	return done, nil
}

type remover struct {
	ctx   context.Context
	meter *progress.Meter
	// workers holds a token for each goroutine at work, waiting one for each
	// directory that is ready for the next: a worker that is done with one need not
	// wait until another comes across its next.
	workers, waiting chan struct{}

	entries atomic.Int64
	bytes   atomic.Int64
	// linked serializes the deletion of hard links, so that exactly one of them
	// is the last.
	linked sync.Mutex

	// top is base/name, the queue of directories that were too deep. They are
	// named mark, generation, serial; a generation is handled by the pass over
	// top that follows the one that moved it.
	top        *dir
	mark       string
	generation int
	moved      atomic.Int64

	mu        sync.Mutex
	kept      []Left
	keptTotal int64
	again     bool // another round may get further
}

// dir is a directory that is being emptied.
type dir struct {
	parent *dir
	name   string
	fd     int
	depth  int // 0 for base/name
	// blocks is its own size, in 512 byte units.
	blocks uint64
	// left counts what stays in it.
	left atomic.Int64
	// children are the entries that other workers took; handed says that there are any.
	children sync.WaitGroup
	handed   bool
}

func (d *dir) path(name string) string {
	for ; d != nil; d = d.parent {
		name = d.name + "/" + name
	}
	return name
}

// keep reports that an entry of d stays.
func (r *remover) keep(d *dir, name, why string) {
	d.left.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keptTotal++
	if len(r.kept) < keptListed {
		r.kept = append(r.kept, Left{Path: d.path(name), Why: why})
	}
}

// retry asks for another round.
func (r *remover) retry() {
	r.mu.Lock()
	r.again = true
	r.mu.Unlock()
}

// remove deletes the entry name of d. kind is its DT_ type as the directory told
// it, and only a hint: whoever writes the tree may have swapped it since.
func (r *remover) remove(d *dir, name string, kind byte) {
	if kind != unix.DT_DIR {
		err := r.unlink(d, name)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return
		}
		if !errors.Is(err, unix.EISDIR) {
			r.keep(d, name, r.why(d, name, err))
			return
		}
	}
	if d.depth+1 > maxDepth {
		r.moveUp(d, name)
		return
	}
	child, err := r.open(d, name)
	switch {
	case err == nil:
		r.removeDir(child)
	case errors.Is(err, unix.ENOENT):
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		// A directory a moment ago, now a file or a link.
		if err := r.unlink(d, name); err != nil && !errors.Is(err, unix.ENOENT) {
			r.keep(d, name, r.why(d, name, err))
			r.retry()
		}
	default:
		r.keep(d, name, r.why(d, name, err))
	}
}

// unlink deletes an entry that is no directory (EISDIR if it is) and counts it.
func (r *remover) unlink(d *dir, name string) error {
	var st unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_NLINK | unix.STATX_BLOCKS
	stat := func() error {
		return unix.Statx(d.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, mask, &st)
	}
	if err := stat(); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	if st.Nlink > 1 {
		r.linked.Lock()
		defer r.linked.Unlock()
		if err := stat(); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(d.fd, name, 0); err != nil {
		return err
	}
	blocks := st.Blocks
	if st.Nlink > 1 {
		blocks = 0
	}
	r.count(blocks)
	return nil
}

// count counts an entry that is gone, with the blocks that it gave back.
func (r *remover) count(blocks uint64) {
	bytes := int64(blocks) * 512
	r.entries.Add(1)
	r.bytes.Add(bytes)
	r.meter.FileDone()
	r.meter.AddBytes(bytes)
}

// open opens the directory name of d for emptying.
func (r *remover) open(d *dir, name string) (*dir, error) {
	fd, err := openBeneath(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.EACCES) {
		if err = unlockDir(d.fd, name); err == nil {
			fd, err = openBeneath(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
		}
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if st.Mode&0o700 != 0o700 && os.Geteuid() != 0 {
		_ = unix.Fchmod(fd, 0o700) // if it fails, unlink says so
	}
	return &dir{parent: d, name: name, fd: fd, depth: d.depth + 1, blocks: uint64(st.Blocks)}, nil
}

// removeDir empties d and deletes it.
func (r *remover) removeDir(d *dir) {
	defer unix.Close(d.fd)
	if d.depth == 0 {
		r.emptyTop(d)
	} else {
		r.empty(d, func(name string) bool { return true })
	}
	if d.left.Load() > 0 {
		d.parent.left.Add(1)
		return
	}
	if r.ctx.Err() != nil {
		return
	}
	switch err := unix.Unlinkat(d.parent.fd, d.name, unix.AT_REMOVEDIR); {
	case err == nil:
		r.count(d.blocks)
	case errors.Is(err, unix.ENOENT):
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTDIR):
		r.keep(d.parent, d.name, "changed while it was deleted")
		r.retry()
	default:
		r.keep(d.parent, d.name, r.why(d.parent, d.name, err))
	}
}

// emptyTop empties base/name: first what is in it, then, pass by pass, what was
// moved up into it by the pass before.
func (r *remover) emptyTop(d *dir) {
	r.top = d
	want := func(name string) bool { return !strings.HasPrefix(name, r.mark) }
	for {
		r.moved.Store(0)
		r.generation++
		if _, err := unix.Seek(d.fd, 0, 0); err != nil {
			r.keep(d, ".", err.Error())
			return
		}
		r.empty(d, want)
		if r.moved.Load() == 0 || r.ctx.Err() != nil {
			return
		}
		prefix := r.movedPrefix()
		want = func(name string) bool { return strings.HasPrefix(name, prefix) }
	}
}

func (r *remover) movedPrefix() string { return fmt.Sprintf("%s%x-", r.mark, r.generation) }

// moveUp puts the directory name of d into the queue.
func (r *remover) moveUp(d *dir, name string) {
	to := fmt.Sprintf("%s%x", r.movedPrefix(), r.moved.Add(1))
	err := unix.Renameat2(d.fd, name, r.top.fd, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EACCES) {
		// A directory that changes its parent is written to itself (its "..").
		if err = unlockDir(d.fd, name); err == nil {
			err = unix.Renameat2(d.fd, name, r.top.fd, to, unix.RENAME_NOREPLACE)
		}
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return
	}
	r.keep(d, name, r.why(d, name, err))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		r.retry() // the queue had to grow; by then something has come free
	}
}

// empty deletes the entries of d that want accepts, and returns when they are
// done, also those that other workers took.
func (r *remover) empty(d *dir, want func(name string) bool) {
	buf := direntBuffers.Get().(*[direntBuffer]byte)
	defer direntBuffers.Put(buf)
	for r.ctx.Err() == nil {
		n, err := unix.Getdents(d.fd, buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			r.keep(d, ".", "cannot be listed: "+err.Error())
		}
		if n <= 0 {
			break
		}
		for name, e := range dirents(buf[:n]) {
			if !want(name) {
				continue
			}
			if r.ctx.Err() != nil {
				break
			}
			if e.kind != unix.DT_DIR || !r.handOver(d, name) {
				r.remove(d, name, e.kind)
			}
		}
	}
	if d.handed {
		// Whoever waits is not at work: the token goes to those waited for.
		<-r.workers
		d.children.Wait()
		r.workers <- struct{}{}
		d.handed = false
	}
}

// handOver gives the directory name of d to the next worker that is free, unless
// enough of them wait.
func (r *remover) handOver(d *dir, name string) bool {
	select {
	case r.waiting <- struct{}{}:
	default:
		return false
	}
	d.handed = true
	d.children.Go(func() {
		r.workers <- struct{}{}
		<-r.waiting
		defer func() { <-r.workers }()
		r.remove(d, name, unix.DT_DIR)
	})
	return true
}

// why puts the system's refusal to delete an entry of d into words.
func (r *remover) why(d *dir, name string, err error) string {
	switch {
	case errors.Is(err, unix.EXDEV):
		return "another filesystem is mounted there"
	case errors.Is(err, unix.EBUSY):
		return "in use, or another filesystem is mounted there"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		var st unix.Statx_t
		if unix.Statx(d.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st) == nil {
			if flag := lockFlag(st); flag != "" {
				return flag
			}
		}
		if unix.Statx(d.fd, "", unix.AT_EMPTY_PATH, 0, &st) == nil {
			if flag := lockFlag(st); flag != "" {
				return "its directory is " + flag
			}
		}
	}
	return err.Error()
}

// lockFlag names the inode flag that forbids deletion (chattr(1)).
func lockFlag(st unix.Statx_t) string {
	switch {
	case st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0:
		return "immutable (chattr +i)"
	case st.Attributes&unix.STATX_ATTR_APPEND != 0:
		return "append-only (chattr +a)"
	}
	return ""
}
