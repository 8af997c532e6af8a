package main

import (
	"context"
	"net/http"
	"time"

	"github.com/deckhand/deckhand/internal/redact"
)

// webhookWait is how long a receiver of events that does not answer is waited for.
const webhookWait = 10 * time.Second

// events looks at those whom the configuration names. Whether a webhook takes events
// is not tried: it would be told of something that has not happened.
func (e *examination) events(ctx context.Context) (found []finding) {
	c := e.conf.Events
	sinks, err := e.sinks()
	if err != nil {
		return []finding{broken(message(err), "mend it, or take the setting out; every run ends with 2 until then")}
	}
	if len(sinks) == 0 {
		return nil
	}
	if c.File != "" {
		found = append(found, fine("events.file %s can be written", c.File))
	}
	if c.Exec != "" {
		found = append(found, fine("events.exec %s can be run", c.Exec))
	}
	if c.Webhook.URL != "" {
		found = append(found, e.webhook(ctx, c.Webhook.URL))
	}
	return found
}

// webhook asks with HEAD, to which any answer will do: many receivers know only POST.
func (e *examination) webhook(ctx context.Context, url string) finding {
	const fix = "see whether the receiver runs and this node reaches it; events wait in the journal until then"
	ctx, cancel := context.WithTimeout(ctx, webhookWait)
	defer cancel()
	name := redact.URL(url)
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return broken("events.webhook.url is no valid URL", "mend it")
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return doubt("events.webhook.url "+name+" does not answer: "+message(urlCause(err)), fix)
	}
	_ = response.Body.Close() // a HEAD has none
	if response.StatusCode >= http.StatusInternalServerError && response.StatusCode != http.StatusNotImplemented {
		return doubt("events.webhook.url "+name+" answers "+response.Status, fix)
	}
	return fine("events.webhook.url %s answers", name)
}

func (e *examination) metricsFile(context.Context) []finding {
	if e.conf.Metrics.Textfile == "" {
		return nil
	}
	if err := e.checkTextfile(); err != nil {
		return []finding{broken(message(err), "make the directory, or give this user the right to write to it")}
	}
	return []finding{fine("metrics.textfile %s can be written", e.conf.Metrics.Textfile)}
}
