package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/machine"
)

func TestFetchRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	storagetest.Write(t, filepath.Join(dir, "file"), []byte("x"))
	if err := os.Symlink("loop", dir+"/loop"); err != nil {
		t.Fatal(err)
	}
	rows := []struct{ url, says string }{
		{dir + "/loop", "too many levels of symbolic links"},
		{dir + "/" + strings.Repeat("n", 256), "file name too long"},
		{dir + "/fifo", "FIFO"},
		{dir + "/socket", "socket"},
		{"/dev/zero", "device"},
		{dir, "DIRECTORY"},
		{dir + "/none", "no such file"},
		{dir + "/file/below", "no such file"},
		{"/proc/version", "kernel"},
		{"file://other.example/file", `host "other.example"`},
		{"file:relative", "no absolute path"},
		{"file:///100%", "%25"},
		{"file:///a%00b", "zero byte"},
		{"relative/path", "no scheme"},
		{"ftp://host/file", `scheme "ftp" is not supported; supported: file, `},
		{"sftp://host/key", `scheme "sftp" is not supported`},
		{"http:///path", "names no host"},
		{"http://user:secret@host:port/path", "no valid URL"},
		{"", "no scheme"},
	}
	for _, row := range rows {
		t.Run(row.url, func(t *testing.T) {
			dir, _, err := fetchInto(t, quick(time.Minute, 0), row.url, "file")
			if err == nil || machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), row.says) {
				t.Errorf("error %v, fault %q, want one that says %q", err, machine.FaultOf(err), row.says)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells a password: %v", err)
			}
			storagetest.Empty(t, dir)
		})
	}
}

func TestReservedNames(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, []byte("x"))
	if _, _, err := fetchInto(t, quick(time.Minute, 0), source, ".file.deckhand-part"); machine.FaultOf(err) != machine.TaskFault || err == nil {
		t.Errorf("an input may have the name of another's part file: %v", err)
	}
	long := strings.Repeat("n", 255)
	dir, _, err := fetchInto(t, quick(time.Minute, 0), source, long)
	if err != nil {
		t.Fatal(err)
	}
	storagetest.Only(t, dir, long, []byte("x"))
}

func TestFileURLs(t *testing.T) {
	dir := t.TempDir()
	storagetest.Write(t, dir+"/a b#c?d", []byte("x"))
	if err := os.Symlink("a b#c?d", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{
		dir + "/a b#c?d", "file://" + dir + "/a b#c?d", "file://localhost" + dir + "/a%20b%23c%3fd", "FILE:" + dir + "/a%20b#c?d", dir + "/link",
	} {
		to, _, err := fetchInto(t, quick(time.Minute, 0), url, "file")
		if err != nil {
			t.Error(err)
			continue
		}
		storagetest.Only(t, to, "file", []byte("x"))
	}
}

func TestFetchedFileIsACopy(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	content := storagetest.Content(100000)
	storagetest.Write(t, source, content)
	if err := os.Chmod(source, 0o2740); err != nil {
		t.Fatal(err)
	}
	dir, _, err := fetchInto(t, quick(time.Minute, 0), source, "file")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "file"))
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("the mode is %v (%v)", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("changed by the task"), 0); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(source); !bytes.Equal(got, content) {
		t.Error("a change of the copy changed the source")
	}
}

func TestSparseFilesStaySmall(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, []byte("begin"))
	const size = 1 << 30
	if err := os.Truncate(source, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(source, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("middle"), size/2); err != nil {
		t.Fatal(err)
	}
	f.Close()
	var before syscall.Stat_t
	if err := syscall.Stat(source, &before); err != nil {
		t.Fatal(err)
	}
	if before.Blocks*512 > size/2 {
		t.Skip("the filesystem of the tests has no holes")
	}
	var meter progress.Meter
	dir, got, err := fetchInto(t, storage.New(storage.Options{Meter: &meter}), source, "file")
	if err != nil {
		t.Fatal(err)
	}
	if done := meter.Snapshot().BytesDone; done != size {
		t.Errorf("the meter shows %d bytes", done)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, "file"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != size || got.Bytes != size || st.Blocks*512 > 1<<20 {
		t.Errorf("the copy has %d bytes in %d blocks", st.Size, st.Blocks)
	}
	copied, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	b := make([]byte, 6)
	if _, err := copied.ReadAt(b, size/2); err != nil || string(b) != "middle" {
		t.Errorf("in the middle is %q (%v)", b, err)
	}
}

func TestListDirectories(t *testing.T) {
	rows := []struct {
		name  string
		build func(t *testing.T, dir string)
		want  string // names, directories with a slash
		says  string
	}{
		{"empty directories", func(t *testing.T, dir string) { mkdir(t, dir+"/a/b") }, "a/ a/b/", ""},
		{"links inside", func(t *testing.T, dir string) {
			storagetest.Write(t, dir+"/real/file", nil)
			symlink(t, "real/file", dir+"/link")
			symlink(t, "real", dir+"/same")
			symlink(t, dir+"/real/file", dir+"/absolute")
		}, "absolute link real/ real/file same/ same/file", ""},
		{"a link to a file outside", func(t *testing.T, dir string) { symlink(t, "/etc/passwd", dir+"/link") }, "", "leads out of it"},
		{"a link to its sibling of like name", func(t *testing.T, dir string) {
			storagetest.Write(t, dir+"2/file", nil)
			symlink(t, dir+"2/file", dir+"/link")
		}, "", "leads out of it"},
		{"a link to a directory outside", func(t *testing.T, dir string) { symlink(t, "..", dir+"/link") }, "", "leads out of it"},
		{"a link in a circle", func(t *testing.T, dir string) {
			mkdir(t, dir+"/a/b")
			symlink(t, "../..", dir+"/a/b/up")
		}, "a/ a/b/", "a directory that it is in"},
		{"a link to nothing", func(t *testing.T, dir string) { symlink(t, "none", dir+"/link") }, "", "leads nowhere"},
		{"a FIFO", func(t *testing.T, dir string) {
			if err := syscall.Mkfifo(dir+"/fifo", 0o600); err != nil {
				t.Fatal(err)
			}
		}, "", "FIFO"},
		{"a link to a device", func(t *testing.T, dir string) { symlink(t, "/dev/null", dir+"/link") }, "", "leads out of it"},
		{"what somebody is publishing there", func(t *testing.T, dir string) {
			storagetest.Write(t, dir+"/"+storage.PartName("out", "tag"), nil)
			mkdir(t, dir+"/.a.deckhand-part")
		}, ".a.deckhand-part/", ""},
		{"names that are no UTF-8", func(t *testing.T, dir string) { storagetest.Write(t, dir+"/\xff", nil) }, "\xff", ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "top")
			mkdir(t, dir)
			row.build(t, dir)
			var names []string
			var failed error
			for o, err := range quick(time.Minute, 0).List(context.Background(), "file://"+dir+"/") {
				if err != nil {
					failed = err
					break
				}
				if o.Mode.IsDir() {
					o.Name += "/"
				}
				names = append(names, o.Name)
			}
			if got := strings.Join(names, " "); got != row.want {
				t.Errorf("listed %q, want %q", got, row.want)
			}
			if (failed != nil) != (row.says != "") || failed != nil && !strings.Contains(failed.Error(), row.says) {
				t.Errorf("error %v, want one that says %q", failed, row.says)
			}
		})
	}
	storagetest.Write(t, filepath.Join(t.TempDir(), "file"), nil)
	for url, says := range map[string]string{"/dev/null": "no directory", "/none/at/all": "no such file"} {
		for _, err := range quick(time.Minute, 0).List(context.Background(), url) {
			if err == nil || machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", url, err)
			}
		}
	}
}

// What was listed and then replaced, say by a link that leads elsewhere, is not fetched.
// A directory of any size is listed whole, each entry once, though not at once.
// The kernel says of its own files what they can have at most.
func TestFileWithLessThanItsSize(t *testing.T) {
	const file = "/sys/kernel/mm/transparent_hugepage/enabled" // as good as any below /sys
	info, err := os.Stat(file)
	content, readErr := os.ReadFile(file)
	if err != nil || readErr != nil || info.Size() <= int64(len(content)) {
		t.Skipf("this kernel has no such file: %v, %v", info, err)
	}
	dir, _, err := fetchInto(t, quick(time.Minute, 0), file, "file")
	if machine.FaultOf(err) != machine.TaskFault || err == nil || !strings.Contains(err.Error(), "the kernel makes it up") {
		t.Errorf("error %v of fault %q", err, machine.FaultOf(err))
	}
	storagetest.Empty(t, dir)
}

func TestListManyInOneDirectory(t *testing.T) {
	dir := t.TempDir()
	storagetest.Write(t, dir+"/00000", nil)
	for i := 1; i < 20_000; i++ { // twice as many as are read together
		if err := os.Link(dir+"/00000", fmt.Sprintf("%s/%05d", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(t, dir+"/sub")
	storagetest.Write(t, dir+"/sub/file", nil)
	seen := map[string]int{}
	for o, err := range quick(time.Minute, 0).List(context.Background(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		if o.Name == "sub/file" && seen["sub"] == 0 {
			t.Error("a file comes before its directory")
		}
		seen[o.Name]++
		if seen[o.Name] > 1 {
			t.Errorf("%s is listed twice", o.Name)
		}
	}
	if len(seen) != 20_002 {
		t.Errorf("%d are listed, want 20,002", len(seen))
	}
}

func TestListedFileIsFetchedOrNone(t *testing.T) {
	top := t.TempDir()
	storagetest.Write(t, top+"/file", []byte("listed"))
	outside := filepath.Join(t.TempDir(), "outside")
	storagetest.Write(t, outside, []byte("secret"))
	s := quick(time.Minute, 0)
	for o, err := range s.List(context.Background(), top) {
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(top + "/file"); err != nil {
			t.Fatal(err)
		}
		symlink(t, outside, top+"/file")
		dir := t.TempDir()
		into, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Fetch(context.Background(), storage.FetchRequest{URL: o.URL, Dir: into, Name: "file", Version: o.Version})
		into.Close()
		if err == nil || machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "changed since it was listed") {
			t.Errorf("error %v", err)
		}
		storagetest.Empty(t, dir)
	}
}

func TestFetchDoesNotFollowLinksInTheDestination(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, []byte("new"))
	outside := filepath.Join(t.TempDir(), "outside")
	storagetest.Write(t, outside, []byte("untouched"))
	dir := t.TempDir()
	symlink(t, outside, dir+"/file")
	symlink(t, outside, dir+"/.file.deckhand-part")
	if _, err := fetchTo(t, quick(time.Minute, 0), source, dir, "file"); err != nil {
		t.Fatal(err)
	}
	storagetest.Only(t, dir, "file", []byte("new"))
	if got, _ := os.ReadFile(outside); string(got) != "untouched" {
		t.Errorf("outside is now %q", got)
	}
	symlink(t, filepath.Dir(outside), dir+"/sub")
	for _, name := range []string{"sub/file", "../file", "..", ".", ""} {
		if _, err := fetchTo(t, quick(time.Minute, 0), source, dir, name); err == nil {
			t.Errorf("%q is taken for a name in the directory", name)
		}
	}
}

func TestLocalPut(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, []byte("new"))
	put := func(url, tag string, size int64) error {
		f, err := os.Open(source)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return quick(time.Minute, 0).Put(context.Background(), storage.PutRequest{URL: url, File: f, Size: size, Tag: tag})
	}
	dir := t.TempDir()
	storagetest.Write(t, dir+"/real", []byte("older and longer"))
	symlink(t, "real", dir+"/link")
	if err := put(dir+"/link", "", 3); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(dir + "/real"); string(got) != "new" {
		t.Errorf("behind the link is %q", got)
	}
	symlink(t, "none", dir+"/dangling")
	if err := syscall.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	mkdir(t, dir+"/sub")
	for url, says := range map[string]string{
		dir + "/dangling": "leads nowhere", dir + "/fifo": "FIFO", dir + "/sub": "a directory", dir + "/new/": "names a directory",
		"/dev/null": "device", dir + "/real/below": "is a file", "file://elsewhere/x": "host",
	} {
		if err := put(url, "", 3); err == nil || machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, fault %q, want one that says %q", url, err, machine.FaultOf(err), says)
		}
	}
	if err := put(dir+"/short", "", 2); err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("a source of another size: %v", err)
	}
	if _, err := os.Lstat(dir + "/short"); err == nil {
		t.Error("a source of another size was published")
	}
	if info, err := os.Stat("/dev/null"); err != nil || info.Mode().IsRegular() {
		t.Errorf("/dev/null is %v, %v", info, err)
	}
}

func TestAbortRemovesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	s := quick(time.Minute, 0)
	url := "file://" + dir + "/out"
	storagetest.Write(t, dir+"/out", []byte("published"))
	var parts []string
	for _, tag := range []string{"root/task/1", "root/task/2"} {
		part := dir + "/" + storage.PartName("out", tag)
		storagetest.Write(t, part, []byte("half"))
		parts = append(parts, part)
	}
	for range 2 {
		if err := s.Abort(context.Background(), url, storage.Unfinished{Tag: "root/task/1"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(parts[0]); err == nil {
		t.Error("its own is still there")
	}
	for _, kept := range []string{parts[1], dir + "/out"} {
		if _, err := os.Lstat(kept); err != nil {
			t.Error(err)
		}
	}
	if err := s.Abort(context.Background(), "file:///none/at/all/x", storage.Unfinished{Tag: "tag"}); err != nil {
		t.Errorf("no directory to clean: %v", err)
	}
}

func TestMemoryDoesNotDependOnTheSize(t *testing.T) {
	url, files := storagetest.Nginx(t)
	const size = 512 << 20
	storagetest.Write(t, files+"/big", nil)
	if err := os.Truncate(files+"/big", size); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	dir, _, err := fetchInto(t, quick(time.Minute, 0), url+"/big", "file")
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
		t.Errorf("%d bytes were allocated for %d", used, size)
	}
	if info, err := os.Stat(filepath.Join(dir, "file")); err != nil || info.Size() != size {
		t.Errorf("%v, %v", info, err)
	}
}

func TestServerWithoutRanges(t *testing.T) {
	url, files := storagetest.Nginx(t)
	content := storagetest.Content(2*storage.MinPart + 1)
	storagetest.Write(t, files+"/big", content)
	dir, _, err := fetchInto(t, quick(time.Minute, 0), url+"/noranges/big", "file")
	if err != nil {
		t.Fatal(err)
	}
	storagetest.Only(t, dir, "file", content)
}

func TestBandwidth(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, storagetest.Content(3<<20))
	s := storage.New(storage.Options{Bandwidth: 4 << 20})
	begin := time.Now()
	if _, _, err := fetchInto(t, s, source, "file"); err != nil {
		t.Fatal(err)
	}
	// 1 MiB may go at once.
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("3 MiB at 4 MiB a second took %s", took)
	}
}

func TestBandwidthOfUploads(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, storagetest.Content(3<<20))
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	defer server.Close()
	for _, url := range []string{server.URL + "/x", filepath.Join(t.TempDir(), "x")} {
		f, err := os.Open(source)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		begin := time.Now()
		if err := storage.New(storage.Options{Bandwidth: 4 << 20}).Put(t.Context(), storage.PutRequest{URL: url, File: f, Size: 3 << 20}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 500*time.Millisecond {
			t.Errorf("3 MiB at 4 MiB a second to %s took %s", url, took)
		}
	}
}

// A hole takes no disk to copy, and so no part of what others may use of it.
func TestBandwidthOfHoles(t *testing.T) {
	dir := t.TempDir()
	storagetest.Write(t, dir+"/source", nil)
	if err := os.Truncate(dir+"/source", 1<<30); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir + "/source")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := storage.New(storage.Options{Bandwidth: 4 << 20})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	into, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	if _, err := s.Fetch(ctx, storage.FetchRequest{URL: dir + "/source", Dir: into, Name: "fetched"}); err != nil {
		t.Error(err)
	}
	if err := s.Put(ctx, storage.PutRequest{URL: dir + "/put", File: f, Size: 1 << 30}); err != nil {
		t.Error(err)
	}
}

func TestFewBuffersForLittleMemory(t *testing.T) {
	for _, row := range []struct {
		memory   int64
		parallel int
		want     int
	}{{0, 0, 8}, {1 << 20, 64, 16}, {1, 8, 1}, {64 << 20, 256, 256}} {
		if got := storage.New(storage.Options{Memory: row.memory, Parallel: row.parallel}).Parallel(); got != row.want {
			t.Errorf("%d bytes for %d streams: %d", row.memory, row.parallel, got)
		}
	}
}

func TestJoin(t *testing.T) {
	s := quick(time.Minute, 0)
	for _, row := range [][3]string{
		{"/out", "a b/c%d", "/out/a b/c%d"},
		{"/out/", "a", "/out/a"},
		{"file:///out/", "a b/c%d", "file:///out/a%20b/c%25d"},
		{"https://host/dir?sig=x%2Fy", "a b#/c?d", "https://host/dir/a%20b%23/c%3Fd?sig=x%2Fy"},
	} {
		if got := s.Join(row[0], row[1]); got != row[2] {
			t.Errorf("%s and %s: %s", row[0], row[1], got)
		}
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
}

// A file has a name; a server of http may have its own mind about that.
func TestFilesHaveNames(t *testing.T) {
	for url, want := range map[string]error{
		"/out/": storage.ErrNoName, "/out?/": storage.ErrNoName, "file:///out/": storage.ErrNoName, "s3://b/out/": storage.ErrNoName,
		"https://a.blob.core.windows.net/c/out/?sig=x": storage.ErrNoName, "https://a.blob.core.windows.net/c/out?sig=x/": nil,
		"s3://b": storage.ErrNoName, "gs://b/": storage.ErrNoName, "az://c": storage.ErrNoName, "https://a.blob.core.windows.net/c?sig=x": storage.ErrNoName,
		"/out": nil, "s3://b/out": nil, "s3://b/out/?x": nil, "https://h/out/": nil, "https://h": nil,
	} {
		if err := storage.CheckOutput(url, false); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: %v, want %v", url, err, want)
		}
		if storage.IsLocal(url) {
			want = nil // an input there is what the slash follows
		}
		if err := storage.CheckInput(url, false); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s as an input: %v, want %v", url, err, want)
		}
		if err := storage.CheckOutput(url, true); err != nil {
			t.Errorf("%s as a directory: %v", url, err)
		}
	}
}
