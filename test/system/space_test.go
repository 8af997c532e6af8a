package system

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

const mib = 1 << 20

// blobs lists the blobs that were fetched whole, the configuration of an image aside.
func (w *World) blobs(images ...rig.Ref) (whole []string) {
	for _, r := range w.Registry.Requests() {
		_, blob, ok := strings.Cut(r.Path, "/blobs/")
		for _, i := range images {
			ok = ok && blob != i.ID
		}
		if ok && r.Method == http.MethodGet && r.Status == http.StatusOK {
			whole = append(whole, blob)
		}
	}
	return whole
}

// What does not fit is refused in numbers before a byte of it comes: the image
// on Docker's filesystem, the inputs on that of the root.
func TestSpaceIsCheckedBeforeItIsSpent(t *testing.T) {
	t.Parallel()
	docker := rig.Filesystem(t, "ext4", 160*mib)
	w := NewWorldOn(t, rig.NewDaemon(t, docker))
	w.Root = filepath.Join(rig.Filesystem(t, "ext4", 320*mib), "root")
	w.Env = append(w.Env, "DECKHAND_DISK_FLOOR=4MiB", "DECKHAND_DISK_INODE_FLOOR=100")
	small := w.Image(t, "small:1", rig.Spec{Marker: "small"})
	// Loads in 1 MiB, and unpacks to more than there is.
	airy := w.Image(t, "airy:1", rig.Spec{Zeros: 200 * mib, Size: mib})
	// Fits on the disk when nothing else is there.
	first := w.Image(t, "first:1", rig.Spec{Size: 50 * mib, Marker: "first"})
	second := w.Image(t, "second:1", rig.Spec{Size: 50 * mib, Marker: "second"})
	large := w.Image(t, "large:1", rig.Spec{Size: 120 * mib})

	fetched := false
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", fmt.Sprint(400*mib))
		fetched = fetched || r.Method != http.MethodHead
	}))
	defer server.Close()
	huge := w.Write(t, "huge", "") // with all its blocks: holes need none
	f, err := os.OpenFile(huge, os.O_WRONLY, 0)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 400*mib), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	w.Write(t, "many/1", "")
	for i := range 300 {
		w.Write(t, fmt.Sprint("many/", i), "")
	}

	runs := 0
	task := func(image rig.Ref, inputs ...tes.Input) tes.Task {
		runs++
		return tes.Task{ID: fmt.Sprint("t", runs), Inputs: inputs, Executors: []tes.Executor{{Image: image.Tag, Command: []string{"true"}}}}
	}
	w.MustRun(t, 0, task(small))
	for _, test := range []struct {
		name string
		task tes.Task
		env  string
		says []string
	}{
		{"image", task(large), "", []string{docker, "for image " + large.Tag, "are needed", "are free", "disk.floor"}},
		{"image that compresses", task(airy), "", []string{docker, "for image " + airy.Tag}},
		{"inputs by http", task(small, tes.Input{URL: server.URL + "/in", Path: "/in"}), "", []string{w.Root, "400MiB for the inputs"}},
		{"local inputs", task(small, tes.Input{URL: huge, Path: "/in"}), "", []string{w.Root, "400MiB for the inputs"}},
		{"inodes", task(small, tes.Input{URL: filepath.Join(w.Dir, "many"), Path: "/in", Type: tes.Directory}), "DECKHAND_DISK_INODE_FLOOR=100000000",
			[]string{"inodes", "100000000 to stay free by disk.inode_floor"}},
		{"floor", task(small), "DECKHAND_DISK_FLOOR=150MiB", []string{docker, "150MiB to stay free"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			was := w.Env
			if test.env != "" {
				w.Env = append(w.Env, test.env)
			}
			w.Registry.Reset()
			o := w.MustRun(t, 78, test.task)
			w.Env = was
			equal(t, "state", o.Task.State, tes.SystemError)
			for _, words := range test.says {
				if !strings.Contains(o.Stderr, words) {
					t.Errorf("%q is not in:\n%s", words, o.Stderr)
				}
			}
			if got := w.blobs(large, airy); len(got) > 0 || fetched {
				t.Errorf("fetched all the same: blobs %v, inputs %v", got, fetched)
			}
			w.Clean(t)
		})
	}

	// The space that the old image gives back counts.
	w.MustRun(t, 0, task(first))
	w.MustRun(t, 0, task(second))
	w.Clean(t)
}
