package rig

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Request is one request that a Registry answered.
type Request struct {
	Method string
	Path   string
	Status int // 0 when an intercepted connection was cut without an answer
}

// Registry is Debian's docker-registry on a loopback port, which Docker trusts
// without TLS, behind a proxy that counts requests and can fail them.
// What Image pushes does not pass the proxy and is not counted.
type Registry struct {
	direct *http.Client // past the proxy, by the registry's own socket
	server *httptest.Server
	nonce  string

	mu        sync.Mutex
	requests  []Request
	intercept func(http.ResponseWriter, *http.Request) bool
}

// NewRegistry starts an empty registry, which ends with the test.
func NewRegistry(tb TB) *Registry {
	tb.Helper()
	path, err := program("docker-registry", "docker-registry")
	if err != nil {
		giveUp(tb, err)
	}
	// Not the test's own directory: its name may be too long for a socket.
	dir, err := os.MkdirTemp("/var/tmp", "dkreg")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "registry.sock")
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
http:
  net: unix
  addr: %q
  relativeurls: true
`, filepath.Join(dir, "data"), socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		tb.Fatalf("%v", err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		tb.Fatalf("%v", err)
	}
	defer log.Close()
	cmd := exec.Command(path, "serve", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // REGISTRY_* would override the file
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	r := &Registry{direct: &http.Client{Transport: transport}, nonce: filepath.Base(dir)}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		resp, err := r.direct.Get("http://registry/v2/")
		if err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			tb.Fatalf("docker-registry does not answer after a minute: %v\n%s", err, text)
		}
	}

	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: "registry"})
			p.Out.Host = p.In.Host // the registry names itself in its answers
		},
	}
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		c := &counter{ResponseWriter: w, registry: r, request: req}
		defer c.count(0)
		r.mu.Lock()
		intercept := r.intercept
		r.mu.Unlock()
		if intercept == nil || !intercept(c, req) {
			proxy.ServeHTTP(c, req)
		}
	}))
	tb.Cleanup(func() {
		r.server.CloseClientConnections()
		r.forget(tb) // as long as nobody else can have the port
		r.server.Close()
	})
	return r
}

// Addr is the registry's host:port, the first part of its image references.
func (r *Registry) Addr() string { return strings.TrimPrefix(r.server.URL, "http://") }

// Requests returns what was asked of the registry since the last Reset. A
// request is in it before its answer is.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.requests...)
}

// Reset forgets the requests so far.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Intercept lets a test answer requests in the registry's place, slowly or
// wrongly if it likes: f returns true for those that it answered. nil ends it.
func (r *Registry) Intercept(f func(w http.ResponseWriter, req *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// forget removes the test's containers and images from the shared engine, if
// the test had one at all: a later registry may get the same port.
func (r *Registry) forget(tb TB) {
	if !sharedUsed.Load() {
		return
	}
	host, err := sharedHost()
	if err != nil {
		return
	}
	list := func(args ...string) []string {
		out, err := dockerCLI(host, args...)
		if err != nil {
			tb.Logf("%v", err)
		}
		return strings.Fields(out)
	}
	images := list("image", "ls", "--quiet", "--no-trunc", "--filter", "label="+ownerLabel+"="+r.nonce)
	for _, image := range images {
		for _, container := range list("ps", "--all", "--quiet", "--filter", "ancestor="+image) {
			list("rm", "--force", "--volumes", container)
		}
	}
	if len(images) > 0 {
		list(append([]string{"image", "rm", "--force"}, images...)...)
	}
}

// counter notes the status of a request as soon as it is known, before the
// client can see it.
type counter struct {
	http.ResponseWriter
	registry *Registry
	request  *http.Request
	once     sync.Once
}

func (c *counter) count(status int) {
	c.once.Do(func() {
		c.registry.mu.Lock()
		defer c.registry.mu.Unlock()
		c.registry.requests = append(c.registry.requests, Request{c.request.Method, c.request.URL.Path, status})
	})
}

func (c *counter) WriteHeader(status int) {
	if status >= 200 {
		c.count(status)
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	c.count(http.StatusOK)
	return c.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController flush and hijack.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
