package rig

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// ownerLabel is on every image of the rig, with the registry's name as value.
const ownerLabel = "rig.registry"

// Spec says what an image holds beside busybox. The zero value is an image with
// a shell, every busybox applet and a /tmp. Equal specs under one name are one
// image; in another registry they are another, so that no test deletes or keeps
// the image of a test beside it.
type Spec struct {
	Marker     string            // tells images apart that are otherwise equal
	Files      map[string]string // absolute path -> content; mode 0755 when it begins with "#!", else 0644
	Links      map[string]string // absolute path -> what the symbolic link leads to
	Size       int64             // bytes of incompressible filling
	Zeros      int64             // bytes of filling that compress to next to nothing
	Shared     int64             // bytes in a layer of their own, the same in every image that has it
	Hollow     bool              // has a layer without a byte, as WORKDIR makes it
	Apart      bool              // busybox is no layer of its own: the image shares none with others
	Platform   string            // os/architecture, default linux on this machine's architecture
	Env        []string          // NAME=value
	Entrypoint []string
	Cmd        []string
	User       string
	Workdir    string
	Volumes    []string // absolute paths
	Labels     map[string]string
}

// Ref names an image that was pushed.
type Ref struct {
	Tag    string // 127.0.0.1:PORT/name:tag
	Digest string // 127.0.0.1:PORT/name@sha256:…
	ID     string // sha256:… of the configuration: the image ID of an engine with graph drivers
	// Layers are the digests of its layers as the registry has them, the lowest first.
	Layers []string
}

// Image builds an image and pushes it to reg as name, which may end in :tag
// (default latest). Pushing another Spec under the same name moves the tag.
// No engine takes part.
func Image(tb TB, reg *Registry, name string, spec Spec) Ref {
	tb.Helper()
	repo, tag, ok := strings.Cut(name, ":")
	if !ok {
		tag = "latest"
	}
	base, err := baseLayer()
	if err != nil {
		giveUp(tb, err)
	}
	top, err := spec.layer(reg.nonce + "/" + repo)
	if err != nil {
		giveUp(tb, err)
	}
	layers := []layer{base, top}
	if spec.Apart {
		layers = []layer{top}
	}
	if spec.Shared > 0 {
		shared, err := Spec{Size: spec.Shared}.layer("shared")
		if err != nil {
			giveUp(tb, err)
		}
		layers = []layer{base, shared, top}
	}
	if spec.Hollow {
		hollow, err := tarball(func(t *tree) { t.dir("hollow", 0o755) })
		if err != nil {
			giveUp(tb, err)
		}
		layers = slices.Insert(layers, len(layers)-1, hollow)
	}
	config := mustJSON(spec.config(reg.nonce, layers...))
	var descriptors []any
	var digests []string
	for _, l := range layers {
		digests = append(digests, digest(l.blob))
		descriptors = append(descriptors, descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", l.blob))
	}
	manifest := mustJSON(map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.docker.distribution.manifest.v2+json",
		"config":        descriptor("application/vnd.docker.container.image.v1+json", config),
		"layers":        descriptors,
	})
	for _, l := range append(layers, layer{blob: config}) {
		if err := reg.pushBlob(repo, l.blob); err != nil {
			tb.Fatalf("push a blob of %s: %v", name, err)
		}
	}
	if err := reg.pushManifest(repo, tag, manifest); err != nil {
		tb.Fatalf("push the manifest of %s: %v", name, err)
	}
	return Ref{
		Tag:    reg.Addr() + "/" + repo + ":" + tag,
		Digest: reg.Addr() + "/" + repo + "@" + digest(manifest),
		ID:     digest(config),
		Layers: digests,
	}
}

// config is the image configuration (OCI image spec, config.md).
func (s Spec) config(owner string, layers ...layer) map[string]any {
	platform := s.Platform
	if platform == "" {
		platform = "linux/" + runtime.GOARCH
	}
	system, architecture, _ := strings.Cut(platform, "/")
	env := append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, s.Env...)
	labels := map[string]string{ownerLabel: owner}
	maps.Copy(labels, s.Labels)
	volumes := map[string]struct{}{}
	for _, v := range s.Volumes {
		volumes[v] = struct{}{}
	}
	cmd := s.Cmd
	if cmd == nil && s.Entrypoint == nil {
		cmd = []string{"sh"}
	}
	var diffs []string
	var history []any
	for _, l := range layers {
		diffs = append(diffs, l.diffID)
		// Each layer has a step without one after it, such as ENV is.
		history = append(history, map[string]any{"created_by": "RUN"}, map[string]any{"created_by": "ENV", "empty_layer": true})
	}
	return map[string]any{
		"created":      "2020-01-01T00:00:00Z",
		"os":           system,
		"architecture": architecture,
		"config": map[string]any{
			"Env": env, "Entrypoint": s.Entrypoint, "Cmd": cmd, "User": s.User,
			"WorkingDir": s.Workdir, "Volumes": volumes, "Labels": labels,
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": diffs},
		"history": history,
	}
}

// layer is one filesystem layer: its compressed form, and the digest of the
// uncompressed one.
type layer struct {
	blob   []byte
	diffID string
}

// layer holds what is particular to the image; marker makes it unlike any other.
func (s Spec) layer(marker string) (layer, error) {
	base := func(*tree) {}
	if s.Apart {
		var err error
		if base, err = busybox(); err != nil {
			return layer{}, err
		}
	}
	return tarball(func(t *tree) {
		base(t)
		t.file("etc/marker", 0o644, []byte(marker+"\n"+s.Marker+"\n"))
		for _, name := range slices.Sorted(maps.Keys(s.Files)) {
			mode := int64(0o644)
			if strings.HasPrefix(s.Files[name], "#!") {
				mode = 0o755
			}
			t.file(strings.TrimPrefix(name, "/"), mode, []byte(s.Files[name]))
		}
		for _, name := range slices.Sorted(maps.Keys(s.Links)) {
			t.link(strings.TrimPrefix(name, "/"), s.Links[name])
		}
		if s.Size > 0 {
			filling := make([]byte, s.Size)
			_, _ = rand.NewChaCha8(sha256.Sum256([]byte(marker + s.Marker))).Read(filling)
			t.file("filling", 0o644, filling)
		}
		if s.Zeros > 0 {
			t.file("zeros", 0o644, make([]byte, s.Zeros))
		}
	})
}

// baseLayer has what busybox writes. It is the same in every image.
var baseLayer = sync.OnceValues(func() (layer, error) {
	write, err := busybox()
	if err != nil {
		return layer{}, err
	}
	return tarball(write)
})

// busybox writes the program with a link for each applet, and what programs expect of
// a root directory.
var busybox = sync.OnceValues(func() (func(*tree), error) {
	file, err := program("busybox", "busybox-static")
	if err != nil {
		return nil, err
	}
	binary, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	exe, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if exe.Section(".interp") != nil {
		return nil, lacking{file + " needs shared libraries: apt-get install busybox-static"}
	}
	applets, err := exec.Command(file, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s: %w", file, err)
	}
	return func(t *tree) {
		for _, dir := range []string{"bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "var"} {
			t.dir(dir, 0o755)
		}
		t.dir("tmp", 0o1777)
		t.link("sbin", "bin")
		t.link("usr/bin", "../bin")
		t.link("usr/sbin", "../bin")
		t.link("var/tmp", "../tmp")
		t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
		t.file("etc/group", 0o644, []byte("root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"))
		t.file("bin/busybox", 0o755, binary)
		for _, applet := range strings.Fields(string(applets)) {
			if applet != "busybox" {
				t.link("bin/"+path.Base(applet), "busybox")
			}
		}
	}, nil
})

// tree writes the entries of a layer. Its times are zero, so that equal content
// gives equal digests.
type tree struct {
	w   *tar.Writer
	err error
}

func (t *tree) add(h tar.Header, content []byte) {
	if t.err == nil {
		t.err = t.w.WriteHeader(&h)
	}
	if t.err == nil {
		_, t.err = t.w.Write(content)
	}
}

func (t *tree) dir(name string, mode int64) {
	t.add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (t *tree) link(name, target string) {
	t.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (t *tree) file(name string, mode int64, content []byte) {
	t.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content)
}

func tarball(write func(*tree)) (layer, error) {
	var plain, packed bytes.Buffer
	t := &tree{w: tar.NewWriter(&plain)}
	write(t)
	if t.err == nil {
		t.err = t.w.Close()
	}
	if t.err != nil {
		return layer{}, t.err
	}
	zip, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed) // the level is valid
	_, _ = zip.Write(plain.Bytes())                        // a buffer takes everything
	_ = zip.Close()
	return layer{packed.Bytes(), digest(plain.Bytes())}, nil
}

// pushBlob uploads a blob in one piece (OCI distribution spec, "Pushing a blob
// monolithically").
func (r *Registry) pushBlob(repo string, blob []byte) error {
	resp, err := r.send(http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	location, err := resp.Location()
	if err != nil {
		return err
	}
	query := location.Query()
	query.Set("digest", digest(blob))
	_, err = r.send(http.MethodPut, location.Path+"?"+query.Encode(), "application/octet-stream", blob, http.StatusCreated)
	return err
}

func (r *Registry) pushManifest(repo, tag string, manifest []byte) error {
	_, err := r.send(http.MethodPut, "/v2/"+repo+"/manifests/"+tag,
		"application/vnd.docker.distribution.manifest.v2+json", manifest, http.StatusCreated)
	return err
}

// send makes a request past the proxy; the body of the answer is read and closed.
func (r *Registry) send(method, target, mediaType string, body []byte, want int) (*http.Response, error) {
	req, err := http.NewRequest(method, "http://registry"+target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := r.direct.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, target, resp.Status, text)
	}
	return resp, nil
}

func descriptor(mediaType string, blob []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "size": len(blob), "digest": digest(blob)}
}

func digest(blob []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(blob)) }

// mustJSON encodes maps and strings, which cannot fail. Keys come out sorted.
func mustJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// Unpack puts the two layers of an image into directories, for an engine that
// keeps images so. A layer whose directory is there already is left as it is.
func Unpack(tb TB, base, top, marker string, spec Spec) {
	tb.Helper()
	for dir, make := range map[string]func() (layer, error){
		base: baseLayer, top: func() (layer, error) { return spec.layer(marker) },
	} {
		if _, err := os.Stat(dir); err == nil {
			continue
		}
		l, err := make()
		if err != nil {
			giveUp(tb, err)
		}
		if err := l.unpack(dir); err != nil {
			tb.Fatalf("unpack a layer: %v", err)
		}
	}
}

func (l layer) unpack(dir string) error {
	zip, err := gzip.NewReader(bytes.NewReader(l.blob))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, name)
		default:
			var content []byte
			if content, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(name, content, 0o600)
			}
		}
		if err == nil && h.Typeflag != tar.TypeSymlink {
			err = os.Chmod(name, h.FileInfo().Mode()) // whatever the umask
		}
		if err != nil {
			return err
		}
	}
}
