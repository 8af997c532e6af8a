// Package funnel is a server for tests that does what Funnel's was measured to do, as
// far as a runner of tasks meets it: the REST API on one port, the service of events on
// another, by the libraries of gRPC and protobuf that the real one is made of. It can
// go away, and lose an answer to what it has taken.
package funnel

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// Log is the account of a task's one attempt, as the server shows it.
type Log struct {
	StartTime  string            `json:"start_time,omitempty"`
	EndTime    string            `json:"end_time,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	Logs       []ExecutorLog     `json:"logs,omitempty"`
	Outputs    []OutputLog       `json:"outputs,omitempty"`
	SystemLogs []string          `json:"system_logs,omitempty"`
}

// ExecutorLog is that of an executor. Zero is left out, as protojson does.
type ExecutorLog struct {
	StartTime string `json:"start_time,omitempty"`
	EndTime   string `json:"end_time,omitempty"`
	ExitCode  int32  `json:"exit_code,omitempty"`
	Stdout    string `json:"stdout,omitempty"`
	Stderr    string `json:"stderr,omitempty"`
}

// OutputLog is that of an output.
type OutputLog struct {
	Path      string `json:"path"`
	SizeBytes string `json:"size_bytes"`
	URL       string `json:"url"`
}

// task is one that the server has.
type task struct {
	document map[string]any
	state    string
	states   []string // that it was in
	refused  []string // what it was to be and cannot
	log      Log
	events   int
}

// Server is a server of Funnel.
type Server struct {
	URL, RPC       string
	User, Password string // empty for a server that is open to everybody
	TLS            *tls.Config

	mu    sync.Mutex
	tasks map[string]*task
	rest  *http.Server
	grpc  *grpc.Server
	// listeners are closed by hand too: a server that has not come to serve does not.
	listeners []net.Listener
	// lose says of how many events that are taken the answer is lost, and loseLines of
	// how many system logs.
	lose, loseLines int
}

// New starts a server on ports of its own. A test sets its credentials before the first request.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{tasks: map[string]*task{}}
	s.serve(t, "127.0.0.1:0", "127.0.0.1:0")
	t.Cleanup(s.Leave)
	for _, l := range s.listeners {
		hold(t, l.Addr().(*net.TCPAddr))
	}
	return s
}

func (s *Server) serve(t testing.TB, rest, rpc string) {
	t.Helper()
	r, g := listen(t, rest), listen(t, rpc)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/tasks/{id}", s.get)
	mux.HandleFunc("POST /v1/tasks/{action}", s.act)
	s.rest = &http.Server{Handler: mux}
	go func() { _ = s.rest.Serve(r) }() // until it leaves
	var options []grpc.ServerOption
	if s.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(s.TLS)))
	}
	s.grpc = grpc.NewServer(options...)
	s.grpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: "events.EventService", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "WriteEvent", Handler: s.writeEvent}},
	}, nil)
	go func() { _ = s.grpc.Serve(g) }()
	s.URL, s.RPC, s.listeners = "http://"+r.Addr().String(), g.Addr().String(), []net.Listener{r, g}
}

// listen listens where only hold may be too.
func listen(t testing.TB, address string) net.Listener {
	t.Helper()
	shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var refused error
		err := c.Control(func(fd uintptr) { refused = share(int(fd)) })
		return errors.Join(err, refused)
	}}
	l, err := shared.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// hold keeps a port until the test ends: nobody else gets it while the server is away,
// and who connects is refused then.
func hold(t testing.TB, at *net.TCPAddr) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) }) // it was only bound
	if err := errors.Join(share(fd), unix.Bind(fd, &unix.SockaddrInet4{Port: at.Port, Addr: [4]byte(at.IP.To4())})); err != nil {
		t.Fatal(err)
	}
}

func share(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }

// Leave makes the server go away, in the middle of whatever it does.
func (s *Server) Leave() {
	s.rest.Close()
	s.grpc.Stop()
	for _, l := range s.listeners {
		l.Close()
	}
}

// Return makes it come back at the same addresses, with the tasks that it had.
func (s *Server) Return(t testing.TB) {
	t.Helper()
	s.serve(t, strings.TrimPrefix(s.URL, "http://"), strings.TrimPrefix(s.RPC, "https://"))
}

// Lose makes the server take the next n events and not answer to them.
func (s *Server) Lose(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose = n
}

// LoseLines is Lose of system logs alone, which are not to be told again.
func (s *Server) LoseLines(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loseLines = n
}

// Submit gives the server a task, which waits in its queue. The document is JSON.
func (s *Server) Submit(t testing.TB, id string, document []byte) {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(document, &fields); err != nil {
		t.Fatal(err)
	}
	fields["id"], fields["creation_time"] = id, "2026-01-02T03:04:05Z"
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[id] = &task{document: fields, state: "QUEUED", states: []string{"QUEUED"}}
}

// Cancel cancels a task as its user does.
func (s *Server) Cancel(t testing.TB, id string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.tasks[id].move("CANCELED"); err != nil {
		t.Fatal(err)
	}
}

// State is where a task stands.
func (s *Server) State(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id].state
}

// States lists the states that a task was in.
func (s *Server) States(id string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tasks[id].states)
}

// Refused lists the states that were refused to a task.
func (s *Server) Refused(id string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tasks[id].refused)
}

// Events is how many events of a task were taken.
func (s *Server) Events(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id].events
}

// Log is what the server has of a task.
func (s *Server) Log(id string) Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.tasks[id].log
	l.SystemLogs = slices.Clone(l.SystemLogs)
	return l
}

// allowed says whether a header has the credentials of the server.
func (s *Server) allowed(header string) bool {
	if s.User == "" {
		return true
	}
	r := &http.Request{Header: http.Header{"Authorization": {header}}}
	user, password, ok := r.BasicAuth()
	return ok && user == s.User && password == s.Password
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	if !s.allowed(r.Header.Get("Authorization")) {
		http.Error(w, `{"error":""}`, http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tasks[r.PathValue("id")]
	if !ok {
		http.Error(w, `{"error":"task not found"}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(t.shown(r.URL.Query().Get("view")))
}

// act is POST /v1/tasks/ID:cancel.
func (s *Server) act(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutSuffix(r.PathValue("action"), ":cancel")
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[id]
	if !ok || t == nil {
		http.Error(w, `{"error":"task not found"}`, http.StatusNotFound)
		return
	}
	if err := t.move("CANCELED"); err != nil {
		http.Error(w, `{"error":"`+err.Error()+`"}`, http.StatusInternalServerError)
	}
}

// shown is the task in a view. The real server tells a full view by its system logs:
// without any it leaves out what a basic one has not, whatever it was asked for.
func (t *task) shown(view string) map[string]any {
	if view != "FULL" && view != "BASIC" {
		return map[string]any{"id": t.document["id"], "state": t.state}
	}
	basic := view == "BASIC" || len(t.log.SystemLogs) == 0
	shown := map[string]any{}
	for name, value := range t.document {
		if basic && name == "inputs" {
			value = without(value, "content")
		}
		if basic && name == "executors" {
			value = without(value, "stdout", "stderr")
		}
		shown[name] = value
	}
	shown["state"], shown["logs"] = t.state, []Log{t.log}
	return shown
}

// without copies a list of objects without some of their fields.
func without(list any, names ...string) any {
	objects, _ := list.([]any)
	var out []any
	for _, o := range objects {
		fields := map[string]any{}
		for name, value := range o.(map[string]any) {
			if !slices.Contains(names, name) {
				fields[name] = value
			}
		}
		out = append(out, fields)
	}
	return out
}

// move takes the task to a state, if Funnel's table has the transition.
func (t *task) move(to string) error {
	if !Accepted(t.state, to) {
		err := fmt.Errorf("invalid state transition from %s to %s", t.state, to)
		t.refused = append(t.refused, err.Error())
		return err
	}
	if t.state != to {
		t.state, t.states = to, append(t.states, to)
	}
	return nil
}

// Accepted is the table of transitions that was measured on the server.
func Accepted(from, to string) bool {
	if from == to {
		return true
	}
	if from == "PAUSED" || to == "PAUSED" || to == "UNKNOWN" {
		return false
	}
	switch from {
	case "QUEUED":
		return true
	case "INITIALIZING":
		return to != "QUEUED"
	case "RUNNING":
		return slices.Contains([]string{"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED"}, to)
	case "EXECUTOR_ERROR", "SYSTEM_ERROR":
		return to == "QUEUED" || to == "INITIALIZING"
	}
	return false
}

// writeEvent is the handler of the service's one method.
func (s *Server) writeEvent(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // gRPC's order
	md, _ := metadata.FromIncomingContext(ctx)
	header := strings.Join(md.Get("authorization"), "")
	if !s.allowed(header) {
		if header == "" {
			return nil, status.Error(codes.Unauthenticated, "")
		}
		return nil, status.Error(codes.PermissionDenied, "")
	}
	e := dynamicpb.NewMessage(eventType)
	if err := decode(e); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.take(event{e}); err != nil {
		return nil, err // its code is Unknown, as that of the real server
	}
	lost := &s.lose
	if e.Get(e.Descriptor().Fields().ByName("type")).Enum() == protoreflect.EnumNumber(typeNumbers["SYSTEM_LOG"]) && s.loseLines > 0 {
		lost = &s.loseLines
	}
	if *lost > 0 {
		*lost--
		return nil, status.Error(codes.Unavailable, "the answer is lost")
	}
	return dynamicpb.NewMessage(responseType), nil
}

// take adds an event to what the server has of a task.
func (s *Server) take(e event) error {
	t, ok := s.tasks[e.text("id")]
	if !ok {
		return errors.New("task not found")
	}
	t.events++
	l := &t.log
	switch e.Get(e.field("type")).Enum() {
	case protoreflect.EnumNumber(typeNumbers["TASK_STATE"]):
		for name, number := range stateNumbers {
			if e.Get(e.field("state")).Enum() == protoreflect.EnumNumber(number) {
				return t.move(name)
			}
		}
		return errors.New("no such state")
	case protoreflect.EnumNumber(typeNumbers["TASK_START_TIME"]):
		l.StartTime = e.text("start_time")
	case protoreflect.EnumNumber(typeNumbers["TASK_END_TIME"]):
		l.EndTime = e.text("end_time")
	case protoreflect.EnumNumber(typeNumbers["TASK_OUTPUTS"]):
		list := e.message("outputs").list("value")
		l.Outputs = nil
		for i := range list.Len() {
			o := event{list.Get(i).Message()}
			l.Outputs = append(l.Outputs, OutputLog{o.text("path"), o.text("size_bytes"), o.text("url")})
		}
	case protoreflect.EnumNumber(typeNumbers["TASK_METADATA"]):
		if l.Metadata == nil {
			l.Metadata = map[string]string{}
		}
		for key, value := range e.message("metadata").entries("value") {
			l.Metadata[key] = value
		}
	case protoreflect.EnumNumber(typeNumbers["SYSTEM_LOG"]):
		log := e.message("system_log")
		line := fmt.Sprintf("level='%s' msg='%s' timestamp='%s' task_attempt='%d' executor_index='%d'",
			log.text("level"), strings.ReplaceAll(log.text("msg"), "'", `\'`), e.text("timestamp"), e.Get(e.field("attempt")).Uint(), e.index())
		for key, value := range log.entries("fields") {
			line += fmt.Sprintf(" %s='%s'", key, strings.ReplaceAll(value, "'", `\'`))
		}
		l.SystemLogs = append(l.SystemLogs, line)
	default:
		return t.executor(e)
	}
	return nil
}

// executor adds an event of an executor.
func (t *task) executor(e event) error {
	for len(t.log.Logs) <= e.index() {
		t.log.Logs = append(t.log.Logs, ExecutorLog{})
	}
	x := &t.log.Logs[e.index()]
	switch e.Get(e.field("type")).Enum() {
	case protoreflect.EnumNumber(typeNumbers["EXECUTOR_START_TIME"]):
		x.StartTime = e.text("start_time")
	case protoreflect.EnumNumber(typeNumbers["EXECUTOR_END_TIME"]):
		x.EndTime = e.text("end_time")
	case protoreflect.EnumNumber(typeNumbers["EXECUTOR_EXIT_CODE"]):
		x.ExitCode = int32(e.Get(e.field("exit_code")).Int())
	case protoreflect.EnumNumber(typeNumbers["EXECUTOR_STDOUT"]):
		x.Stdout = e.text("stdout")
	case protoreflect.EnumNumber(typeNumbers["EXECUTOR_STDERR"]):
		x.Stderr = e.text("stderr")
	default:
		return errors.New("no such type of event")
	}
	return nil
}

// event reads a message by the names of its fields.
type event struct{ protoreflect.Message }

func (e event) field(name protoreflect.Name) protoreflect.FieldDescriptor {
	return e.Descriptor().Fields().ByName(name)
}
func (e event) text(name protoreflect.Name) string { return e.Get(e.field(name)).String() }
func (e event) index() int                         { return int(e.Get(e.field("index")).Uint()) }
func (e event) message(name protoreflect.Name) event {
	return event{e.Get(e.field(name)).Message()}
}
func (e event) list(name protoreflect.Name) protoreflect.List { return e.Get(e.field(name)).List() }

func (e event) entries(name protoreflect.Name) map[string]string {
	all := map[string]string{}
	e.Get(e.field(name)).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		all[k.String()] = v.String()
		return true
	})
	return all
}
