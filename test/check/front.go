package check

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/funnel"
)

// ofServer are the states of a task of a server in those of an attempt. RollingBack and a
// task that was handed back say nothing.
var ofServer = map[machine.State]string{
	machine.Accepted: "INITIALIZING", machine.Scrub: "INITIALIZING", machine.ImageCheck: "INITIALIZING", machine.Download: "INITIALIZING",
	machine.Run: "RUNNING", machine.Upload: "RUNNING",
	machine.Complete: "COMPLETE", machine.ExecutorError: "EXECUTOR_ERROR", machine.SystemError: "SYSTEM_ERROR", machine.Canceled: "CANCELED",
}

// Front says what is wrong with what a server has of a task, all of whose attempts have
// ended, and the last of them for good or by somebody who gave it up. The result is what
// the node itself says of the task.
func Front(j Reader, s *funnel.Server, task string, result tes.Task) []string {
	var p problems
	states := []string{"QUEUED"}
	known := false
	var at machine.State
	for r, err := range j.Records(task) {
		if err != nil {
			return []string{err.Error()}
		}
		known, at = true, r.To
		state := ofServer[r.To]
		last := states[len(states)-1]
		begun := last == "RUNNING" && state == "INITIALIZING" // another attempt, and nothing leads back
		if r.Kind == machine.KindTransition && state != "" && state != last && !begun {
			states = append(states, state)
		}
	}
	if at == machine.Interrupted { // one that another attempt has followed says nothing
		states = append(states, "SYSTEM_ERROR")
	}
	got := s.States(task)
	p.when(!slices.Equal(got, states), "on the server task %s was %v, want %v", task, got, states)
	for _, refused := range s.Refused(task) {
		p.add("the server has refused: %s", refused)
	}
	if !known { // nobody has begun it
		result.Logs = []tes.TaskLog{{}}
	}
	return append(p, OnServer(s, task, result)...)
}

// onServer is a line of the server's system logs.
var onServer = regexp.MustCompile(`^level='\w+' msg='(.*)' timestamp='.*' task_attempt='\d+' executor_index='\d+'( deckhand_id=')?`)

// OnServer holds what a server has of a task against the result that its node has
// written: nothing is missing, and nothing is there twice.
func OnServer(s *funnel.Server, task string, result tes.Task) []string {
	var p problems
	log := s.Log(task)
	var got, want []string
	taken := 0
	for _, line := range log.SystemLogs {
		m := onServer.FindStringSubmatch(line)
		switch {
		case m == nil:
			p.add("the server has the system log %q", line)
		case m[2] == "": // it was told before there was an attempt
			taken++
		default:
			got = append(got, strings.ReplaceAll(m[1], `\'`, "'"))
		}
	}
	p.when(taken > 1, "the server was told %d times that the task was taken", taken)
	for _, attempt := range result.Logs {
		for _, line := range attempt.SystemLogs {
			_, line, _ = strings.Cut(line, " ") // the time
			want = append(want, strings.TrimPrefix(line, "warning: "))
		}
	}
	p.when(!slices.Equal(got, want), "the server's system logs are\n    %s\n  want\n    %s", strings.Join(got, "\n    "), strings.Join(want, "\n    "))

	last := result.Logs[len(result.Logs)-1]
	var executors []funnel.ExecutorLog
	for _, x := range last.Logs {
		executors = append(executors, funnel.ExecutorLog{StartTime: clock(x.StartTime), EndTime: clock(x.EndTime), ExitCode: int32(x.ExitCode), Stdout: x.Stdout, Stderr: x.Stderr})
	}
	p.when(!slices.Equal(log.Logs, executors), "the server's executors are %+v, want %+v", log.Logs, executors)
	var outputs []funnel.OutputLog
	for _, o := range last.Outputs {
		outputs = append(outputs, funnel.OutputLog{Path: o.Path, SizeBytes: strconv.FormatInt(o.SizeBytes, 10), URL: o.URL})
	}
	p.when(!slices.Equal(log.Outputs, outputs), "the server's outputs are %+v, want %+v", log.Outputs, outputs)
	for key, value := range last.Metadata {
		p.when(log.Metadata[key] != value, "the server's metadata have %q for %s, want %q", log.Metadata[key], key, value)
	}
	p.when(log.StartTime != clock(last.StartTime) || log.EndTime != clock(last.EndTime),
		"the server has the attempt from %s to %s, want %v to %v", log.StartTime, log.EndTime, last.StartTime, last.EndTime)
	return p
}

// clock is a time as the server has it, which has none for one that it was not told.
func clock(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339Nano)
}
