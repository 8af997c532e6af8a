package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/batch"
	"github.com/deckhand/deckhand/internal/funnel"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/download"
	"github.com/deckhand/deckhand/steps/imagecheck"
	"github.com/deckhand/deckhand/steps/run"
	"github.com/deckhand/deckhand/steps/scrub"
	"github.com/deckhand/deckhand/steps/upload"
)

// tesStates maps final states to those of TES. An interrupted attempt has
// none: its task runs again.
var tesStates = map[machine.State]tes.State{
	machine.Complete:      tes.Complete,
	machine.ExecutorError: tes.ExecutorError,
	machine.SystemError:   tes.SystemError,
	machine.Canceled:      tes.Canceled,
}

// writeFinal writes the task document with what became of it. It is made from the
// journal alone, so that it is the same whenever it is asked for. The outputs, which
// may be a million, are read from there as they are written.
func writeFinal(w io.Writer, doc *tes.Task, head machine.Head, records iter.Seq2[machine.Record, error]) error {
	final, err := finalTask(doc, head, records)
	if err != nil {
		return err
	}
	text, err := encodeTask(final)
	if err != nil {
		return err
	}
	place, err := encodeOutput(tes.OutputFileLog{})
	if err != nil {
		return err
	}
	// No string has a line break in JSON, so only the place of outputs looks like one.
	pieces := bytes.Split(text, place)
	out := bufio.NewWriterSize(w, 64<<10) // its errors stay until Flush
	attempt := 0
	for r, err := range records {
		if err != nil {
			return err
		}
		files, err := publishedBy(r)
		if err != nil {
			return err
		}
		for _, f := range files {
			if r.Attempt != attempt {
				attempt = r.Attempt
				_, _ = out.Write(pieces[0])
				pieces = pieces[1:]
			} else {
				_, _ = out.WriteString(",\n" + outputIndent)
			}
			text, err := encodeOutput(f.OutputFileLog)
			if err != nil {
				return err
			}
			_, _ = out.Write(text)
		}
	}
	_, _ = out.Write(bytes.Join(pieces, place))
	return out.Flush()
}

// finalTask is the document without its outputs: in place of those of an attempt that
// has any there is an empty one.
func finalTask(doc *tes.Task, head machine.Head, records iter.Seq2[machine.Record, error]) (*tes.Task, error) {
	final := *doc
	final.State = tesStates[head.State]
	attempts, err := accounts(records)
	if err != nil {
		return nil, err
	}
	for _, a := range attempts {
		if final.CreationTime.IsZero() {
			final.CreationTime = a.start
		}
		final.Logs = append(final.Logs, a.taskLog(doc))
	}
	return &final, nil
}

// publishedBy returns the outputs of which a record says that they are published.
func publishedBy(r machine.Record) ([]upload.Published, error) {
	if r.Kind != machine.KindDone {
		return nil, nil
	}
	var fact struct {
		What string `json:"what"`
		batch.Files[upload.Published]
	}
	err := json.Unmarshal(r.Detail, &fact)
	if err != nil || fact.What != upload.WhatOutputs {
		return nil, err
	}
	return fact.Files.Files, nil
}

// opening is what the journal keeps of the circumstances of an attempt: by the
// time that its result is asked for they may be others.
type opening struct {
	Metadata map[string]string `json:"metadata"`
	Warnings []string          `json:"warnings,omitempty"` // about the document
	// Funnel is the server that the task came from; nil for none.
	Funnel *funnel.Server `json:"funnel,omitempty"`
}

// newOpening takes down where an attempt begins; docker is the engine's version.
func (a *app) newOpening(d *document, docker string) opening {
	o := opening{Warnings: d.warnings, Metadata: map[string]string{
		"host": hostname(), "deckhand.version": version, "deckhand.docker_version": docker,
	}}
	if a.front != nil {
		o.Funnel = &a.front.server
	}
	for name, key := range engineKeys {
		if id := os.Getenv(name); id != "" {
			o.Metadata[key] = id
		}
	}
	return o
}

// account is what the journal tells about one attempt.
type account struct {
	opening
	start, end time.Time
	entered    time.Time // the present state
	seconds    map[machine.State]float64
	executors  []run.Result
	published  bool // there are outputs
	bytesOut   int64
	images     map[string]imagecheck.Image // by reference, as they came last
	bytesIn    int64
	system     []string
	resumed    int
	removed    int   // leftovers and images that went for this attempt
	bytesFreed int64 // by them
}

// removedListed is how many of the leftovers the system logs name.
const removedListed = 50

// freed accounts for something that went.
func (a *account) freed(t time.Time, what, why string, bytes int64) {
	a.removed++
	a.bytesFreed += bytes
	if a.removed <= removedListed {
		a.say(t, fmt.Sprintf("removed %s (%d bytes): %s", what, bytes, why))
	}
}

func newAccount(start time.Time) *account {
	return &account{start: start, entered: start, seconds: map[machine.State]float64{}, images: map[string]imagecheck.Image{}}
}

// accounts reads the records of a task, one account an attempt.
func accounts(records iter.Seq2[machine.Record, error]) ([]*account, error) {
	var all []*account
	attempt := 0
	for r, err := range records {
		if err != nil {
			return nil, err
		}
		if r.Attempt != attempt {
			attempt = r.Attempt
			all = append(all, newAccount(r.Time))
		}
		if err := all[len(all)-1].add(r); err != nil {
			return nil, fmt.Errorf("record %d of task %s: %w", r.Seq, r.Task, err)
		}
	}
	return all, nil
}

func (a *account) add(r machine.Record) error {
	a.end = r.Time
	switch r.Kind {
	case machine.KindTransition:
		if r.From == "" {
			if err := json.Unmarshal(r.Detail, &a.opening); err != nil {
				return err
			}
			for _, w := range a.Warnings {
				a.say(r.Time, "warning: task document: "+w)
			}
		} else {
			a.seconds[r.From] += r.Time.Sub(a.entered).Seconds()
		}
		a.entered = r.Time
		if r.Reason != "" && r.To != machine.Upload && !a.said(r.Reason) {
			a.say(r.Time, fmt.Sprintf("%s in %s: %s", r.Event, r.From, r.Reason))
		}
	case machine.KindResume:
		a.resumed++
		a.say(r.Time, fmt.Sprintf("resumed in %s: %s", r.To, r.Reason))
	case machine.KindDone:
		return a.done(r)
	}
	return nil
}

func (a *account) done(r machine.Record) error {
	var fact struct {
		What    string `json:"what"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(r.Detail, &fact); err != nil {
		return err
	}
	switch fact.What {
	case machine.WhatWarning:
		a.say(r.Time, "warning: "+fact.Message)
	case scrub.WhatRemoved:
		var i scrub.Item
		if err := json.Unmarshal(r.Detail, &i); err != nil {
			return err
		}
		a.freed(r.Time, fmt.Sprintf("%s %s", i.Kind, i.Name), i.Why, i.Bytes)
	case ledger.WhatRemoved:
		var i struct {
			Reference string `json:"reference"` // empty when the image had gone before
			Bytes     int64  `json:"bytes"`
		}
		if err := json.Unmarshal(r.Detail, &i); err != nil {
			return err
		}
		if i.Reference != "" {
			why := "the images of this task take its place"
			if r.From == machine.Scrub {
				why = "its deletion was pending"
			}
			a.freed(r.Time, "image "+i.Reference, why, i.Bytes)
		}
	case run.WhatExecutor:
		var result run.Result
		if err := json.Unmarshal(r.Detail, &result); err != nil {
			return err
		}
		a.executors = append(a.executors, result)
		if result.Reason != "" {
			a.say(r.Time, fmt.Sprintf("executor %d ended with exit code %d: %s", result.Executor, result.ExitCode, result.Reason))
		}
	case imagecheck.WhatImage:
		var image imagecheck.Image
		if err := json.Unmarshal(r.Detail, &image); err != nil {
			return err
		}
		a.images[image.Reference] = image
	case download.WhatInputs:
		var staged batch.Files[download.File]
		if err := json.Unmarshal(r.Detail, &staged); err != nil {
			return err
		}
		for _, f := range staged.Files {
			if f.Mounted {
				a.say(r.Time, fmt.Sprintf("input %s (%d bytes) is mounted, not copied", f.Path, f.Bytes))
				continue
			}
			a.bytesIn += f.Bytes
		}
	case upload.WhatOutputs:
		files, err := publishedBy(r)
		if err != nil {
			return err
		}
		for _, f := range files {
			a.published = true
			a.bytesOut += f.SizeBytes
		}
	}
	return nil
}

func (a *account) say(t time.Time, text string) {
	line := t.UTC().Format(time.RFC3339) + " " + text
	if len(a.system) == 0 || a.system[len(a.system)-1] != line {
		a.system = append(a.system, line)
	}
}

// said says whether a reason was told already: it goes on with the task from one
// state to the next.
func (a *account) said(reason string) bool {
	return slices.ContainsFunc(a.system, func(line string) bool { return strings.HasSuffix(line, " "+reason) })
}

func (a *account) taskLog(doc *tes.Task) tes.TaskLog {
	log := tes.TaskLog{
		StartTime: a.start, EndTime: a.end, SystemLogs: a.system,
		Metadata: map[string]string{
			"deckhand.bytes_in":  strconv.FormatInt(a.bytesIn, 10),
			"deckhand.bytes_out": strconv.FormatInt(a.bytesOut, 10),
			"deckhand.resumed":   strconv.Itoa(a.resumed),

			"deckhand.removed":     strconv.Itoa(a.removed),
			"deckhand.bytes_freed": strconv.FormatInt(a.bytesFreed, 10),
		},
	}
	if a.published {
		log.Outputs = make([]tes.OutputFileLog, 1)
	}
	maps.Copy(log.Metadata, a.Metadata)
	slices.SortStableFunc(a.executors, func(x, y run.Result) int { return x.Executor - y.Executor })
	for _, e := range a.executors {
		log.Logs = append(log.Logs, e.ExecutorLog)
	}
	for _, s := range machine.States {
		if seconds, ok := a.seconds[s]; ok {
			log.Metadata["deckhand.seconds."+string(s)] = strconv.FormatFloat(seconds, 'f', 3, 64)
		}
	}
	if pull := pulls(a.images); pull != "" {
		log.Metadata["deckhand.image_pull"] = pull
	}
	for i, e := range doc.Executors {
		image, ready := a.images[e.Image]
		if !ready || i > 0 && e.Image == doc.Executors[0].Image {
			continue
		}
		suffix := ""
		if i > 0 {
			suffix = "." + strconv.Itoa(i)
		}
		log.Metadata["deckhand.image_id"+suffix] = image.ImageID
		log.Metadata["deckhand.image_digest"+suffix] = image.Digest
	}
	return log
}

// slurmJob is the variable in which Slurm names the job.
const slurmJob = "SLURM_JOB_ID"

// engineKeys names an engine's own identity for the task in the metadata.
var engineKeys = map[string]string{
	slurmJob: "slurm_id", "NOMAD_ALLOC_ID": "nomad_alloc_id",
	"AZ_BATCH_TASK_ID": "azure_batch_task_id", "AWS_BATCH_JOB_ID": "aws_batch_job_id",
}

// pulls sums the images of a task up in one word: the most costly that
// happened to any of them.
func pulls(images map[string]imagecheck.Image) string {
	word := ""
	for _, i := range images {
		switch {
		case i.Pull == imagecheck.Pulled, word == "", word == imagecheck.Present:
			word = i.Pull
		}
	}
	return word
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

// encodeTask is the final document's text.
func encodeTask(t *tes.Task) ([]byte, error) {
	var b bytes.Buffer
	if err := resultEncoder(&b, "").Encode(t); err != nil {
		return nil, fmt.Errorf("cannot encode the result: %w", err)
	}
	return b.Bytes(), nil
}

// outputIndent stands before an output in the document.
const outputIndent = "        "

// encodeOutput is the text of one output in the document.
func encodeOutput(o tes.OutputFileLog) ([]byte, error) {
	var b bytes.Buffer
	if err := resultEncoder(&b, outputIndent).Encode(o); err != nil {
		return nil, fmt.Errorf("cannot encode output %s: %w", o.Path, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func resultEncoder(w io.Writer, prefix string) *json.Encoder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent(prefix, "  ")
	return enc
}

// openPipe waits for somebody who reads a named pipe (fifo(7)), until ctx ends.
func openPipe(ctx context.Context, name string) (*os.File, error) {
	const look = 50 * time.Millisecond
	for {
		f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if !errors.Is(err, unix.ENXIO) {
			return f, err
		}
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return nil, fmt.Errorf("nobody reads it: %w", context.Cause(ctx))
		}
	}
}

// checkPlace refuses, before anything runs, a place that what a flag names cannot be
// written to.
func checkPlace(what, name, flag string) error {
	if name == "" || name == "-" {
		return nil
	}
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return usage("cannot write %s to %s: it is a directory; name a file in it (--%s)", what, name, flag)
	case err == nil && !info.Mode().IsRegular():
		return nil // a pipe or a terminal
	}
	// The file is replaced: what counts is its directory.
	dir := filepath.Dir(name)
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return usage("cannot write %s to %s: %s: %w; name a file in a directory that exists and is writable (--%s)", what, name, dir, err, flag)
	}
	return nil
}

// replaceFile writes a whole file, durably, or leaves the old one. A file that is no
// regular one (a pipe, /dev/stderr) is written as it is.
func replaceFile(ctx context.Context, name string, write func(io.Writer) error) error {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		open := func() (*os.File, error) { return os.OpenFile(name, os.O_WRONLY, 0) }
		if info.Mode()&fs.ModeNamedPipe != 0 {
			open = func() (*os.File, error) { return openPipe(ctx, name) }
		}
		f, err := open()
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	if err := node.ReplaceFileBy(name, 0o644, write); err != nil {
		return err
	}
	// Whoever sees the exit code takes the file to be there, also after a power cut.
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return nil // it may be written to and not read
	}
	if err = dir.Sync(); errors.Is(err, unix.EINVAL) {
		err = nil // of a filesystem that syncs no directories
	}
	return errors.Join(err, dir.Close())
}
