package storagetest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// Proxy stands before a server and lets a test spoil what passes. It keeps the
// Host of requests, which signatures may cover.
type Proxy struct {
	URL string

	server *httputil.ReverseProxy
	front  *httptest.Server
	mu     sync.Mutex
	handle func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

// NewProxy starts a proxy before the server at a URL.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{server: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host
			r.Out.Host = r.In.Host
		},
		Transport:     &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true, ExpectContinueTimeout: 0},
		FlushInterval: -1,
		// A client that went away is what some tests are about.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}}
	p.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		handle := p.handle
		p.mu.Unlock()
		if handle == nil {
			p.server.ServeHTTP(w, r)
			return
		}
		handle(w, r, p.server)
	}))
	t.Cleanup(p.front.Close)
	p.URL = p.front.URL
	return p
}

// Close ends the proxy when the requests that it has have ended; those that are
// still on their way to it go nowhere.
func (p *Proxy) Close() { p.front.Close() }

// Handle sets what is done with requests from now on; nil passes them on.
func (p *Proxy) Handle(handle func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handle = handle
}
