package fakedocker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/reference"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/test/rig"
)

// image is an image with its layers: directories, the lowest one first.
type image struct {
	engine.Image // without names
	layers       []string
}

// Registry has images that engines can pull.
type Registry struct {
	host, dir string

	mu     sync.Mutex
	names  map[string]string // digest of what a tag names, by tag
	images map[string]*image // by digest
}

// NewRegistry makes an empty registry, which unpacks images below dir. host is
// the first part of its references.
func NewRegistry(dir, host string) *Registry {
	return &Registry{host: host, dir: dir, names: map[string]string{}, images: map[string]*image{}}
}

// Push puts an image into the registry; see rig.Image.
func (r *Registry) Push(tb rig.TB, name string, spec rig.Spec) rig.Ref {
	tb.Helper()
	repo, tag, ok := strings.Cut(name, ":")
	if !ok {
		tag = "latest"
	}
	text, err := json.Marshal(spec)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(append(text, r.host+"/"+repo...)))
	ref := rig.Ref{
		Tag: r.host + "/" + repo + ":" + tag, Digest: r.host + "/" + repo + "@sha256:" + sum,
		ID: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(sum))),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.images[ref.Digest] == nil {
		base, top := filepath.Join(r.dir, "base"), filepath.Join(r.dir, sum[:16])
		rig.Unpack(tb, base, top, sum, spec)
		system, arch, _ := strings.Cut(spec.Platform, "/")
		if system == "" {
			system, arch = "linux", thisArch
		}
		volumes := slices.Sorted(slices.Values(spec.Volumes))
		cmd := spec.Cmd
		if cmd == nil && spec.Entrypoint == nil {
			cmd = []string{"sh"}
		}
		r.images[ref.Digest] = &image{engine.Image{
			ID: ref.ID, Size: bytesIn(base) + bytesIn(top), OS: system, Arch: arch, Entrypoint: spec.Entrypoint, Cmd: cmd,
			Env:     append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, spec.Env...),
			Workdir: spec.Workdir, User: spec.User, Volumes: volumes,
		}, []string{base, top}}
	}
	r.names[ref.Tag] = ref.Digest
	return ref
}

// find returns what a reference names, with the tag and the digest that a pull of
// it gives to the image.
func (r *Registry) find(ref string) (img *image, tag, digest string, err error) {
	named, err := parse(ref)
	if err != nil {
		return nil, "", "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	digest = reference.FamiliarString(named)
	if _, ok := named.(reference.Digested); !ok {
		tag, digest = digest, r.names[digest]
	} else {
		digest = reference.FamiliarName(named) + "@" + named.(reference.Digested).Digest().String()
	}
	if img = r.images[digest]; img == nil {
		return nil, "", "", taskFault("cannot pull image %s: the registry does not have it", ref)
	}
	return img, tag, digest, nil
}

// parse returns a reference with a tag or a digest.
func parse(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err == nil && strings.ToLower(reference.Domain(named)) != reference.Domain(named) {
		err = reference.ErrNameContainsUppercase // as Docker 20.10 has it
	}
	if err != nil {
		return nil, taskFault("cannot use image %q: %w", ref, err)
	}
	return reference.TagNameOnly(named), nil
}

// id resolves a reference or an ID; the caller holds mu.
func (e *Engine) id(ref string) (string, error) {
	if e.images[ref] != nil {
		return ref, nil
	}
	if hasPrefix(ref, "sha256:") {
		return "", notFound("image", ref)
	}
	named, err := parse(ref)
	if err != nil {
		return "", err
	}
	name := reference.FamiliarString(named)
	if digested, ok := named.(reference.Digested); ok {
		name = reference.FamiliarName(named) + "@" + digested.Digest().String()
	}
	if id := e.names[name]; id != "" {
		return id, nil
	}
	return "", notFound("image", ref)
}

// namesOf returns the tags and digests of an image, sorted; the caller holds mu.
func (e *Engine) namesOf(id string) []string {
	var names []string
	for name, of := range e.names {
		if of == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Image returns the image that a reference or an ID names, or ErrNotFound.
func (e *Engine) Image(ctx context.Context, ref string) (engine.Image, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return engine.Image{}, err
	}
	id, err := e.id(ref)
	if err != nil {
		return engine.Image{}, err
	}
	img := e.images[id].Image
	img.Tags, img.Digests = e.tagsAndDigests(id)
	return img, nil
}

// Images returns the IDs and names of the images.
func (e *Engine) Images(ctx context.Context) ([]engine.Image, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var images []engine.Image
	for id := range e.images {
		img := engine.Image{ID: id}
		img.Tags, img.Digests = e.tagsAndDigests(id)
		images = append(images, img)
	}
	return images, ctx.Err()
}

func (e *Engine) tagsAndDigests(id string) (tags, digests []string) {
	for _, name := range e.namesOf(id) {
		if strings.Contains(name, "@") {
			digests = append(digests, name)
		} else {
			tags = append(tags, name)
		}
	}
	return tags, digests
}

// RemoteDigest asks the registry what a reference names now.
func (e *Engine) RemoteDigest(ctx context.Context, ref string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	_, _, digest, err := e.registry.find(ref)
	if err != nil {
		return "", err
	}
	_, digest, _ = strings.Cut(digest, "@")
	return digest, nil
}

// Pull loads an image from the registry, telling how it goes in three parts.
func (e *Engine) Pull(ctx context.Context, ref string, report func(engine.PullProgress)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	img, tag, digest, err := e.registry.find(ref)
	if err != nil {
		return err
	}
	for part := range int64(3) {
		if report != nil {
			report(engine.PullProgress{Done: img.Size * part / 2, Total: img.Size, Status: "Downloading"})
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if named := e.names[cmp.Or(tag, digest)] != img.ID; named && report != nil {
		report(engine.PullProgress{Done: img.Size, Total: img.Size, Named: true})
	}
	e.images[img.ID] = img
	e.names[digest] = img.ID
	if tag != "" {
		e.names[tag] = img.ID
	}
	if img.OS != "linux" || img.Arch != thisArch {
		return taskFault("cannot use image %s: it is for %s/%s", ref, img.OS, img.Arch)
	}
	return nil
}

// AddTag gives an image another name.
func (e *Engine) AddTag(id, tag string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.names[tag] = id
}

// Sync has nothing to do: no power cut takes anything from memory.
func (e *Engine) Sync(ctx context.Context) error { return ctx.Err() }

// RemoveImage removes a name or an image by Docker's rules (moby,
// daemon/images/image_delete.go).
func (e *Engine) RemoveImage(ctx context.Context, refOrID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	id, err := e.id(refOrID)
	if err != nil {
		return err
	}
	inUse := func(why string) error {
		return fmt.Errorf("cannot remove image %s: %w: %s", refOrID, engine.ErrInUse, why)
	}
	used := slices.IndexFunc(e.containers, func(c *container) bool { return c.image.ID == id })
	names := e.namesOf(id)
	if refOrID == id {
		if !single(names) {
			return inUse("it has several names")
		}
		if used >= 0 {
			return inUse("container " + e.containers[used].spec.Name)
		}
		for _, name := range names {
			delete(e.names, name)
		}
		delete(e.images, id)
		return nil
	}
	if used >= 0 && single(names) {
		return inUse("container " + e.containers[used].spec.Name)
	}
	named, err := parse(refOrID)
	if err != nil {
		return err
	}
	repo := reference.FamiliarName(named)
	if digested, ok := named.(reference.Digested); ok {
		delete(e.names, repo+"@"+digested.Digest().String())
	} else {
		delete(e.names, reference.FamiliarString(named))
		// With the last tag of a repository its digests go.
		left := e.namesOf(id)
		if !slices.ContainsFunc(left, func(n string) bool { return hasPrefix(n, repo+":") }) {
			for _, n := range left {
				if hasPrefix(n, repo+"@") {
					delete(e.names, n)
				}
			}
		}
	}
	if len(e.namesOf(id)) == 0 && used < 0 {
		delete(e.images, id)
	}
	return nil
}

// single says whether an image has at most one tag, and all of its names are of
// one repository.
func single(names []string) bool {
	if len(names) <= 1 {
		return true
	}
	tag, repos := "", map[string]bool{}
	for _, n := range names {
		if repo, _, digest := strings.Cut(n, "@"); digest {
			repos[repo] = true
		} else if tag != "" {
			return false
		} else {
			tag = n
		}
	}
	if tag == "" {
		return len(repos) == 1
	}
	return len(repos) == 1 && repos[tag[:strings.LastIndex(tag, ":")]]
}

var thisArch = func() string { i, _ := (&Engine{}).Info(context.Background()); return i.Arch }()

// copyTree copies files and directories.
func copyTree(from, to string) error {
	if _, err := os.Stat(from); err != nil {
		return nil // the image has nothing there
	}
	return os.CopyFS(to, os.DirFS(from))
}

// Manifest tells what the registry says of an image.
func (e *Engine) Manifest(ctx context.Context, ref string) (*engine.Manifest, error) {
	img, _, _, err := e.registry.find(ref)
	if err != nil {
		return nil, err
	}
	return &engine.Manifest{Reference: ref, IDs: []string{img.ID}}, ctx.Err()
}

// LayerBytes tells how large the layers of an image are.
func (e *Engine) LayerBytes(ctx context.Context, img engine.Image, _ *engine.Manifest) ([]int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var bytes []int64
	if i := e.images[img.ID]; i != nil {
		for _, layer := range i.layers {
			bytes = append(bytes, bytesIn(layer))
		}
	}
	return bytes, ctx.Err()
}

// PullNeed tells what pulling these images would take: what those have that are
// not there yet. All images have their lowest layer in common.
func (e *Engine) PullNeed(ctx context.Context, of []*engine.Manifest, old ...string) (engine.PullNeed, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var need engine.PullNeed
	for _, m := range of {
		img, _, _, err := e.registry.find(m.Reference)
		if err != nil {
			return engine.PullNeed{}, err
		}
		for _, layer := range img.layers {
			has := func(other *image) bool { return slices.Contains(other.layers, layer) }
			there, stays := false, false
			for id, other := range e.images {
				there, stays = there || has(other), stays || has(other) && !slices.Contains(old, id)
			}
			switch size := bytesIn(layer); {
			case !there:
				need.Layers++
				need.Compressed += size
				need.Unpacked += size
				need.Peak += size
			case !stays:
				need.Saved++
			}
		}
	}
	return need, ctx.Err()
}
