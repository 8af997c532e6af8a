package check

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Actions of an Event.
const (
	Start = "start"
	Die   = "die"
)

// Event is what happened to a container of deckhand's.
type Event struct {
	Action    string // as Docker names it
	Container string // its name
	Root      string
	Task      string
	Attempt   int
	Executor  string // its index
	At        time.Time
}

// Watch follows the events of an engine until it is closed, also over the
// engine's own restarts.
type Watch struct {
	api    *api
	cancel context.CancelFunc
	ended  chan struct{}
	began  int64 // in nanoseconds

	mu     sync.Mutex
	events []Event
	marks  map[string]chan struct{}
	newest int64 // time of the newest event, in nanoseconds
	known  map[sign]bool
	tell   func(Event)
}

// sign tells an event from all others.
type sign struct {
	kind, action, id string
	nanoseconds      int64
}

// overlap is how far back an engine is asked for events that it may have told already.
// It gives each its time and hands it on after that, so that two may come in the other order.
const overlap = int64(time.Minute)

// NewWatch begins to follow the engine at host.
func NewWatch(host string) (*Watch, error) {
	api, err := dial(host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{api: api, cancel: cancel, ended: make(chan struct{}), marks: map[string]chan struct{}{}, newest: time.Now().UnixNano(), known: map[sign]bool{}}
	w.began = w.newest
	go w.follow(ctx)
	return w, nil
}

// Close ends the watch.
func (w *Watch) Close() {
	w.cancel()
	<-w.ended
	w.api.client.CloseIdleConnections()
}

// Events returns the events so far of the containers of a root, oldest first. It
// asks the engine for a sign and waits until that has come by, so that none is
// missing.
func (w *Watch) Events(root string) ([]Event, error) {
	if err := w.mark(); err != nil {
		return nil, err
	}
	return w.of(root), nil
}

// of is the events so far of a root, oldest first.
func (w *Watch) of(root string) []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := []Event{} // nil means that nobody watched
	for _, e := range w.events {
		if e.Root == root {
			found = append(found, e)
		}
	}
	slices.SortStableFunc(found, func(a, b Event) int { return a.At.Compare(b.At) })
	return found
}

// Tell has each of the events to come handed on as soon as it is known.
func (w *Watch) Tell(f func(Event)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell = f
}

// Forget drops the events so far.
func (w *Watch) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = nil
}

// markWait is how long a sign may take to come by.
const markWait = time.Minute

// mark makes and removes a volume and waits for the event of that.
func (w *Watch) mark() error {
	name := "check-" + rand.Text()
	seen := make(chan struct{})
	w.mu.Lock()
	w.marks[name] = seen
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.marks, name)
		w.mu.Unlock()
	}()
	for deadline := time.After(markWait); ; {
		err := w.api.send(http.MethodPost, "/volumes/create", map[string]string{"Name": name})
		if err == nil {
			err = w.api.send(http.MethodDelete, "/volumes/"+name, nil)
		}
		if err != nil {
			return err
		}
		select {
		case <-seen:
			return nil
		case <-time.After(time.Second): // it may have been made before the watch was there
		case <-deadline:
			return fmt.Errorf("the engine's events do not come by")
		}
	}
}

// message is an event as Docker tells it.
type message struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
	TimeNano int64 `json:"timeNano"`
}

func (w *Watch) follow(ctx context.Context) {
	defer close(w.ended)
	for ctx.Err() == nil {
		_ = w.stream(ctx) // the engine went away, or the watch was closed
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (w *Watch) stream(ctx context.Context) error {
	w.mu.Lock()
	since := max(w.began, w.newest-overlap)
	maps.DeleteFunc(w.known, func(e sign, _ bool) bool { return e.nanoseconds < since })
	w.mu.Unlock()
	query := url.Values{
		"since":   {fmt.Sprintf("%d.%09d", since/1e9, since%1e9)},
		"filters": {`{"type":["container","volume"]}`},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.api.base+"/events?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := w.api.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for lines := json.NewDecoder(response.Body); ; {
		var m message
		if err := lines.Decode(&m); err != nil {
			return err
		}
		w.take(m)
	}
}

func (w *Watch) take(m message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := sign{m.Type, m.Action, m.Actor.ID, m.TimeNano}
	if w.known[s] || m.TimeNano <= w.began {
		return // told before the connection broke
	}
	w.known[s], w.newest = true, max(w.newest, m.TimeNano)
	labels := m.Actor.Attributes
	if seen := w.marks[m.Actor.ID]; seen != nil {
		close(seen)
		delete(w.marks, m.Actor.ID)
	}
	if m.Type != "container" || labels[labelRoot] == "" || !slices.Contains([]string{Start, Die}, m.Action) {
		return
	}
	attempt, _ := strconv.Atoi(labels[labelAttempt]) // 0 is none of deckhand's, and is told as it is
	e := Event{
		Action: m.Action, Container: labels["name"], Root: labels[labelRoot], Task: labels[labelTask],
		Attempt: attempt, Executor: labels[labelExecutor], At: time.Unix(0, m.TimeNano),
	}
	w.events = append(w.events, e)
	if w.tell != nil {
		w.tell(e)
	}
}
