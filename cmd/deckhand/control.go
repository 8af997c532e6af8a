package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/common/expfmt"

	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/machine"
)

// controlTimeout bounds a question to a running process: one that is frozen
// does not answer.
const controlTimeout = 2 * time.Second

const socketName = "control.sock"

// serveControl answers on ROOT/control.sock, while a run holds the root, what
// only its process knows, until the returned function is called. It is a
// convenience: a run goes on without it, and cancel then sends a signal.
//
//	GET  /metrics            what attempts have come to, in Prometheus' text format
//	GET  /v1/progress        the present transfer
//	POST /v1/cancel?task=ID  the task is to end Canceled
func (s *session) serveControl(task string, cancel context.CancelCauseFunc) (stop func()) {
	listener, err := listenUnix(s.app.conf.Root)
	if err != nil {
		s.app.log.Warn("cannot listen; status will not tell how far transfers are", "socket", filepath.Join(s.app.conf.Root, socketName), "error", err)
		return func() {}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/progress", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(s.meter.Snapshot()); err != nil {
			s.app.log.Debug("cannot answer on the control socket", "error", err)
		}
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		text, err := s.metricsText()
		if err != nil {
			http.Error(w, message(err), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
		if _, err := w.Write(text); err != nil {
			s.app.log.Debug("cannot answer on the control socket", "error", err)
		}
	})
	mux.HandleFunc("POST /v1/cancel", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("task") != task {
			http.Error(w, "this process runs task "+task, http.StatusConflict)
			return
		}
		s.app.log.Warn("stopping", "request", "cancel")
		cancel(machine.ErrCancel)
		w.WriteHeader(http.StatusAccepted)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: controlTimeout}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.app.log.Warn("the control socket has failed", "error", err)
		}
	}()
	return func() { _ = server.Close() } // what stays of the socket is in nobody's way
}

// shortPath reaches a socket in dir by a name that fits into a socket address,
// which has room for 107 bytes, however long dir is.
func shortPath(dir *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
}

// removeSocket removes what a dead process left of its socket. Whoever calls holds
// the root.
func (a *app) removeSocket() {
	socket := filepath.Join(a.conf.Root, socketName)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("cannot remove the socket of a dead process", "socket", socket, "error", err)
	}
}

func listenUnix(root string) (net.Listener, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: shortPath(dir), Net: "unix"})
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	listener.SetUnlinkOnClose(false) // its name is only good while dir is open
	return &rootListener{listener, dir, filepath.Join(root, socketName)}, nil
}

// rootListener removes its socket when it is closed.
type rootListener struct {
	*net.UnixListener
	dir  *os.File
	path string
}

func (l *rootListener) Close() error {
	err := l.UnixListener.Close()
	if removed := os.Remove(l.path); !errors.Is(removed, os.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	return errors.Join(err, l.dir.Close())
}

// controlClient asks the process that holds a root.
func controlClient(root string) *http.Client {
	return &http.Client{
		Timeout: controlTimeout,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dir, err := os.Open(root)
			if err != nil {
				return nil, err
			}
			defer func() { _ = dir.Close() }() // read-only
			return (&net.Dialer{}).DialContext(ctx, "unix", shortPath(dir))
		}},
	}
}

// askProgress asks the process that holds a root how far its transfer is.
func askProgress(ctx context.Context, root string) (p progress.Snapshot, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://deckhand/v1/progress", nil)
	if err != nil {
		return p, err
	}
	response, err := controlClient(root).Do(request)
	if err != nil {
		return p, err
	}
	defer func() { _ = response.Body.Close() }() // read-only
	err = json.NewDecoder(response.Body).Decode(&p)
	return p, err
}
