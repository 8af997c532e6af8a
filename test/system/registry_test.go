package system

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// A registry that throttles, breaks off, or sends what it should not: what passes
// is outlasted, what does not ends the task as what it is, with a message that
// says what to do and no secret, and nothing is left.
func TestTasksOfFaultyRegistries(t *testing.T) {
	t.Parallel()
	// Docker itself tries a layer for a minute; now it does twice.
	docker := rig.NewDaemon(t)
	docker.Options = []string{"--max-download-attempts=1"}
	docker.Restart(t)
	// Pulls that want a layer at the same time share its fate; busybox is here.
	docker.Cmd(t, "pull", "-q", rig.Image(t, rig.NewRegistry(t), "busybox:1", rig.Spec{}).Tag)

	const signature = "X-Amz-Signature=5ecre7"
	cdn := httptest.NewServer(rig.Says(http.StatusServiceUnavailable, ""))
	t.Cleanup(cdn.Close)
	const layers, manifests = "/blobs/", "/manifests/"
	for _, test := range []struct {
		name string
		is   rig.Fault
		spec rig.Spec
		code int
		says string
	}{
		{"throttled for a while", rig.Fault{Where: manifests, Times: 3, Answer: rig.Says(429, "", "Retry-After", "1")}, rig.Spec{}, 0, "trying again"},
		{"throttled", rig.Fault{Where: manifests, Answer: rig.Says(429, "", "Retry-After", "3600")}, rig.Spec{}, 75, "may answer later"},
		{"throttled by not found for a while", rig.Fault{Where: manifests, Times: 3, Answer: rig.Says(404, "<html>Not Found</html>")}, rig.Spec{}, 0, "trying again"},
		{"not found by a gateway", rig.Fault{Where: manifests, Answer: rig.Says(404, "<html>Not Found</html>")}, rig.Spec{}, 3, "may also be overloaded"},
		{"dies in a layer for a while", rig.Fault{Where: layers, Times: 3, Answer: rig.Dies}, rig.Spec{}, 0, "trying again"},
		{"dies in a layer", rig.Fault{Where: layers, Answer: rig.Dies}, rig.Spec{}, 75, "may answer later"},
		{"other bytes for a while", rig.Fault{Where: layers, Times: 3, Answer: rig.Says(200, "not a layer")}, rig.Spec{}, 0, "trying again"},
		{"other bytes", rig.Fault{Where: layers, Answer: rig.Says(200, "not a layer")}, rig.Spec{}, 3, "other bytes than the digest says"},
		{"a signature that fails", rig.Fault{Where: layers, Answer: rig.Says(307, "", "Location", cdn.URL+"/?"+signature)}, rig.Spec{}, 75, "may answer later"},
		{"another platform", rig.Fault{Where: "no such path"}, rig.Spec{Platform: "linux/s390x"}, 3, "name an image for this platform"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := NewWorldOn(t, docker)
			w.Env = append(w.Env, "DECKHAND_IMAGE_RETRY_FOR=4s")
			if test.code == 0 {
				w.Env = append(w.Env, "DECKHAND_IMAGE_RETRY_FOR=5m")
			}
			test.spec.Size = mib
			image := w.Image(t, "tool:1", test.spec)
			w.Registry.Fail(test.is, image)
			o := w.MustRun(t, test.code, tes.Task{ID: "t", Executors: []tes.Executor{{Image: image.Tag, Command: []string{"true"}}}})
			for _, words := range []string{test.says, image.Tag} {
				if !strings.Contains(o.Stderr, words) {
					t.Errorf("%q is not in:\n%s", words, o.Stderr)
				}
			}
			end := map[int]string{0: working + " Complete", 3: "SystemError", 75: "Interrupted"}[test.code]
			if path := w.Path(t, "t"); !strings.HasSuffix(path, end) {
				t.Errorf("the task went through %s, want %s", path, end)
			}
			if state := map[int]tes.State{0: tes.Complete, 3: tes.SystemError}[test.code]; o.Task.State != state {
				t.Errorf("the result's state is %q, want %q", o.Task.State, state)
			}
			said := o.Stderr + o.Stdout + w.Deckhand(t, "journal", "export").Stdout
			if strings.Contains(said, "5ecre7") {
				t.Errorf("a signature is in what was said:\n%s", said)
			}
			w.Clean(t)
			if got := w.blobs(image); test.spec.Platform != "" && len(got) > 0 {
				t.Errorf("layers were fetched for nothing: %q", got)
			}
			if test.code != 0 {
				if i := w.Images(t); len(i.Ledger) > 0 {
					t.Errorf("ledger: %+v", i.Ledger)
				}
				if left := docker.Cmd(t, "image", "ls", "-aq", "--filter", "reference="+w.Registry.Addr()+"/*"); left != "" {
					t.Errorf("images are left: %s", left)
				}
			}
		})
	}
}

// The credentials are those of Docker's configuration: in the file, of a helper,
// or a token that the registry has given in the place of a password. Without
// them the task fails at once, and says how to log in.
func TestTasksOfPrivateRegistries(t *testing.T) {
	w := newImages(t)
	const password, identity, access = "open-sesame", "1dentity-long-lived", "acce55-short-lived"
	registry := w.Registry.Addr()
	var byToken atomic.Bool
	w.Registry.Intercept(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if r.FormValue("refresh_token") != identity {
				rw.WriteHeader(http.StatusUnauthorized)
				return true
			}
			rw.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(rw, `{"access_token":%q,"expires_in":300}`, access)
			return true
		}
		user, given, _ := r.BasicAuth()
		if !byToken.Load() && user == "someone" && given == password || byToken.Load() && r.Header.Get("Authorization") == "Bearer "+access {
			return false
		}
		challenge := `Basic realm="test"`
		if byToken.Load() {
			challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:a:pull"`, registry)
		}
		rw.Header().Set("WWW-Authenticate", challenge)
		rw.WriteHeader(http.StatusUnauthorized)
		return true
	})
	w.Write(t, "bin/docker-credential-vault", "#!/bin/sh\n[ \"$1\" = get ] && printf '{\"Username\":\"someone\",\"Secret\":\""+password+"\"}'\n")
	if err := os.Chmod(filepath.Join(w.Dir, "bin/docker-credential-vault"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.set("DOCKER_CONFIG", filepath.Join(w.Dir, "docker"))
	w.set("PATH", filepath.Join(w.Dir, "bin")+":"+os.Getenv("PATH"))
	login := func(given string) string {
		return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, registry, base64.StdEncoding.EncodeToString([]byte("someone:"+given)))
	}
	for _, test := range []struct {
		name, config string
		token        bool
		code         int
	}{
		{"none", `{}`, false, 3},
		{"a wrong password", login("gu3ss"), false, 3},
		{"the file", login(password), false, 0},
		{"a helper for the registry", fmt.Sprintf(`{"credHelpers":{%q:"vault"}}`, registry), false, 0},
		{"a store for all registries", `{"credsStore":"vault"}`, false, 0},
		{"a helper that is not there", fmt.Sprintf(`{"credHelpers":{%q:"absent"}}`, registry), false, 3},
		{"an identity token", fmt.Sprintf(`{"auths":{%q:{"auth":"PHRva2VuPjo=","identitytoken":%q}}}`, registry, identity), true, 0},
		{"an expired identity token", fmt.Sprintf(`{"auths":{%q:{"auth":"PHRva2VuPjo=","identitytoken":"0utdated"}}}`, registry), true, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			byToken.Store(test.token)
			w.Write(t, "docker/config.json", test.config)
			if HasImage(t, w.a.Tag) { // each pulls it
				rig.DockerCmd(t, "rmi", w.a.Tag)
			}
			task := w.use(w.a.Tag)
			o := w.MustRun(t, test.code, task)
			if test.code == 0 {
				equal(t, "came", o.Log(t).Metadata["deckhand.image_pull"], "pulled")
				// Its tag is asked about with the same credentials.
				w.Registry.Reset()
				again := w.MustRun(t, 0, w.use(w.a.Tag))
				equal(t, "again", again.Log(t).Metadata["deckhand.image_pull"], "reused")
				if strings.Contains(again.Stderr, "warning") {
					t.Errorf("the registry did not answer:\n%s", again.Stderr)
				}
			} else {
				equal(t, "state", o.Task.State, tes.SystemError)
				if !strings.Contains(o.Stderr, "docker login") || !strings.Contains(o.Stderr, w.a.Tag) {
					t.Errorf("no helpful message:\n%s", o.Stderr)
				}
			}
			said := o.Stderr + w.Deckhand(t, "journal", "export").Stdout
			for _, secret := range []string{password, identity, access, "gu3ss", "0utdated", base64.StdEncoding.EncodeToString([]byte("someone:" + password))} {
				if strings.Contains(said, secret) {
					t.Errorf("%s is in what was said:\n%s", secret, said)
				}
			}
			w.Clean(t)
		})
	}
}
