// Package redact takes secrets out of text before it is written down: SAS
// tokens and signed query strings, and credentials in URLs. What it returns may
// be logged, journaled and printed; it may no longer work as an address.
package redact

import (
	"encoding/json"
	"regexp"
	"strings"
)

// Hidden stands where a value was taken out.
const Hidden = "REDACTED"

// address finds a URL in running text. Quotes and angle brackets end it, as in
// the messages of net/http; an apostrophe does not, RFC 3986 allows it.
var address = regexp.MustCompile("[a-zA-Z][a-zA-Z0-9+.-]*://[^\\s\"<>`]+")

// parameter finds a signature or key that stands without its URL, as in a bare
// SAS token or an Azure connection string.
var parameter = regexp.MustCompile(`(?i)\b(sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token|` +
	`x-goog-signature|x-goog-credential|access_token|accountkey|sharedaccesskey)=[^&;\s"'<>]+`)

// credentials finds the value of an HTTP Authorization header (RFC 9110,
// 11.6.2), and a bearer token that stands without its header.
var credentials = regexp.MustCompile(`(?i)(\bauthorization["']?\s*[:=]\s*["']?[a-z0-9-]+\s+|\bbearer\s+)[A-Za-z0-9+/=_.~:-]{8,}`)

// plain are the schemes whose URLs have neither query nor fragment: what looks
// like one belongs to the name of the file or object.
var plain = map[string]bool{"file": true, "s3": true, "gs": true, "az": true}

// URL drops the query, the fragment and the password of a URL; one of a file or
// of an object in a bucket has no query. In http and
// https URLs the user goes too, where it is often a token; other schemes keep
// it, as in abfss://container@account/path. A string without a scheme is a
// path and returned as it is.
func URL(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || !isScheme(scheme) {
		return s
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, path := rest[:end], rest[end:]
	user, host := "", authority
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, _, _ = strings.Cut(authority[:at], ":")
		host = authority[at+1:]
	}
	if user != "" && !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		user += "@"
	} else {
		user = ""
	}
	if name, port, ok := cutPort(host); ok && !isPort(port) {
		// A password with an unescaped slash or question mark: what looks like
		// host and port is user and the beginning of the password.
		return scheme + "://" + user + name + ":" + Hidden
	}
	if cut := strings.IndexAny(path, "?#"); cut >= 0 && !plain[strings.ToLower(scheme)] {
		path = path[:cut]
	}
	return scheme + "://" + user + host + Text(path)
}

// Text applies URL to each URL inside s and hides signatures, keys and
// Authorization values that stand alone.
func Text(s string) string {
	// A record of many files has thousands of strings in which none of these can be.
	if strings.Contains(s, "://") {
		s = address.ReplaceAllStringFunc(s, func(u string) string {
			bare := strings.TrimRight(u, ".,;:!?)]}'")
			after := u[len(bare):]
			if scheme, _, _ := strings.Cut(u, "://"); !plain[strings.ToLower(scheme)] {
				after = strings.ReplaceAll(after, "?", "")
			}
			return URL(bare) + after
		})
	}
	if strings.Contains(s, "=") {
		s = parameter.ReplaceAllString(s, "${1}="+Hidden)
	}
	if strings.ContainsAny(s, " \t\r\n\f") {
		s = credentials.ReplaceAllString(s, "${1}"+Hidden)
	}
	return s
}

// JSON applies Text to every string inside a JSON value, keys included, and
// leaves every other byte as it was. What is no valid JSON is returned as the
// JSON string of its redacted text.
func JSON(raw json.RawMessage) json.RawMessage {
	if !json.Valid(raw) {
		return quote(Text(string(raw)))
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); {
		if raw[i] != '"' {
			out = append(out, raw[i])
			i++
			continue
		}
		end := i + 1
		for raw[end] != '"' {
			if raw[end] == '\\' {
				end++
			}
			end++
		}
		end++
		s := string(raw[i+1 : end-1])
		if strings.Contains(s, `\`) {
			if err := json.Unmarshal(raw[i:end], &s); err != nil {
				return quote(Text(string(raw))) // cannot happen: raw is valid
			}
		}
		if clean := Text(s); clean != s {
			out = append(out, quote(clean)...)
		} else {
			out = append(out, raw[i:end]...)
		}
		i = end
	}
	return out
}

func quote(s string) []byte {
	q, _ := json.Marshal(s) // a string always encodes
	return q
}

// isScheme follows RFC 3986, 3.1.
func isScheme(s string) bool {
	for i, c := range []byte(s) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789+-.", rune(c))) {
			return false
		}
	}
	return s != ""
}

// cutPort splits host:port; an IPv6 address in brackets keeps its colons.
func cutPort(authority string) (host, port string, ok bool) {
	colon := strings.IndexByte(authority, ':')
	if strings.HasPrefix(authority, "[") {
		colon = strings.Index(authority, "]:") + 1
		if colon == 0 {
			return authority, "", false
		}
	}
	if colon < 0 {
		return authority, "", false
	}
	return authority[:colon], authority[colon+1:], true
}

func isPort(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}
