package outbox

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The signature is that of the example in the specification of Standard Webhooks.
func TestSignature(t *testing.T) {
	w, err := NewWebhook("http://host", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "")
	if err != nil {
		t.Fatal(err)
	}
	got := sign(w.secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, secret := range []string{"whsec_", "whsec_short", "nobase64!", "QUJD"} {
		_, err := NewWebhook("http://host", secret, "")
		if err == nil || secret != "whsec_" && strings.Contains(err.Error(), secret) {
			t.Errorf("a secret that is none: %v", err)
		}
	}
}

func TestWebhook(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	codes := []int{503, 0, 429, 302, 404, 200, 422, 204} // of the answers, one after the other; 0 breaks the connection
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/hook" || r.Header.Get("Content-Type") != "application/cloudevents+json" || r.Header.Get("User-Agent") != "agent" {
			t.Errorf("%s %s %v (%v)", r.Method, r.URL, r.Header, err)
		}
		id, sent := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
		key := []byte("\x31\xf2\x90\xf6\xbf\x06\x29\x8a\xab\x4f\x08\xd4\x3c\x3f\x08\x2c\xf6\x48\xa3\x62\xda\x2d\xa4\xb0")
		if want := sign(key, id, sent, body); r.Header.Get("webhook-signature") != want || !strings.Contains(string(body), `"id":"`+id+`"`) {
			t.Errorf("the signature of %s is %s, want %s", body, r.Header.Get("webhook-signature"), want)
		}
		code := 200
		if len(codes) > 0 {
			code, codes = codes[0], codes[1:]
		}
		if code == 0 {
			panic(http.ErrAbortHandler)
		}
		if code == 302 {
			rw.Header().Set("Location", "/elsewhere")
		}
		if code/100 == 2 || code == 422 {
			got = append(got, id)
		}
		rw.WriteHeader(code)
	}))
	defer server.Close()
	j := told(t, "webhook")
	write(t, j, "t1")
	w, err := NewWebhook(server.URL+"/hook?token=geheim", secret, "agent")
	if err != nil {
		t.Fatal(err)
	}
	o, log := open(t, j, w)
	o.Close(never)
	server.Close()
	if want := ids(t, j); !slices.Equal(got, want) {
		t.Errorf("the server has taken or refused %v, want %v", got, want)
	}
	text := log.String()
	for _, want := range []string{"503 Service", "EOF", "429 Too", "302 Found", "404 Not", "event dropped", "422 Unproc"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log does not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "geheim") {
		t.Errorf("the log tells the secret:\n%s", text)
	}

	write(t, j, "t2") // while nobody listens
	if w, err = NewWebhook("http://127.0.0.1:1/hook?token=geheim", secret, "agent"); err != nil {
		t.Fatal(err)
	}
	o, log = open(t, j, w)
	log.wait(t, "refused")
	o.Close(0)
	if text := log.String(); strings.Contains(text, "geheim") {
		t.Errorf("the log says\n%s", text)
	}
}

// A server that asks to be left alone is, until the process ends.
func TestWebhookAsksForTime(t *testing.T) {
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) == 1 {
			rw.Header().Set("Retry-After", "7200")
			rw.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	defer server.Close()
	j := told(t, "webhook")
	write(t, j, "t1")
	w, err := NewWebhook(server.URL, "", "agent")
	if err != nil {
		t.Fatal(err)
	}
	var later *Later
	if err := w.Deliver(t.Context(), Event{}); !errors.As(err, &later) || later.After != 2*time.Hour {
		t.Fatalf("the answer is %v", err)
	}
	requests.Store(0)
	o, log := open(t, j, w)
	log.wait(t, "2h0m0s")
	for range 100 { // the pauses of this test are of 2 ms
		time.Sleep(time.Millisecond)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests were sent within two hours", n)
	}
	o.Close(never) // there is little time left
	if n, all := requests.Load(), len(ids(t, j)); int(n) != all+1 {
		t.Errorf("%d requests were sent for %d events and one repetition", n, all)
	}
}
