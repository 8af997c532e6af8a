package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/steps/run"
)

// document is a task document that was read and found valid.
type document struct {
	task     *tes.Task
	id       string
	hash     string
	warnings []string
	state    tes.State // on the server that it came from; empty for a document that came from none
}

// readDocument reads, decodes and checks a task document. Whatever is wrong
// with it is the caller's to mend.
func (a *app) readDocument(ctx context.Context, source, encoded string) (*document, error) {
	text, name, err := a.documentText(ctx, source, encoded)
	if err != nil {
		return nil, err
	}
	return a.parseDocument(text, name)
}

// parseDocument decodes and checks a document; name tells people which.
func (a *app) parseDocument(text []byte, name string) (*document, error) {
	task, err := tes.Decode(bytes.NewReader(text))
	if err != nil {
		return nil, unusable(name, err)
	}
	d := &document{task: task, hash: tes.DocumentHash(task, nil)} // of the document as it came: Validate changes it
	problems := a.checkURLs(task)
	d.warnings, err = task.Validate(a.grants().Parameters()...)
	var invalid tes.FieldErrors
	if err != nil && !errors.As(err, &invalid) {
		return nil, unusable(name, err)
	}
	if problems = append(invalid, problems...); len(problems) > 0 {
		return nil, unusable(name, problems)
	}
	if task.ID == "" {
		// The same document is the same task: a second run of it resumes.
		task.ID = "task-" + d.hash[:16]
	}
	d.id = task.ID
	d.warnings = append(d.warnings, privateOutputs(task)...)
	return d, nil
}

// grants are what of this node a task may ask for.
func (a *app) grants() run.Grants {
	return run.Grants{GPUs: a.conf.Run.GPUs, Devices: a.conf.Run.Devices}
}

// readStdin reads standard input until its end or that of ctx.
func (a *app) readStdin(ctx context.Context) ([]byte, error) {
	type input struct {
		text []byte
		err  error
	}
	read := make(chan input, 1)
	go func() {
		text, err := readAll(a.stdin)
		read <- input{text, err}
	}()
	select {
	case in := <-read:
		return in.text, in.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// unusable says what is wrong with a document, one field a line.
func unusable(name string, err error) error {
	var fields tes.FieldErrors
	if errors.As(err, &fields) {
		return usage("the task document %s is not valid:\n  %s", name, strings.ReplaceAll(fields.Error(), "\n", "\n  "))
	}
	return usage("cannot read the task document %s: %w", name, err)
}

// checkURLs refuses, before anything runs, what no transfer could do, and the
// root itself: a task must not read or write what is deckhand's.
func (a *app) checkURLs(t *tes.Task) (problems tes.FieldErrors) {
	check := func(list string, i int, err error) {
		if err != nil {
			problems = append(problems, tes.FieldError{Field: fmt.Sprintf("%s[%d].url", list, i), Problem: err.Error()})
		}
	}
	for i, in := range t.Inputs {
		if in.URL != "" && (in.Content == nil || *in.Content == "") { // else it is ignored
			check("inputs", i, errors.Join(storage.CheckInput(in.URL, in.Type == tes.Directory), a.checkOutside(in.URL)))
		}
	}
	for i, out := range t.Outputs {
		if out.URL != "" {
			check("outputs", i, errors.Join(storage.CheckOutput(out.URL, out.Type == tes.Directory || out.Wildcard()), a.checkOutside(out.URL)))
		}
	}
	return problems
}

// checkOutside refuses a local URL that leads into the root, links included.
func (a *app) checkOutside(url string) error {
	p, local := storage.LocalPath(url)
	if !local {
		return nil
	}
	root, at := node.RealPath(a.conf.Root), node.RealPath(p)
	if at == root || strings.HasPrefix(at, root+"/") {
		return fmt.Errorf("must not be in deckhand's own directory %s", a.conf.Root)
	}
	return nil
}

// privateOutputs says which outputs go to a mount that only the job of a batch engine has:
// the task is COMPLETE, and its outputs are gone with the job. One of each mount is named.
// Some mount may outlive its job, so that it is no error.
func privateOutputs(t *tes.Task) (warnings []string) {
	mounts, told := node.ReadMounts(), map[string]bool{}
	if mounts.Shared() {
		return nil // without a look at each of what may be many
	}
	for i, out := range t.Outputs {
		file, local := storage.LocalPath(out.URL)
		if !local {
			continue
		}
		file = node.RealPath(file)
		if point, private := mounts.Private(file); private && !told[point] {
			told[point] = true
			warnings = append(warnings, fmt.Sprintf("outputs[%d].url: %s is on %s", i, file, ofJobAlone(point)))
		}
	}
	return warnings
}

// privateRoot is the mount of the root, if only the job has that.
func (a *app) privateRoot() (point string, private bool) {
	root, err := filepath.Abs(a.conf.Root)
	if err != nil {
		return "", false // whoever uses the root says so
	}
	return node.ReadMounts().Private(node.RealPath(root))
}

// ofJobAlone describes a mount that the node does not have. Links of the node are not seen
// from here: in a container its root may be one.
func ofJobAlone(point string) string {
	return fmt.Sprintf("%s, a mount that the node does not have: unless a link there leads to the same, Docker sees something else, and what is written here may go with the job", point)
}

func (a *app) documentText(ctx context.Context, source, encoded string) (text []byte, name string, err error) {
	switch {
	case source != "" && encoded != "":
		return nil, "", usage("give the task as an argument or with --task-base64, not both")
	case encoded != "":
		text, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, "", usage("cannot read --task-base64: it is no standard base64 text: %w; make it with \"base64 -w0 task.json\"", err)
		}
		return text, "of --task-base64", nil
	case source == "":
		return nil, "", usage("no task given; name a file, a URL or - for standard input")
	case source == "-":
		text, err := a.readStdin(ctx)
		if err != nil {
			return nil, "", usage("cannot read the task document of standard input: %w", err)
		}
		return text, "of standard input", nil
	case strings.HasPrefix(source, "http://"), strings.HasPrefix(source, "https://"):
		text, err := fetchDocument(ctx, source)
		return text, redact.URL(source), err
	default:
		f, err := os.Open(source)
		if err != nil {
			return nil, "", usage("cannot read the task document %s: %w", source, cause(err))
		}
		defer func() { _ = f.Close() }() // read-only
		text, err := readAll(f)
		if err != nil {
			return nil, "", usage("cannot read the task document %s: %w", source, cause(err))
		}
		return text, source, nil
	}
}

// cause is the error of a file without its name, which the caller tells.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// urlCause is the error of a request without its URL, which may hold secrets.
func urlCause(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		return failed.Err
	}
	return err
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
		return nil, usage("cannot read the task document %s: it is no valid URL", redact.URL(source))
	}
	request.Header.Set("Accept", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, &exit{exitRetry, fmt.Errorf("cannot fetch the task document %s: %w", redact.URL(source), urlCause(err))}
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
