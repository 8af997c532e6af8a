package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/deckhand/deckhand/internal/funnel"
	"github.com/deckhand/deckhand/internal/outbox"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

// front is the server of Funnel that the task of a run comes from.
type front struct {
	server funnel.Server
	client *funnel.Client
}

// funnelClient returns a client with the credentials of the configuration.
func (a *app) funnelClient(s funnel.Server) (*funnel.Client, error) {
	c := a.conf.Funnel
	switch {
	case c.TokenFile != "" && (c.User != "" || c.PasswordFile != ""):
		return nil, usage("funnel.token_file is set, and funnel.user or funnel.password_file too; set a token or a user with a password")
	case (c.User == "") != (c.PasswordFile == ""):
		return nil, usage("funnel.user and funnel.password_file belong together; set both or none")
	}
	credentials := funnel.Credentials{User: c.User}
	var err error
	if credentials.Password, err = readSecret("funnel.password_file", c.PasswordFile); err != nil {
		return nil, err
	}
	if credentials.Token, err = readSecret("funnel.token_file", c.TokenFile); err != nil {
		return nil, err
	}
	return funnel.New(s, credentials, "deckhand/"+version), nil
}

// fetchTask takes a task from the server that the configuration names.
func (a *app) fetchTask(ctx context.Context, id string, o runOptions) (*document, error) {
	s := funnel.Server{URL: a.conf.Funnel.URL, RPC: a.conf.Funnel.RPC}
	if s.URL == "" || s.RPC == "" {
		return nil, usage("--task-id needs Funnel's server; name its URL (--funnel) and the address of its RPC port (--funnel-rpc)")
	}
	if err := tes.ValidID(id); err != nil {
		return nil, usage("--task-id %w", err)
	}
	client, err := a.funnelClient(s)
	if err != nil {
		return nil, err
	}
	var t funnel.Task
	err = a.insist(ctx, a.conf.Funnel.RetryFor, func() (err error) {
		if t, err = client.Task(ctx, id); err != nil || len(t.SystemLogs) > 0 || o.dryRun || finalOnServer(t.State) {
			return err
		}
		// As long as a task has no system logs the server leaves out contents of inputs and
		// the executors' stdout and stderr, whatever it is asked for.
		first := funnel.SystemLog(time.Now(), "info", "taken by deckhand "+version+" on "+hostname(), nil)
		if err := client.Write(ctx, id, first); err != nil {
			return err
		}
		t, err = client.Task(ctx, id)
		return err
	})
	switch {
	case errors.Is(err, funnel.ErrNotFound):
		return nil, usage("%w; look for it with \"funnel task list\"", err)
	case errors.Is(err, funnel.ErrDenied):
		return nil, usage("%w; see funnel.user, funnel.password_file and funnel.token_file", err)
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, &exit{exitRetry, err}
	}
	a.front = &front{s, client}
	d, err := a.parseDocument(t.Document, "of Funnel's task "+id)
	if err != nil {
		a.closeTask(ctx, id, tes.SystemError, err)
		return nil, err
	}
	d.task.ID, d.id, d.state = id, id, t.State
	return d, nil
}

// insist does something with a server until it has done it, or never will, or the
// time is over.
func (a *app) insist(ctx context.Context, patience time.Duration, do func() error) error {
	again := backoff.NewExponentialBackOff()
	again.MaxInterval = 15 * time.Second
	options := []backoff.RetryOption{
		backoff.WithBackOff(again), backoff.WithMaxElapsedTime(patience),
		backoff.WithNotify(func(err error, _ time.Duration) {
			a.log.Warn("Funnel's server does not answer; trying again", "error", err)
		}),
	}
	if patience == 0 {
		options = append(options, backoff.WithMaxTries(1))
	}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := do()
		if errors.Is(err, funnel.ErrNotFound) || errors.Is(err, funnel.ErrDenied) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, options...)
	return err
}

// finalOnServer says whether a task in this state stays in it.
func finalOnServer(s tes.State) bool {
	return funnel.Way(s, tes.Initializing) == nil && s != tes.Running && s != tes.Initializing
}

// over says whether the task has ended on the server, and there is nothing left to
// do for it here.
func (a *app) over(ctx context.Context, d *document) (bool, error) {
	if !finalOnServer(d.state) {
		return false, nil
	}
	head, known, err := a.headOf(d.id)
	if err != nil {
		return true, err
	}
	return a.overHere(ctx, d, head, known)
}

// overHere is over, of a task that has ended on the server and of which the journal has
// that head.
func (a *app) overHere(ctx context.Context, d *document, head machine.Head, known bool) (_ bool, err error) {
	unfinished := known && !head.State.Final()
	switch d.state {
	case tes.Complete:
		if known && head.State == machine.Complete {
			return false, nil // its result is printed again
		}
		a.log.Warn("the task is COMPLETE on the server, by another node", "task", d.id)
		if unfinished {
			_, err = a.recover(ctx, "")
		}
		return true, err
	case tes.Canceled, tes.Canceling:
		if unfinished {
			return false, nil
		}
		return true, &exit{exitCanceled, fmt.Errorf("task %s was canceled on the server", d.id)}
	default:
		return true, usage("task %s is %s on the server, and nothing can be reported of it; submit it again", d.id, d.state)
	}
}

// headOf reads where a task stands, without the root.
func (a *app) headOf(task string) (head machine.Head, known bool, err error) {
	v, ok, err := a.view()
	if err != nil || !ok {
		return head, false, err
	}
	head, known, err = v.Head(task)
	return head, known, errors.Join(err, v.Close())
}

// watchServer cancels the task when its user cancels it on the server. It ends with
// the returned function.
func (a *app) watchServer(ctx context.Context, cancel context.CancelCauseFunc, task string) (stop func()) {
	ctx, end := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(a.conf.Funnel.Poll):
			}
			state, err := a.front.client.State(ctx, task)
			switch {
			case err != nil && ctx.Err() == nil:
				a.log.Warn("cannot tell whether the task was canceled", "error", err)
			case state == tes.Canceled || state == tes.Canceling:
				a.log.Warn("the task was canceled on the server", "task", task)
				cancel(machine.ErrCancel)
				return
			}
		}
	}()
	return func() {
		end()
		<-ended
	}
}

// settle waits until the server knows how the task has ended. Without that a run
// has not done its work: another one goes on telling.
func (s *session) settle(ctx context.Context) error {
	conf := s.app.conf
	patience := conf.Funnel.RetryFor
	if ctx.Err() != nil { // whoever has stopped the run does not wait long
		ctx, patience = context.WithoutCancel(ctx), conf.Events.Drain
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	sink := sinkOf(s.app.front.server)
	for i := 1; ; i++ {
		left, err := s.journal.Undelivered(sink, 1)
		if err != nil || len(left) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return &exit{exitRetry, fmt.Errorf("the task has ended, and Funnel's server %s could not be told; run it again to tell", s.app.front.server.URL)}
		case <-time.After(50 * time.Millisecond):
		}
		if i%20 == 0 {
			s.outbox.Wake() // it gives up where the journal has no room for its place
		}
	}
}

// closeTask ends a task on the server of which there is no attempt that could tell
// why it does not run.
func (a *app) closeTask(ctx context.Context, id string, state tes.State, why error) {
	patience := a.conf.Funnel.RetryFor
	if ctx.Err() != nil {
		ctx, patience = context.WithoutCancel(ctx), a.conf.Events.Drain
	}
	text := message(why)
	sum := sha256.Sum256([]byte(text))
	err := a.insist(ctx, patience, func() error {
		t, err := a.front.client.Task(ctx, id)
		if err != nil {
			return err
		}
		now := time.Now().UTC()
		tell := &teller{ctx: ctx, client: a.front.client, id: id, task: t}
		tell.line("refused-"+hex.EncodeToString(sum[:8]), now, hostname()+": "+text)
		tell.state(now, state)
		return tell.told()
	})
	if err != nil {
		a.log.Error("Funnel's server was not told that the task does not run", "task", id, "error", err)
	}
}

// funnelPrefix begins the names of the places of servers in the journal. The rest of
// the name says where the server is: a process that only delivers what an earlier
// one could not is not told.
const funnelPrefix = "funnel "

func sinkOf(s funnel.Server) string { return funnelPrefix + s.URL + " " + s.RPC }

// serverOf is the inverse of sinkOf.
func serverOf(sink string) (s funnel.Server, ok bool) {
	rest, ok := strings.CutPrefix(sink, funnelPrefix)
	if ok {
		s.URL, s.RPC, ok = strings.Cut(rest, " ")
	}
	return s, ok
}

// servers are the sinks of this run's server, and of others that an earlier process
// could not tell everything.
func (s *session) servers() (sinks []outbox.Sink, err error) {
	node, err := s.journal.Node()
	if err != nil {
		return nil, err
	}
	names, err := s.journal.SinkNames()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		server, ok := serverOf(name)
		if !ok {
			continue
		}
		sink := &funnelSink{server: server, journal: s.journal, root: node.RootID, log: s.app.log}
		own := s.app.front != nil && s.app.front.server == server
		if own {
			sink.client = s.app.front.client
			if s.owed, err = lastUntold(s.journal, name); err != nil {
				return nil, err
			}
		} else {
			concerned, err := sink.concerned(node.Active)
			if err != nil {
				return nil, err
			}
			if !concerned {
				continue
			}
			if sink.client, err = s.app.funnelClient(server); err != nil {
				s.app.log.Warn("Funnel's server cannot be told what an earlier process has left to tell", "server", server.URL, "error", err)
				continue
			}
		}
		sinks = append(sinks, sink)
	}
	return sinks, nil
}

// everything is more notices than a journal holds.
const everything = 1 << 30

// lastUntold returns the last record of each task that a sink does not have.
func lastUntold(j tallied, sink string) (map[string]machine.Record, error) {
	notices, err := j.Undelivered(sink, everything)
	last := map[string]machine.Record{}
	for _, n := range notices {
		last[n.Record.Task] = n.Record
	}
	return last, err
}

// owesEnd says whether the server has not been told how the task ended before this
// process began. To tell it is all that is to be done then.
func (s *session) owesEnd(task string) bool {
	r, known := s.owed[task]
	return known && r.To.Final() && r.To != machine.Interrupted
}

// concerned says whether there is, or will be, something to tell the server: of the
// attempt that is active on the node, too. If not, its place is moved: it holds
// up the history.
func (f *funnelSink) concerned(active *machine.TaskRef) (bool, error) {
	if active != nil {
		p, err := pastOf(f.journal, machine.Record{Task: active.Task, Attempt: active.Attempt, Seq: math.MaxUint64})
		if err != nil || p.Funnel != nil && *p.Funnel == f.server {
			return true, err
		}
	}
	notices, err := f.journal.Undelivered(f.Name(), everything)
	if err != nil || len(notices) == 0 {
		return false, err
	}
	tasks := map[machine.TaskRef]bool{}
	for _, n := range notices {
		ref := machine.TaskRef{Task: n.Record.Task, Attempt: n.Record.Attempt}
		if tasks[ref] {
			continue
		}
		tasks[ref] = true
		p, err := pastOf(f.journal, n.Record)
		if err != nil || p.Funnel != nil && *p.Funnel == f.server {
			return true, err
		}
	}
	if err := f.journal.Delivered(f.Name(), notices[len(notices)-1].Number); err != nil {
		f.log.Warn("cannot move the place of Funnel's server", "server", f.server.URL, "error", err)
	}
	return false, nil
}
