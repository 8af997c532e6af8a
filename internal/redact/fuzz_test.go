package redact

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// secret is in no word that a fuzzer finds.
const secret = "S3CR3Tt0ken"

// FuzzText holds that a secret of a URL never survives, whatever stands around
// it, and that what was redacted stays as it is.
func FuzzText(f *testing.F) {
	for _, seed := range [][2]string{
		{`Get "`, "/p"}, {"see (", "/a/b%20c"}, {"a,https://u:p@h/x?sig=1,", ""}, {"Authorization: Bearer ", "/?"}, {"\xff", "/\xff"}, {"x?sig=", "//"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, before, path string) {
		if len(before)+len(path) > 500 || strings.Contains(before+path, "REDACTED") {
			return
		}
		once := Text(before)
		if twice := Text(once); twice != once {
			t.Errorf("not stable: %q, %q, %q", before, once, twice)
		}
		if strings.ContainsAny(path, " \t\r\n\f\v\"<>`") || !utf8.ValidString(path) || path != "" && path[0] != '/' {
			return // it would end the URL
		}
		for _, url := range []string{
			"https://host" + path + "?sig=" + secret, "https://u:" + secret + "@host" + path, "https://" + secret + "@host" + path,
			"sftp://u:" + secret + "@host" + path, "https://host" + path + "?a=b&X-Amz-Signature=" + secret + "#end",
		} {
			if got := URL(url); strings.Contains(got, secret) {
				t.Errorf("URL(%q) = %q", url, got)
			}
			if got := Text(before + " " + url); strings.Contains(got, secret) {
				t.Errorf("Text(%q) = %q", before+" "+url, got)
			}
		}
	})
}

// FuzzJSON holds that valid JSON stays valid, with everything but its strings as
// it was, and without secrets of URLs.
func FuzzJSON(f *testing.F) {
	for _, seed := range []string{`{"a":["https://h/p?sig=1",null,1.50],"https:\/\/u:p@h":{}}`, `"\ud800"`, `[12345678901234567890]`, `{"a":`, ``} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1000 {
			return
		}
		clean := JSON(json.RawMessage(text))
		if !json.Valid(clean) {
			t.Fatalf("JSON(%q) = %q is no JSON", text, clean)
		}
		if again := JSON(clean); string(again) != string(clean) {
			t.Errorf("not stable: %q, %q", clean, again)
		}
		var was, is any
		if json.Unmarshal([]byte(text), &was) == nil && json.Unmarshal(clean, &is) == nil && !reflect.DeepEqual(shape(was), shape(is)) {
			t.Errorf("JSON(%q) = %q has another shape", text, clean)
		}
		quoted, err := json.Marshal(map[string]string{text: "https://u:" + secret + "@host/"})
		if err != nil {
			t.Fatal(err)
		}
		if got := JSON(quoted); strings.Contains(string(got), secret) {
			t.Errorf("JSON(%q) = %q", quoted, got)
		}
	})
}

// shape is a JSON value without its strings; keys may become the same.
func shape(v any) any {
	switch v := v.(type) {
	case string:
		return ""
	case []any:
		shapes := make([]any, len(v))
		for i := range v {
			shapes[i] = shape(v[i])
		}
		return shapes
	case map[string]any:
		return "an object"
	}
	return v
}
