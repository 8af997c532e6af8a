package storage

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
)

// Algorithm names a checksum as HTTP's Digest fields do (RFC 9530, 5).
type Algorithm string

const (
	CRC32C    Algorithm = "crc32c"
	CRC32     Algorithm = "crc32"
	CRC64NVME Algorithm = "crc64nvme"
	MD5       Algorithm = "md5"
	SHA1      Algorithm = "sha"
	SHA256    Algorithm = "sha-256"
	SHA512    Algorithm = "sha-512"
)

// crc64NVME is the polynomial of the NVM Express specification, reflected.
var crc64NVME = crc64.MakeTable(0x9a6c9329ac4bc9b5)

var hashes = map[Algorithm]func() hash.Hash{
	CRC32C:    func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	CRC32:     func() hash.Hash { return crc32.NewIEEE() },
	CRC64NVME: func() hash.Hash { return crc64.New(crc64NVME) },
	MD5:       md5.New,
	SHA1:      sha1.New,
	SHA256:    sha256.New,
	SHA512:    sha512.New,
}

// Checksum is one of a whole object's content; Sum is in hexadecimal.
type Checksum struct {
	Algorithm Algorithm `json:"algorithm"`
	Sum       string    `json:"sum"`
	// Parts is not 0 when it is that of the checksums of so many parts, in binary.
	Parts int `json:"parts,omitempty"`
}

func (c Checksum) String() string {
	if c.Parts > 0 {
		return fmt.Sprintf("%s:%s-%d", c.Algorithm, c.Sum, c.Parts)
	}
	return string(c.Algorithm) + ":" + c.Sum
}

// newChecksum returns false for an algorithm that is not known, or a sum of
// another length than it has: nothing can be told from such a one.
func newChecksum(a Algorithm, sum []byte) (Checksum, bool) {
	h, ok := hashes[a]
	if !ok || len(sum) != h().Size() {
		return Checksum{}, false
	}
	return Checksum{Algorithm: a, Sum: hex.EncodeToString(sum)}, true
}

// verifier computes every checksum that a source offers, as far as the parts are known
// that it is made of.
type verifier struct {
	want   []Checksum
	hashes []hash.Hash
	seen   int64 // bytes
	parts  layout
}

func newVerifier(want []Checksum, parts layout) *verifier {
	v := &verifier{parts: parts}
	for _, c := range want {
		h, ok := hashes[c.Algorithm]
		switch {
		case ok && c.Parts == 0:
			v.hashes = append(v.hashes, h())
		case ok && c.Parts == len(parts.sizes):
			v.hashes = append(v.hashes, newCompositeHash(h, parts.sizes))
		default:
			continue
		}
		v.want = append(v.want, c)
	}
	return v
}

// none says that there is nothing to compare with.
func (v *verifier) none() bool { return len(v.want) == 0 }

func (v *verifier) add(b []byte) {
	for _, h := range v.hashes {
		h.Write(b)
	}
	v.seen += int64(len(b))
}

// compare holds what was written against what was offered.
func (v *verifier) compare() error {
	for i, c := range v.want {
		if got := hex.EncodeToString(v.hashes[i].Sum(nil)); got != c.Sum {
			made := ""
			if c.Parts > 0 {
				made = fmt.Sprintf(" of the checksums of its %d parts", c.Parts)
			}
			err := fmt.Errorf("its %s checksum%s is %s, but the source says %s", c.Algorithm, made, got, c.Sum)
			return &mismatchError{err, c}
		}
	}
	return nil
}

// mismatchError says that what came is not what the source says it has.
type mismatchError struct {
	err  error
	want Checksum
}

func (e *mismatchError) Error() string { return e.err.Error() }
func (e *mismatchError) Unwrap() error { return e.err }
