package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// bucketURL is a URL of the form scheme://bucket/key, as the clouds' own tools
// write it: nothing in the key is encoded.
type bucketURL struct {
	bucket, key string
}

func parseBucketURL(url string) (bucketURL, error) {
	_, rest, _ := strings.Cut(url, "://")
	bucket, key, _ := strings.Cut(rest, "/")
	switch {
	case bucket == "":
		return bucketURL{}, machine.Faultf(machine.TaskFault, "it names no bucket")
	case strings.ContainsAny(bucket, "@?# "): // which may be a secret
		return bucketURL{}, machine.Faultf(machine.TaskFault, "it names no bucket: what is there has @, ?, # or a space; credentials come from the environment, not from URLs")
	case strings.ContainsRune(key, 0):
		return bucketURL{}, machine.Faultf(machine.TaskFault, "its key has a zero byte")
	}
	return bucketURL{bucket, key}, nil
}

func checkBucketURL(url string, directory bool) error {
	parse := parseObjectURL
	if directory {
		parse = parseBucketURL
	}
	_, err := parse(url)
	return err
}

// parseObjectURL is parseBucketURL for the URL of one object.
func parseObjectURL(url string) (bucketURL, error) {
	u, err := parseBucketURL(url)
	if err == nil && (u.key == "" || strings.HasSuffix(u.key, "/")) {
		err = machine.Faultf(machine.TaskFault, "%w", errNoName)
	}
	return u, err
}

// prefix is what the keys below the directory begin with.
func (u bucketURL) prefix() string {
	if u.key == "" || strings.HasSuffix(u.key, "/") {
		return u.key
	}
	return u.key + "/"
}

// joinEscaped returns the URL of a name below a directory where names are
// encoded, and where a query, such as a signature, stays behind the path.
func joinEscaped(url, name string) string {
	end := strings.IndexAny(url, "?#")
	if end < 0 {
		end = len(url)
	}
	return strings.TrimSuffix(url[:end], "/") + "/" + escapeName(name) + url[end:]
}

// joinRaw returns the URL of a name below a directory where nothing is encoded.
func joinRaw(url, name string) string { return strings.TrimSuffix(url, "/") + "/" + name }

var errNothingBelow = errors.New("there is no object below it; an input of type FILE copies one object")

// listedName returns the name of a listed key relative to the directory, and
// whether it stands for a directory, as consoles make them: an empty object
// whose name ends in a slash. Such a name is empty for the listed directory.
func listedName(key, prefix string) (name string, dir bool, err error) {
	name, dir = strings.CutSuffix(strings.TrimPrefix(key, prefix), "/")
	if name == "" && dir || key == prefix {
		return "", true, nil
	}
	if !filepath.IsLocal(name) || path.Clean(name) != name {
		return "", false, machine.Faultf(machine.TaskFault, "the object %q below it cannot be a file: its name has empty parts or dots", key)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > unix.NAME_MAX {
			return "", false, machine.Faultf(machine.TaskFault, "the object %q below it cannot be a file: a part of its name has %d bytes, and %d are allowed", key, len(part), unix.NAME_MAX)
		}
	}
	return name, dir, nil
}

// octetStream is the media type of what is published.
const octetStream = "application/octet-stream"

// listed is an object as a storage lists it.
type listed struct {
	key      string
	size     int64
	version  string
	modified time.Time
	dir      bool // it stands for a directory
}

// listPages yields what is below a directory of a bucket. page fetches one page
// of the listing, from the token that the page before it gave; join names what
// is listed.
func listPages(ctx context.Context, s *Storage, url string, u bucketURL, join func(url, name string) string,
	page func(ctx context.Context, next string) ([]listed, string, error),
) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		found := false
		for next, more := "", true; more; more = next != "" {
			var objects []listed
			var after string
			err := s.retry(ctx, "list", url, nil, func(ctx context.Context) (err error) {
				objects, after, err = page(ctx, next) // the same page again when this fails
				return err
			})
			if err == nil && after != "" && after == next {
				err = describe(machine.Faultf(machine.TaskFault, "the storage lists the same page again and again"), "list", url, 1)
			}
			if err != nil {
				yield(Object{}, err)
				return
			}
			next = after
			for _, l := range objects {
				found = true
				name, dir, err := listedName(l.key, u.prefix())
				if err != nil {
					yield(Object{}, describe(err, "list", url, 1))
					return
				}
				if (dir || l.dir) && l.size > 0 {
					err := machine.Faultf(machine.TaskFault, "the object %q below it cannot be a file: it has %d bytes, and the name of a directory", l.key, l.size)
					yield(Object{}, describe(err, "list", url, 1))
					return
				}
				if name == "" {
					continue
				}
				o := Object{
					URL: join(url, strings.TrimPrefix(l.key, u.prefix())), Name: name, Size: l.size, Version: l.version, ModTime: l.modified,
				}
				if dir || l.dir {
					o.Mode = fs.ModeDir
				}
				if !yield(o, nil) {
					return
				}
			}
		}
		if !found {
			yield(Object{}, describe(machine.Faultf(machine.TaskFault, "%w", errNothingBelow), "list", url, 1))
		}
	}
}

// asPassing gives an error of a client library that no answer explains: the
// connection failed, which may pass, or the request ended with its context.
func asPassing(err error) error {
	return requestFault(fmt.Errorf("the request failed: %w", err))
}
