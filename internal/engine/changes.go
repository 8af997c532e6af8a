package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"path"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

// Changes reads what a container has added to its image or changed in it, mounts
// left out, with the directories that lead there. A container can change millions
// of paths: they are not held, but read one by one. When the stream breaks off,
// read is called again, with another one. ErrNotFound when there is no such
// container.
func (d *Docker) Changes(ctx context.Context, id string, read func(iter.Seq[string]) error) error {
	var failed error // of read alone
	err := d.ask(ctx, func(ctx context.Context) error {
		body, err := d.get(ctx, "/containers/"+url.PathEscape(id)+"/changes")
		if err != nil {
			return err
		}
		defer body.Close()
		stream := &source{from: body}
		var wrong error
		failed = read(func(yield func(string) bool) { wrong = eachChange(stream, yield) })
		if stream.err != nil || wrong != nil {
			failed = nil
		}
		if stream.err != nil {
			return broken{stream.err}
		}
		return wrong
	})
	if failed != nil {
		return failed
	}
	return explain(err, "list the changes of container %s", id)
}

// eachChange decodes the array of changes, or null, entry by entry.
func eachChange(stream io.Reader, yield func(string) bool) error {
	d := json.NewDecoder(stream)
	if open, err := d.Token(); err != nil || open == nil {
		return err
	}
	for d.More() {
		var c container.FilesystemChange
		if err := d.Decode(&c); err != nil {
			return err
		}
		if c.Kind != container.ChangeDelete && !yield(c.Path) {
			return nil
		}
	}
	_, err := d.Token()
	return err
}

// get asks for an answer that the client would hold whole.
func (d *Docker) get(ctx context.Context, what string) (io.ReadCloser, error) {
	host, err := client.ParseHostURL(d.api.DaemonHost())
	if err != nil {
		return nil, err
	}
	at := url.URL{Scheme: "http", Host: client.DummyHost, Path: path.Join("/", host.Path, "v"+d.api.ClientVersion(), what)}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	// The client's dialer brings TLS with it, where Docker is reached so.
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.api.Dialer()(ctx) }
	answer, err := (&http.Transport{DialContext: dial, DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode == http.StatusOK {
		return answer.Body, nil
	}
	defer answer.Body.Close()
	var said types.ErrorResponse
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&said); err != nil || said.Message == "" {
		said.Message = answer.Status
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return nil, fmt.Errorf("%w: %s", cerrdefs.ErrNotFound, said.Message)
	case http.StatusServiceUnavailable:
		return nil, fmt.Errorf("%w: %s", cerrdefs.ErrUnavailable, said.Message)
	}
	return nil, errors.New(said.Message)
}
