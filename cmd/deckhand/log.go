package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/redact"
)

// newLogHandler writes log records without secrets: as JSON for machines, or
// as lines for people.
func newLogHandler(w io.Writer, conf config.Log) slog.Handler {
	var level slog.Level
	// The configuration allows nothing that this cannot read.
	_ = level.UnmarshalText([]byte(conf.Level))
	if conf.Format == "text" {
		return &textHandler{w: w, level: level}
	}
	return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, attr slog.Attr) slog.Attr {
		switch v := attr.Value.Any().(type) {
		case string:
			attr.Value = slog.StringValue(redact.Text(v))
		case error:
			attr.Value = slog.StringValue(redact.Text(v.Error()))
		}
		return attr
	}})
}

// tell logs what people are to read as words, and machines as a message with
// attributes.
func (a *app) tell(words, message string, attrs ...any) {
	if a.conf.Log.Format == "json" {
		a.log.Info(message, attrs...)
	} else {
		a.log.Info(words)
	}
}

// textHandler writes one line a record, for people:
//
//	15:04:05 staging inputs files=1 bytes=4MiB
//	15:04:05 warning: a transfer failed and is tried again try=2 in=4s: connection refused
type textHandler struct {
	w     io.Writer // takes a line with each Write
	level slog.Level
	attrs []slog.Attr
	group string // with a dot at its end
}

// Enabled implements slog.Handler.
func (h *textHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// WithAttrs implements slog.Handler.
func (h *textHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		a.Key = h.group + a.Key
		with.attrs = append(with.attrs, a)
	}
	return &with
}

// WithGroup implements slog.Handler.
func (h *textHandler) WithGroup(name string) slog.Handler {
	with := *h
	with.group += name + "."
	return &with
}

// Handle implements slog.Handler.
func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	var line, why strings.Builder
	line.WriteString(r.Time.Local().Format(time.TimeOnly) + " ")
	switch {
	case r.Level >= slog.LevelError:
		line.WriteString("error: ")
	case r.Level >= slog.LevelWarn:
		line.WriteString("warning: ")
	case r.Level < slog.LevelInfo:
		line.WriteString("debug: ")
	}
	line.WriteString(printable(redact.Text(r.Message)))
	add := func(a slog.Attr) {
		text := attrText(a)
		switch a.Key {
		case "error", "reason", "warning":
			// What went wrong is a sentence: it stands at the end, as it is.
			if text != "" {
				why.WriteString(": " + printable(text))
			}
		default:
			if text == "" || strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) || strings.ContainsRune(` "=`, c) }) {
				text = strconv.Quote(text)
			}
			line.WriteString(" " + a.Key + "=" + text)
		}
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(func(a slog.Attr) bool {
		a.Key = h.group + a.Key
		add(a)
		return true
	})
	_, err := io.WriteString(h.w, line.String()+why.String()+"\n")
	return err
}

// attrText is a value as people read it, without secrets.
func attrText(a slog.Attr) string {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindInt64:
		if a.Key == "bytes" {
			return units.BytesSize(float64(v.Int64()))
		}
		return v.String()
	case slog.KindUint64:
		if a.Key == "bytes" {
			return units.BytesSize(float64(v.Uint64()))
		}
		return v.String()
	case slog.KindTime:
		return v.Time().Local().Format(time.DateTime)
	default:
		return shortID(redact.Text(v.String()))
	}
}

// printable escapes what would move a terminal's cursor or worse: names of files
// and messages of programs come from tasks.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return s
	}
	var b strings.Builder
	for _, c := range s {
		if unicode.IsPrint(c) {
			b.WriteRune(c)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(c), "'"))
		}
	}
	return b.String()
}

// took is how long something took, as exactly as people want to know.
func took(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
