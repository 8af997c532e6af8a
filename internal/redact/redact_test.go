package redact

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestURL(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"https://h/p?sv=2022&sig=abc%3D", "https://h/p"},
		{"https://h/p#frag", "https://h/p"},
		{"https://h?sig=abc", "https://h"},
		{"https://user:secret@h:8443/p", "https://h:8443/p"},
		{"https://ghp_token@h/p", "https://h/p"},
		{"HTTP://u:p@h/p", "HTTP://h/p"},
		{"ftp://user:secret@h/p", "ftp://user@h/p"},
		{"ftp://:secret@h/p", "ftp://h/p"},
		{"abfss://container@account.dfs/p?sig=1", "abfss://container@account.dfs/p"},
		{"https://a@b:secret@h/p", "https://h/p"},
		{"https://user:sec/ret@h/p", "https://user:REDACTED"},
		{"https://user:sec?ret@h/p", "https://user:REDACTED"},
		{"https://me@corp:sec/ret@h/p", "https://corp:REDACTED"},
		{"ftp://me@corp:sec/ret@h/p", "ftp://me@corp:REDACTED"},
		{"ftp://me@[::1]:21/p", "ftp://me@[::1]:21/p"},
		{"http://[::1]:80/p?x", "http://[::1]:80/p"},
		{"http://[::1]/p?x", "http://[::1]/p"},
		{"https://h/p%zz?sig=1", "https://h/p%zz"},
		{"https://proxy/https://u:secret@h/p", "https://proxy/https://h/p"},
		{"s3://bucket/a b/c", "s3://bucket/a b/c"},
		{"file:///data/x", "file:///data/x"},
		{"/data/what?.txt", "/data/what?.txt"},
		{"1x://u:secret@h", "1x://u:secret@h"}, // no scheme, RFC 3986
		{"", ""},
	} {
		if got := URL(c.in); got != c.want {
			t.Errorf("URL(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestText(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"s3://b/what?", "s3://b/what?"}, // which belongs to the key
		{"file:///a? b?!", "file:///a? b?!"},
		{"is it https://h/p??", "is it https://h/p"},
		{`Get "https://h/p?sig=abc": dial tcp: refused`, `Get "https://h/p": dial tcp: refused`},
		{"see (https://h/p?sig=abc), then go on.", "see (https://h/p), then go on."},
		{"is it https://h/p?", "is it https://h/p"},
		{"https://h/p?sig=a'b", "https://h/p"},
		{"https://a/x,https://u:secret@b/y?sig=1", "https://a/x,https://b/y"},
		{"token ?sv=2022&sig=abc%2Fdef&se=1", "token ?sv=2022&sig=REDACTED&se=1"},
		{"AccountName=n;AccountKey=abc==;x", "AccountName=n;AccountKey=REDACTED;x"},
		{"X-Amz-Signature=0123&a=1", "X-Amz-Signature=REDACTED&a=1"},
		{"Authorization: Bearer eyJhbGciOi.J9", "Authorization: Bearer REDACTED"},
		{"authorization: Basic dXNlcjpwYXNz", "authorization: Basic REDACTED"},
		{"with bearer eyJhbGciOi.J9", "with bearer REDACTED"},
		{"bearer\teyJhbGciOi.J9", "bearer\tREDACTED"},
		{"bearer\neyJhbGciOi.J9", "bearer\nREDACTED"},
		{"bearer\reyJhbGciOi.J9", "bearer\rREDACTED"},
		{"bearer\feyJhbGciOi.J9", "bearer\fREDACTED"},
		{"a basic configuration", "a basic configuration"},
		{"a basic test, no bearer of news", "a basic test, no bearer of news"},
		{"nothing to hide: 3 files, 10%", "nothing to hide: 3 files, 10%"},
	} {
		if got := Text(c.in); got != c.want {
			t.Errorf("Text(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestJSON(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"name":"https://h/p?sig=1","n":12345678901234567890,"b":1.50}`, `{"name":"https://h/p","n":12345678901234567890,"b":1.50}`},
		{`{"https://u:s@h/":[null,true,"a\"b\\"]}`, `{"https://h/":[null,true,"a\"b\\"]}`},
		{`{"u":"https:\/\/h\/p?s\u0069g=1"}`, `{"u":"https://h/p"}`},
		{`broken https://h/p?sig=1`, `"broken https://h/p"`},
		{``, `""`},
	} {
		if got := JSON(json.RawMessage(c.in)); string(got) != c.want {
			t.Errorf("JSON(%s) = %s, want %s", c.in, got, c.want)
		}
	}
}

// What is redacted once stays as it is, and a secret in a URL never survives.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "text")
		once := Text(s)
		if twice := Text(once); twice != once {
			t.Fatalf("not stable: %q, %q, %q", s, once, twice)
		}
		path := rapid.StringMatching(`[a-z/]{0,8}`).Draw(t, "path")
		pre := rapid.StringMatching(`[a-z (,]{0,8}`).Draw(t, "before")
		for _, u := range []string{
			"https://host/" + path + "?sig=S3CR3T",
			"https://u:S3CR3T@host/" + path,
			"sftp://u:S3CR3T@host/" + path,
		} {
			if got := Text(pre + " " + u); strings.Contains(got, "S3CR3T") {
				t.Fatalf("Text(%q) = %q", u, got)
			}
			if got := URL(u); strings.Contains(got, "S3CR3T") {
				t.Fatalf("URL(%q) = %q", u, got)
			}
		}
		raw, _ := json.Marshal(map[string]string{s: s})
		if !json.Valid(JSON(raw)) {
			t.Fatalf("JSON(%s) is not JSON", raw)
		}
	})
}
