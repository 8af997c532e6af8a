package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/machine"
)

func TestTextLog(t *testing.T) {
	for _, test := range []struct {
		name string
		log  func(*slog.Logger)
		want string // after the time
	}{
		{"words", func(l *slog.Logger) { l.Info("sort-1 Scrub") }, "sort-1 Scrub"},
		{"attributes", func(l *slog.Logger) { l.Info("staging inputs", "files", 1, "bytes", int64(4<<20)) }, "staging inputs files=1 bytes=4MiB"},
		{"unsigned bytes", func(l *slog.Logger) { l.Info("removed", "bytes", uint64(1536)) }, "removed bytes=1.5KiB"},
		{"warning", func(l *slog.Logger) {
			l.Warn("the pull failed; trying again", "error", errors.New("connection refused"), "in", 2*time.Second)
		}, "warning: the pull failed; trying again in=2s: connection refused"},
		{"error", func(l *slog.Logger) { l.Error("step failed", "state", machine.Download, "error", "no such file") }, "error: step failed state=Download: no such file"},
		{"debug", func(l *slog.Logger) { l.Debug("asked") }, "debug: asked"},
		{"quoted", func(l *slog.Logger) { l.Info("m", "a", "two words", "b", "", "c", `say "x"`) }, `m a="two words" b="" c="say \"x\""`},
		{"no reason", func(l *slog.Logger) { l.Info("m", "reason", "", "n", 1) }, "m n=1"},
		{"image", func(l *slog.Logger) { l.Info("deleted", "id", pastImage) }, "deleted id=0123456789ab"},
		{"given before", func(l *slog.Logger) { l.With("task", "t").WithGroup("g").Info("m", "a", 1) }, "m task=t g.a=1"},
		{"secret", func(l *slog.Logger) {
			l.Info("at https://h/f?sig=SECRET", "url", "https://me:SECRET@h/g", "error", errors.New("GET https://h/f?sig=SECRET: 403"))
		}, ""},
		{"cursor", func(l *slog.Logger) {
			l.Warn("out\x1b[2J", "name", "a\x1b[1A\rb", "error", errors.New("first\nsecond"))
		}, `warning: out\x1b[2J name="a\x1b[1A\rb": first\nsecond`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			test.log(slog.New(newLogHandler(&out, config.Log{Format: "text", Level: "debug"})))
			stamp, line, _ := strings.Cut(out.String(), " ")
			if _, err := time.Parse(time.TimeOnly, stamp); err != nil {
				t.Errorf("it begins with %q, not with the time", stamp)
			}
			if test.want != "" && line != test.want+"\n" {
				t.Errorf("%q, want %q", line, test.want)
			}
			if strings.Contains(line, "SECRET") || !strings.HasSuffix(line, "\n") || strings.ContainsAny(line[:len(line)-1], "\n\r\x1b") {
				t.Errorf("%q", line)
			}
		})
	}
}

func TestLogLevel(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		l := slog.New(newLogHandler(&out, config.Log{Format: format, Level: "warn"}))
		l.Info("quiet")
		l.Warn("loud")
		if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "loud") {
			t.Errorf("%s: %q", format, s)
		}
	}
}

// What machines read has the facts as attributes, and no secrets either.
func TestJSONLog(t *testing.T) {
	var out bytes.Buffer
	a := &app{conf: &config.Loaded{Config: config.Config{Log: config.Log{Format: "json", Level: "info"}}}}
	a.log = slog.New(newLogHandler(&out, a.conf.Log))
	a.tell("t Scrub", "entered", "task", "t", "state", machine.Scrub, "error", errors.New("https://h/f?sig=SECRET"))
	var record struct{ Level, Msg, Task, State, Error string }
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatal(err)
	}
	if record.Level != "INFO" || record.Msg != "entered" || record.Task != "t" || record.State != "Scrub" || strings.Contains(record.Error, "SECRET") {
		t.Errorf("%s", out.String())
	}
}
