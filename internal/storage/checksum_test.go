package storage

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// The check values of the algorithms, for the text "123456789".
func TestChecksums(t *testing.T) {
	for a, want := range map[Algorithm]string{
		CRC32:     "cbf43926",
		CRC32C:    "e3069283",
		CRC64NVME: "ae8b14860a799888",
		MD5:       "25f9e794323b453885f5181f1b624d0b",
		SHA1:      "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
		SHA256:    "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
	} {
		h := hashes[a]()
		h.Write([]byte("123456789"))
		if got := hex.EncodeToString(h.Sum(nil)); got != want {
			t.Errorf("%s is %s, want %s", a, got, want)
		}
	}
}

func TestHTTPChecksums(t *testing.T) {
	const md5Text, md5Hex = "JfnnlDI7RTiF9RgfG2JNCw==", "md5:25f9e794323b453885f5181f1b624d0b"
	const s3 = "https://bucket.s3.eu-west-1.amazonaws.com/key"
	etag := `"25f9e794323b453885f5181f1b624d0b"`
	rows := []struct {
		name   string
		url    string
		status int
		header http.Header
		want   string
	}{
		{"none", "", 200, http.Header{"Etag": {etag}}, ""},
		{"Content-MD5", "", 200, http.Header{"Content-Md5": {md5Text}}, md5Hex},
		{"Content-MD5 of a range", "", 206, http.Header{"Content-Md5": {md5Text}}, ""},
		{"Content-Digest of a range", "", 206, http.Header{"Content-Digest": {"md5=:" + md5Text + ":"}}, ""},
		{"Repr-Digest of a range", "", 206, http.Header{"Repr-Digest": {"md5=:" + md5Text + ":"}}, md5Hex},
		{"twice the same", "", 200, http.Header{"Content-Md5": {md5Text}, "Digest": {"MD5=" + md5Text}}, md5Hex},
		{"unknown and broken ones", "", 200, http.Header{"Digest": {"adler32=03da0195, md5=AAAA, sha-256=!"}}, ""},
		{"Cloud Storage", "", 200, http.Header{"X-Goog-Hash": {"crc32c=4waSgw==", "md5=" + md5Text}}, "crc32c:e3069283 " + md5Hex},
		{"Cloud Storage, decompressed", "", 200,
			http.Header{"X-Goog-Hash": {"crc32c=4waSgw=="}, "X-Goog-Stored-Content-Encoding": {"gzip"}}, ""},
		{"Azure", "", 206, http.Header{"X-Ms-Blob-Content-Md5": {md5Text}}, md5Hex},
		{"S3", "", 200, http.Header{"X-Amz-Checksum-Crc32c": {"4waSgw=="}, "X-Amz-Checksum-Type": {"FULL_OBJECT"}}, "crc32c:e3069283"},
		{"S3, SHA-512", "", 200, http.Header{"X-Amz-Checksum-Sha512": {strings.Repeat("A", 86) + "=="}}, "sha-512:" + strings.Repeat("0", 128)},
		{"S3, of parts", "", 200, http.Header{"X-Amz-Checksum-Crc32c": {"4waSgw=="}, "X-Amz-Checksum-Type": {"COMPOSITE"}}, ""},
		{"S3, of parts, by its form", "", 200, http.Header{"X-Amz-Checksum-Crc32c": {"4waSgw==-3"}}, ""},
		{"ETag of S3", s3, 200, http.Header{"Server": {"AmazonS3"}, "Etag": {etag}, "X-Amz-Server-Side-Encryption": {"AES256"}}, md5Hex},
		{"ETag of S3, encrypted by KMS", s3, 200,
			http.Header{"Server": {"AmazonS3"}, "Etag": {etag}, "X-Amz-Server-Side-Encryption": {"aws:kms"}}, ""},
		{"ETag of S3, in parts", s3, 200, http.Header{"Server": {"AmazonS3"}, "Etag": {`"25f9e794323b453885f5181f1b624d0b-2"`}}, ""},
		{"ETag of S3 Express", "https://b.s3express-use1-az4.us-east-1.amazonaws.com/key", 200,
			http.Header{"Server": {"AmazonS3"}, "Etag": {etag}}, ""},
		{"ETag of something else", "https://host/key", 200, http.Header{"Server": {"AmazonS3"}, "Etag": {etag}}, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			u, err := url.Parse(row.url)
			if err != nil {
				t.Fatal(err)
			}
			got := httpChecksums(&http.Response{StatusCode: row.status, Header: row.header, Request: &http.Request{URL: u}})
			var texts []string
			for _, c := range got {
				texts = append(texts, c.String())
			}
			slices.Sort(texts)
			if strings.Join(texts, " ") != row.want {
				t.Errorf("found %v, want %q", texts, row.want)
			}
		})
	}
}

func TestHTTPVersion(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	modified := at.Format(http.TimeFormat)
	for _, row := range []struct {
		header http.Header
		want   string
	}{
		{http.Header{"Etag": {`"a"`}, "Last-Modified": {modified}}, `etag "a"`},
		{http.Header{"Etag": {`W/"a"`}}, ""},
		{http.Header{"Last-Modified": {modified}, "Date": {at.Add(time.Second).Format(http.TimeFormat)}}, "modified " + modified},
		{http.Header{"Last-Modified": {modified}, "Date": {modified}}, ""}, // a change in the same second would not show
		{http.Header{"Last-Modified": {modified}}, ""},
		{http.Header{}, ""},
	} {
		if got := httpVersion(row.header); got != row.want {
			t.Errorf("%v: %q, want %q", row.header, got, row.want)
		}
	}
}

func TestParseHTTP(t *testing.T) {
	for in, want := range map[string]string{
		"http://host/a b":                    "http://host/a%20b",
		"http://host/a%20b":                  "http://host/a%20b",
		"http://host/100%":                   "http://host/100%25",
		"http://host/50%zz":                  "http://host/50%25zz",
		"http://host/ü":                      "http://host/%C3%BC",
		"http://host/a%2Fb":                  "http://host/a%2Fb",
		"http://host/a?sig=x%2By+z&e=a b":    "http://host/a?sig=x%2By+z&e=a%20b",
		"http://host/a#fragment":             "http://host/a",
		"HTTPS://user:p%40ss@host/a":         "https://host/a",
		"http://host":                        "http://host",
		"http://host:/a":                     "http://host/a",
		"http://host/a\"<>\\^`{|}\x7f\n!'()": "http://host/a%22%3C%3E%5C%5E%60%7B%7C%7D%7F%0A!'()",
	} {
		u, _, err := parseHTTP(in)
		if err != nil || u.String() != want {
			t.Errorf("%q is taken for %v (%v), want %s", in, u, err, want)
		}
	}
}

func TestSameOrigin(t *testing.T) {
	for from, tos := range map[string]map[string]bool{
		"http://host/a": {
			"http://host/b": true, "https://host/b": true, "http://host:81/a": false, "https://host:444/a": false, "http://sub.host/a": false, "http://other/a": false,
		},
		"https://host/a":     {"https://host/b": true, "http://host/a": false, "https://host:444/a": false},
		"http://host:8080/a": {"http://host:8080/b": true, "http://host/a": false, "https://host/a": false, "https://host:8080/a": false},
	} {
		for to, want := range tos {
			a, _, _ := parseHTTP(from)
			b, _, _ := parseHTTP(to)
			if got := sameOrigin(a, b); got != want {
				t.Errorf("from %s to %s: %t", from, to, got)
			}
		}
	}
}

func TestNoURL(t *testing.T) {
	for _, in := range []string{"http://", "http:///a", "http://:80/a", "http://user@/a", "http://host:65536/a", "http://host:99999999999999999999/a", "http://[::1/a", "http://h ost/a"} {
		if err := checkHTTP(in, false); err == nil || machine.FaultOf(err) != machine.TaskFault {
			t.Errorf("%q is taken for a URL: %v", in, err)
		}
	}
	for _, in := range []string{"http://host:65535/a", "http://host:/a", "http://[::1]:80/a"} {
		if err := checkHTTP(in, false); err != nil {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestContentRange(t *testing.T) {
	for in, want := range map[string]string{
		"bytes 0-4/5": "0 5 5 true", "bytes 2-3/10": "2 4 10 true",
		"": "false", "bytes */5": "false", "bytes 0-5/5": "false", "bytes 3-2/5": "false", "bytes 0-4/*": "false", "items 0-4/5": "false",
	} {
		begin, end, size, err := parseContentRange(in)
		got := "false"
		if err == nil {
			got = fmt.Sprint(begin, end, size, true)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestMetadataServiceIsRefused(t *testing.T) {
	for address, refused := range map[string]bool{
		"169.254.169.254:80": true, "[::ffff:169.254.169.254]:80": true, "[fd00:ec2::254]:80": true, "[fd20:ce::254]:80": true, "[fd00:c1::a9fe:a9fe]:80": true, "168.63.129.16:80": true,
		"100.100.100.200:80": true, "127.0.0.1:80": false, "10.0.0.1:80": false, "[::1]:80": false, "93.184.216.34:443": false,
	} {
		if err := refuseMetadata("tcp", address, nil); (err != nil) != refused {
			t.Errorf("%s: %v", address, err)
		}
	}
}
