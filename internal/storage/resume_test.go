package storage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/machine"
)

// TestMain turns the test program into one that moves a file and can be killed.
func TestMain(m *testing.M) {
	if url := os.Getenv("STORAGE_TEST_PUT"); url != "" {
		f, err := os.Open(os.Getenv("STORAGE_TEST_SOURCE"))
		if err == nil {
			st := storage.New(storage.Options{
				Parallel: 4, S3: storage.S3{Endpoint: os.Getenv("STORAGE_TEST_S3")}, Azure: storage.Azure{Endpoint: os.Getenv("STORAGE_TEST_AZURE")},
			})
			err = st.Put(context.Background(), storage.PutRequest{
				URL: url, File: f, Size: partedSize, Tag: "tag",
				Begin: func(_ context.Context, upload storage.Upload) error { fmt.Println(upload.ID); return nil },
			})
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(0)
	}
	if url := os.Getenv("STORAGE_TEST_FETCH"); url != "" {
		into, err := os.Open(os.Getenv("STORAGE_TEST_DIR"))
		if err == nil {
			_, err = storage.New(storage.Options{Parallel: 4, S3: storage.S3{Endpoint: os.Getenv("STORAGE_TEST_S3")}}).Fetch(context.Background(),
				storage.FetchRequest{URL: url, Dir: into, Name: "file"})
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// leftover kills a download of content (whose ETag is etag) when some of its
// parts have come, and returns the server and the directory with what it left.
// After serve the server goes on with o, which counts what it is asked for.
func leftover(t *testing.T, o *origin) (server *httptest.Server, dir string, serve func()) {
	t.Helper()
	dir = t.TempDir()
	before := &origin{content: o.content, etag: o.etag}
	killed := make(chan struct{})
	serve = sync.OnceFunc(func() { close(killed) })
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(afterKill{}) != nil {
			o.note(r)
			o.serve(w, r)
			return
		}
		// Before the kill, what follows the third part does not arrive.
		var begin int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &begin); n == 1 && begin >= 3*storage.MinPart {
			<-killed
			return
		}
		before.serve(w, r)
	}))
	// What the killed one asked for is not told from what comes after it by the
	// time at which it is looked at, but by its connection.
	server.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		select {
		case <-killed:
			return context.WithValue(ctx, afterKill{}, true)
		default:
			return ctx
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(serve)

	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "STORAGE_TEST_FETCH="+server.URL+"/file", "STORAGE_TEST_DIR="+dir)
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	// All streams but the first may be stuck early: wait until a part that
	// came is recorded.
	part := filepath.Join(dir, ".file.deckhand-part")
	for deadline := time.Now().Add(3 * time.Minute); recorded(part, killedSize) < 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the download does not get on")
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed
	// Connections are accepted in their order: with this one all of its are.
	fence, err := http.Head(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = fence.Body.Close()
	return server, dir, serve
}

// afterKill marks the context of a connection that came when the download had
// been killed.
type afterKill struct{}

// recorded counts the parts that a part file says it has.
func recorded(part string, size int) int {
	f, err := os.Open(part)
	if err != nil {
		return 0
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() < int64(size) {
		return 0
	}
	b := make([]byte, info.Size()-int64(size))
	if _, err := f.ReadAt(b, int64(size)); err != nil {
		return 0
	}
	_, states, _ := strings.Cut(string(b), "\n")
	return strings.Count(states, "\x02")
}

// killedSize is that of the object whose download is killed: six parts.
const killedSize = 5*storage.MinPart + 99

func TestKilledDownloadIsContinued(t *testing.T) {
	content := storagetest.Content(killedSize)
	o := &origin{content: content, etag: `"a"`}
	server, dir, serve := leftover(t, o)
	serve()
	had := recorded(filepath.Join(dir, ".file.deckhand-part"), killedSize)
	if _, err := fetchTo(t, quick(time.Minute, 0), server.URL+"/file", dir, "file"); err != nil {
		t.Fatal(err)
	}
	storagetest.Only(t, dir, "file", content)
	server.Close() // it counts no more
	if missing := len(content) - had*storage.MinPart; o.sent != missing {
		t.Errorf("%d bytes were sent again, %d were missing", o.sent, missing)
	}
	if want := 6 - had; o.count() != want {
		t.Errorf("%d requests for %d parts: %q", o.count(), want, o.requests)
	}
}

func TestLeftoverOfAnotherObjectIsNotContinued(t *testing.T) {
	content := storagetest.Content(killedSize)
	fresh := make([]byte, len(content)) // as long, with other bytes
	copy(fresh[storage.MinPart:], content)
	rows := map[string]func(t *testing.T, o *origin, url, part string) string{
		"the object changed": func(_ *testing.T, o *origin, url, _ string) string {
			o.content, o.etag = fresh, `"b"`
			return url
		},
		"another URL": func(_ *testing.T, o *origin, url, _ string) string {
			o.content = fresh // even with the same ETag
			return url + "2"
		},
		"another boot": func(t *testing.T, o *origin, url, part string) string {
			o.content = fresh
			edit(t, part, func(trailer map[string]any) { trailer["boot"] = "another" })
			return url
		},
		"the record is cut": func(t *testing.T, o *origin, url, part string) string {
			o.content = fresh
			info, err := os.Stat(part)
			if err == nil {
				err = os.Truncate(part, info.Size()-1)
			}
			if err != nil {
				t.Fatal(err)
			}
			return url
		},
		"a hard link": func(t *testing.T, o *origin, url, part string) string {
			o.content = fresh
			if err := os.Link(part, filepath.Join(t.TempDir(), "link")); err != nil {
				t.Fatal(err)
			}
			return url
		},
		"a symbolic link": func(t *testing.T, o *origin, url, part string) string {
			o.content = fresh
			if err := os.Rename(part, filepath.Join(filepath.Dir(part), "elsewhere")); err != nil {
				t.Fatal(err)
			}
			symlink(t, "elsewhere", part)
			return url
		},
		"a FIFO": func(t *testing.T, o *origin, url, part string) string {
			o.content = fresh
			if err := os.Remove(part); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mkfifo(part, 0o600); err != nil {
				t.Fatal(err)
			}
			return url
		},
	}
	for name, prepare := range rows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := &origin{content: content, etag: `"a"`}
			server, dir, serve := leftover(t, o)
			url := prepare(t, o, server.URL+"/file", filepath.Join(dir, ".file.deckhand-part"))
			serve()
			if _, err := fetchTo(t, quick(time.Minute, 0), url, dir, "file"); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, fresh) {
				t.Errorf("%d bytes came, or others (%v)", len(got), err)
			}
		})
	}
}

// What is left of a large object goes also when the object is small by now.
func TestLeftoverOfALargeObjectGoes(t *testing.T) {
	o := &origin{content: storagetest.Content(killedSize), etag: `"a"`}
	server, dir, serve := leftover(t, o)
	o.content, o.etag = []byte("small"), `"b"`
	serve()
	into, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	req := storage.FetchRequest{URL: server.URL + "/file", Dir: into, Name: "file", NoSync: true}
	if _, err := quick(time.Minute, 0).Fetch(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	storagetest.Only(t, dir, "file", o.content)
}

// edit changes the record in a part file.
func edit(t *testing.T, part string, change func(map[string]any)) {
	t.Helper()
	b, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	size := killedSize
	head, rest, _ := strings.Cut(string(b[size:]), "\n")
	var trailer map[string]any
	if err := json.Unmarshal([]byte(head), &trailer); err != nil {
		t.Fatal(err)
	}
	change(trailer)
	edited, err := json.Marshal(trailer)
	if err != nil {
		t.Fatal(err)
	}
	b = append(append(b[:size:size], edited...), "\n"+rest...)
	if err := os.WriteFile(part, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// fullDisk mounts a small filesystem.
func fullDisk(t *testing.T, bytes int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("cannot mount a tmpfs: %v", err)
		}
		t.Skipf("cannot mount a tmpfs, which needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDisk(t *testing.T) {
	content := storagetest.Content(6 << 20)
	source := filepath.Join(t.TempDir(), "source")
	storagetest.Write(t, source, content)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/chunks" {
			w.(http.Flusher).Flush()
			_, _ = w.Write(content)
			return
		}
		(&origin{content: content, etag: `"a"`}).serve(w, r)
	}))
	defer server.Close()
	for url, need := range map[string]string{server.URL + "/file": "6291456 bytes are needed", server.URL + "/chunks": "more than the 4194304 bytes that are free are needed", source: "6291456 bytes are needed"} {
		dir := fullDisk(t, 4<<20)
		_, err := fetchTo(t, quick(time.Minute, 0), url, dir, "file")
		if machine.FaultOf(err) != machine.NodeFault || err == nil || !strings.Contains(err.Error(), need) || !strings.Contains(err.Error(), "free") {
			t.Errorf("%s: error %v, fault %q", url, err, machine.FaultOf(err))
		}
		storagetest.Empty(t, dir)
	}
	f, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := fullDisk(t, 4<<20)
	storagetest.Write(t, filepath.Join(dir, "old"), []byte("old"))
	err = quick(time.Minute, 0).Put(context.Background(), storage.PutRequest{URL: filepath.Join(dir, "old"), File: f, Size: int64(len(content))})
	if machine.FaultOf(err) != machine.NodeFault {
		t.Errorf("put: error %v, fault %q", err, machine.FaultOf(err))
	}
	storagetest.Only(t, dir, "old", []byte("old"))
}
