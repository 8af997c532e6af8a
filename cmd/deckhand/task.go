package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/tes"
)

// document is a task document that was read and found valid.
type document struct {
	task     *tes.Task
	id       string
	hash     string
	warnings []string
}

// readDocument reads, decodes and checks a task document. Whatever is wrong
// with it is the caller's to mend.
func (a *app) readDocument(ctx context.Context, source, encoded string) (*document, error) {
	text, name, err := a.documentText(ctx, source, encoded)
	if err != nil {
		return nil, err
	}
	task, err := tes.Decode(bytes.NewReader(text))
	if err != nil {
		return nil, usage("cannot read the task document %s: %w", name, err)
	}
	hash := tes.DocumentHash(task, nil) // of the document as it came: Validate changes it
	warnings, err := task.Validate()
	if err != nil {
		return nil, usage("the task document %s is not valid:\n%w", name, err)
	}
	d := &document{task: task, id: task.ID, hash: hash, warnings: warnings}
	if d.id == "" {
		// The same document is the same task: a second run of it resumes.
		d.id = "task-" + d.hash[:16]
	}
	if err := tes.ValidID(d.id); err != nil {
		return nil, usage("the task document %s is not valid:\nid: %w", name, err)
	}
	task.ID = d.id
	return d, nil
}

func (a *app) documentText(ctx context.Context, source, encoded string) (text []byte, name string, err error) {
	switch {
	case source != "" && encoded != "":
		return nil, "", usage("give the task as an argument or with --task-base64, not both")
	case encoded != "":
		text, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, "", usage("cannot read --task-base64: %w", err)
		}
		return text, "of --task-base64", nil
	case source == "":
		return nil, "", usage("no task given; name a file, a URL or - for standard input")
	case source == "-":
		text, err := readAll(a.stdin)
		if err != nil {
			return nil, "", usage("cannot read the task document from standard input: %w", err)
		}
		return text, "of standard input", nil
	case strings.HasPrefix(source, "http://"), strings.HasPrefix(source, "https://"):
		text, err := fetchDocument(ctx, source)
		return text, redact.URL(source), err
	default:
		f, err := os.Open(source)
		if err != nil {
			return nil, "", usage("cannot read the task document: %w", err)
		}
		defer func() { _ = f.Close() }() // read-only
		text, err := readAll(f)
		if err != nil {
			return nil, "", usage("cannot read the task document: %w", err)
		}
		return text, source, nil
	}
}

func readAll(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, tes.MaxBytes+1))
	if err == nil && len(text) > tes.MaxBytes {
		err = fmt.Errorf("it is larger than %d MiB", tes.MaxBytes>>20)
	}
	return text, err
}

// fetchDocument gets a document by http. A server that fails may do better
// later; one that says no will say so again.
func fetchDocument(ctx context.Context, source string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return nil, usage("cannot read the task document: %w", err)
	}
	request.Header.Set("Accept", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // it repeats the URL, secrets included
		}
		return nil, &exit{exitRetry, fmt.Errorf("cannot fetch the task document %s: %w", redact.URL(source), err)}
	}
	defer func() { _ = response.Body.Close() }() // read-only
	if response.StatusCode != http.StatusOK {
		err := fmt.Errorf("cannot fetch the task document %s: the server answered %s", redact.URL(source), response.Status)
		if response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests {
			return nil, &exit{exitRetry, err}
		}
		return nil, &exit{exitUsage, err}
	}
	text, err := readAll(response.Body)
	if err != nil {
		return nil, &exit{exitRetry, fmt.Errorf("cannot fetch the task document %s: %w", redact.URL(source), err)}
	}
	return text, nil
}
