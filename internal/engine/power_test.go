package engine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/power"
)

// A layer outlives a power cut before the pull has ended, and with its end the
// image does: what Docker has unpacked is synced as it comes.
func TestLayersOutliveAPowerCut(t *testing.T) {
	fs := power.NewFilesystem(t)
	layer, image := filepath.Join(fs.Dir, "layer"), filepath.Join(fs.Dir, "image")
	content := strings.Repeat("content ", 1000)
	write := func(name string) {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Error(err)
		}
	}
	there := func(name string) (whole bool) {
		fs.Cut(func(dir string) {
			text, _ := os.ReadFile(fs.Then(dir, name))
			whole = string(text) == content
		})
		return whole
	}
	synced := false
	d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, _ int) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/info"):
			_ = json.NewEncoder(w).Encode(map[string]string{"DockerRootDir": fs.Dir, "OSType": "linux", "Architecture": "x86_64"})
		case strings.HasSuffix(r.URL.Path, "/images/create"):
			write(layer)
			fmt.Fprintln(w, `{"id":"layer","status":"Pull complete"}`)
			_ = http.NewResponseController(w).Flush()
			for until := time.Now().Add(10 * time.Second); !synced && time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
				synced = there(layer)
			}
			write(image)
			fmt.Fprintln(w, `{"status":"Status: Downloaded newer image for x"}`)
		default:
			_ = json.NewEncoder(w).Encode(map[string]string{"Id": "sha256:x", "Os": "linux", "Architecture": "amd64"})
		}
	})
	if err := d.connect(t).Pull(t.Context(), "x", nil); err != nil {
		t.Fatal(err)
	}
	if !synced {
		t.Error("a power cut in the pull takes a layer that is whole")
	}
	if !there(image) {
		t.Error("a power cut after the pull takes the image")
	}
}

// What a disk could not write in the middle of a pull fails it, though nobody is told of it again.
func TestPullOnADiskThatFails(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	if err := os.Symlink("data", data); err != nil { // a circle: it cannot be opened
		t.Fatal(err)
	}
	asked, pulling := make(chan bool, 1), false
	d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, _ int) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/info"):
			if pulling = !pulling; pulling {
				asked <- true
			} else if err := errors.Join(os.Remove(data), os.Mkdir(data, 0o700)); err != nil {
				t.Error(err)
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"DockerRootDir": data, "OSType": "linux", "Architecture": "x86_64"})
		case strings.HasSuffix(r.URL.Path, "/images/create"):
			fmt.Fprintln(w, `{"id":"layer","status":"Pull complete"}`)
			_ = http.NewResponseController(w).Flush()
			<-asked
		default:
			_ = json.NewEncoder(w).Encode(map[string]string{"Id": "sha256:x", "Os": "linux", "Architecture": "amd64"})
		}
	})
	if err := d.connect(t).Pull(t.Context(), "x", nil); machine.FaultOf(err) != machine.NodeFault || !strings.Contains(err.Error(), data) {
		t.Errorf("%v", err)
	}
}

// A pull that has taken up a layer which a power cut has broken, as nobody had synced
// it, fetches all of the image again.
func TestPullMendsABrokenLayer(t *testing.T) {
	for _, broken := range []int{1, 2} { // images that Docker has there, one after the other
		var did []string
		d := newDaemon(t, "1.41", func(w http.ResponseWriter, r *http.Request, _ int) {
			switch _, call, _ := strings.Cut(r.URL.Path, "/images/"); {
			case strings.HasSuffix(r.URL.Path, "/info"):
				_ = json.NewEncoder(w).Encode(map[string]string{"OSType": "linux", "Architecture": "x86_64"})
			case call == "create":
				did = append(did, "pull")
			case r.Method == http.MethodDelete:
				did = append(did, "remove "+call)
				fmt.Fprint(w, "[]")
			case len(did) <= 2*broken-1:
				w.WriteHeader(http.StatusInternalServerError)
				fmt.Fprint(w, `{"message":"readlink /var/lib/docker/overlay2/l: invalid argument"}`)
			default:
				_ = json.NewEncoder(w).Encode(map[string]string{"Id": "sha256:x", "Os": "linux", "Architecture": "amd64"})
			}
		})
		err := d.connect(t).Pull(t.Context(), "x:1", nil)
		if want := []string{"pull", "remove x:1", "pull"}; !slices.Equal(did, want) || (err == nil) != (broken == 1) {
			t.Errorf("Docker was asked to %q, want %q (%v)", did, want, err)
		}
	}
}
