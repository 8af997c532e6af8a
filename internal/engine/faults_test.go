package engine_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/cli/cli/config"

	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/rig"
)

// Registries and what stands before them fail in many ways. What passes is
// outlasted, what does not is named, and nothing that is wrong gets in.
func TestFaultyRegistries(t *testing.T) {
	docker := connect(t, rig.Docker(t))
	const layers, manifests = "/blobs/", "/manifests/"
	for _, test := range []struct {
		name  string
		is    rig.Fault
		fault machine.Fault // "" when the pull is to succeed
		says  string
	}{
		{"manifest not found, by a gateway, for a while", rig.Fault{Where: manifests, Times: 3, Answer: rig.Says(404, "<html>Not Found</html>")}, "", ""},
		{"manifest not found, without a word, for a while", rig.Fault{Where: manifests, Times: 3, Answer: rig.Says(404, "")}, "", ""},
		{"layer not found for a while", rig.Fault{Where: layers, Times: 3, Answer: rig.Says(404, `{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}`)}, "", ""},
		{"too many requests for a layer, for a while", rig.Fault{Where: layers, Times: 3, Answer: rig.Says(429, "")}, "", ""},
		{"dies in the middle of a layer", rig.Fault{Where: layers, Times: 1, Answer: rig.Dies}, "", ""},
		{"other bytes once", rig.Fault{Where: layers, Times: 1, Answer: rig.Says(200, "not a layer")}, "", ""},
		{"other bytes for ever", rig.Fault{Where: layers, Answer: rig.Says(200, "not a layer")}, machine.TaskFault, "other bytes than the digest says"},
		{"manifest unknown", rig.Fault{Where: manifests, Answer: rig.Says(404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)}, machine.TaskFault, "check the name"},
		{"rate limit called denied", rig.Fault{Where: manifests, Times: 2, Answer: rig.Says(403, `{"errors":[{"code":"DENIED","message":"request exceeded pull rate limit"}]}`)}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			registry := rig.NewRegistry(t)
			image := rig.Image(t, registry, "tool:1", rig.Spec{Size: mib})
			failed := registry.Fail(test.is, image)
			err := docker.Pull(t.Context(), image.Tag, nil)
			if failed.Load() < max(test.is.Times, 1) {
				t.Errorf("it failed %d times only", failed.Load())
			}
			if test.fault == "" {
				if err != nil {
					t.Fatal(err)
				}
				if i, err := docker.Image(t.Context(), image.Tag); err != nil || i.ID != image.ID {
					t.Errorf("pulled %s, %v; want %s", i.ID, err, image.ID)
				}
				return
			}
			if err == nil || machine.FaultOf(err) != test.fault || !contains(err, image.Tag, test.says) {
				t.Errorf("%v (fault %s)", err, machine.FaultOf(err))
			}
			if _, err := docker.Image(t.Context(), image.ID); err == nil {
				t.Error("the image is there")
			}
		})
	}
}

// A registry that answers a digest with another manifest, or a tag with
// manifests for other platforms alone, gives no image.
func TestWrongManifests(t *testing.T) {
	docker := connect(t, rig.Docker(t))
	registry := rig.NewRegistry(t)
	right := rig.Image(t, registry, "tool:1", rig.Spec{Marker: "right"})
	wrong := rig.Image(t, registry, "tool:2", rig.Spec{Marker: "wrong"})
	_, digest, _ := strings.Cut(right.Digest, "@")
	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		r.URL.Path = strings.ReplaceAll(r.URL.Path, digest, "2")
		return false
	})
	if err := docker.Pull(t.Context(), right.Digest, nil); machine.FaultOf(err) != machine.TaskFault || !contains(err, digest) {
		t.Errorf("another manifest: %v (fault %s)", err, machine.FaultOf(err))
	}
	for _, id := range []string{right.ID, wrong.ID} {
		if _, err := docker.Image(t.Context(), id); err == nil {
			t.Error("an image is there")
		}
	}

	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/manifests/1") {
			return false
		}
		const kind = "application/vnd.docker.distribution.manifest.list.v2+json"
		w.Header().Set("Content-Type", kind)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"schemaVersion": 2, "mediaType": kind, "manifests": []any{map[string]any{
				"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "size": 100, "digest": digest,
				"platform": map[string]string{"os": "linux", "architecture": "s390x"},
			}},
		})
		return true
	})
	if err := docker.Pull(t.Context(), right.Tag, nil); machine.FaultOf(err) != machine.TaskFault || !contains(err, right.Tag, "platform") {
		t.Errorf("no manifest for this platform: %v (fault %s)", err, machine.FaultOf(err))
	}
	if m, err := docker.Manifest(t.Context(), right.Tag); err == nil || machine.FaultOf(err) == machine.EngineFault {
		t.Errorf("the manifest of no image: %+v, %v", m, err)
	}
}

// A registry that is overloaded is not asked a second time by way of Docker.
func TestOverloadedRegistryIsLeftAlone(t *testing.T) {
	docker := connect(t, rig.Docker(t))
	registry := rig.NewRegistry(t)
	image := rig.Image(t, registry, "tool:1", rig.Spec{})
	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	})
	if _, err := docker.RemoteDigest(t.Context(), image.Tag); machine.FaultOf(err) != machine.RetryLater {
		t.Errorf("%v (fault %s)", err, machine.FaultOf(err))
	}
	asked := 0
	for _, r := range registry.Requests() {
		if strings.Contains(r.Path, "/manifests/") {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times: %v", asked, registry.Requests())
	}
}

// With an identity token, which docker login keeps for registries that give one
// in the place of the password, access is asked of the token server (OAuth2).
func TestIdentityToken(t *testing.T) {
	docker := connect(t, rig.Docker(t))
	registry := rig.NewRegistry(t)
	image := rig.Image(t, registry, "private:1", rig.Spec{Marker: "identity"})
	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if r.FormValue("grant_type") != "refresh_token" || r.FormValue("refresh_token") != "long lived" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"access_token":"short lived","expires_in":300}`)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer short lived" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:private:pull"`, registry.Addr()))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	dir := t.TempDir()
	before := config.Dir()
	config.SetDir(dir)
	t.Cleanup(func() { config.SetDir(before) })
	for token, let := range map[string]bool{"long lived": true, "expired": false} {
		text := fmt.Sprintf(`{"auths":{%q:{"auth":"PHRva2VuPjo=","identitytoken":%q}}}`, registry.Addr(), token)
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		registry.Reset()
		digest, err := docker.RemoteDigest(t.Context(), image.Tag)
		for what, err := range map[string]error{"digest": err, "pull": docker.Pull(t.Context(), image.Tag, nil)} {
			switch {
			case let && err != nil:
				t.Errorf("token %q, %s: %v", token, what, err)
			case !let && (machine.FaultOf(err) != machine.TaskFault || !contains(err, image.Tag, "docker login")):
				t.Errorf("token %q, %s: %v, want it refused", token, what, err)
			}
		}
		if let && !strings.HasSuffix(image.Digest, "@"+digest) {
			t.Errorf("digest %q of %s", digest, image.Digest)
		}
		if err := docker.RemoveImage(t.Context(), image.Tag); let && err != nil {
			t.Error(err)
		}
	}
}
