// Package tes holds the documents of the GA4GH Task Execution Service API,
// version 1.1: reading them, checking them and naming them.
package tes

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/storage/glob"
)

// State is tesState.
type State string

const (
	Unknown       State = "UNKNOWN"
	Queued        State = "QUEUED"
	Initializing  State = "INITIALIZING"
	Running       State = "RUNNING"
	Paused        State = "PAUSED"
	Complete      State = "COMPLETE"
	ExecutorError State = "EXECUTOR_ERROR"
	SystemError   State = "SYSTEM_ERROR"
	Canceled      State = "CANCELED"
	Canceling     State = "CANCELING"
	Preempted     State = "PREEMPTED"
)

// FileType is tesFileType.
type FileType string

const (
	File      FileType = "FILE"
	Directory FileType = "DIRECTORY"
)

// Task is tesTask.
type Task struct {
	ID          string            `json:"id,omitempty"`
	State       State             `json:"state,omitempty"`
	Name        string            `json:"name,omitempty"`
	Description string            `json:"description,omitempty"`
	Inputs      []Input           `json:"inputs,omitempty"`
	Outputs     []Output          `json:"outputs,omitempty"`
	Resources   Resources         `json:"resources,omitzero"`
	Executors   []Executor        `json:"executors"`
	Volumes     []string          `json:"volumes,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	// Logs has one entry for each attempt.
	Logs         []TaskLog `json:"logs,omitempty"`
	CreationTime time.Time `json:"creation_time,omitzero"`
}

// Images returns the images of all executors, each once, in the order of use.
func (t *Task) Images() []string {
	var images []string
	for _, e := range t.Executors {
		if !slices.Contains(images, e.Image) {
			images = append(images, e.Image)
		}
	}
	return images
}

// Input is tesInput. After Validate exactly one of URL and Content is set.
type Input struct {
	Name        string `json:"name,omitempty"`
	Description string `json:"description,omitempty"`
	// URL is a URL or a bare absolute path, as the client wrote it: spaces and
	// other characters may be unescaped.
	URL  string   `json:"url,omitempty"`
	Path string   `json:"path"`
	Type FileType `json:"type,omitempty"`
	// Content is the file itself; nil when the document has none.
	Content    *string `json:"content,omitempty"`
	Streamable bool    `json:"streamable,omitempty"`
}

// Output is tesOutput.
type Output struct {
	Name        string `json:"name,omitempty"`
	Description string `json:"description,omitempty"`
	URL         string `json:"url"`
	// Path is always a pattern, in which a backslash quotes: see Wildcard.
	Path       string   `json:"path"`
	PathPrefix string   `json:"path_prefix,omitempty"`
	Type       FileType `json:"type,omitempty"`
}

// Wildcard says whether Path is a pattern for any number of files, to be
// matched with package glob. When it is not, LiteralPath names the output.
func (o *Output) Wildcard() bool { return glob.HasMeta(o.Path) }

// LiteralPath is Path without its quoting, for an output that has no wildcards.
func (o *Output) LiteralPath() string { return glob.Unescape(o.Path) }

// Relative returns what is to be appended to URL for a path that the wildcards
// matched: the path without PathPrefix and without a slash in front.
func (o *Output) Relative(match string) string {
	return strings.TrimPrefix(strings.TrimPrefix(match, o.PathPrefix), "/")
}

// Resources is tesResources. Zero means that nothing was asked for.
type Resources struct {
	// CPUCores may be fractional: clients send that, and TES 1.2 will allow it.
	CPUCores    float64 `json:"cpu_cores,omitempty"`
	Preemptible bool    `json:"preemptible,omitempty"`
	RAMGB       float64 `json:"ram_gb,omitempty"`
	DiskGB      float64 `json:"disk_gb,omitempty"`
	Zones       Zones   `json:"zones,omitempty"`
	// BackendParameters holds supported keys only, spelled as the caller of
	// Validate spells them.
	BackendParameters       map[string]string `json:"backend_parameters,omitempty"`
	BackendParametersStrict bool              `json:"backend_parameters_strict,omitempty"`
}

// RAMBytes is RAMGB in bytes, zero when it was not asked for.
func (r *Resources) RAMBytes() int64 { return gigabytes(r.RAMGB) }

// DiskBytes is DiskGB in bytes, zero when it was not asked for.
func (r *Resources) DiskBytes() int64 { return gigabytes(r.DiskGB) }

// gigabytes turns GB, which are powers of ten in TES, into bytes.
func gigabytes(gb float64) int64 {
	if gb >= maxGigabytes {
		return math.MaxInt64
	}
	return int64(math.Ceil(gb * 1e9))
}

// maxGigabytes is where a number of bytes leaves int64.
const maxGigabytes = math.MaxInt64 / 1e9

// Zones is a list of strings. The README of TES shows a bare string, so that
// is read as a list of one.
type Zones []string

// Arguments is an argv: the program and what it is given, with no shell between.
type Arguments []string

// Executor is tesExecutor.
type Executor struct {
	Image       string            `json:"image"`
	Command     Arguments         `json:"command"`
	Workdir     string            `json:"workdir,omitempty"`
	Stdin       string            `json:"stdin,omitempty"`
	Stdout      string            `json:"stdout,omitempty"`
	Stderr      string            `json:"stderr,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	IgnoreError bool              `json:"ignore_error,omitempty"`
}

// TaskLog is tesTaskLog, the account of one attempt. Times left zero are left out.
type TaskLog struct {
	// Logs has one entry for each executor that started.
	Logs       []ExecutorLog     `json:"logs"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	StartTime  time.Time         `json:"start_time,omitzero"`
	EndTime    time.Time         `json:"end_time,omitzero"`
	Outputs    []OutputFileLog   `json:"outputs"`
	SystemLogs []string          `json:"system_logs,omitempty"`
}

// MarshalJSON writes empty lists as lists: TES requires logs and outputs, and
// clients index them.
func (l TaskLog) MarshalJSON() ([]byte, error) {
	type plain TaskLog
	p := plain(l)
	if p.Logs == nil {
		p.Logs = []ExecutorLog{}
	}
	if p.Outputs == nil {
		p.Outputs = []OutputFileLog{}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // whoever encodes the whole document decides on that
	err := enc.Encode(p)
	return b.Bytes(), err
}

// ExecutorLog is tesExecutorLog.
type ExecutorLog struct {
	StartTime time.Time `json:"start_time,omitzero"`
	EndTime   time.Time `json:"end_time,omitzero"`
	// Stdout and Stderr may be cut: TES guarantees nothing about them.
	Stdout   string `json:"stdout,omitempty"`
	Stderr   string `json:"stderr,omitempty"`
	ExitCode int    `json:"exit_code"`
}

// OutputFileLog is tesOutputFileLog.
type OutputFileLog struct {
	URL  string `json:"url"`
	Path string `json:"path"` // absolute, in the container
	// SizeBytes is a string in JSON, which has no 64-bit integers.
	SizeBytes int64 `json:"size_bytes,string"`
}
