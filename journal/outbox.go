package journal

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// The outbox is no second log: an entry names a record of which others are to be
// told, in the order in which the records were written, and each sink has a
// place in that order. What all sinks have goes with the next generation.

const (
	// forgetSink is how long a sink keeps its place that no process was
	// configured with.
	forgetSink = 30 * 24 * time.Hour
	// renewPlace is how old the time of a place may become while the sink is in use.
	renewPlace = 24 * time.Hour
	// ackedLog is how much of the log places may fill while there is little
	// space: the rest is for the task.
	ackedLog = memTableSize / 8
)

func eventKey(number uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(eventPrefix), number)
}

// parseEventKey is the inverse of eventKey.
func parseEventKey(key []byte) (number uint64, ok bool) {
	rest, ok := strings.CutPrefix(string(key), eventPrefix)
	if !ok || len(rest) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64([]byte(rest)), true
}

func sinkKey(sink string) []byte { return []byte(sinkPrefix + sink) }

// event is an entry of the outbox.
type event struct {
	Task string `json:"task"`
	Seq  uint64 `json:"seq"`
}

// place is how far a sink has come.
type place struct {
	// Number is that of the last notice that was delivered.
	Number uint64 `json:"number"`
	// State is what the sink has come to with them; see Keep.
	State json.RawMessage `json:"state,omitempty"`
	// At is when a process was last known to be configured with the sink.
	At time.Time `json:"at"`
}

// places returns those of all sinks.
func (r *reader) places() (map[string]place, error) {
	all := map[string]place{}
	for e, err := range r.scan([]byte(sinkPrefix)) {
		if err != nil {
			return nil, err
		}
		p, err := decode[place](e.key, e.value)
		if err != nil {
			return nil, err
		}
		all[strings.TrimPrefix(string(e.key), sinkPrefix)] = p
	}
	return all, nil
}

func (r *reader) place(sink string) (p place, err error) {
	raw, err := r.get(sinkKey(sink))
	if err != nil || raw == nil {
		return p, err
	}
	return decode[place](sinkKey(sink), raw)
}

// SinkNames lists the sinks that have a place.
func (r *reader) SinkNames() ([]string, error) {
	all, err := r.places()
	if err != nil {
		return nil, readError("who is told of events", err)
	}
	return slices.Sorted(maps.Keys(all)), nil
}

// Kept returns what Keep was given last for a sink; nil before.
func (r *reader) Kept(sink string) (json.RawMessage, error) {
	p, err := r.place(sink)
	if err != nil {
		return nil, readError("the place of "+sink, err)
	}
	return p.State, nil
}

// Undelivered returns the first notices, most at most, that were not delivered
// to a sink of Options.Sinks, oldest first.
func (r *reader) Undelivered(sink string, most int) ([]machine.Notice, error) {
	at, err := r.place(sink)
	var notices []machine.Notice
	if err == nil {
		notices, err = r.notices(at.Number, most)
	}
	if err != nil {
		return nil, readError("what was not delivered to "+sink, err)
	}
	return notices, nil
}

func (r *reader) notices(after uint64, most int) (notices []machine.Notice, err error) {
	for entry, err := range r.scan([]byte(eventPrefix)) {
		if err != nil {
			return nil, err
		}
		number, _ := parseEventKey(entry.key)
		if number <= after {
			continue
		}
		e, err := decode[event](entry.key, entry.value)
		if err != nil {
			return nil, err
		}
		stored, err := r.record(e)
		if err != nil {
			return nil, err
		}
		n := machine.Notice{Number: number, ID: hashOf(stored)}
		if n.Record, err = decode[machine.Record](entry.key, stored); err != nil {
			return nil, err
		}
		if notices = append(notices, n); len(notices) == most {
			break
		}
	}
	return notices, nil
}

// record returns the record that an entry names, as stored.
func (r *reader) record(e event) ([]byte, error) {
	raw, err := r.get(recordKey(e.Task, e.Seq))
	if err != nil || raw != nil {
		return raw, err
	}
	for s, err := range r.records(e.Task) { // it is in the history
		if err != nil {
			return nil, err
		}
		if s.seq == e.Seq {
			return s.raw, nil
		}
	}
	return nil, fmt.Errorf("%w: record %d of task %s is gone, which was to be delivered", ErrDamaged, e.Seq, e.Task)
}

// Delivered puts a sink behind the notice with that number, durably. On a full
// disk it is refused with ErrNoSpace sooner than an append is, and the journal
// goes on.
func (j *Journal) Delivered(sink string, number uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.put(sink, number, j.sinks[sink].State); err != nil {
		return machine.Faultf(machine.NodeFault, "cannot journal what was delivered to %s: %w", sink, spaceError(err))
	}
	return nil
}

// Keep is Delivered for a sink that adds notices up: state, which is JSON, is what
// it has come to with them. Both change together, so that none counts twice.
func (j *Journal) Keep(sink string, number uint64, state json.RawMessage) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.put(sink, number, state); err != nil {
		return machine.Faultf(machine.NodeFault, "cannot journal what %s has come to: %w", sink, spaceError(err))
	}
	return nil
}

// put moves a sink. The caller holds mu, or is alone.
func (j *Journal) put(sink string, number uint64, state json.RawMessage) error {
	if j.failed != nil {
		return j.failed
	}
	if j.closed {
		return fmt.Errorf("%w: the journal is closed", ErrRefused)
	}
	p := place{Number: number, State: state, At: j.opts.Now().UTC().Round(0)}
	var w batch
	w.setJSON(sinkKey(sink), p)
	if w.err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, w.err)
	}
	if err := j.log.reserve(w.cost(), ackedLog); err != nil {
		return err
	}
	if err := j.commit(w); err != nil {
		j.failed = err
		return err
	}
	j.sinks[sink] = p
	return nil
}

// placeSinks gives each sink a place that has none: behind all that was written
// before it was first configured.
func (j *Journal) placeSinks() (err error) {
	if j.sinks, err = j.places(); err != nil {
		return err
	}
	for _, sink := range j.opts.Sinks {
		p, known := j.sinks[sink]
		if !known {
			p.Number = j.tip.Count
		}
		if j.opts.Now().Sub(p.At) > renewPlace {
			if err := j.put(sink, p.Number, p.State); err != nil {
				return err
			}
		}
	}
	return nil
}

// pending is what sinks still wait for.
type pending struct {
	places map[string]place // of the sinks that are not forgotten
	after  uint64           // each of them has the entries up to this one
	tasks  map[string]bool  // of the others
}

func (r *reader) pending(now time.Time) (p pending, err error) {
	if p.places, err = r.places(); err != nil {
		return p, err
	}
	maps.DeleteFunc(p.places, func(_ string, at place) bool { return now.Sub(at.At) > forgetSink })
	p.after = math.MaxUint64
	for _, at := range p.places {
		p.after = min(p.after, at.Number)
	}
	p.tasks = map[string]bool{}
	for entry, err := range r.scan([]byte(eventPrefix)) {
		if err != nil {
			return p, err
		}
		e, err := decode[event](entry.key, entry.value)
		if err != nil {
			return p, err
		}
		if number, _ := parseEventKey(entry.key); number > p.after {
			p.tasks[e.Task] = true
		}
	}
	return p, nil
}

// over says that a key of the outbox may go: nobody waits for the entry, or its
// task was dropped, or the sink is forgotten.
func (p pending) over(key, raw []byte) bool {
	if sink, ok := strings.CutPrefix(string(key), sinkPrefix); ok {
		_, known := p.places[sink]
		return !known
	}
	number, ok := parseEventKey(key)
	if !ok {
		return false
	}
	e, err := decode[event](key, raw)
	return err == nil && (number <= p.after || !p.tasks[e.Task])
}

// isOutbox says whether a key is one of the outbox.
func isOutbox(key []byte) bool {
	_, entry := parseEventKey(key)
	return entry || strings.HasPrefix(string(key), sinkPrefix)
}
