package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	neturl "net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// local is the node's own filesystem: file URLs (RFC 8089) and absolute paths.
// What it reads and writes was named by the task's author, not by the task.
type local struct{}

func newLocal(*Storage) Store { return local{} }

func isLocal(url string) bool {
	return strings.HasPrefix(url, "/") || len(url) >= 5 && strings.EqualFold(url[:5], "file:")
}

// LocalPath returns the path on this node that a URL names; false when it names
// none, or not well.
func LocalPath(url string) (string, bool) {
	if !isLocal(url) {
		return "", false
	}
	p, err := localPath(url)
	return p, err == nil
}

// localPath returns the path that a URL names. In a file URL %XX stands for a
// byte, and everything else, '?' and '#' included, for itself.
func localPath(url string) (string, error) {
	if strings.HasPrefix(url, "/") {
		return checkPath(filepath.Clean(url))
	}
	rest := url[len("file:"):]
	if authority, ok := strings.CutPrefix(rest, "//"); ok {
		host, _, _ := strings.Cut(authority, "/")
		if host != "" && !strings.EqualFold(host, "localhost") {
			return "", machine.Faultf(machine.TaskFault,
				"it names a file on the host %q; a file URL has three slashes (file:///path) and means this node", host)
		}
		rest = authority[len(host):]
	}
	path, err := neturl.PathUnescape(rest)
	if err != nil {
		return "", machine.Faultf(machine.TaskFault, "%w; in a file URL a percent sign is written %%25", err)
	}
	if !strings.HasPrefix(path, "/") {
		return "", machine.Faultf(machine.TaskFault, "it names no absolute path; write file:///path")
	}
	return checkPath(filepath.Clean(path))
}

func checkPath(path string) (string, error) {
	if strings.ContainsRune(path, 0) {
		return "", machine.Faultf(machine.TaskFault, "its path has a zero byte")
	}
	return path, nil
}

func checkLocal(url string, _ bool) error {
	_, err := localPath(url)
	return err
}

func (local) Stat(_ context.Context, url string) (Object, error) {
	path, err := localPath(url)
	if err != nil {
		return Object{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return Object{}, sourceFault(err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return Object{}, notRegular(info.Mode())
	}
	return localObject(info), nil
}

// localObject describes a file or directory. Its version changes with every
// write, by the change time.
func localObject(info fs.FileInfo) Object {
	st := info.Sys().(*syscall.Stat_t)
	return Object{
		Size: info.Size(), ModTime: info.ModTime(), Mode: info.Mode(), Ranges: true,
		Version: fmt.Sprintf("inode %d/%d, %d bytes, modified %d.%09d, changed %d.%09d",
			st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec),
	}
}

// unchanged says ErrChanged when f is no longer the object that was opened.
func unchanged(f *os.File, o Object) error {
	info, err := f.Stat()
	if err == nil && localObject(info).Version != o.Version {
		err = ErrChanged
	}
	return err
}

// Open opens a regular file. Links to it are followed; it never waits for a
// FIFO and never opens a device.
func (local) Open(_ context.Context, url string, r Range) (*Reader, error) {
	path, err := localPath(url)
	if err != nil {
		return nil, err
	}
	// Opening a device may already do something; opening a FIFO may wait.
	info, err := os.Stat(path)
	if err != nil {
		return nil, sourceFault(err)
	}
	if !info.Mode().IsRegular() {
		return nil, notRegular(info.Mode())
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, sourceFault(err)
	}
	opened, err := f.Stat()
	switch {
	case err != nil:
	case !os.SameFile(info, opened):
		err = ErrChanged
	case r.Version != "" && r.Version != localObject(opened).Version:
		err = ErrChanged
	}
	if err != nil {
		return nil, errors.Join(sourceFault(err), f.Close())
	}
	reader := &Reader{ReadCloser: f, Object: localObject(opened), Offset: r.Offset}
	if r.Offset != 0 || r.Length >= 0 {
		length := opened.Size() - r.Offset
		if r.Length >= 0 {
			length = min(length, r.Length)
		}
		reader.ReadCloser = fileRange{io.NewSectionReader(f, r.Offset, length), f}
	}
	return reader, nil
}

// fileRange is an open range of a file.
type fileRange struct {
	io.Reader
	io.Closer
}

func notRegular(mode fs.FileMode) error {
	if mode.IsDir() {
		return machine.Faultf(machine.TaskFault, "it is a directory; an input of type DIRECTORY copies one")
	}
	return machine.Faultf(machine.TaskFault, "it is %s; only regular files and directories can be copied", kindOf(mode))
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	default:
		return "a special file"
	}
}

// sourceFault gives an error of a file that the task's author named its fault.
func sourceFault(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return machine.Faultf(machine.TaskFault, "there is no such file on this node: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return machine.Faultf(machine.TaskFault, "user %d may not read it: %w", os.Geteuid(), err)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return machine.Faultf(machine.TaskFault, "its path leads nowhere: %w", err)
	}
	return readFault(err)
}

// List walks a directory. A symbolic link is taken for what it points to, when
// that lies in the directory too; any other one is refused, and so is what is
// neither file nor directory. What is published there at the moment is left out.
func (local) List(ctx context.Context, url string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		fail := func(err error) { yield(Object{}, describe(err, "list", url, 1)) }
		path, err := localPath(url)
		if err != nil {
			fail(err)
			return
		}
		top, err := filepath.EvalSymlinks(path)
		if err != nil {
			fail(sourceFault(err))
			return
		}
		info, err := os.Stat(top)
		if err == nil && !info.IsDir() {
			err = machine.Faultf(machine.TaskFault, "it is no directory; an input of type FILE copies one file")
		}
		if err != nil {
			fail(sourceFault(err))
			return
		}
		w := &walk{ctx: ctx, top: top, yield: yield}
		if err := w.dir(top, "", nil); err != nil && !errors.Is(err, errEnough) {
			fail(err)
		}
	}
}

// errEnough: the caller wants no more.
var errEnough = errors.New("enough")

type walk struct {
	ctx   context.Context
	top   string // without links
	yield func(Object, error) bool
}

// dir yields what is in the directory at path, whose name is below top; above
// holds the real paths of the directories that lead to it.
func (w *walk) dir(path, name string, above []string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	d, err := os.Open(path)
	if err != nil {
		return sourceFault(err)
	}
	defer func() { _ = d.Close() }() // read-only
	above = append(slices.Clip(above), path)
	for more := true; more; {
		var entries []fs.DirEntry
		if entries, more, err = readSome(d); err != nil {
			return sourceFault(err)
		}
		if !more {
			_ = d.Close() // directories may be nested deeper than files may be open
		}
		for _, e := range entries {
			if err := w.entry(path, name, e, above); err != nil {
				return err
			}
		}
	}
	return nil
}

// listTogether is how many entries of a directory are in memory at a time; fewer come in
// the order of their names.
const listTogether = 10_000

// readSome reads entries of a directory and says whether there may be more.
func readSome(d *os.File) (entries []fs.DirEntry, more bool, err error) {
	for more = true; more && len(entries) < listTogether; {
		some, err := d.ReadDir(listTogether - len(entries))
		entries = append(entries, some...)
		if more = err == nil; !more && !errors.Is(err, io.EOF) {
			return nil, false, err
		}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, more, nil
}

// entry yields an entry of a directory, and what is in it.
func (w *walk) entry(path, name string, e fs.DirEntry, above []string) error {
	if e.Type().IsRegular() && strings.HasPrefix(e.Name(), ".") && strings.HasSuffix(e.Name(), partSuffix) {
		return nil // an output that is not whole, of a task that runs or died: nobody's file
	}
	child := filepath.Join(path, e.Name())
	if e.Type()&fs.ModeSymlink != 0 {
		target, err := filepath.EvalSymlinks(child)
		if err != nil {
			return machine.Faultf(machine.TaskFault, "its link %s leads nowhere: %w", child, err)
		}
		if rel, err := filepath.Rel(w.top, target); err != nil || !filepath.IsLocal(rel) {
			return machine.Faultf(machine.TaskFault,
				"its link %s leads out of it, to %s; copy that into the directory, or give it as an input of its own", child, target)
		}
		if slices.Contains(above, target) {
			return machine.Faultf(machine.TaskFault, "its link %s leads to a directory that it is in", child)
		}
		child = target
	}
	info, err := os.Lstat(child)
	if err != nil {
		return sourceFault(err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return machine.Faultf(machine.TaskFault, "%s is %s; only regular files and directories can be copied",
			child, kindOf(info.Mode()))
	}
	o := localObject(info)
	o.URL, o.Name = child, filepath.Join(name, e.Name())
	if !w.yield(o, nil) {
		return errEnough
	}
	if info.IsDir() {
		return w.dir(child, o.Name, above)
	}
	return nil
}

// Put writes a hidden file beside the target, syncs it and renames it over the
// target. Directories on the way are made.
func (local) Put(ctx context.Context, url string, src *Source) error {
	target, err := localTarget(url)
	need := func(err error) error {
		return ioFault(err, src.Size, func() int64 { return freeBytesAt(target) })
	}
	if err != nil {
		return need(err)
	}
	if err := makeDirs(filepath.Dir(target)); err != nil {
		return need(err)
	}
	dir, err := os.Open(filepath.Dir(target))
	if err != nil {
		return need(err)
	}
	defer dir.Close()
	name := filepath.Base(target)
	temporary := partName(name, tagSuffix(src.Tag))
	f, err := createPart(dir, temporary)
	if err != nil {
		return need(err)
	}
	err = copyFile(f.File, src.File, src.Size, func(n, moved int64) error { return src.count(ctx, n, moved) })
	if err == nil {
		err = f.Chmod(src.Mode)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = f.publish(name)
	}
	if err != nil {
		// The error is what counts. What is removed here no Abort finds: it may not come back.
		_, _ = f.remove(), dir.Sync()
		return need(err)
	}
	return need(dir.Sync())
}

// Abort removes the hidden file of a Put that did not end, durably: nobody knows of it
// when the attempt has ended.
func (local) Abort(_ context.Context, url string, left Unfinished) error {
	target, err := localTarget(url)
	if err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(target), partName(filepath.Base(target), tagSuffix(left.Tag)))
	err = os.Remove(temporary)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(temporary))
}

// localTarget returns the path to publish at. A link to a file is followed, so
// that the link stays.
func localTarget(url string) (string, error) {
	path, err := localPath(url)
	if err != nil {
		return "", err
	}
	if strings.HasSuffix(url, "/") {
		return "", machine.Faultf(machine.TaskFault, "%w", errNoName)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", machine.Faultf(machine.TaskFault, "there is a link that leads nowhere: %w", err)
		}
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", targetFault(err)
	case info.IsDir():
		return "", machine.Faultf(machine.TaskFault, "there is a directory; a file cannot take its place")
	case !info.Mode().IsRegular():
		return "", machine.Faultf(machine.TaskFault, "there is %s; a file cannot take its place", kindOf(info.Mode()))
	}
	return path, nil
}

func targetFault(err error) error {
	if errors.Is(err, unix.ENOTDIR) {
		return machine.Faultf(machine.TaskFault, "a part of its path is a file: %w", err)
	}
	return err
}

// tagSuffix is a tag as a part of a file's name.
func tagSuffix(tag string) string {
	if tag == "" {
		return ""
	}
	return "." + urlHash(tag)[:16]
}

// makeDirs makes a directory and those above it, durably.
func makeDirs(dir string) error {
	var made []string
	for d := dir; ; d = filepath.Dir(d) {
		_, err := os.Lstat(d)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return targetFault(err)
		}
		made = append(made, filepath.Dir(d))
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return targetFault(err)
	}
	for _, d := range made {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Join keeps the kind of the URL: in a file URL the name is encoded. A name that
// is no UTF-8 makes a path a file URL, because it would not survive the journal.
func (local) Join(url, name string) string {
	if strings.HasPrefix(url, "/") && !utf8.ValidString(name) {
		url = "file://" + escapeName(url)
	}
	if !strings.HasPrefix(url, "/") {
		name = escapeName(name)
	}
	return strings.TrimSuffix(url, "/") + "/" + name
}

// escapeName encodes each component of a slash-separated name for a URL's path.
func escapeName(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = neturl.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
