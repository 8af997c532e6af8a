package tes

import (
	"bytes"
	"encoding/json"
	"math"
	"testing"
	"time"
)

func TestEncodeResult(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678000000, time.UTC)
	task := Task{
		ID: "t", State: Complete, CreationTime: at,
		Executors: []Executor{{Image: "alpine", Command: Arguments{"a && b"}}},
		Logs: []TaskLog{{}, {
			Logs:      []ExecutorLog{{StartTime: at, EndTime: at, Stdout: "<out>"}},
			Outputs:   []OutputFileLog{{URL: "file:///o", Path: "/o", SizeBytes: 1 << 60}},
			StartTime: at, Metadata: map[string]string{"host": "n1"}, SystemLogs: []string{"ready"},
		}},
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(task); err != nil {
		t.Fatal(err)
	}
	same(t, "document", b.String(), `{"id":"t","state":"COMPLETE","executors":[{"image":"alpine","command":["a && b"]}],`+
		`"logs":[{"logs":[],"outputs":[]},`+
		`{"logs":[{"start_time":"2026-01-02T03:04:05.678Z","end_time":"2026-01-02T03:04:05.678Z","stdout":"<out>","exit_code":0}],`+
		`"metadata":{"host":"n1"},"start_time":"2026-01-02T03:04:05.678Z",`+
		`"outputs":[{"url":"file:///o","path":"/o","size_bytes":"1152921504606846976"}],"system_logs":["ready"]}],`+
		`"creation_time":"2026-01-02T03:04:05.678Z"}`+"\n")
}

func TestBytes(t *testing.T) {
	for gb, want := range map[float64]int64{0: 0, 1: 1e9, 0.1: 1e8, 7.5: 75e8, 1e-10: 1, 1e30: math.MaxInt64} {
		r := Resources{RAMGB: gb, DiskGB: gb}
		same(t, "ram", r.RAMBytes(), want)
		same(t, "disk", r.DiskBytes(), want)
	}
}

func TestRelative(t *testing.T) {
	tests := []struct{ prefix, match, want string }{
		{"/work", "/work/a.txt", "a.txt"},
		{"/work", "/work/sub/a.txt", "sub/a.txt"},
		{"/", "/work/a.txt", "work/a.txt"},
	}
	for _, test := range tests {
		o := Output{PathPrefix: test.prefix}
		same(t, test.match, o.Relative(test.match), test.want)
	}
}

func TestImages(t *testing.T) {
	task := Task{Executors: []Executor{{Image: "b"}, {Image: "a"}, {Image: "b"}}}
	got := task.Images()
	if len(got) != 2 || got[0] != "b" || got[1] != "a" {
		t.Errorf("got %q", got)
	}
}
