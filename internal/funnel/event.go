package funnel

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/deckhand/deckhand/internal/tes"
)

// Event is a message events.Event of Funnel's events.proto, without its task.
type Event struct {
	name  string // for people
	kind  uint64 // its number in the enum Type
	index int    // of the executor
	at    time.Time
	data  []byte // the field of the oneof, encoded
}

// Numbers of the fields that every event has.
const (
	fieldID        = 1
	fieldTimestamp = 2
	fieldIndex     = 17
	fieldType      = 18
)

// states are the numbers of states in Funnel's tes.proto.
var states = map[tes.State]uint64{
	tes.Queued: 1, tes.Initializing: 2, tes.Running: 3, tes.Complete: 5, tes.ExecutorError: 6, tes.SystemError: 7, tes.Canceled: 8,
}

// State puts the task into a state.
func State(at time.Time, s tes.State) Event {
	return Event{"state " + string(s), 1, 0, at, protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), states[s])}
}

// Start is when the attempt began.
func Start(at time.Time) Event { return Event{"start", 2, 0, at, text(nil, 4, clock(at))} }

// End is when the attempt ended.
func End(at time.Time) Event { return Event{"end", 3, 0, at, text(nil, 5, clock(at))} }

// Outputs are the files that were published. They take the place of those told before.
func Outputs(at time.Time, files []tes.OutputFileLog) Event {
	var list []byte
	for _, f := range files {
		list = append(list, message(1, output(f))...)
	}
	return Event{"outputs", 4, 0, at, message(6, list)}
}

// OutputSize is the size of a file in Outputs, in bytes.
func OutputSize(f tes.OutputFileLog) int {
	return protowire.SizeTag(1) + protowire.SizeBytes(len(output(f)))
}

func output(f tes.OutputFileLog) []byte {
	b := text(nil, 1, f.Path)
	b = text(b, 2, strconv.FormatInt(f.SizeBytes, 10))
	return text(b, 3, f.URL)
}

// Metadata is added to what the server has, under the keys.
func Metadata(at time.Time, m map[string]string) Event {
	return Event{"metadata", 5, 0, at, message(7, entries(nil, 1, m))}
}

// SystemLog is added to the task's system logs, each time that it is told.
func SystemLog(at time.Time, level, line string, fields map[string]string) Event {
	b := text(nil, 1, line)
	b = text(b, 2, level)
	return Event{"system log", 13, 0, at, message(15, entries(b, 3, fields))}
}

// Executor is all there is to tell of an executor that has ended; what was told of it before is replaced.
func Executor(index int, log tes.ExecutorLog) []Event {
	code := protowire.AppendVarint(protowire.AppendTag(nil, 10, protowire.VarintType), uint64(int64(log.ExitCode)))
	return []Event{
		{"executor's start", 6, index, log.StartTime, text(nil, 4, clock(log.StartTime))},
		{"executor's end", 7, index, log.EndTime, text(nil, 5, clock(log.EndTime))},
		{"executor's exit code", 8, index, log.EndTime, code},
		{"executor's stdout", 11, index, log.EndTime, text(nil, 13, log.Stdout)},
		{"executor's stderr", 12, index, log.EndTime, text(nil, 14, log.Stderr)},
	}
}

// encode returns the message in protobuf's form.
func (e Event) encode(task string) []byte {
	b := text(nil, fieldID, task)
	b = text(b, fieldTimestamp, clock(e.at))
	b = append(b, e.data...)
	b = protowire.AppendVarint(protowire.AppendTag(b, fieldIndex, protowire.VarintType), uint64(e.index))
	return protowire.AppendVarint(protowire.AppendTag(b, fieldType, protowire.VarintType), e.kind)
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// text appends a string. One that is not UTF-8, such as a file's name, would make
// the whole message unreadable.
func text(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), strings.ToValidUTF8(s, "\uFFFD"))
}

// message returns a field that is a message itself.
func message(field protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), b)
}

// entries appends a map, its keys in order.
func entries(b []byte, field protowire.Number, m map[string]string) []byte {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		b = append(b, message(field, text(text(nil, 1, key), 2, m[key]))...)
	}
	return b
}
