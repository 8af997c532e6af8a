package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// A transfer.retry_for of 0 is none, and not the default: some attempts are made.
func TestTransfersWithoutPatience(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	w.Env = append(w.Env, "DECKHAND_TRANSFER_RETRY_FOR=0")
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		switch {
		case req.Method == http.MethodHead:
		case asked.Add(1) > 6: // twice as many as are made
			rw.WriteHeader(http.StatusNotFound)
		default:
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	image := w.Image(t, "a", rig.Spec{Marker: "impatient"}).Tag
	w.MustRun(t, 75, tes.Task{
		ID: "impatient", Inputs: []tes.Input{{URL: server.URL + "/in", Path: "/data/in"}}, Executors: []tes.Executor{Sh(image, "true")},
	})
}

// While inputs come and outputs go, status tells files, bytes and rate.
func TestStatusOfTransfers(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	const size = 64 << 20
	// Neither ends, nor rests, before both forms of status have told of it.
	told := map[string]chan struct{}{http.MethodGet: make(chan struct{}), http.MethodPut: make(chan struct{})}
	drip := func(told <-chan struct{}, move func(n int64) error) {
		for moved := int64(0); moved < size; {
			n := int64(16 << 10)
			if moved > size/2 {
				n = 1 << 10 // lasts for ten minutes
			}
			select {
			case <-told:
				n = size - moved
			case <-time.After(20 * time.Millisecond):
			}
			if move(n) != nil { // the client tells
				return
			}
			moved += n
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		rw.Header().Set("Content-Length", strconv.Itoa(size))
		switch req.Method {
		case http.MethodPut:
			rw.Header().Del("Content-Length")
			drip(told[req.Method], func(n int64) error {
				_, err := io.CopyN(io.Discard, req.Body, n)
				return err
			})
		case http.MethodGet:
			drip(told[req.Method], func(n int64) error {
				_, err := rw.Write(make([]byte, n))
				rw.(http.Flusher).Flush()
				return err
			})
		}
	}))
	defer server.Close()
	image := w.Image(t, "a", rig.Spec{Marker: "transfers"}).Tag
	run := w.Start(t, tes.Task{
		ID:        "moving",
		Inputs:    []tes.Input{{URL: server.URL + "/in", Path: "/data/in"}},
		Outputs:   []tes.Output{{URL: server.URL + "/out", Path: "/data/out"}},
		Executors: []tes.Executor{Sh(image, "cp /data/in /data/out")},
	})
	for _, state := range []struct{ name, phase, method string }{
		{"Download", "inputs", http.MethodGet}, {"Upload", "outputs", http.MethodPut},
	} {
		end := sync.OnceFunc(func() { close(told[state.method]) })
		defer end()
		run.Until(t, "moving "+state.name)
		var s struct {
			State     string
			Transfers struct {
				Phase      string
				FilesDone  int64 `json:"files_done"`
				FilesTotal int64 `json:"files_total"`
				BytesDone  int64 `json:"bytes_done"`
				BytesTotal int64 `json:"bytes_total"`
				Rate       int64 `json:"bytes_per_second"`
			}
		}
		line := regexp.MustCompile(`(?m)^transfer: 0 of 1 files, [0-9.]+[KM]iB of 64MiB, [0-9.]+[KM]?i?B/s$`)
		asJSON, asText, last := false, false, ""
		for deadline := time.Now().Add(hang); !asJSON || !asText; {
			r := w.Deckhand(t, "status", "moving", "--json")
			must(t, json.Unmarshal([]byte(r.Stdout), &s))
			x := s.Transfers
			asJSON = asJSON || s.State == state.name && x.Phase == state.phase && x.FilesDone == 0 && x.FilesTotal == 1 &&
				x.BytesDone > 0 && x.BytesDone <= size && x.BytesTotal == size && x.Rate > 0
			text := w.Deckhand(t, "status", "moving").Stdout
			asText = asText || line.MatchString(text)
			last = r.Stdout + text
			// All that was to come has, or it hangs.
			if x.BytesDone >= size-1 && x.Rate == 0 || time.Now().After(deadline) {
				break
			}
		}
		if !asJSON || !asText {
			t.Errorf("%s: told as JSON: %t, as text: %t; last\n%s", state.name, asJSON, asText, last)
		}
		end()
	}
	if code, log := run.End(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, log)
	}
	w.Clean(t)
}

// After a kill no file that had come is fetched again, though those of the last second
// are not in the journal.
func TestKilledDownload(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	const files = 100
	var asked [files + 1]atomic.Int64
	killed := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		n, err := strconv.Atoi(req.URL.Path[1:])
		if err != nil || n < 0 || n > files {
			http.NotFound(rw, req)
			return
		}
		rw.Header().Set("Content-Length", "4")
		if req.Method != http.MethodGet {
			return
		}
		asked[n].Add(1)
		if n == files {
			<-killed
		}
		_, _ = io.WriteString(rw, "text") // the client tells
	}))
	defer server.Close()
	end := sync.OnceFunc(func() { close(killed) })
	defer end()
	task := tes.Task{ID: "many", Executors: []tes.Executor{Sh(w.Image(t, "a", rig.Spec{Marker: "killed"}).Tag, "cat /data/*")}}
	for n := range files + 1 {
		task.Inputs = append(task.Inputs, tes.Input{URL: fmt.Sprintf("%s/%d", server.URL, n), Path: fmt.Sprintf("/data/%d.txt", n)})
	}
	run := w.Start(t, task)
	eventually(t, "all but one of the inputs", func() bool {
		come := 0
		must(t, filepath.WalkDir(filepath.Join(w.Root, "tasks"), func(p string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(p, ".txt") {
				come++
			}
			if errors.Is(err, fs.ErrNotExist) { // not yet, or not any more
				return nil
			}
			return err
		}))
		return come == files
	})
	run.Kill(t)
	end()
	w.MustRun(t, 0, task)
	if got := w.Path(t, task.ID); got != complete {
		t.Errorf("the task went through %s, want %s", got, complete)
	}
	for n := range files {
		if times := asked[n].Load(); times != 1 {
			t.Errorf("input %d was fetched %d times", n, times)
		}
	}
	w.Clean(t)
}

// An upload in parts that a roll-back could not abort, as its storage was away, is aborted
// by whatever comes next to the node.
func TestUploadOfADeadTaskIsAborted(t *testing.T) {
	w := NewWorld(t)
	server, client := storagetest.Versitygw(t)
	proxy := storagetest.NewProxy(t, server.Options.S3.Endpoint)
	uploads := func() int {
		out, err := client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String("bucket")})
		must(t, err)
		return len(out.Uploads)
	}
	image := w.Image(t, "a", rig.Spec{Marker: "owed"}).Tag
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		w.Env = append(w.Env, name+"="+os.Getenv(name))
	}
	before := w.Env
	const unnamed = "process dies before it learns the name"
	told := func(t *testing.T, way string, removed []scrubItem) {
		t.Helper()
		if want := "upload " + server.URL + "/" + way; !slices.Contains(names(removed), want) {
			t.Errorf("it tells of %q, and not of %s", names(removed), want)
		}
	}
	for way, next := range map[string]func(t *testing.T){
		"run": func(t *testing.T) {
			w.MustRun(t, 0, tes.Task{ID: "next", Executors: []tes.Executor{Sh(image, "true")}})
		},
		"scrub": func(t *testing.T) {
			told(t, "scrub", w.scrub(t, 0, "--dry-run").Removed)
			if uploads() != 1 {
				t.Error("a dry run has aborted it")
			}
			told(t, "scrub", w.scrub(t, 0).Removed)
		},
		"recover": func(t *testing.T) { told(t, "recover", w.recover(t).Removed) },
		unnamed:   func(t *testing.T) { told(t, unnamed, w.recover(t).Removed) },
		// As when a process dies after it has aborted the upload: the storage has none any more.
		"aborted": func(t *testing.T) {
			out, err := client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String("bucket")})
			must(t, err)
			u := out.Uploads[0]
			_, err = client.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{Bucket: aws.String("bucket"), Key: u.Key, UploadId: u.UploadId})
			must(t, err)
			if r := w.Deckhand(t, "recover"); r.Code != 0 || r.Stdout != "removed upload "+server.URL+"/aborted\n" {
				t.Errorf("recover: %+v", r)
			}
			if r := w.Deckhand(t, "recover"); r.Code != 0 || r.Stdout != "nothing to recover\n" {
				t.Errorf("it is still owed: %+v", r)
			}
		},
	} {
		t.Run(way, func(t *testing.T) {
			ended := make(chan struct{})
			proxy.Handle(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if way == unnamed && r.Method == http.MethodPost && r.URL.Query().Has("uploads") {
					next.ServeHTTP(httptest.NewRecorder(), r)
					<-ended
					return
				}
				next.ServeHTTP(w, r)
			})
			there := append(slices.Clip(before), "DECKHAND_STORAGE_S3_ENDPOINT="+proxy.URL)
			w.Env = append(slices.Clip(there), "DECKHAND_TRANSFER_BANDWIDTH=1MiB") // a minute in all
			run := w.Start(t, tes.Task{
				ID: "dead-" + way, Outputs: []tes.Output{{URL: server.URL + "/" + way, Path: "/data/out"}},
				Executors: []tes.Executor{Sh(image, "head -c 67108864 /dev/zero > /data/out")},
			})
			eventually(t, "an upload in parts whose name is journaled", func() bool {
				if uploads() == 0 || way == unnamed {
					return uploads() > 0
				}
				return slices.ContainsFunc(w.Records(t, "dead-"+way), func(r Record) bool { id, _ := r.Detail["upload"].(string); return id != "" })
			})
			run.Kill(t)
			close(ended)
			w.Env = append(slices.Clip(before), "DECKHAND_STORAGE_S3_ENDPOINT=http://127.0.0.1:1", "DECKHAND_TRANSFER_RETRY_FOR=0")
			if r := w.recover(t); !slices.Equal(r.RolledBack, []string{"dead-" + way}) || uploads() != 1 {
				t.Fatalf("recover: %+v, %d uploads", r, uploads())
			}
			w.Env = there
			next(t)
			if n := uploads(); n != 0 {
				t.Errorf("%d uploads are left", n)
			}
		})
	}
	w.Clean(t)
}
