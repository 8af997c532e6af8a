package engine_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/rig"
)

const mib = 1 << 20

// about says whether a size is that many MiB, give or take what an image has
// beside its filling.
func about(size, mibs int64) bool { return size >= mibs*mib && size < (mibs+2)*mib }

func TestPullNeed(t *testing.T) {
	registry := rig.NewRegistry(t)
	docker := connect(t, rig.Docker(t))
	solid := rig.Image(t, registry, "solid:1", rig.Spec{Size: 8 * mib, Shared: 16 * mib})
	airy := rig.Image(t, registry, "airy:1", rig.Spec{Zeros: 128 * mib, Size: 4 * mib, Shared: 16 * mib})
	manifests := func(refs ...string) (all []*engine.Manifest) {
		t.Helper()
		for _, ref := range refs {
			m, err := docker.Manifest(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m)
		}
		return all
	}
	need := func(refs ...string) engine.PullNeed {
		t.Helper()
		n, err := docker.PullNeed(t.Context(), manifests(refs...))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// The layer with busybox is on every node by now.
	rig.DockerCmd(t, "pull", "-q", rig.Image(t, registry, "busybox:1", rig.Spec{}).Tag)
	registry.Reset()
	if n := need(solid.Tag); n.Layers != 2 || !about(n.Compressed, 24) || !about(n.Unpacked, 24) || !about(n.Peak, 32) {
		t.Errorf("an image that does not compress: %+v", n)
	}
	for _, r := range registry.Requests() {
		if strings.Contains(r.Path, "/blobs/") && !strings.HasSuffix(r.Path, solid.ID) && r.Status != http.StatusPartialContent {
			t.Errorf("a layer was fetched: %v", r)
		}
	}
	if n := need(airy.Digest); n.Layers != 2 || !about(n.Compressed, 20) || !about(n.Unpacked, 128+20) || !about(n.Peak, 128+20+4) {
		t.Errorf("an image that compresses: %+v", n)
	}
	if n := need(solid.Tag, airy.Tag); n.Layers != 3 || n.Saved != 0 || !about(n.Unpacked, 128+28) {
		t.Errorf("two images that share a layer: %+v", n)
	}
	rig.DockerCmd(t, "pull", "-q", solid.Tag)
	if n := need(solid.Tag); n.Layers != 0 || n.Peak != 0 || n.Saved != 0 {
		t.Errorf("an image that is there: %+v", n)
	}
	if n := need(airy.Tag); n.Layers != 1 || !about(n.Unpacked, 128+4) {
		t.Errorf("an image that shares a layer with one that is there: %+v", n)
	}

	// Without the other image the shared layer is to be loaded as well, and its size is
	// asked for only then.
	m := manifests(airy.Tag)
	if !slices.Contains(m[0].IDs, airy.ID) {
		t.Errorf("its IDs are %q, want %s", m[0].IDs, airy.ID)
	}
	ends := func() (asked int) {
		for _, r := range registry.Requests() {
			if r.Status == http.StatusPartialContent {
				asked++
			}
		}
		return asked
	}
	registry.Reset()
	for range 2 {
		if n, err := docker.PullNeed(t.Context(), m, solid.ID); err != nil || n.Layers != 1 || n.Saved != 1 || ends() != 1 || len(registry.Requests()) != 1 {
			t.Errorf("with an image that is to go: %+v, %v, asked %v", n, err, registry.Requests())
		}
	}
	rig.DockerCmd(t, "rmi", solid.Tag)
	for range 2 {
		if n, err := docker.PullNeed(t.Context(), m, solid.ID); err != nil || n.Layers != 2 || n.Saved != 0 || !about(n.Unpacked, 128+20) || ends() != 2 {
			t.Errorf("when it has gone: %+v, %v, asked %v", n, err, registry.Requests())
		}
	}
	rig.DockerCmd(t, "pull", "-q", solid.Tag)

	if m, err := docker.Manifest(t.Context(), registry.Addr()+"/absent:1"); err == nil || machine.FaultOf(err) == machine.EngineFault {
		t.Errorf("an image that does not exist: %+v, %v", m, err)
	}
	alien := rig.Image(t, registry, "alien:1", rig.Spec{Platform: "linux/s390x"})
	if m, err := docker.Manifest(t.Context(), alien.Tag); !errors.Is(err, engine.ErrPlatform) || machine.FaultOf(err) != machine.TaskFault || !contains(err, alien.Tag, "linux/s390x") {
		t.Errorf("an image for another platform: %+v, %v", m, err)
	}
	// A registry that knows no ranges: a layer takes no less than it has.
	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	})
	if n := need(airy.Tag); n.Layers != 1 || n.Unpacked != n.Compressed || !about(n.Unpacked, 4) {
		t.Errorf("without ranges: %+v", n)
	}
}

// The bytes of each layer add up to the image's, and are the same in every image that
// has it; which steps made a layer without a byte, the registry alone tells.
func TestLayerBytes(t *testing.T) {
	registry := rig.NewRegistry(t)
	docker := connect(t, rig.Docker(t))
	var all [][]int64
	for _, spec := range []rig.Spec{{Shared: 4 * mib}, {Shared: 4 * mib, Hollow: true, Size: mib}} {
		ref := rig.Image(t, registry, "layers:1", spec)
		rig.DockerCmd(t, "pull", "-q", ref.Tag)
		img, err := docker.Image(t.Context(), ref.Tag)
		if err != nil {
			t.Fatal(err)
		}
		m, err := docker.Manifest(t.Context(), ref.Tag)
		if err != nil {
			t.Fatal(err)
		}
		for _, manifest := range []*engine.Manifest{m, nil, {Reference: "another"}} {
			bytes, err := docker.LayerBytes(t.Context(), img, manifest)
			if err != nil {
				t.Fatal(err)
			}
			if spec.Hollow && manifest != m {
				if bytes != nil {
					t.Errorf("without the manifest: %v", bytes)
				}
				continue
			}
			sum := int64(0)
			for _, b := range bytes {
				sum += b
			}
			if len(bytes) != len(ref.Layers) || len(bytes) != len(img.Layers) || sum != img.Size {
				t.Errorf("%d layers of %v bytes, want %d of %d in all", len(img.Layers), bytes, len(ref.Layers), img.Size)
			}
			all = append(all, bytes)
		}
	}
	if first, last := all[0], all[len(all)-1]; !slices.Equal(first[:2], last[:2]) || !about(first[1], 4) || last[2] != 0 || !about(last[3], 1) {
		t.Errorf("%v and %v", first, last)
	}
	if _, err := docker.LayerBytes(t.Context(), engine.Image{ID: "sha256:" + strings.Repeat("0", 64)}, nil); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("of an image that is not there: %v", err)
	}
}

// A tag is asked for once, with HEAD, and nothing else is fetched; where this
// process does not get an answer, Docker may.
func TestDigestIsOneQuestion(t *testing.T) {
	registry := rig.NewRegistry(t)
	image := rig.Image(t, registry, "tool:1", rig.Spec{})
	docker := connect(t, rig.Docker(t))
	ask := func(ref string) string {
		t.Helper()
		registry.Reset()
		digest, err := docker.RemoteDigest(t.Context(), ref)
		if err != nil || !strings.HasSuffix(image.Digest, "@"+digest) {
			t.Fatalf("digest of %s: %q, %v", ref, digest, err)
		}
		var asked []string
		for _, r := range registry.Requests() {
			asked = append(asked, fmt.Sprint(r.Method, " ", r.Path, " ", r.Status))
		}
		return strings.Join(asked, ", ")
	}
	if got, want := ask(image.Tag), "GET /v2/ 200, HEAD /v2/tool/manifests/1 200"; got != want {
		t.Errorf("asked for a tag: %s, want %s", got, want)
	}
	if got := ask(image.Digest); got != "" {
		t.Errorf("asked for a digest: %s", got)
	}
	// A registry without HEAD.
	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead {
			return false
		}
		w.WriteHeader(http.StatusMethodNotAllowed)
		return true
	})
	if got := ask(image.Tag); !strings.Contains(got, "GET /v2/tool/manifests/1 200") {
		t.Errorf("asked a registry without HEAD: %s", got)
	}
}
