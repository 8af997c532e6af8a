package shape

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// BucketPath is the path at the server of a place below which a Bucket is.
const BucketPath = "/s3"

// Bucket is what a server of S3 does with uploads in parts that nobody goes on with. It is
// away when it is asked about the first one again, which a roll-back does.
type Bucket struct {
	mu      sync.Mutex
	uploads map[string]time.Time // since when, by their ID
	begun   int
	away    bool
}

// ServeHTTP begins, lists and aborts uploads of one key. None has a part.
func (b *Bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := r.URL.Query()
	if b.away && r.Method != http.MethodPost {
		b.away = false
		w.WriteHeader(http.StatusForbidden) // so that nobody tries for a minute
		return
	}
	switch {
	case q.Has("uploads") && r.Method == http.MethodPost:
		b.begun++
		if b.uploads == nil {
			b.uploads = map[string]time.Time{}
		}
		id := strconv.Itoa(b.begun)
		b.uploads[id], b.away = time.Now(), b.begun == 1
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case q.Has("uploads"):
		fmt.Fprint(w, "<ListMultipartUploadsResult>")
		for id, since := range b.uploads {
			fmt.Fprintf(w, "<Upload><Key>%s</Key><UploadId>%s</UploadId><Initiated>%s</Initiated></Upload>", q.Get("prefix"), id, since.UTC().Format(time.RFC3339Nano))
		}
		fmt.Fprint(w, "</ListMultipartUploadsResult>")
	case r.Method == http.MethodDelete:
		delete(b.uploads, q.Get("uploadId"))
		w.WriteHeader(http.StatusNoContent)
	default:
		fmt.Fprint(w, "<ListPartsResult></ListPartsResult>")
	}
}

// Problems are sentences about the uploads that are left.
func (b *Bucket) Problems() (p []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.uploads {
		p = append(p, "upload "+id+" is left at its storage")
	}
	return p
}
