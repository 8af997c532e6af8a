package storage

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"time"
)

// MinPart lets tests choose sizes.
const MinPart = minPart

// Hasten makes a Storage wait little between attempts, and idle for a silent peer. The
// servers of tests know Expect: a busy one is not taken for one that does not.
func Hasten(s *Storage, idle time.Duration) *Storage {
	s.pause = pause{first: time.Millisecond, longest: 20 * time.Millisecond, idle: idle}
	s.transport.ExpectContinueTimeout = time.Minute
	return s
}

// Dial makes a Storage reach every host by dial.
func Dial(s *Storage, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Storage {
	s.transport.DialContext = dial
	return s
}

// Trust makes a Storage trust the certificate of a server.
func Trust(s *Storage, server *httptest.Server) *Storage {
	s.transport.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig
	return s
}

// PartName is the name of an unfinished Put's file.
func PartName(name, tag string) string { return partName(name, tagSuffix(tag)) }

// CRC32COf is the checksum of two texts that follow each other.
var CRC32COf = crc32cOf

// IsLocal says whether a URL is of this node.
var IsLocal = isLocal

// ErrNoName is what CheckOutput says of a file whose URL is that of a directory.
var ErrNoName = errNoName

// IsAzure says whether a URL is Azure's, and which host of the service's it names.
func IsAzure(url string) (bool, string) {
	u, _ := parseAzure(url)
	return isAzure(url), u.host
}
