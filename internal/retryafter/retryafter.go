// Package retryafter reads how long a server asks to be left alone.
package retryafter

import (
	"net/http"
	"strconv"
	"time"
)

// longest is how much of a number of seconds is believed.
const longest = 1 << 20

// Of reads the Retry-After of an answer, which is seconds or a date
// (RFC 9110, 10.2.3). Without one, or with one that is over, it is 0.
func Of(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(min(seconds, longest)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
