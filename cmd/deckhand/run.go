package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// runOptions are the flags of run that are no settings.
type runOptions struct {
	base64 string
	result string
	taskID string
	fresh  bool
	dryRun bool
}

func newRunCommand(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [TASK]",
		Short: "Run a TES task; resume it when it was begun",
		Long: `Run takes a TES 1.1 task document (a file, - for standard input, or an http(s)
URL) through Scrub, ImageCheck, Download, Run and Upload. A task that an earlier
process left unfinished is resumed; one that is Complete is not run again: its
recorded result is written. With --task-id the task is one of a Funnel server, and
the server is told of all that happens to it. "deckhand help exit-codes" says how it can end.`,
		Example: `  deckhand run task.json --result result.json
  deckhand run task.json --dry-run
  deckhand run --funnel http://tes:8000 --funnel-rpc tes:9090 --task-id b8581farl6qjjvpcc720
  curl -s https://tes.example.org/task | deckhand run - --result -`,
		Args: optionalArgument("TASK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			source := ""
			if len(args) > 0 {
				source = args[0]
			}
			return a.run(cmd.Context(), source, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.base64, "task-base64", "", "the task document itself, in base64 `text`")
	f.StringVar(&o.result, "result", "", "write the final TES task document to this `file`; - is standard output")
	f.BoolVar(&o.fresh, "fresh", false, "roll back what is unfinished of this task and start over")
	f.BoolVar(&o.dryRun, "dry-run", false, "check the document and print the plan; touch nothing")
	f.StringVar(&o.taskID, "task-id", "", "take the task with this `id` from Funnel's server")
	config.AddFlags(f, "lock.wait", "workdir.keep", "outputs.missing", "run.stop_grace", "exit.policy", "funnel.url", "funnel.rpc")
	return cmd
}

func (a *app) run(ctx context.Context, source string, o runOptions) error {
	ctx, cancel := a.onSignals(ctx)
	defer cancel(nil)
	d, err := a.readTask(ctx, source, o)
	if err != nil {
		return a.beforeStart(ctx, err)
	}
	for _, w := range d.warnings {
		a.log.Warn("task document", "warning", w)
	}
	if err := checkPlace("the result", o.result, "result"); err != nil {
		return a.unstarted(ctx, d, o, err)
	}
	if o.dryRun {
		return printPlan(a.stdout, a.conf, d)
	}
	if over, err := a.over(ctx, d); over || err != nil {
		return err
	}
	// A server may still have to be told of the end.
	if !o.fresh && (a.front == nil || d.state == tes.Complete) {
		if known, err := a.repeat(ctx, d, o); known || err != nil {
			return err
		}
	}
	if err := a.fit(); err != nil {
		return a.unstarted(ctx, d, o, err)
	}
	if point, private := a.privateRoot(); private {
		a.log.Warn("the root is on " + ofJobAlone(point))
	}
	head, err := a.runTask(ctx, cancel, d, o)
	if err != nil {
		return a.unstarted(ctx, d, o, err)
	}
	return a.ended(head)
}

// readTask reads the task from where the command line says.
func (a *app) readTask(ctx context.Context, source string, o runOptions) (*document, error) {
	if o.taskID == "" {
		return a.readDocument(ctx, source, o.base64)
	}
	if source != "" || o.base64 != "" {
		return nil, usage("give the task as a document or with --task-id, not both")
	}
	return a.fetchTask(ctx, o.taskID, o)
}

// runTask takes the node and the task as far as they go. The head is that of
// an attempt that has ended.
func (a *app) runTask(ctx context.Context, cancel context.CancelCauseFunc, d *document, o runOptions) (head machine.Head, err error) {
	s, err := a.enter(ctx, d.id, d.hash, func(ctx context.Context) (*node.RootLock, error) { return a.take(ctx, d, o.fresh) })
	if err != nil {
		return head, a.beforeStart(ctx, err)
	}
	// A journal that cannot be closed has everything that it acknowledged.
	defer func() {
		if e := s.close(); e != nil {
			a.log.Warn("cannot close cleanly; nothing is lost", "error", e)
		}
	}()
	defer s.serveControl(d.id, cancel)()
	unwatch := func() {}
	if a.front != nil {
		if d.state == tes.Canceled || d.state == tes.Canceling {
			cancel(machine.ErrCancel) // while no process had the task
		}
		unwatch = a.watchServer(ctx, cancel, d.id)
	}

	head, err = s.take(ctx, d, o.fresh)
	unwatch()
	if err != nil {
		return head, err
	}
	if err := a.report(ctx, d, o, head, s.journal.Records(d.id)); err != nil {
		// The attempt has ended all the same: another run prints what it came to.
		return head, &exit{exitRetry, err}
	}
	if a.front != nil && head.State != machine.Interrupted {
		err = s.settle(ctx)
	}
	return head, err
}

// repeat prints the recorded result of a task that is Complete. That needs
// neither the engine nor the root's lock, unless the node was restarted since.
func (a *app) repeat(ctx context.Context, d *document, o runOptions) (known bool, err error) {
	v, ok, err := a.view()
	if err != nil || !ok {
		return false, nil // whoever opens the journal for writing says what is wrong with it
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	head, known, err := v.Head(d.id)
	if err != nil || machine.Decide(head, known, d.hash, false) != machine.Repeat {
		return false, nil
	}
	a.log.Info("the task is complete already; printing its recorded result", "task", d.id, "attempt", head.Attempt)
	if err := a.cleanAfterRestart(ctx, v.Records(d.id)); err != nil {
		a.log.Warn("cannot remove what a power cut may have brought back; the next scrub tries again", "error", err)
	}
	if err := a.report(ctx, d, o, head, v.Records(d.id)); err != nil {
		return true, &exit{exitRetry, err}
	}
	return true, nil
}

// cleanAfterRestart scrubs when the node was restarted since the last of the
// records. Nobody makes Docker's removals durable: a power cut may bring back
// what was gone when the task's end was journaled.
func (a *app) cleanAfterRestart(ctx context.Context, records iter.Seq2[machine.Record, error]) error {
	boot, err := node.BootID()
	if err != nil {
		return err
	}
	if restarted, err := restartedSince(records, boot); !restarted || err != nil {
		return err
	}
	report, err := a.scrub(ctx, false)
	if err == nil && len(report.Failed) > 0 {
		err = fmt.Errorf("%s %s: %s", report.Failed[0].Kind, report.Failed[0].Name, report.Failed[0].Why)
	}
	return err
}

// restartedSince says whether the last of the records is of another boot than this one.
func restartedSince(records iter.Seq2[machine.Record, error], boot string) (bool, error) {
	var last machine.Record
	for r, err := range records {
		if err != nil {
			return false, err
		}
		last = r
	}
	return last.BootID != boot, nil
}

// beforeStart is the error of a run that was told to stop before it had begun
// anything.
func (a *app) beforeStart(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, machine.ErrCancel):
		return &exit{exitCanceled, cause}
	case errors.Is(cause, machine.ErrInterrupt):
		return &exit{exitRetry, cause}
	}
	return err
}

// take does with the task what the journal's account of it asks for.
func (s *session) take(ctx context.Context, d *document, fresh bool) (machine.Head, error) {
	var err error
	if s.rolledBack, err = s.rollBackTelling(ctx, d.id, "rolled back for task "+d.id); err != nil {
		return machine.Head{}, err
	}
	s.bounds = s.limits(ctx)
	m, err := s.machine(d.id, d.task)
	if err != nil {
		return machine.Head{}, err
	}
	m.Opening = func(ctx context.Context) any {
		docker, err := s.docker.Info(ctx)
		if err != nil {
			s.app.log.Warn("cannot tell the version of Docker", "error", err)
		}
		return s.app.newOpening(d, docker.Version)
	}
	head, known, err := s.journal.Head(d.id)
	if err != nil {
		return machine.Head{}, err
	}
	stop := s.app.follow(s.meter, s.standing)
	defer stop()

	if !fresh && s.owesEnd(d.id) {
		s.app.log.Info("the task has ended already; telling Funnel's server", "task", d.id, "state", head.State)
		return head, nil
	}
	switch machine.Decide(head, known, d.hash, fresh) {
	case machine.Refuse:
		return head, usage("task %s is unfinished on this node with another document; run it with its own document, or use --fresh to roll it back and start over", d.id)
	case machine.Repeat:
		return head, nil // it has ended while this process waited for the root
	case machine.Resume:
		return m.Resume(ctx, d.id, "the process before this one is gone")
	case machine.Restart:
		if _, err := m.RollBack(ctx, d.id, "started over"); err != nil {
			return head, err
		}
	}
	return m.Start(ctx, d.id, d.hash)
}

// report writes the result document of an attempt that has ended for good.
// Nothing final can be said of an interrupted one: it runs again.
func (a *app) report(ctx context.Context, d *document, o runOptions, head machine.Head, records iter.Seq2[machine.Record, error]) error {
	if o.result == "" || head.State == machine.Interrupted {
		return nil
	}
	return a.writeTo(ctx, o.result, func(w io.Writer) error { return writeFinal(w, d.task, head, records) })
}

// unstarted ends a run that could not bring its attempt to an end. A front end
// that reads the result, or a server that the task came from, learns what kept the node from it.
func (a *app) unstarted(ctx context.Context, d *document, o runOptions, err error) error {
	code := exitCode(err)
	if a.front != nil {
		switch code {
		case exitUnfit, exitSystemError, exitUsage:
			a.closeTask(ctx, d.id, tes.SystemError, err)
		case exitCanceled:
			a.closeTask(ctx, d.id, tes.Canceled, err)
		}
	}
	if o.result == "" || code != exitUnfit && code != exitSystemError {
		return err
	}
	now := time.Now().UTC()
	final := *d.task
	final.State = tes.SystemError
	final.CreationTime = now
	final.Logs = []tes.TaskLog{{
		StartTime: now, EndTime: now, SystemLogs: []string{message(err)},
		Metadata: map[string]string{"host": hostname()},
	}}
	text, writeErr := encodeTask(&final)
	if writeErr == nil {
		writeErr = a.writeTo(ctx, o.result, func(w io.Writer) error {
			_, err := w.Write(text)
			return err
		})
	}
	if writeErr != nil {
		a.log.Error("cannot write the result", "error", writeErr)
	}
	return err
}

// ended turns the end of an attempt into the end of the process.
func (a *app) ended(head machine.Head) error {
	code := headCode(head)
	if code == exitComplete {
		return nil
	}
	cause := fmt.Errorf("task %s ended %s: %s", head.Task, head.State, head.Reason)
	if a.conf.Exit.Policy == "engine" && code != exitRetry {
		a.log.Warn("the task did not complete; exit code 0 as --exit-policy=engine asks", "state", head.State, "reason", head.Reason)
		return nil
	}
	return &exit{code, cause}
}

// printPlan shows what a run would do, as JSON.
func printPlan(w io.Writer, conf *config.Loaded, d *document) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(newPlan(conf, d))
}
