package system

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// wire stands between a run and its Docker, and cuts all connections once: when
// Docker has done what a request asks for and before it can say so.
type wire struct {
	Host  string // for --docker-host
	proxy *httputil.ReverseProxy
	serve *httptest.Server

	mu    sync.Mutex
	kinds []string // of the requests so far
	cutAt string   // the kind whose first request is cut; empty for none
	cut   bool     // it was
	away  time.Time
}

// away is for how long a wire that was cut takes no request.
const away = 300 * time.Millisecond

func newWire(t *testing.T, host string) *wire {
	t.Helper()
	// Not the test's own directory: its name may be too long for a socket.
	dir, err := os.MkdirTemp("/var/tmp", "dkwire")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Host: "unix://" + socket}
	w.proxy = &httputil.ReverseProxy{
		FlushInterval: -1, // what Docker streams comes as it is sent
		Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(&url.URL{Scheme: "http", Host: "docker"}) },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(host, "unix://"))
		}},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	w.serve = &httptest.Server{Listener: listener, Config: &http.Server{Handler: w}}
	w.serve.Start()
	t.Cleanup(func() {
		w.serve.CloseClientConnections()
		w.serve.Close()
	})
	return w
}

// arm forgets what was, and cuts the first request of a kind.
func (w *wire) arm(kind string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kinds, w.cutAt, w.cut, w.away = nil, kind, false, time.Time{}
}

// seen are the kinds of requests since it was armed, and whether one was cut.
func (w *wire) seen() (kinds []string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(w.kinds))), w.cut
}

func (w *wire) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	if time.Since(w.away) < away {
		w.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v"), "/")
	k := kind(r.Method, path)
	w.kinds = append(w.kinds, k)
	cut := k == w.cutAt && !w.cut
	w.cut = w.cut || cut
	w.mu.Unlock()
	if !cut {
		w.proxy.ServeHTTP(rw, r)
		return
	}
	var answer http.ResponseWriter = httptest.NewRecorder() // nobody hears it
	if strings.HasSuffix(path, "/wait") {
		answer = mute{rw} // what comes first says that Docker waits
	}
	w.proxy.ServeHTTP(answer, r)
	w.mu.Lock()
	w.away = time.Now()
	w.mu.Unlock()
	w.serve.CloseClientConnections()
	panic(http.ErrAbortHandler)
}

// mute is an answer of which only the header is sent.
type mute struct{ http.ResponseWriter }

func (mute) Write(p []byte) (int, error) { return len(p), nil }

func (m mute) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// kind is what sort of request it is: its method with the first and the last part
// of its path, without what is a name.
func kind(method, path string) string {
	parts := strings.Split(path, "/")
	last := parts[len(parts)-1]
	switch {
	case len(parts) == 1:
		return method + " " + last
	case method == http.MethodDelete:
		last = "*"
	}
	return method + " " + parts[0] + "/" + last
}

// The connection to Docker breaks at a request of a run, of each kind once, when
// Docker has done what was asked for: the run goes on, and nothing is done twice.
func TestConnectionCutAtEachRequest(t *testing.T) {
	t.Parallel()
	// Docker forgets what it has done when it has much to do for others, and is asked
	// something else then.
	w := logged(NewWorldOn(t, rig.NewDaemon(t)))
	image := w.Image(t, "cut", rig.Spec{Volumes: []string{"/scratch"}})
	direct, wire := w.DockerHost, newWire(t, w.DockerHost)
	tries := 0
	run := func(t *testing.T, at string) (kinds []string) {
		t.Helper()
		if w.Docker(t, "images", "--quiet", image.Tag) != "" { // each run pulls it
			w.Docker(t, "rmi", image.Tag)
		}
		wire.arm(at)
		tries++
		out := filepath.Join("out", fmt.Sprint(tries))
		task := tes.Task{
			ID:        fmt.Sprint("cut-", tries),
			Executors: []tes.Executor{Sh(image.Tag, "echo ran >> /data/ran; echo captured > /root/file; echo out; exit 3")},
			Outputs: []tes.Output{
				{Path: "/data/ran", URL: filepath.Join(w.Dir, out, "ran")},
				{Path: "/root/f*", PathPrefix: "/root", URL: filepath.Join(w.Dir, out)},
			},
			Volumes: []string{"/data"},
		}
		w.DockerHost = wire.Host
		o := w.Run(t, task)
		w.DockerHost = direct
		if o.Code != 1 {
			t.Fatalf("exit code is %d, want 1\n%s", o.Code, o.Stderr)
		}
		kinds, cut := wire.seen()
		if cut != (at != "") {
			t.Errorf("the connection was cut: %v; the requests were %q", cut, kinds)
		}
		if got, want := w.Path(t, task.ID), working+" ExecutorError"; got != want {
			t.Errorf("the task went through %s, want %s\n%s", got, want, o.Stderr)
		}
		for name, want := range map[string]string{"ran": "ran\n", "file": "captured\n"} {
			if got := w.Read(t, filepath.Join(out, name)); got != want {
				t.Errorf("output %s is %q, want %q", name, got, want)
			}
		}
		if logs := o.Log(t).Logs; len(logs) != 1 || logs[0].Stdout != "out\n" || logs[0].ExitCode != 3 {
			t.Errorf("the executors' logs are %+v", logs)
		}
		w.Clean(t)
		return kinds
	}
	kinds := run(t, "")
	for _, must := range []string{
		"POST images/create", "POST containers/create", "POST containers/wait", "POST containers/start", "GET containers/archive",
		"DELETE containers/*", "POST volumes/create", "DELETE volumes/*",
	} {
		if !slices.Contains(kinds, must) {
			t.Errorf("no %s among the requests %q", must, kinds)
		}
	}
	for _, k := range kinds {
		t.Run(k, func(t *testing.T) { run(t, k) })
	}
}
