package system

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/power"
	"github.com/deckhand/deckhand/test/rig"
)

// The power goes while inputs come. Docker keeps its data on another disk, and has
// lost nothing there: its containers mount what was made for them on the root's.
func TestPowerCutOfTheRoot(t *testing.T) {
	w := NewWorld(t)
	fs := power.NewFilesystem(t)
	w.Root = filepath.Join(fs.Dir, "root")
	w.Env = append(w.Env, "DECKHAND_DISK_FLOOR=16MiB")
	var comes atomic.Bool
	source := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", "7")
		_ = http.NewResponseController(rw).Flush()
		if !comes.Load() && r.Method == http.MethodGet {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(rw, "content")
	}))
	t.Cleanup(source.Close)
	image := w.Image(t, "cut", rig.Spec{Volumes: []string{"/scratch"}})
	task := tes.Task{
		ID: "cut", Executors: []tes.Executor{Sh(image.Digest, "cat /in/x; ls -d /scratch /vol; echo >&2 said")},
		Inputs: []tes.Input{{URL: source.URL + "/x", Path: "/in/x"}}, Volumes: []string{"/vol"},
	}
	task.Executors[0].Stdout = "/vol/stdout"
	// Then the image is there: a pull syncs what else is on Docker's disk.
	w.MustRun(t, 0, tes.Task{ID: "first", Executors: []tes.Executor{Sh(image.Digest, "true")}})
	run := w.Start(t, task)
	run.Until(t, "staging inputs")
	_ = run.Process.Kill()
	run.End(t)
	fs.Restart()
	comes.Store(true)
	w.restart(t)
	o := w.MustRun(t, 0, task)
	if l := o.Log(t); len(o.Task.Logs) != 1 || l.Logs[0].Stderr != "said\n" {
		t.Errorf("after %d attempts the executor's account is %+v", len(o.Task.Logs), l.Logs[0])
	}
	w.Clean(t)
}
