// Package ledgertest has a store of images for tests that need no engine. It
// keeps names and refuses deletions as the Docker Engine does.
package ledgertest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/deckhand/deckhand/internal/engine"
)

// ID is the image ID of some content. The digest of its manifest is the same.
func ID(content string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content))) }

// Store is the images of one node.
type Store struct {
	mu     sync.Mutex
	images map[string]bool   // by ID
	names  map[string]string // name:tag or name@digest -> ID
	users  map[string]bool   // IDs that containers refer to
	open   []*operation      // that are under way
	// Between is called between the steps of a pull or a removal, when an image may be
	// without its names. An image in use has them all: that two removals at once may
	// take them from it is left out.
	Between func()
	// Removed lists what RemoveImage was asked for, in order, refusals included.
	Removed []string
	// Fleeting says that something was removed and not synced since: it is back when the
	// power goes.
	Fleeting bool
	SyncErr  error // of Sync
	Size     int64 // of every image, in bytes
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{images: map[string]bool{}, names: map[string]string{}, users: map[string]bool{}, Size: 1000}
}

// operation is the steps that are left of one of Docker's operations.
type operation struct{ steps []func() }

func (s *Store) step(o *operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(o.steps) > 0 {
		first := o.steps[0]
		o.steps = o.steps[1:]
		first()
	}
}

// do takes the steps of an operation on an image one by one, and lets others look in
// between.
func (s *Store) do(id string, steps ...func()) {
	o := &operation{steps}
	s.open = append(s.open, o)
	for len(o.steps) > 0 {
		s.step(o)
		if len(o.steps) > 0 && s.Between != nil && !s.users[id] {
			s.Between()
		}
	}
	s.open = slices.DeleteFunc(s.open, func(p *operation) bool { return p == o })
}

// Settle ends all operations that are under way: time passes.
func (s *Store) Settle() {
	for _, o := range s.open {
		for len(o.steps) > 0 {
			s.step(o)
		}
	}
}

// Load puts content on the node as a pull of ref does. It says whether that gave the
// image the reference.
func (s *Store) Load(ref, content string) (named bool) {
	id := ID(content)
	s.do(
		id,
		func() { s.images[id] = true },
		func() {
			named = s.names[ref] != id
			s.images[id], s.names[Repository(ref)+"@"+id] = true, id
		},
		func() {
			if named {
				s.images[id], s.names[ref] = true, id
			}
		},
	)
	return named
}

// Tag gives an image that is there another name.
func (s *Store) Tag(content, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = ID(content)
}

// RemoveName takes a name, and nothing else, as a power cut may.
func (s *Store) RemoveName(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] == "" {
		return fmt.Errorf("nothing is named %s", name)
	}
	delete(s.names, name)
	return nil
}

// Use says whether a container refers to the image.
func (s *Store) Use(content string, used bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[ID(content)] = used
}

// Has says whether an image is there, under whatever name.
func (s *Store) Has(content string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.images[ID(content)]
}

// Names returns the names of an image, sorted.
func (s *Store) Names(content string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namesOf(ID(content))
}

func (s *Store) namesOf(id string) []string {
	var names []string
	for _, n := range slices.Sorted(maps.Keys(s.names)) {
		if s.names[n] == id {
			names = append(names, n)
		}
	}
	return names
}

// Repository is a name without tag and digest.
func Repository(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name = name[:colon]
	}
	return name
}

// Image finds an image by name or ID.
func (s *Store) Image(_ context.Context, ref string) (engine.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.names[ref]
	if !ok {
		id = ref
	}
	if !s.images[id] {
		return engine.Image{}, fmt.Errorf("no image %s: %w", ref, engine.ErrNotFound)
	}
	img := s.image(id)
	img.Size = s.Size
	return img, nil
}

func (s *Store) image(id string) engine.Image {
	img := engine.Image{ID: id}
	for _, n := range s.namesOf(id) {
		if strings.Contains(n, "@") {
			img.Digests = append(img.Digests, n)
		} else {
			img.Tags = append(img.Tags, n)
		}
	}
	return img
}

// Images returns the IDs and names of all images, sorted by ID.
func (s *Store) Images(context.Context) ([]engine.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var images []engine.Image
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		images = append(images, s.image(id))
	}
	return images, nil
}

// RemoveImage removes a name, and the image with its last one, without force.
func (s *Store) RemoveImage(_ context.Context, ref string) error {
	id, steps, err := s.removal(ref)
	s.do(id, steps...)
	return err
}

// Sync makes removals last.
func (s *Store) Sync(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.SyncErr == nil {
		s.Fleeting = false
	}
	return s.SyncErr
}

// removal is the steps of a removal that nothing forbids.
func (s *Store) removal(ref string) (id string, steps []func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Removed = append(s.Removed, ref)
	id, named := s.names[ref]
	if !named {
		id = ref
	}
	if !s.images[id] {
		return id, nil, fmt.Errorf("no image %s: %w", ref, engine.ErrNotFound)
	}
	names, tags, repositories := s.namesOf(id), 0, map[string]bool{}
	for _, n := range names {
		repositories[Repository(n)] = true
		if !strings.Contains(n, "@") {
			tags++
		}
	}
	single := len(repositories) <= 1 && tags <= 1
	if single && s.users[id] || !named && !single {
		return id, nil, fmt.Errorf("must force %s: %w", ref, engine.ErrInUse)
	}
	untag := func(name string) {
		steps = append(steps, func() {
			if s.names[name] == id {
				delete(s.names, name)
			}
		})
	}
	if named {
		untag(ref)
		if digest, last := s.taken(ref, id); last {
			untag(digest)
		}
	} else {
		for _, n := range names {
			untag(n)
		}
	}
	return id, append(steps, func() {
		s.Fleeting = true
		if len(s.namesOf(id)) == 0 && !s.users[id] {
			delete(s.images, id)
		}
	}), nil
}

// taken is the digest that goes with a tag, when it is the last one of its repository.
func (s *Store) taken(ref, id string) (string, bool) {
	repository := Repository(ref)
	digest := repository + "@" + id
	if strings.Contains(ref, "@") {
		return "", false
	}
	for _, n := range s.namesOf(id) {
		if n != digest && n != ref && Repository(n) == repository {
			return "", false
		}
	}
	return digest, true
}
