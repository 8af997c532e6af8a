package funnel

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// While a server is away its ports are nobody else's, and it comes back to them.
func TestPortsOfAServerThatIsAway(t *testing.T) {
	s := New(t)
	url, rpc := s.URL, s.RPC
	s.Leave()
	for _, address := range []string{strings.TrimPrefix(url, "http://"), rpc} {
		if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("who connects to %s gets %v", address, err)
		}
		if _, err := net.Listen("tcp", address); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("who listens at %s gets %v", address, err)
		}
	}
	s.Return(t)
	r, err := http.Get(url + "/v1/tasks/none")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusNotFound || s.URL != url || s.RPC != rpc {
		t.Errorf("back at %s and %s it answers %s", s.URL, s.RPC, r.Status)
	}
}
