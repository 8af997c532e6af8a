package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/pkg/stdcopy"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
)

// daemon answers as a Docker of some API version does, and breaks off where a
// test wants it to. A real one cannot be made to at a given byte.
type daemon struct {
	*httptest.Server
	api string

	mu       sync.Mutex
	requests []string
	answer   func(w http.ResponseWriter, r *http.Request, try int)
}

func newDaemon(t *testing.T, api string, answer func(w http.ResponseWriter, r *http.Request, try int)) *daemon {
	d := &daemon{api: api, answer: answer}
	d.Server = httptest.NewServer(d)
	t.Cleanup(d.Close)
	return d
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", d.api)
	if r.URL.Path == "/_ping" {
		return
	}
	_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v"), "/")
	d.mu.Lock()
	d.requests = append(d.requests, r.Method+" "+path)
	try := len(d.requests)
	d.mu.Unlock()
	d.answer(w, r, try)
}

func (d *daemon) connect(t *testing.T) *engine.Docker {
	return connect(t, "tcp://"+d.Listener.Addr().String())
}

// cut ends the connection in the middle of the answer.
func cut(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func TestLogGoesOnAfterABreak(t *testing.T) {
	for _, api := range []string{"1.41", "1.43"} {
		d := newDaemon(t, api, func(w http.ResponseWriter, r *http.Request, try int) {
			out, errs := stdcopy.NewStdWriter(w, stdcopy.Stdout), stdcopy.NewStdWriter(w, stdcopy.Stderr)
			fmt.Fprint(out, "one\n")
			fmt.Fprint(errs, "first\n")
			if try == 1 {
				cut(w)
			}
			fmt.Fprint(out, "two\nth")
			if try == 2 {
				w.Write([]byte{1, 0, 0}) // a part of a frame's header
				cut(w)
			}
			fmt.Fprint(out, "ree\n")
			fmt.Fprint(errs, "last\n")
		})
		var out, errs bytes.Buffer
		if err := d.connect(t).Log(t.Context(), "x", &out, &errs); err != nil {
			t.Fatal(err)
		}
		if out.String() != "one\ntwo\nthree\n" || errs.String() != "first\nlast\n" {
			t.Errorf("API %s: output %q and %q", api, &out, &errs)
		}
		if len(d.requests) != 3 {
			t.Errorf("API %s: requests %q, want 3", api, d.requests)
		}
	}
}

// A copy that breaks off is begun again, as often as it takes; one that its
// reader gives up is not.
func TestCopyBeginsAgainAfterABreak(t *testing.T) {
	content := strings.Repeat("x", 100_000)
	for _, failed := range []error{nil, errors.New("the reader's own")} {
		d := newDaemon(t, "1.41", func(w http.ResponseWriter, _ *http.Request, try int) {
			w.Header().Set("X-Docker-Container-Path-Stat", "e30=")
			if try < 3 {
				fmt.Fprint(w, content[:50_000])
				cut(w)
			}
			fmt.Fprint(w, content)
		})
		var got []byte
		err := d.connect(t).CopyFrom(t.Context(), "x", "/f", func(r io.Reader) (err error) {
			if failed != nil {
				return failed
			}
			got, err = io.ReadAll(r)
			return err
		})
		requests := 3
		if failed != nil {
			requests = 1
		}
		if !errors.Is(err, failed) || len(d.requests) != requests || failed == nil && string(got) != content {
			t.Errorf("the reader's error %v: %v after %d requests with %d bytes", failed, err, len(d.requests), len(got))
		}
	}
}

// Changes are read while Docker sends them, and again from the first one when
// that breaks off.
func TestChangesAreReadOneByOne(t *testing.T) {
	seen := make(chan struct{})
	d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, try int) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/none/changes"):
			fmt.Fprint(w, "null\n")
		case strings.HasSuffix(r.URL.Path, "/odd/changes"):
			fmt.Fprint(w, "[{]")
		case !strings.HasSuffix(r.URL.Path, "/x/changes"):
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"message":"No such container: y"}`)
		case try == 1:
			fmt.Fprint(w, `[{"Path":"/old","Kind":1},`)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-seen:
			case <-r.Context().Done():
			}
			cut(w)
		case try == 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprint(w, `[{"Path":"/a","Kind":0},{"Path":"/gone","Kind":2},{"Path":"/b","Kind":1}]`)
		}
	})
	docker := d.connect(t)
	var got []string
	err := docker.Changes(t.Context(), "x", func(paths iter.Seq[string]) error {
		got = nil
		for p := range paths {
			if got = append(got, p); p == "/old" {
				close(seen)
			}
		}
		return nil
	})
	if err != nil || !slices.Equal(got, []string{"/a", "/b"}) || len(d.requests) != 3 {
		t.Errorf("%q after %q, %v", got, d.requests, err)
	}
	count := func(paths iter.Seq[string]) error { got = slices.Collect(paths); return nil }
	if err := docker.Changes(t.Context(), "none", count); err != nil || len(got) != 0 {
		t.Errorf("of no changes there are %q, %v", got, err)
	}
	if err := docker.Changes(t.Context(), "odd", count); machine.FaultOf(err) != machine.EngineFault {
		t.Errorf("what cannot be read: %v", err)
	}
	if err := docker.Changes(t.Context(), "y", count); !errors.Is(err, engine.ErrNotFound) || !contains(err, "No such container") {
		t.Errorf("of no container: %v", err)
	}
}

func TestACommandIsNotStartedTwice(t *testing.T) {
	for started, want := range map[string]error{
		"2026-01-02T03:04:05Z": nil,
		"0001-01-01T00:00:00Z": machine.ErrLost,
	} {
		d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, try int) {
			switch try {
			case 1:
				panic(http.ErrAbortHandler) // the answer is lost
			case 2:
				fmt.Fprintf(w, `{"Id":"x","State":{"Status":"exited","StartedAt":%q,"FinishedAt":%q}}`, started, started)
			default:
				w.WriteHeader(http.StatusNoContent)
			}
		})
		if err := d.connect(t).Start(t.Context(), "x"); !errors.Is(err, want) {
			t.Errorf("started %s: %v, want %v", started, err, want)
		}
		if got, want := strings.Join(d.requests, ", "), "POST containers/x/start, GET containers/x/json"; got != want {
			t.Errorf("started %s: requests %s, want %s", started, got, want)
		}
	}
}

// A container that a dead client has asked for is waited for: until Docker
// knows it, or gives its name up.
func TestCreationBesideAnother(t *testing.T) {
	for last, want := range map[int]error{http.StatusConflict: engine.ErrExists, http.StatusCreated: nil} {
		creations := 0
		d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, _ int) {
			w.Header().Set("Content-Type", "application/json")
			switch {
			case r.Method == http.MethodPost && creations < 3:
				creations++
				w.WriteHeader(http.StatusConflict)
			case r.Method == http.MethodPost:
				creations++
				w.WriteHeader(last)
			case creations == 1:
				w.WriteHeader(http.StatusInternalServerError) // no container for its id
			case creations < 4:
				w.WriteHeader(http.StatusNotFound)
			}
			fmt.Fprint(w, `{"Id":"1","message":"busy","State":{"StartedAt":"0001-01-01T00:00:00Z","FinishedAt":"0001-01-01T00:00:00Z"}}`)
		})
		if _, err := d.connect(t).Create(t.Context(), engine.Spec{Name: "x"}); !errors.Is(err, want) {
			t.Errorf("at last answered %d: %v, want %v", last, err, want)
		}
		if creations != 4 {
			t.Errorf("at last answered %d: %d creations, want 4", last, creations)
		}
	}
}

// Two removals of one image at once: the later one fails, whatever Docker calls
// it, and the image is gone. One that fails while the image is there has failed.
func TestRemovalBesideAnother(t *testing.T) {
	for status, want := range map[int]error{http.StatusNotFound: engine.ErrNotFound, http.StatusOK: nil} {
		d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, _ int) {
			w.Header().Set("Content-Type", "application/json")
			if r.Method == http.MethodDelete {
				w.WriteHeader(http.StatusInternalServerError)
				fmt.Fprint(w, `{"message":"unrecognized image ID sha256:1"}`)
				return
			}
			w.WriteHeader(status)
			fmt.Fprint(w, `{"Id":"sha256:1","message":"No such image: x"}`)
		})
		err := d.connect(t).RemoveImage(t.Context(), "x")
		if want != nil && !errors.Is(err, want) || want == nil && (errors.Is(err, engine.ErrNotFound) || !contains(err, "unrecognized")) {
			t.Errorf("with the image answering %d: %v", status, err)
		}
	}
}

// An image that Docker deletes while it is asked for it: its layers go before it does.
func TestImageThatGoes(t *testing.T) {
	for _, gone := range []bool{true, false} {
		asked := 0
		d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, _ int) {
			w.Header().Set("Content-Type", "application/json")
			status := http.StatusInternalServerError
			if asked++; gone && asked == 3 && r.Method == http.MethodGet {
				status = http.StatusNotFound
			}
			w.WriteHeader(status)
			fmt.Fprint(w, `{"message":"layer does not exist"}`)
		})
		docker := d.connect(t)
		asked = 0
		_, err := docker.Image(t.Context(), "x")
		if errors.Is(err, engine.ErrNotFound) != gone || !gone && (machine.FaultOf(err) != machine.EngineFault || !contains(err, "layer does not exist")) {
			t.Errorf("gone at last %t: %v", gone, err)
		}
		if gone && asked != 3 || !gone && asked < 4 {
			t.Errorf("gone at last %t: asked %d times", gone, asked)
		}
		if _, err := docker.Create(t.Context(), engine.Spec{Name: "x"}); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("a container of it: %v", err)
		}
	}
}

func TestDockerThatIsNotThere(t *testing.T) {
	for _, host := range []string{"unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1", "nonsense"} {
		_, err := engine.Connect(t.Context(), engine.Options{Host: host, Wait: 200 * time.Millisecond})
		if machine.FaultOf(err) != machine.EngineFault || !contains(err, host, "--docker-host") {
			t.Errorf("%s: %v, fault %s", host, err, machine.FaultOf(err))
		}
	}
}

func TestDockerTooOld(t *testing.T) {
	d := newDaemon(t, "1.40", nil)
	_, err := engine.Connect(t.Context(), engine.Options{Host: "tcp://" + d.Listener.Addr().String()})
	if machine.FaultOf(err) != machine.EngineFault || !contains(err, "1.40", "20.10") {
		t.Errorf("got %v", err)
	}
}

func TestFaultsOfDocker(t *testing.T) {
	for _, c := range []struct {
		status  int
		message string
		fault   machine.Fault
	}{
		{500, "write /var/lib/docker/x: no space left on device", machine.NodeFault},
		{500, "driver failed", machine.EngineFault},
		{400, "invalid mount config", machine.TaskFault},
	} {
		d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, _ int) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(c.status)
			fmt.Fprintf(w, `{"message":%q}`, c.message)
		})
		docker := d.connect(t)
		_, created := docker.Create(t.Context(), engine.Spec{Name: "x"})
		for what, err := range map[string]error{
			"create": created, "start": docker.Start(t.Context(), "x"),
			"logs": docker.Log(t.Context(), "x", io.Discard, io.Discard),
		} {
			if machine.FaultOf(err) != c.fault || !contains(err, c.message, "container x") {
				t.Errorf("%s: %v (fault %s), want %s", what, err, machine.FaultOf(err), c.fault)
			}
		}
	}
}
