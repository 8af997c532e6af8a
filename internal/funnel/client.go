// Package funnel speaks with a server of Funnel as its worker does: it reads a task
// over REST and writes events of it over gRPC, for which the server has no other way.
package funnel

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
)

// Server says where a server is.
type Server struct {
	URL string `json:"url"` // of its REST API
	// RPC is HOST:PORT of its gRPC service in clear text, or https://HOST:PORT.
	RPC string `json:"rpc"`
}

// Credentials are those that the server asks for: a token, or else a user with a
// password. All are empty for a server that is open to everybody.
type Credentials struct{ User, Password, Token string }

// Errors of a server that will not mend by asking again.
var (
	ErrNotFound   = errors.New("the server does not know the task")
	ErrDenied     = errors.New("the server does not accept the credentials")
	ErrTransition = errors.New("the server refuses the state")
)

const (
	// requestTime bounds one request.
	requestTime = 30 * time.Second
	// maxReply is the largest reply that is read, in bytes: a document with its logs.
	maxReply = 2 * tes.MaxBytes
)

// Client speaks with one server.
type Client struct {
	server        Server
	rpc           string // URL
	authorization string
	agent         string
	http, grpc    *http.Client
}

// New returns a client. agent is how requests name their sender.
func New(s Server, c Credentials, agent string) *Client {
	plain := new(http.Protocols)
	plain.SetUnencryptedHTTP2(true)
	secure := new(http.Protocols)
	secure.SetHTTP2(true)
	// A connection whose other end has gone without a word is noticed by pings.
	pings := &http.HTTP2Config{SendPingTimeout: requestTime / 2, PingTimeout: requestTime / 2}
	client := &Client{
		server: s, rpc: "http://" + s.RPC, agent: agent,
		http: &http.Client{Timeout: requestTime},
		grpc: &http.Client{Timeout: requestTime, Transport: &http.Transport{Protocols: plain, HTTP2: pings}},
	}
	if strings.HasPrefix(s.RPC, "https://") {
		client.rpc = s.RPC
		client.grpc.Transport = &http.Transport{Protocols: secure, HTTP2: pings}
	}
	switch {
	case c.Token != "":
		client.authorization = "Bearer " + c.Token
	case c.User != "":
		client.authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(c.User+":"+c.Password))
	}
	return client
}

// Task is a task as the server has it.
type Task struct {
	Document   []byte // JSON, with all that follows
	State      tes.State
	Metadata   map[string]string
	SystemLogs []string
}

// Task reads a task with all that is known of it.
func (c *Client) Task(ctx context.Context, id string) (t Task, err error) {
	return c.get(ctx, id, "FULL")
}

// State reads the state of a task.
func (c *Client) State(ctx context.Context, id string) (tes.State, error) {
	t, err := c.get(ctx, id, "MINIMAL")
	return t.State, err
}

func (c *Client) get(ctx context.Context, id, view string) (t Task, err error) {
	at := strings.TrimSuffix(c.server.URL, "/") + "/v1/tasks/" + url.PathEscape(id) + "?view=" + view
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return t, err
	}
	request.Header.Set("Accept", "application/json") // a browser is shown a page
	text, response, err := c.do(c.http, request)
	if err != nil {
		return t, fmt.Errorf("cannot read task %s from %s: %w", id, c.server.URL, err)
	}
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return t, fmt.Errorf("cannot read task %s from %s: %w", id, c.server.URL, ErrNotFound)
	case http.StatusUnauthorized, http.StatusForbidden:
		return t, fmt.Errorf("cannot read task %s from %s: %w: %s", id, c.server.URL, ErrDenied, response.Status)
	default:
		return t, fmt.Errorf("cannot read task %s from %s: it answered %s", id, c.server.URL, response.Status)
	}
	var reply struct {
		State tes.State `json:"state"`
		Logs  []struct {
			Metadata   map[string]string `json:"metadata"`
			SystemLogs []string          `json:"system_logs"`
		} `json:"logs"`
	}
	if err := json.Unmarshal(text, &reply); err != nil {
		return t, fmt.Errorf("cannot read task %s from %s: its answer is no task: %w", id, c.server.URL, err)
	}
	t = Task{Document: text, State: reply.State}
	if len(reply.Logs) > 0 { // the server keeps one attempt
		t.Metadata, t.SystemLogs = reply.Logs[0].Metadata, reply.Logs[0].SystemLogs
	}
	return t, nil
}

// writeEvent is the method of the server's service.
const writeEvent = "/events.EventService/WriteEvent"

// Write tells the server of an event of a task.
func (c *Client) Write(ctx context.Context, task string, e Event) error {
	if err := c.write(ctx, e.encode(task)); err != nil {
		return fmt.Errorf("cannot tell %s of the %s of task %s: %w", c.server.RPC, e.name, task, err)
	}
	return nil
}

func (c *Client) write(ctx context.Context, message []byte) error {
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))) // not compressed
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.rpc+writeEvent, bytes.NewReader(append(frame, message...)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc+proto")
	request.Header.Set("Te", "trailers")
	_, response, err := c.do(c.grpc, request)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %s", response.Status)
	}
	// A call that fails at once has its status in the header.
	status := response.Trailer
	if status.Get("Grpc-Status") == "" {
		status = response.Header
	}
	return statusError(status.Get("Grpc-Status"), status.Get("Grpc-Message"))
}

// Codes of gRPC that say more than to try again.
const (
	statusOK           = "0"
	statusNotFound     = "5"
	statusDenied       = "7"
	statusNoCredential = "16"
)

// statusError is the error that a call ended with. The server has few codes of its own:
// most of its errors are told apart by their words.
func statusError(code, message string) error {
	if text, err := url.PathUnescape(message); err == nil {
		message = text
	}
	var known error
	switch {
	case code == statusOK:
		return nil
	case code == "":
		return errors.New("its answer has no status; is that the address of Funnel's RPC port?")
	case code == statusDenied, code == statusNoCredential:
		known = ErrDenied
	case code == statusNotFound, strings.Contains(message, "not found"):
		known = ErrNotFound
	case strings.Contains(message, "invalid state transition"):
		known = ErrTransition
	default:
		return fmt.Errorf("it answered with code %s: %s", code, message)
	}
	return fmt.Errorf("%w (code %s: %s)", known, code, message)
}

// do sends a request and reads the whole answer.
func (c *Client) do(client *http.Client, request *http.Request) ([]byte, *http.Response, error) {
	request.Header.Set("User-Agent", c.agent)
	if c.authorization != "" {
		request.Header.Set("Authorization", c.authorization)
	}
	response, err := client.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // it repeats the URL
		}
		return nil, nil, err
	}
	defer func() { _ = response.Body.Close() }() // read-only
	text, err := io.ReadAll(io.LimitReader(response.Body, maxReply+1))
	if err == nil && len(text) > maxReply {
		err = fmt.Errorf("its answer is larger than %d MiB", maxReply>>20)
	}
	return text, response, err
}
