package storage

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// httpChecksums reads the checksums of the whole object that an answer offers.
//
//	Content-MD5 (RFC 1864), Content-Digest, Repr-Digest (RFC 9530), Digest (RFC 3230),
//	x-goog-hash (Cloud Storage), x-amz-checksum-* (S3), x-ms-blob-content-md5 (Azure)
//
// and an ETag where S3 makes it of the content's MD5.
func httpChecksums(resp *http.Response) []Checksum {
	h := resp.Header
	var found []Checksum
	add := func(name, sum string) {
		a, ok := digestNames[strings.ToLower(strings.TrimSpace(name))]
		if !ok {
			return
		}
		raw, err := base64.StdEncoding.DecodeString(strings.Trim(strings.TrimSpace(sum), ":"))
		if err != nil || len(raw) == 0 {
			return
		}
		if c, ok := newChecksum(a, raw); ok {
			found = append(found, c)
		}
	}
	list := func(field string) {
		for _, value := range h.Values(field) {
			for item := range strings.SplitSeq(value, ",") {
				if name, sum, ok := strings.Cut(item, "="); ok {
					add(name, sum)
				}
			}
		}
	}
	list("Repr-Digest")
	list("Digest")
	if resp.StatusCode == http.StatusOK { // in 206 they are the range's
		list("Content-Digest")
		add("md5", h.Get("Content-MD5"))
	}
	add("md5", h.Get("X-Ms-Blob-Content-Md5"))
	// What is stored compressed and sent as it was before has the checksum of
	// the compressed bytes (decompressive transcoding of Cloud Storage).
	if stored := h.Get("X-Goog-Stored-Content-Encoding"); stored == "" || stored == "identity" || strings.EqualFold(stored, h.Get("Content-Encoding")) {
		list("X-Goog-Hash")
	}
	// A composite one is made of the parts' checksums.
	if !strings.EqualFold(h.Get("X-Amz-Checksum-Type"), "COMPOSITE") {
		for field, values := range h {
			if name, ok := strings.CutPrefix(field, "X-Amz-Checksum-"); ok {
				add(name, values[0])
			}
		}
	}
	if etagIsMD5(resp.Request.URL.Hostname(), h) {
		raw, err := hex.DecodeString(strings.Trim(h.Get("ETag"), `"`))
		if c, ok := newChecksum(MD5, raw); ok && err == nil {
			found = append(found, c)
		}
	}
	return unique(found)
}

// compositeChecksums reads those that S3 makes of the checksums of an object's parts.
func compositeChecksums(resp *http.Response) []Checksum {
	h := resp.Header
	var found []Checksum
	add := func(a Algorithm, value string, decode func(string) ([]byte, error)) {
		dash := strings.LastIndexByte(value, '-')
		if dash < 0 {
			return
		}
		n, err := strconv.Atoi(value[dash+1:])
		if err != nil || n < 1 || n > s3MaxParts {
			return
		}
		raw, err := decode(value[:dash])
		if c, ok := newChecksum(a, raw); ok && err == nil {
			c.Parts = n
			found = append(found, c)
		}
	}
	for field, values := range h {
		if name, ok := strings.CutPrefix(field, "X-Amz-Checksum-"); ok {
			add(digestNames[strings.ToLower(name)], values[0], base64.StdEncoding.DecodeString)
		}
	}
	if etagIsMD5(resp.Request.URL.Hostname(), h) {
		add(MD5, strings.Trim(h.Get("ETag"), `"`), hex.DecodeString)
	}
	return found
}

// digestNames are the names of algorithms in all these fields.
var digestNames = map[string]Algorithm{
	"crc32c": CRC32C, "crc32": CRC32, "crc64nvme": CRC64NVME, "md5": MD5,
	"sha": SHA1, "sha1": SHA1, "sha-256": SHA256, "sha256": SHA256, "sha-512": SHA512, "sha512": SHA512,
}

// etagIsMD5 says whether an ETag is the MD5 of the content, or that of the MD5s of its
// parts and their number after a "-": so it is in S3 itself, of an object that is not
// encrypted with a key of the customer's. Other services make theirs as they like.
// (Amazon S3 API, "Checking object integrity".)
func etagIsMD5(host string, h http.Header) bool {
	if h.Get("Server") != "AmazonS3" || !strings.HasSuffix(host, ".amazonaws.com") ||
		strings.Contains(host, "s3express") || strings.Contains(host, "s3-object-lambda") ||
		h.Get("X-Amz-Server-Side-Encryption-Customer-Algorithm") != "" {
		return false
	}
	sse := h.Get("X-Amz-Server-Side-Encryption")
	return sse == "" || sse == "AES256"
}

func unique(list []Checksum) []Checksum {
	var out []Checksum
	for _, c := range list {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}
