package system

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// manyFiles is how many files are many: DECKHAND_TEST_FILES, or 10,000.
func manyFiles(t *testing.T) int {
	t.Helper()
	text := cmp.Or(os.Getenv("DECKHAND_TEST_FILES"), "10000")
	files, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("DECKHAND_TEST_FILES: %v", err)
	}
	return files
}

// Of many outputs whose upload is killed half-way, those are sent again that
// the journal does not have, and it takes few records for them, and for as many inputs.
func TestManyOutputs(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	files := manyFiles(t)
	var mu sync.Mutex
	sent := map[string]int{}
	half := make(chan struct{})
	reached := sync.OnceFunc(func() { close(half) }) // a file of the first half may come again
	release := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodHead {
			return // the fence
		}
		_, _ = io.Copy(io.Discard, req.Body) // the client tells
		mu.Lock()
		sent[req.URL.Path]++
		n := len(sent)
		mu.Unlock()
		if n >= files/2 {
			reached()
			<-release // so that the kill comes in between
		}
	}))
	var open sync.WaitGroup // connections
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Done()
		}
	}
	server.Start()
	defer server.Close()
	image := w.Image(t, "a", rig.Spec{Marker: "outputs"}).Tag
	source := filepath.Join(w.Dir, "source")
	for i := range files {
		name := filepath.Join(source, fmt.Sprint(i%100), fmt.Sprint(i))
		if i < 100 {
			must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		}
		must(t, os.WriteFile(name, []byte("x"), 0o644))
	}
	task := tes.Task{
		ID:      "many",
		Inputs:  []tes.Input{{URL: source, Path: "/in", Type: tes.Directory}},
		Outputs: []tes.Output{{URL: server.URL, Path: "/out/*/*", PathPrefix: "/out"}},
		Executors: []tes.Executor{Sh(image, fmt.Sprintf(
			"i=0; while [ $i -lt %d ]; do d=/out/$((i %% 100)); [ -d $d ] || mkdir -p $d; echo $i > $d/$i; i=$((i + 1)); done", files))},
	}
	killed := w.Start(t, task)
	ended := make(chan string)
	go func() {
		_, log := killed.End(t)
		ended <- log
	}()
	select {
	case <-half:
	case log := <-ended:
		t.Fatalf("it ended before half of the files were sent:\n%s", log)
	}
	must(t, killed.Process.Kill())
	<-ended
	close(release)
	// Connections are accepted in their order, so with this one all of the killed
	// run's are; what they brought is counted when they are closed.
	fence, err := http.Head(server.URL)
	must(t, err)
	must(t, fence.Body.Close())
	http.DefaultClient.CloseIdleConnections()
	open.Wait()
	published := 0
	for _, r := range w.Records(t, "many") {
		if r.Detail["what"] == "outputs" && r.Kind == "done" {
			published += len(r.Detail["files"].([]any))
		}
	}
	mu.Lock()
	before := len(sent)
	mu.Unlock()
	if code, log := w.Start(t, task).End(t); code != 0 {
		t.Fatalf("exit code %d\n%s", code, log)
	}
	mu.Lock()
	defer mu.Unlock()
	again := 0
	for _, n := range sent {
		again += n - 1
	}
	// What the journal had is not sent again, what it had not is.
	if len(sent) != files || published == 0 || again != before-published {
		t.Errorf("%d of %d files were sent, %d of them twice; before the kill %d were, and %d journaled", len(sent), files, again, before, published)
	}
	type sum struct{ records, bytes int }
	told := map[string]sum{}
	for _, line := range strings.Split(w.Deckhand(t, "journal", "inspect", "many", "--json").Stdout, "\n") {
		for _, what := range []string{"inputs", "outputs"} {
			if strings.Contains(line, fmt.Sprintf(`"what":%q`, what)) {
				told[what] = sum{told[what].records + 1, told[what].bytes + len(line)}
			}
		}
	}
	t.Logf("%d files were sent twice", again)
	for what, bytes := range map[string]int{"inputs": 64, "outputs": 300} {
		got := told[what]
		t.Logf("%d records with %d bytes tell of %d %s", got.records, got.bytes, files, what)
		if got.records == 0 || got.records > files/100 || got.bytes > bytes*files {
			t.Errorf("%d records with %d bytes tell of %d %s", got.records, got.bytes, files, what)
		}
	}
	w.Clean(t)
}
