package retryafter

import (
	"net/http"
	"testing"
	"time"
)

func TestOf(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "-1": 0, "soon": 0, "Fri, 02 Jan 1970 00:00:00 GMT": 0, "9000000000000000000": longest * time.Second,
	} {
		if got := Of(http.Header{"Retry-After": {in}}); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
	in := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	if got := Of(http.Header{"Retry-After": {in}}); got < 59*time.Minute || got > time.Hour {
		t.Errorf("in an hour: %s", got)
	}
}
