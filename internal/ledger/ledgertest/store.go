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
	// Removed lists what RemoveImage was asked for, in order, refusals included.
	Removed []string
	Size    int64 // of every image, in bytes
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{images: map[string]bool{}, names: map[string]string{}, users: map[string]bool{}, Size: 1000}
}

// Load puts content on the node as a pull of ref does.
func (s *Store) Load(ref, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := ID(content)
	s.images[id] = true
	s.names[Repository(ref)+"@"+id] = id
	s.names[ref] = id
}

// Tag gives an image that is there another name.
func (s *Store) Tag(content, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = ID(content)
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
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Removed = append(s.Removed, ref)
	id, named := s.names[ref]
	if !named {
		id = ref
	}
	if !s.images[id] {
		return fmt.Errorf("no image %s: %w", ref, engine.ErrNotFound)
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
		return fmt.Errorf("must force %s: %w", ref, engine.ErrInUse)
	}
	if !named {
		for _, n := range names {
			delete(s.names, n)
		}
	} else {
		s.untag(ref, id)
	}
	if len(s.namesOf(id)) == 0 && !s.users[id] {
		delete(s.images, id)
	}
	return nil
}

// untag removes a name; the last tag of a repository takes its digests along.
func (s *Store) untag(ref, id string) {
	delete(s.names, ref)
	if strings.Contains(ref, "@") {
		return
	}
	repository := Repository(ref)
	digest := repository + "@" + id
	for _, n := range s.namesOf(id) {
		if n != digest && Repository(n) == repository {
			return
		}
	}
	delete(s.names, digest)
}
