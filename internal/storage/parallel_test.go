package storage

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/group"
)

// crowd is a store of zeros that counts the streams that are open at a time. Nothing comes
// of a stream before its gate is open.
type crowd struct {
	Store
	size func(url string) int64
	gate func(url string) <-chan struct{}
	// awaited are closed, each once, when what they wait for is the case.
	awaited map[chan struct{}]func() bool

	mu    sync.Mutex
	open  map[string]int // by URL
	all   int
	most  int            // of all, at a time
	of    map[string]int // the most of each URL, at a time
	opens int
}

// newCrowd has one gate for all streams, which opens when so many are open at a time.
func newCrowd(want int, size func(url string) int64) *crowd {
	c := &crowd{size: size, awaited: map[chan struct{}]func() bool{}, open: map[string]int{}, of: map[string]int{}}
	full := c.await(func() bool { return c.all == want })
	c.gate = func(string) <-chan struct{} { return full }
	return c
}

// await returns a channel that is closed when something is the case after a stream was opened.
func (c *crowd) await(is func() bool) <-chan struct{} {
	closed := make(chan struct{})
	c.awaited[closed] = is
	return closed
}

func (c *crowd) Open(ctx context.Context, url string, r Range) (*Reader, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opens++
	c.all++
	c.open[url]++
	c.most, c.of[url] = max(c.most, c.all), max(c.of[url], c.open[url])
	for closed, is := range c.awaited {
		if is() {
			close(closed)
			delete(c.awaited, closed)
		}
	}
	length := c.size(url) - r.Offset
	if r.Length >= 0 {
		length = r.Length
	}
	return &Reader{
		ReadCloser: &stream{crowd: c, ctx: ctx, url: url, left: length},
		Object:     Object{Size: c.size(url), Version: "1", Ranges: true},
		Offset:     r.Offset,
	}, nil
}

type stream struct {
	*crowd
	ctx  context.Context
	url  string
	left int64
	once sync.Once
}

func (s *stream) Read(p []byte) (int, error) {
	select {
	case <-s.gate(s.url):
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), s.left)
	s.left -= n
	clear(p[:n])
	return int(n), nil
}

func (s *stream) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		s.open[s.url]--
	})
	return nil
}

// fetchAll fetches URLs side by side, with what is to be called before one is asked for and
// when it has come.
func (c *crowd) fetchAll(t *testing.T, before, after func(url string), urls ...string) {
	t.Helper()
	s := Hasten(New(Options{Parallel: 4}), time.Minute)
	s.stores[0] = c
	into, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	fetches, ctx := group.WithContext(t.Context())
	for i, url := range urls {
		fetches.Go(func() error {
			before(url)
			got, err := s.Fetch(ctx, FetchRequest{URL: url, Dir: into, Name: fmt.Sprint(i), NoSync: true})
			if err == nil && got.Bytes != c.size(url) {
				err = fmt.Errorf("%d bytes of %d came", got.Bytes, c.size(url))
			}
			after(url)
			return err
		})
	}
	if err := fetches.Wait(); err != nil {
		t.Fatal(err)
	}
	if c.most > 4 {
		t.Errorf("%d streams were open at a time, 4 are allowed", c.most)
	}
	if c.all != 0 {
		t.Errorf("%d streams were left open", c.all)
	}
}

func none(string) {}

// Many small files are fetched side by side, each in one request.
func TestSmallFilesSideBySide(t *testing.T) {
	var urls []string
	for i := range 40 {
		urls = append(urls, fmt.Sprint("/small/", i))
	}
	// Nothing comes before four of them are open.
	c := newCrowd(4, func(string) int64 { return 1000 })
	c.fetchAll(t, none, none, urls...)
	if c.most != 4 || c.opens != len(urls) {
		t.Errorf("%d streams at a time and %d in all, want 4 and %d", c.most, c.opens, len(urls))
	}
}

// A large file that is alone is fetched over all streams.
func TestLargeFileInParts(t *testing.T) {
	c := newCrowd(4, func(string) int64 { return 5*minPart + 1 })
	c.fetchAll(t, none, none, "/large")
	if c.most != 4 {
		t.Errorf("%d streams at a time, want 4", c.most)
	}
}

// A large file among others takes the streams that they leave, and no more.
func TestLargeFileAmongOthers(t *testing.T) {
	size := func(url string) int64 {
		if url == "/large" {
			return 4 * minPart
		}
		return 1000
	}
	for others, streams := range map[int]int{3: 1, 2: 2} {
		c := newCrowd(4, size)
		urls := []string{"/large"}
		for i := range others {
			urls = append(urls, fmt.Sprint("/small/", i))
		}
		// The others are open before it begins, and until it has come; it does not come
		// before it has its streams.
		begun := c.await(func() bool { return c.all == others })
		spread := c.await(func() bool { return c.open["/large"] == streams })
		done := make(chan struct{})
		c.gate = func(url string) <-chan struct{} {
			if url == "/large" {
				return spread
			}
			return done
		}
		large := func(f func()) func(string) {
			return func(url string) {
				if url == "/large" {
					f()
				}
			}
		}
		c.fetchAll(t, large(func() { <-begun }), large(func() { close(done) }), urls...)
		if c.of["/large"] != streams {
			t.Errorf("beside %d others it had %d streams at a time, want %d", others, c.of["/large"], streams)
		}
	}
	// With more files than streams, in any order, no stream is one too many.
	c := newCrowd(4, size)
	c.fetchAll(t, none, none, "/small/1", "/large", "/small/2", "/small/3", "/small/4", "/small/5", "/small/6", "/small/7")
	if c.most != 4 {
		t.Errorf("%d streams at a time, want 4", c.most)
	}
}
