package main

import (
	"bytes"
	"os"

	"github.com/deckhand/deckhand/internal/outbox"
)

// sinks are those whom the configuration names. What is wrong with one is the
// user's to mend.
func (a *app) sinks() (sinks []outbox.Sink, err error) {
	c := a.conf.Events
	if c.File != "" {
		f, err := outbox.NewFile(c.File)
		if err != nil {
			return nil, usage("events.file is %s: it cannot be written: %w", c.File, cause(err))
		}
		sinks = append(sinks, f)
	}
	if c.Webhook.URL == "" && c.Webhook.SecretFile != "" {
		return nil, usage("events.webhook.secret_file is set and events.webhook.url is not; set both or none")
	}
	if c.Webhook.URL != "" {
		secret, err := readSecret("events.webhook.secret_file", c.Webhook.SecretFile)
		if err != nil {
			return nil, err
		}
		w, err := outbox.NewWebhook(c.Webhook.URL, secret, "deckhand/"+version)
		if err != nil {
			return nil, usage("events.webhook.secret_file is %s: %w", c.Webhook.SecretFile, err)
		}
		sinks = append(sinks, w)
	}
	if c.Exec != "" {
		x, err := outbox.NewExec(c.Exec)
		if err != nil {
			return nil, usage("events.exec is %s: it cannot be run: %w", c.Exec, cause(err))
		}
		sinks = append(sinks, x)
	}
	return sinks, nil
}

// readSecret reads the file with a secret that a setting names; without a name there
// is none.
func readSecret(setting, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", usage("%s is %s: it cannot be read: %w", setting, name, cause(err))
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return "", usage("%s is %s: it is empty", setting, name)
	}
	return string(text), nil
}

// sinkNames are the names of their places in the journal.
func sinkNames(sinks []outbox.Sink) (names []string) {
	for _, s := range sinks {
		names = append(names, s.Name())
	}
	return names
}

// tell begins to tell the sinks what the journal holds, and to count it.
func (s *session) tell(sinks []outbox.Sink) (err error) {
	servers, err := s.servers()
	if err != nil {
		return err
	}
	if s.outbox, err = outbox.Open(s.journal, append(sinks, servers...), s.app.log); err == nil {
		s.stopMetrics = s.writeMetrics()
	}
	return err
}

// stopTelling ends that, when events have been delivered or had their time.
func (s *session) stopTelling() {
	s.outbox.Close(s.app.conf.Events.Drain)
	s.stopMetrics()
}
