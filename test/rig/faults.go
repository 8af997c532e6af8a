package rig

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
)

// Fault is what a registry, or what stands before it, does wrong.
type Fault struct {
	Where  string // in the path of the requests that it is about
	Times  int32  // how often it fails; 0 for ever
	Answer http.HandlerFunc
}

// Fail has a registry answer GET with a fault, but not for the configuration of image, which
// deckhand asks for by itself. It returns how often that was.
func (r *Registry) Fail(f Fault, image Ref) *atomic.Int32 {
	var failed atomic.Int32
	r.Intercept(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, f.Where) || strings.HasSuffix(req.URL.Path, image.ID) || req.Method != http.MethodGet {
			return false
		}
		if n := failed.Add(1); f.Times > 0 && n > f.Times {
			return false
		}
		f.Answer(w, req)
		return true
	})
	return &failed
}

// Says answers with a status, a text and header fields, each with its value after it.
func Says(status int, text string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		fmt.Fprint(w, text)
	}
}

// Dies closes the connection after half of what it has promised.
func Dies(w http.ResponseWriter, _ *http.Request) {
	const promised = 1 << 20
	w.Header().Set("Content-Length", fmt.Sprint(promised))
	_, _ = w.Write(make([]byte, promised/2))
	panic(http.ErrAbortHandler)
}
