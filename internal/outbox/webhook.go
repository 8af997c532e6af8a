package outbox

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/retryafter"
)

// Webhook is a server that takes events by POST, in the manner of Standard
// Webhooks (https://www.standardwebhooks.com).
type Webhook struct {
	url    string
	secret []byte // nil to sign nothing
	agent  string
	client *http.Client
	now    func() time.Time
}

// webhookTimeout bounds one request.
const webhookTimeout = 15 * time.Second

// NewWebhook returns the server at a URL. A secret is base64 with whsec_ in front
// or not; empty for none. agent is how requests name their sender.
func NewWebhook(url, secret, agent string) (*Webhook, error) {
	w := &Webhook{url: url, agent: agent, now: time.Now, client: &http.Client{
		Timeout: webhookTimeout,
		// Following would turn a POST into a GET, or send the event elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if secret == "" {
		return w, nil
	}
	var err error
	w.secret, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || len(w.secret) < 24 || len(w.secret) > 64 {
		return nil, errors.New("it does not hold 24 to 64 bytes in base64, with whsec_ in front or not")
	}
	return w, nil
}

// Name is that of its place in the journal.
func (w *Webhook) Name() string { return "webhook" }

// Deliver posts the event. Any answer of success means that the server has it; the
// answers that speak of the event itself, that it will never take it.
func (w *Webhook) Deliver(ctx context.Context, e Event) error {
	body, err := e.encode()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("the URL of the webhook is not valid")
	}
	sent := strconv.FormatInt(w.now().Unix(), 10)
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("User-Agent", w.agent)
	request.Header.Set("Webhook-Id", e.ID)
	request.Header.Set("Webhook-Timestamp", sent)
	if w.secret != nil {
		request.Header.Set("Webhook-Signature", sign(w.secret, e.ID, sent, body))
	}
	response, err := w.client.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // it repeats the URL, secrets included
		}
		return err
	}
	defer func() { _ = response.Body.Close() }()             // read-only
	_, _ = io.ReadAll(io.LimitReader(response.Body, 64<<10)) // so that the connection serves again
	switch code := response.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code == http.StatusBadRequest, code == http.StatusRequestEntityTooLarge, code == http.StatusUnsupportedMediaType, code == http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: the server answered %s", ErrRefused, response.Status)
	}
	err = fmt.Errorf("the server answered %s", response.Status)
	if after := retryafter.Of(response.Header); after > 0 {
		return &Later{err, after}
	}
	return err
}

func sign(secret []byte, id, sent string, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%s.%s", id, sent, body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
